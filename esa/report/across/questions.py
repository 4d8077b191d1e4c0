"""Comparisons on the page: the rows of ``comparison/1`` that answer a question, a table with the columns that say anything."""

from collections.abc import Callable, Sequence
from typing import Any

import polars as pl

from esa.artifact.gather import Gathered
from esa.report.evidence.claims import ends
from esa.report.markdown import MISSING, bullets, code, escape, join, number, percent, table

ROWS = 30  # of one question's table; comparison.csv has all


def asked(run: Gathered, *questions: str) -> pl.DataFrame:
    """Return the rows of ``comparison/1`` of some questions; none where the run compares nothing."""
    found = run.table("arch", "comparison/1")
    if found is None:
        from esa.artifact import make_table

        return make_table("comparison/1", []).frame
    return found.filter(pl.col("question").is_in(questions))


def others(run: Gathered, known: Sequence[str]) -> pl.DataFrame:
    """Return the rows of ``comparison/1`` of every question but the known ones."""
    found = run.table("arch", "comparison/1")
    if found is None:
        return asked(run)
    return found.filter(~pl.col("question").is_in(list(known)))


def answer_parts(rows: pl.DataFrame) -> list[str]:
    """Return the answers as a table, then what could not be answered and why; nothing for no rows."""
    known = rows.filter(pl.col("value").is_not_null())
    parts = []
    if known.height:
        shown = known.head(ROWS).to_dicts()
        columns = [(name, align, [write(row) for row in shown]) for name, align, write in _COLUMNS]
        columns = [(name, align, cells) for name, align, cells in columns if any(cell for cell in cells)]
        header, aligns = [name for name, _, _ in columns], "".join(align for _, align, _ in columns)
        parts.append(table(header, list(map(list, zip(*(cells for _, _, cells in columns), strict=True))), aligns))
        parts += _nulls(known)
        if known.height > ROWS:
            parts.append(f"{number(known.height - ROWS)} more are in `comparison.csv`.")
    refused = refusals(rows)
    return [*parts, *([bullets(refused)] if refused else [])]


def _value(row: dict[str, Any]) -> str:
    """Return a value with its interval; a count as one."""
    if str(row["quantity"]).startswith("num_") and row["low"] is None:
        return number(round(row["value"]))
    return ends(row["value"], row["low"], row["high"])


def _nulls(rows: pl.DataFrame) -> list[str]:
    """Return what the p values of each quantity are held against, in a sentence."""
    known = rows.drop_nulls("null").unique(["null", "quantity"], keep="first", maintain_order=True)
    found: dict[str, list[str]] = {}
    for null, quantity in known.select("null", "quantity").iter_rows():
        found.setdefault(null, []).append(escape(str(quantity).replace("_", " ")))
    texts = [f"{escape(null)} ({join(of)})" if len(found) > 1 else escape(null) for null, of in found.items()]
    return [f"Held against: {'; '.join(texts)}."] if texts else []


def refusals(rows: pl.DataFrame) -> list[str]:
    """Return why a question has no value, each reason once with the models that it holds for."""
    lacking = rows.filter(pl.col("value").is_null() & pl.col("why").is_not_null())
    found: dict[tuple[str, str], list[str]] = {}
    for row in lacking.iter_rows(named=True):
        of = " against ".join(code(name, cell=False) for name in (row["a"], row["b"]) if name)
        what = str(row["quantity"]).replace("_", " ") + (f" ({row['subject']})" if row["subject"] else "")
        found.setdefault((row["why"], what), []).append(of)
    return [
        f"No {escape(what)}{f' of {join(list(dict.fromkeys(of)))}' if any(of) else ''}: {escape(why)}"
        for (why, what), of in found.items()
    ]


def significant(rows: pl.DataFrame, level: float = 0.05) -> str:
    """Return how many of the tests of some rows are under ``level``, adjusted where they were; empty for no test."""
    tested = rows.filter(pl.col("p_value").is_not_null())
    if tested.is_empty():
        return ""
    p = tested.select(pl.coalesce("p_adjusted", "p_value")).to_series()
    count = int((p <= level).sum())
    how = "after Holm's adjustment" if not tested["p_adjusted"].null_count() else "unadjusted"
    return f"{number(count)} of {number(tested.height)} tests are under p = {level:g} {how}."


def share_range(values: Sequence[float], write: Callable[[float], str] = percent) -> str:
    """Return ``a to b`` of some values, or the one that they all are."""
    low, high = write(min(values)), write(max(values))
    return low if low == high else f"{low} to {high}"


def _text(value: Any) -> str:
    return "" if value is None else escape(value) or MISSING


_COLUMNS: tuple[tuple[str, str, Callable[[dict[str, Any]], str]], ...] = (
    ("of", "l", lambda row: code(row["a"]) if row["a"] is not None else ""),
    ("against", "l", lambda row: code(row["b"]) if row["b"] is not None else ""),
    ("metric", "l", lambda row: _text(row["metric"])),
    ("subject", "l", lambda row: _text(row["subject"])),
    ("quantity", "l", lambda row: _text(row["quantity"]).replace("\\_", " ").replace("_", " ")),
    ("value", "r", _value),
    ("expected", "r", lambda row: number(row["expected"]) if row["expected"] is not None else ""),
    ("p", "r", lambda row: number(row["p_value"]) if row["p_value"] is not None else ""),
    ("adjusted p", "r", lambda row: number(row["p_adjusted"]) if row["p_adjusted"] is not None else ""),
    ("n", "r", lambda row: number(row["num"]) if row["num"] is not None else ""),
    ("note", "l", lambda row: _text(row["why"])),
)
