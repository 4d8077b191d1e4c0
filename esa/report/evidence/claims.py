"""The claims of campaigns on the page: the confirmatory test first, then the screen with its adjusted p values and flags."""

from collections.abc import Sequence
from typing import Any

import polars as pl

from esa.artifact.gather import Gathered
from esa.report.markdown import MISSING, code, escape, join, number, table
from esa.report.quantities.measures import claims
from esa.report.tables import label

SHOWN = 40  # rows of the screen; tests.csv holds every one
_WORDS = {
    "hurts": "does harm", "more_than_random": "more harm than random ones", "more_than_matched": "more harm than matched ones",
    "more_than_bottom": "more harm than the bottom ones", "no_harm": "does no harm",
}  # fmt: skip
_HEADER = [
    "claim", "weights", "method", "k", "holds", "estimate (nats per token)", "ratio", "adjusted p", "p", "z", "Cliff's delta",
    "flags",
]  # fmt: skip
_ALIGN = "lllrlrrrrrrl"
NOTE = (
    "Estimate: the rise of the mean NLL, of paired claims the difference of two, with its studentized bootstrap interval over"
    " windows. Ratio: the low end over the control's high end or the noise floor, whichever is larger. p: sign flips of the"
    " windows; against random ones the rank among the draws; of no harm two one-sided tests. The screen is adjusted within each"
    " claim (Benjamini-Hochberg). Few windows: too few for these intervals and tests to be relied on; unattainable: no p of"
    " this rule can be small enough; below floor: not told from rounding."
)


def claims_parts(tests: pl.DataFrame) -> list[str]:
    """Return the section: the confirmatory test in words and numbers, what the screen found, and its joint claims."""
    confirmatory = tests.filter(pl.col("phase") == "confirmatory").to_dicts()
    screen = tests.filter(pl.col("phase") == "screen")
    parts = confirmatory_sentences(tests) or ["No confirmatory test was named (`confirm.metric`): all is a screen."]
    if confirmatory:
        parts.append(table(_HEADER, [_row(row) for row in confirmatory], _ALIGN))
    joint = screen.filter(pl.col("unit") == "joint")
    joint = joint if joint.height else screen
    if joint.height:
        parts += ["### Screen", _screened(joint)]
        parts.append(table(_HEADER, [_row(row) for row in joint.head(SHOWN).iter_rows(named=True)], _ALIGN))
    left = screen.height - min(joint.height, SHOWN)
    parts.append(
        NOTE + (f" {number(left)} more claims, on other units or further down, are in `tests.csv`." if left else "")
    )
    return parts


def confirmatory_sentences(tests: pl.DataFrame | None) -> list[str]:
    """Return each confirmatory test of ``tests/1`` in a sentence."""
    if tests is None:
        return []
    return [_confirmed(row) for row in tests.filter(pl.col("phase") == "confirmatory").iter_rows(named=True)]


def confirmatory_parts(runs: Sequence[tuple[str, Gathered]]) -> list[str]:
    """Return the confirmatory tests of several runs with their p values Holm-adjusted over the runs; nothing for none."""
    from esa.statistics.multiplicity import holm

    rows = [
        (name, row) for name, run in runs for row in claims(run, "more_than_random") if row["phase"] == "confirmatory"
    ]
    if not rows:
        return []
    adjusted = holm([row["p_value"] for _, row in rows])
    held = [
        name
        for (name, row), p in zip(rows, adjusted, strict=True)
        if p is not None and p <= row["level"] and row["holds"]
    ]
    named = f": {join([code(name, cell=False) for name in held])}" if held else ""
    count = f"{number(len(held))} of {number(len(rows))} runs"
    sentence = f"**The confirmatory test holds in {count} after Holm's adjustment{named}.**"
    cells = [
        [code(name), *_row({**row, "p_adjusted": p, "holds": p is not None and p <= row["level"] and row["holds"]})]
        for (name, row), p in zip(rows, adjusted, strict=True)
    ]
    return [sentence, table(["run", *_HEADER], cells, f"l{_ALIGN}")]


def _confirmed(row: dict[str, Any]) -> str:
    """Return the confirmatory test in a sentence."""
    metric, method = code(row["metric"], cell=False), escape(label(row["method"], row["options"]))
    what = f"the top {number(row['k'])} weights by {metric} under {method}"
    draws = f"{number(row['num_draws'])} draws of as many random ones"
    found = {True: "do more harm than", False: "are not shown to do more harm than", None: "could not be held against"}[
        row["holds"]
    ]
    size = f", {number(row['ratio'])} times the largest at the least" if row["ratio"] and row["holds"] else ""
    return (
        f"**Confirmatory: {what} {found} {draws}** (p = {number(row['p_value'])}, level {number(row['level'])}{size})."
    )


def _screened(joint: pl.DataFrame) -> str:
    """Return how many claims of each kind hold."""
    lines = []
    for (claim,), part in joint.group_by(["claim"], maintain_order=True):
        known = part["holds"].drop_nulls()
        lines.append(f"{_WORDS.get(str(claim), escape(claim))}: {number(int(known.sum()))} of {number(part.height)}")
    few = int(joint["flags"].str.contains("few_windows").fill_null(False).sum())
    return f"Claims that hold: {'; '.join(lines)}." + (f" {number(few)} rest on few windows." if few else "")


def _row(row: dict[str, Any]) -> list[str]:
    weights = escape(" ".join(word for word in (row["metric"], row["group"]) if word))
    holds = {True: "yes", False: "no", None: MISSING}[row["holds"]]
    flags = escape((row["flags"] or "").replace("_", " ").replace(",", ", ")) if row["flags"] else ""
    return [
        escape(_WORDS.get(row["claim"], row["claim"])), weights, escape(label(row["method"], row["options"])), number(row["k"]),
        holds, ends(row["estimate"], row["low"], row["high"]), number(row["ratio"]), number(row["p_adjusted"]),
        number(row["p_value"]), number(row["z"]), number(row["cliffs_delta"]), flags,
    ]  # fmt: skip


def ends(value: float | None, low: float | None, high: float | None) -> str:
    """Return ``value [low, high]`` of an estimate and its interval; the value alone where there is none."""
    interval = f" [{number(low)}, {number(high)}]" if low is not None and high is not None else ""
    return number(value) + interval
