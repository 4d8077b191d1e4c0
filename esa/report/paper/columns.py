"""What a table of a paper is made of: the columns that say which row it is, and those that hold its numbers."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import polars as pl

from esa.artifact.gather import Gathered

Kind = Literal["number", "percent", "text", "code", "flag"]


@dataclass(frozen=True)
class Key:
    """A column that tells rows apart; where all rows agree it goes into the caption.

    ``plain``: values that are left out of the names of macros. ``code``: typewriter type.
    """

    column: str
    header: str
    plain: tuple[str, ...] = ()
    code: bool = False


@dataclass(frozen=True)
class Value:
    """A column of the table: what it shows, and the columns that hold the ends of its interval.

    ``word`` is what the names of its macros end in, empty for the table's main number. ``extremes``: the ends are the
    smallest and the largest of several cases, and no interval to round to. ``hidden``: macros alone hold it.
    """

    column: str
    header: str
    word: str
    low: str | None = None
    high: str | None = None
    kind: Kind = "number"
    extremes: bool = False
    hidden: bool = False


@dataclass(frozen=True)
class Layout:
    """A table: its name (its file's and its macros' first word), what its caption says, and where its rows come from.

    ``rows`` gives them of a run, by default every row of the table of ``kind`` that ``step`` wrote. ``split`` names the key
    columns of which every value has a table of its own.
    """

    name: str
    title: str
    step: str
    kind: str
    keys: tuple[Key, ...]
    values: tuple[Value, ...]
    note: str = ""
    split: tuple[str, ...] = ()
    rows: Callable[[Gathered], pl.DataFrame | None] | None = None

    def frame(self, run: Gathered) -> pl.DataFrame | None:
        """Return the rows of a run; None where it has none."""
        found = run.table(self.step, self.kind) if self.rows is None else self.rows(run)
        return found if found is not None and found.height else None


def number(column: str, header: str, word: str | None = None, *, hidden: bool = False) -> Value:
    """Return a column of numbers; ``word`` is by default its header's."""
    return Value(column, header, header if word is None else word, hidden=hidden)


def estimate(column: str, header: str, word: str, low: str, high: str) -> Value:
    """Return a column of numbers with their intervals."""
    return Value(column, header, word, low, high)


def text(column: str, header: str) -> Value:
    """Return a column of words, which no macro holds."""
    return Value(column, header, "", kind="text")
