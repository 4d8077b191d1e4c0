"""The tables of a paper: booktabs, with a caption that is computed and a label, and every number of them as a macro."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import polars as pl

from esa.artifact.gather import Gathered
from esa.report.figures import slug
from esa.report.paper.columns import Key, Layout, Value, estimate, text
from esa.report.paper.escape import code, escape
from esa.report.paper.layouts import LAYOUTS
from esa.report.paper.names import Macros, letters
from esa.report.paper.rounding import MISSING, ends, number, percent, spread, with_interval
from esa.report.verdicts import Judged, criteria_table

ROWS = 40  # of one table: what is longer goes on in another, each of which fits a page
_WIDE = 60  # characters of a cell from which its column breaks lines
_BROAD = 32  # characters of a line in such a column
_HEADERS = {"R2": "$R^2$", "tau2": r"$\tau^2$", "I2": "$I^2$", "k": "$k$", "p": "$p$", "z": "$z$", "n": "$n$"}
_RUN = Key("run_label", "run")
_BEST = Key("id", "criterion"), Key("subject", "of")
_CRITERIA = Layout(
    "criteria", "Criteria and verdicts", "report", "criteria/1", _BEST,
    (text("quantity", "quantity"), estimate("value", "value", "", "low", "high"), text("verdict", "verdict")),
    "Those that the artifacts hold a number for.",
)  # fmt: skip
Row = dict[str, Any]


@dataclass(frozen=True)
class PaperTable:
    """A table that a document inputs: the name of its file, its caption, and its cells, all as LaTeX; ``source`` in words."""

    name: str
    caption: str
    source: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    align: str

    @property
    def label(self) -> str:
        r"""Return what ``\ref`` takes."""
        return f"tab:esa-{self.name.replace('_', '-')}"

    @property
    def tex(self) -> str:
        """Return the float: no wider than the line, whatever its columns hold."""
        lines = [f"    {' & '.join(row)} \\\\" for row in self.rows]
        return "\n".join([
            f"% {self.source}",
            r"\begin{table}[htbp]",
            r"  \centering",
            rf"  \caption{{{self.caption}}}",
            rf"  \label{{{self.label}}}",
            r"  \footnotesize",
            r"  \resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{%",
            rf"  \begin{{tabular}}{{{self.align}}}",
            r"    \toprule",
            f"    {' & '.join(self.header)} \\\\",
            r"    \midrule",
            *lines,
            r"    \bottomrule",
            r"  \end{tabular}}",
            r"\end{table}",
            "",
        ])  # fmt: skip


def paper_tables(
    runs: Sequence[tuple[str, Gathered]], judged: Sequence[Judged], macros: Macros
) -> Iterator[PaperTable]:
    r"""Yield every table that the artifacts allow, and define the macros of its numbers.

    Several runs share a table, a row saying whose it is. Names of macros: the table, the run where there are several, what
    tells the row apart, and the column: ``\esaDamageObdZeroTen``. Of a number with an interval there are also
    ``...Estimate``, ``...Low`` and ``...High``.
    """
    taken: set[str] = set()
    for one in _every(runs, judged, macros):
        name, count = one.name, 1
        while name in taken:
            count += 1
            name = f"{one.name}_{letters(count).lower()}"
        taken.add(name)
        yield replace(one, name=name)


def _every(runs: Sequence[tuple[str, Gathered]], judged: Sequence[Judged], macros: Macros) -> Iterator[PaperTable]:
    """Yield every table; names may come twice where methods differ only in signs that no file's name has."""
    for layout in LAYOUTS:
        rows = [
            {**row, _RUN.column: label, "_source": f"{layout.kind}, {_step(run, layout)}"}
            for label, run in runs
            if (frame := layout.frame(run)) is not None
            for row in frame.iter_rows(named=True)
            if any(row[value.column] is not None for value in layout.values)
        ]
        yield from _tables(layout, rows, macros, several=len(runs) > 1)
    if judged:
        frame = criteria_table("", judged, {}).frame
        known = frame.filter(pl.col("value").is_not_null())
        rows = [{**row, _RUN.column: "", "_source": "criteria/1, as esa report judges"} for row in known.to_dicts()]
        yield from _tables(_CRITERIA, rows, macros, several=False)


def _step(run: Gathered, layout: Layout) -> str:
    manifest = run.manifests[layout.step]
    return f"{manifest['step']}-{manifest['run']}"


def _tables(layout: Layout, rows: list[Row], macros: Macros, *, several: bool) -> Iterator[PaperTable]:
    keys = (_RUN, *layout.keys) if several else layout.keys
    of_several = len({row[_RUN.column] for row in rows}) > 1  # else the names of macros need no run
    for row in rows:
        _define(layout, keys if of_several else layout.keys, row, macros)
    for words, group in _groups(layout, rows):
        parts = list(pages(layout, group))
        for count, part in enumerate(parts, start=1):
            name = "_".join([layout.name, *words, *([str(count)] if count > 1 else [])])
            of = f" Part {count} of {len(parts)}." if len(parts) > 1 else ""
            yield _table(layout, keys, name, part, group, of)


