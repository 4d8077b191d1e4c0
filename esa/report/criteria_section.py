"""The criteria on the page: how many are met, which fail, and a table of verdicts with the numbers behind them."""

import math
from collections.abc import Sequence

from esa.report.markdown import MISSING, code, escape, join, number, table
from esa.report.quantities.measures import Found
from esa.report.verdicts import BAD, BETWEEN, GOOD, UNATTAINABLE, VERDICTS, Judged

NOTE = (
    "Good: value and interval lie in the band as a whole. Bad: in the bad band, or where there is none wholly outside of the"
    " good one. Between: neither. Unattainable: the artifacts at hand hold no such number, or could not have given a good one."
    " The criteria's file gives each one's source; its sha256 is among the inputs in `manifest.json`."
)


def criteria_parts(judged: Sequence[Judged]) -> list[str]:
    """Return the section: what the verdicts add up to, the table of those with a number, and what the others need."""
    measured = [one for one in judged if isinstance(one.answer, Found)]
    lacking = [one for one in judged if not isinstance(one.answer, Found)]
    parts = [criteria_sentence(judged)]
    if measured:
        several = any(one.subject for one in measured)
        header = ["criterion", *(["of"] if several else []), "good", "value", "verdict", "why"]
        align = "ll" + ("l" if several else "") + "rll"
        parts.append(table(header, [_row(one, several=several) for one in measured], align))
        parts.append(NOTE)
    if lacking:
        header = ["criteria", "of", "verdict", "why"]
        parts += ["### Not to be judged from these artifacts", table(header, _lacking(lacking), "llll")]
    return parts


def _lacking(judged: Sequence[Judged]) -> list[list[str]]:
    """Return a row per lack: the criteria that share it."""
    groups: dict[tuple[str, str], list[str]] = {}
    for one in judged:
        groups.setdefault((one.subject, one.why), []).append(escape(one.criterion.id))
    return [
        [", ".join(names), escape(subject) if subject else "all", UNATTAINABLE, escape(why)]
        for (subject, why), names in groups.items()
    ]


def criteria_sentence(judged: Sequence[Judged]) -> str:
    """Return how many verdicts there are of each kind, and which criteria are not met."""
    counts = {name: sum(one.verdict == name for one in judged) for name in VERDICTS}
    attainable = sum(counts[name] for name in (GOOD, BETWEEN, BAD))
    if not attainable:
        return f"None of {number(len(judged))} criteria can be judged from these artifacts."
    words = [f"{number(counts[name])} {name}" for name in (GOOD, BETWEEN, BAD)]
    failed = list(dict.fromkeys(code(one.criterion.id, cell=False) for one in judged if one.verdict == BAD))
    text = f"**{number(attainable)} verdict{'s' if attainable > 1 else ''}: {join(words)}.**"
    text += f" Not met: {join(failed)}." if failed else ""
    left = counts[UNATTAINABLE]
    return text + (f" {number(left)} more cannot be reached with these artifacts." if left else "")


def _row(one: Judged, *, several: bool) -> list[str]:
    assert isinstance(one.answer, Found), "those that need something stand in the other table"
    of = [escape(one.subject) if one.subject else "all"] if several else []
    return [
        code(one.criterion.id),
        *of,
        escape(one.criterion.good),
        _value(one.answer),
        escape(one.verdict),
        escape(one.why),
    ]


def _value(found: Found) -> str:
    shown = [_shown(end) for end in (found.value, found.low, found.high)]
    if found.low is None or found.high is None:
        return shown[0]
    return f"{shown[0]} [{shown[1]}, {shown[2]}]"


def _shown(value: float | None) -> str:
    if value is not None and math.isinf(value):
        return "infinite" if value > 0 else "minus infinite"
    if value is None:
        return MISSING
    return number(int(value)) if value == int(value) else number(value)
