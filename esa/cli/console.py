"""What a person sees: progress, notes and warnings on stderr, errors in two lines, tables that fit the window."""

import io
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from rich.cells import cell_len
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress
from rich.table import Table

from esa.cli.plain import printable
from esa.errors import EsaError

_LOG_SECONDS = 60.0
_PAGE_WIDTH = 100  # of what is written to a file or a pipe


def stderr_console() -> Console:
    """Return a console on standard error."""
    return Console(stderr=True, highlight=False, soft_wrap=False)


def print_error(error: EsaError) -> None:
    """Print an error's lines and its hint; what files hold reaches the terminal as text, not as commands to it."""
    lines = [f"esa: error: {line}" for line in error.lines()] + ([f"  hint: {error.hint}"] if error.hint else [])
    for line in lines:
        print(printable(line), file=sys.stderr)


class ConsoleProgress:
    """Show work as a bar with a rate on a terminal, as a line a minute in a log; keep the warnings."""

    def __init__(self, *, quiet: bool = False, verbose: bool = False) -> None:
        self.warnings: list[str] = []
        self.quiet, self.verbose = quiet, verbose
        self.console = stderr_console()
        self._bar: RichProgress | None = None
        self._task: TaskID | None = None
        self._label, self._total, self._done = "", 0, 0
        self._began = self._logged = 0.0

    def start(self, label: str, total: int) -> None:
        """Open a piece of work."""
        self.finish()
        self._label, self._total, self._done = label, total, 0
        self._began = self._logged = time.monotonic()
        if self.quiet or not self.console.is_terminal:
            return
        self._bar = RichProgress(
            TextColumn("  {task.description:<10}"),
            BarColumn(bar_width=30),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=self.console,
            transient=True,
            redirect_stdout=False,
        )
        self._bar.start()
        self._task = self._bar.add_task(label, total=total, rate="")

    def advance(self, amount: int = 1) -> None:
        """Count units as done."""
        self._done += amount
        now = time.monotonic()
        rate = self._done / max(now - self._began, 1e-9)
        shown = f"{rate:.1f}/s" if rate >= 1 else f"{1 / max(rate, 1e-9):.1f} s each"
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, advance=amount, rate=shown)
        elif not self.quiet and now - self._logged >= _LOG_SECONDS:
            self._logged = now
            self._say(f"{self._label} {self._done}/{self._total}, {shown}")

    def finish(self) -> None:
        """Close the open piece of work."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
        if self._label and not self.quiet:
            self._say(f"{self._label} {self._done}/{self._total} in {time.monotonic() - self._began:.1f} s")
        self._label = ""

    def note(self, text: str) -> None:
        """Say something worth knowing."""
        if not self.quiet:
            self._say(text)

    def warn(self, text: str) -> None:
        """Say a warning once, and keep it."""
        if text not in self.warnings:
            self.warnings.append(text)
            if not self.quiet:
                self.console.print(f"[yellow]esa: warning:[/] {escape(text)}", soft_wrap=True)

    def _say(self, text: str) -> None:
        self.console.print(f"[dim]  {escape(text)}[/]", soft_wrap=True)

    @contextmanager
    def closing(self) -> Iterator[None]:
        """Leave the terminal as it was, whatever happens."""
        try:
            yield
        finally:
            if self._bar is not None:
                self._bar.stop()
                self._bar = None


@contextmanager
def page() -> Iterator[Console]:
    """Yield a console whose text goes to standard output at the end, in one piece, so that a closed pipe ends quietly."""
    text = io.StringIO()
    terminal = sys.stdout.isatty()
    yield Console(file=text, force_terminal=terminal, width=None if terminal else _PAGE_WIDTH, highlight=False)
    for line in text.getvalue().splitlines():
        print(line.rstrip())


def print_table(
    title: str,
    header: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    right: Sequence[str] = (),
    wrap: Sequence[str] = ("outcome",),
    console: Console | None = None,
) -> None:
    """Print a table, on standard error unless a ``console`` is given.

    The columns named in ``right`` are right-aligned; the cells of those in ``wrap`` may take several lines.
    """
    table = Table(title=title, title_justify="left", box=None, pad_edge=False, header_style="bold", title_style="bold")
    fixed = []
    for column, name in enumerate(header):
        widest = max(cell_len(printable(cells[column])) for cells in [header, *rows])
        table.add_column(
            name,
            justify="right" if name in right else "left",
            no_wrap=name not in wrap,
            overflow="fold",
            min_width=None if name in wrap else widest,
        )
        fixed.append(cell_len(name) if name in wrap else widest)
    for row in rows:
        table.add_row(*(escape(printable(cell)) for cell in row))
    if console is None:
        console = stderr_console()
        if not console.is_terminal:
            console.width = 200
    # A cut address or figure would be a wrong one: a table that is wider than the window runs over instead.
    console.width = max(console.width, sum(fixed) + 2 * len(header))
    console.print()
    console.print(table)


def print_line(text: str) -> None:
    """Print a line on standard error."""
    stderr_console().print(escape(text), soft_wrap=True)


def number(value: float | int | None, digits: int = 4) -> str:
    """Return a number with thousands separators and ``digits`` significant digits, or a dash."""
    if value is None:
        return "-"
    if isinstance(value, int):
        return f"{value:,}"
    if value == 0:
        return "0"
    size = abs(value)
    if size >= 10**digits:
        return f"{value:,.0f}" if size < 1e9 else f"{value:.3g}"
    if size < 1e-3:
        return f"{value:.2e}"
    return f"{value:#.{digits}g}".rstrip(".")
