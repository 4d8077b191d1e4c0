"""Every failure that is reported to a person as text, and the exit code it ends with.

EsaError (3)
|- SpecError        a spec that does not hold: all its problems at once
|- ArtifactError    a table, manifest or run folder that cannot be read or used
|  '- BusyError     a step that another process is writing
|- DataError        a text source that is missing or too short
|- ModelError       a model that cannot be found, loaded or walked
|- TargetError      an address that names no weight of the model
|- SelectionError   a ranking that the scores cannot give
|- LostError        another process of the same run ended or cannot be reached
'- CheckError (4)   the work is done and a check on it failed
"""

EXIT_OK = 0
EXIT_BUG = 1
EXIT_USAGE = 2
EXIT_CONTENT = 3
EXIT_CHECK = 4
EXIT_INTERRUPTED = 130


class EsaError(Exception):
    """Say what is wrong, where, and what to do next: ``<where>: <what>`` and ``hint: <next action>``."""

    exit_code = EXIT_CONTENT

    def __init__(self, what: str, *, where: str | None = None, hint: str | None = None) -> None:
        super().__init__(what)
        self.what = what
        self.where = where
        self.hint = hint

    def lines(self) -> list[str]:
        """Return the lines a person reads, without the program's name."""
        return [f"{self.where}: {self.what}" if self.where else self.what]

    def __str__(self) -> str:
        return "\n".join([*self.lines(), *([f"hint: {self.hint}"] if self.hint else [])])


class SpecError(EsaError):
    """Hold every problem of a spec; each names its file, line and key."""

    def __init__(self, problems: list[str], *, hint: str | None = None) -> None:
        super().__init__("\n".join(problems), hint=hint)
        self.problems = problems

    def lines(self) -> list[str]:
        """Return one line per problem."""
        return self.problems


class ArtifactError(EsaError):
    """A table, manifest or run folder cannot be read or used."""


class BusyError(ArtifactError):
    """A step is being written by another process or thread: it can be waited for."""


class DataError(EsaError):
    """A text source is missing, unknown or too short."""


class ModelError(EsaError):
    """A model cannot be found, loaded or walked block by block."""


class TargetError(EsaError):
    """An address names no weight of the model."""


class SelectionError(EsaError):
    """The scores at hand cannot give the ranking asked for."""


class LostError(EsaError):
    """Another process of the same run ended or cannot be reached: its own error says why."""


class CheckError(EsaError):
    """The work is done and written, and a check on it failed."""

    exit_code = EXIT_CHECK
