"""Hold runs to criteria: a verdict on each, good, between, bad, or unattainable with what it would need."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from esa.artifact import Table, make_table
from esa.report.criteria import Criteria, Criterion
from esa.report.markdown import join
from esa.report.quantities import QUANTITIES
from esa.report.quantities.measures import Answer, Found, Needs, Runs
from esa.report.quantities.runs import phase_of

GOOD, BETWEEN, BAD, UNATTAINABLE = "good", "between", "bad", "unattainable"
VERDICTS = (GOOD, BETWEEN, BAD, UNATTAINABLE)


@dataclass(frozen=True)
class Judged:
    """A criterion held to what it was computed of; ``subject`` is empty where that is all there is."""

    criterion: Criterion
    subject: str
    answer: Answer
    verdict: str
    why: str


def judge(criteria: Criteria, runs: Runs) -> list[Judged]:
    """Return the verdicts in the order of the criteria, of each in the order of runs and subjects.

    A criterion of a phase is held to the runs of that phase alone. Where everything that it could be computed of needs the
    same, it is judged once.
    """
    return [one for criterion in criteria.each for one in _judged(criterion, runs)]


def _judged(criterion: Criterion, runs: Runs) -> list[Judged]:
    kept = [(name, run) for name, run in runs if criterion.phase in ("any", phase_of(run))]
    if not kept:
        names = join([name for name, _ in runs])
        lack = Needs(f"a run of the phase {criterion.phase}, which its name says; has {names}")
        return [Judged(criterion, "", lack, *verdict(criterion, lack))]
    answers = QUANTITIES[criterion.quantity].answers(kept, criterion.options)
    answers = answers or [("", Needs("scores, a ranking or a campaign of some metric"))]
    found = [Judged(criterion, of, answer, *verdict(criterion, answer)) for of, answer in answers]
    if len(found) > 1 and {one.verdict for one in found} == {UNATTAINABLE} and len({one.why for one in found}) == 1:
        return [Judged(criterion, "", found[0].answer, UNATTAINABLE, found[0].why)]
    return found


def verdict(criterion: Criterion, answer: Answer) -> tuple[str, str]:
    """Return the verdict on a quantity and why, from its numbers.

    ``good``: value and interval lie in the good band as a whole. ``bad``: in the bad one, or without one wholly outside of the
    good one. ``between``: neither. ``unattainable``: there is no value, or the best that the artifacts could give is not good.
    """
    if isinstance(answer, Needs):
        return UNATTAINABLE, f"needs {answer.what}"
    good, bad = criterion.good, criterion.bad
    if answer.best is not None and not good.holds(answer.best):
        return UNATTAINABLE, f"needs {good} {answer.needs}, has {answer.has}"
    points = [one for one in (answer.value, answer.low, answer.high) if one is not None]
    if all(good.holds(one) for one in points):
        return GOOD, answer.why
    outside = [bad.holds(one) if bad is not None else not good.holds(one) for one in points]
    return (BAD if all(outside) else BETWEEN), answer.why


def criteria_table(run: str, judged: Sequence[Judged], meta: dict[str, str]) -> Table:
    """Return ``criteria/1``; an infinite value is null, and ``why`` says what broke."""
    rows: list[dict[str, object]] = []
    for one in judged:
        numbers = (one.answer.value, one.answer.low, one.answer.high) if isinstance(one.answer, Found) else (None,) * 3
        value, low, high = (None if end is None or not math.isfinite(end) else end for end in numbers)
        rows.append({
            "run": run, "id": one.criterion.id, "quantity": one.criterion.quantity, "subject": one.subject or None,
            "value": value, "low": low, "high": high, "verdict": one.verdict, "why": one.why,
        })  # fmt: skip
    return make_table("criteria/1", rows, meta)
