"""How the working parts report where they are, without knowing who listens."""

from typing import Protocol


class Progress(Protocol):
    """Receive the start and the advance of named pieces of work, notes, and warnings."""

    def start(self, label: str, total: int) -> None:
        """Open the piece of work ``label`` of ``total`` units; it replaces the one before."""

    def advance(self, amount: int = 1) -> None:
        """Count ``amount`` units of the open piece of work as done."""

    def finish(self) -> None:
        """Close the open piece of work."""

    def note(self, text: str) -> None:
        """Say something worth knowing."""

    def warn(self, text: str) -> None:
        """Say something that a reader of the result must know; it also enters the manifest."""


class Silent:
    """Keep the warnings and say nothing: the default of every Python call."""

    def __init__(self) -> None:
        self.warnings: list[str] = []

    def start(self, label: str, total: int) -> None:
        """Ignore the start."""

    def advance(self, amount: int = 1) -> None:
        """Ignore the advance."""

    def finish(self) -> None:
        """Ignore the end."""

    def note(self, text: str) -> None:
        """Ignore the note."""

    def warn(self, text: str) -> None:
        """Keep the warning for the manifest."""
        self.warnings.append(text)


class Recording:
    """Pass everything on to a listener, and keep the warnings of one step for its manifest."""

    def __init__(self, listener: Progress | None) -> None:
        self.listener: Progress = listener if listener is not None else Silent()
        self.warnings: list[str] = []

    def start(self, label: str, total: int) -> None:
        """Pass the start on."""
        self.listener.start(label, total)

    def advance(self, amount: int = 1) -> None:
        """Pass the advance on."""
        self.listener.advance(amount)

    def finish(self) -> None:
        """Pass the end on."""
        self.listener.finish()

    def note(self, text: str) -> None:
        """Pass the note on."""
        self.listener.note(text)

    def warn(self, text: str) -> None:
        """Keep the warning, and pass it on."""
        self.warnings.append(text)
        self.listener.warn(text)