def pages(layout: Layout, rows: list[Row]) -> Iterator[list[Row]]:
    """Yield the rows of each page: as many as have ``ROWS`` lines together, a long text being broken into several."""
    page: list[Row] = []
    taken = 0
    texts = [*(key.column for key in layout.keys), *(value.column for value in layout.values if value.kind == "text")]
    broken = [name for name in texts if max(len(str(row[name])) for row in rows) > _WIDE]
    for row in rows:
        lines = max((math.ceil(len(str(row[name])) / _BROAD) for name in broken), default=1)
        if page and taken + lines > ROWS:
            yield page
            page, taken = [], 0
        page.append(row)
        taken += lines
    yield page


def _groups(layout: Layout, rows: list[Row]) -> Iterator[tuple[list[str], list[Row]]]:
    """Yield the rows of each table with the words that its name has: those of the columns it is split by."""
    plain = {key.column: key.plain for key in layout.keys}
    found: dict[tuple[str, ...], list[Row]] = {}
    for row in rows:
        told = (str(row[name]) for name in layout.split if row[name] is not None and row[name] not in plain[name])
        found.setdefault(tuple(slug(word).replace(".", "_") for word in told), []).append(row)
    for words, group in found.items():
        yield list(words), group


def _table(
    layout: Layout, keys: Sequence[Key], name: str, rows: list[Row], group: list[Row], of: str
) -> PaperTable:  # fmt: skip
    """Return a table without the columns that are empty in its whole group; what all its rows share is in the caption."""
    told = [key for key in keys if len({row[key.column] for row in group}) > 1]
    told = told or [key for key in keys if group[0][key.column] is not None][:1]
    filled = [value for value in layout.values if any(row[value.column] is not None for row in group)]
    values = [value for value in filled if not value.hidden]
    shared = [
        f"{_HEADERS.get(key.header, escape(_title(key.header)))}: {_key(key, group[0])}."
        for key in keys
        if key not in told and group[0][key.column] is not None
    ]
    cells = [(*(_key(key, row) for key in told), *(shown(value, row) for value in values)) for row in rows]
    header = [*(_header(key.header) for key in told), *(_header(value.header) for value in values)]
    texts = [*(key.column for key in told), *(value.column if value.kind == "text" else "" for value in values)]
    wide = [bool(name) and max(len(str(row[name])) for row in rows) > _WIDE for name in texts]
    align = [*("l" for _ in told), *("l" if value.kind in ("text", "code", "flag") else "r" for value in values)]
    sources = dict.fromkeys(row["_source"] for row in rows)
    return PaperTable(
        name,
        " ".join([f"{escape(layout.title)}.", *shared, *([escape(layout.note)] if layout.note else [])]) + of,
        f"from {'; '.join(sources)}",
        tuple(header),
        tuple(cells),
        "".join("p{5cm}" if broad else one for broad, one in zip(wide, align, strict=True)),
    )


def shown(value: Value, row: Row) -> str:
    """Return a cell as LaTeX; null as an en dash."""
    found = row[value.column]
    if found is None:
        return MISSING
    if value.kind == "code":
        return code(found)
    if value.kind == "text":
        return escape(found) if found else MISSING
    if value.kind == "flag":
        return "yes" if found else "no"
    if value.kind == "percent":
        return percent(found)
    low, high = (None if name is None else row[name] for name in (value.low, value.high))
    return (spread if value.extremes else with_interval)(found, low, high)


def _define(layout: Layout, keys: Sequence[Key], row: Row, macros: Macros) -> None:
    """Define the macros of a row: each of its numbers, and the text of a column that has a word."""
    words: list[object] = [layout.name]
    told = []
    for key in keys:
        found = row[key.column]
        if found is None or str(found) in key.plain:
            continue
        named = isinstance(found, int | float) and key.column != "k"
        words.append(f"{key.column} {found}" if named else found)
        told.append(f"{key.header} {found}")
    for value in layout.values:
        if row[value.column] is None or value.kind in ("text", "flag"):
            continue
        what = f"{layout.title}; {', '.join(told)}: {value.header}"
        own = [*words, value.word]
        macros.add(own, shown(value, row), what, row["_source"])
        if value.low is None or value.high is None or row[value.low] is None or row[value.low] == row[value.high]:
            continue
        three = [row[name] for name in (value.column, value.low, value.high)]
        each = tuple(map(number, three)) if value.extremes else ends(*three)
        for word, one, part in zip(("Estimate", "Low", "High"), each, ("value", "low end", "high end"), strict=True):
            macros.add([*own, word], one, f"{what}, {part}", row["_source"])


def _key(key: Key, row: Row) -> str:
    found = row[key.column]
    if found is None:
        return MISSING
    if key.code:
        return code(found)
    return number(found) if isinstance(found, int | float) else escape(found)


def _header(words: str) -> str:
    return _HEADERS.get(words, escape(words))


def _title(words: str) -> str:
    return words[:1].upper() + words[1:]
