"""What a part of the comparison gives back: rows by kind of table, warnings, and which questions' p values are adjusted."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from esa.statistics.multiplicity import holm
from esa.statistics.permutation import smallest_adjusted_p

Row = dict[str, Any]
ALPHA = 0.05
RESAMPLES = 1999  # of every bootstrap here
LEVEL = 0.95


@dataclass(frozen=True)
class Options:
    """What the comparison was asked for, resolved: see :func:`esa.arch.comparison.run`.

    ``metrics``: in the order of the runs, all that one of them scored, or those asked for. ``k``: how many weights of each
    list are looked at; None where no run holds a list. ``seed``: of resamples and permutations, ``permutations`` of these.
    """

    metrics: tuple[str, ...]
    k: int | None
    seed: int = 0
    permutations: int = 9999
    resamples: int = RESAMPLES
    level: float = LEVEL


@dataclass(frozen=True)
class Found:
    """Rows by kind of table, in order; ``adjust``: the questions of ``comparison/1`` whose p values Holm's method adjusts."""

    tables: Mapping[str, Sequence[Row]] = field(default_factory=dict)
    adjust: frozenset[str] = frozenset()
    warnings: tuple[str, ...] = ()


def compared(question: str, a: str, metric: str | None, subject: str | None, quantity: str, **content: Any) -> Row:
    """Return a row of ``comparison/1``; ``content``: further columns of it (b, value, low, high, expected, null, ...)."""
    return {"question": question, "a": a, "metric": metric, "subject": subject, "quantity": quantity, **content}


def adjusted(rows: Sequence[Row], questions: frozenset[str]) -> list[Row]:
    """Return the rows of ``comparison/1`` with ``p_adjusted``: Holm's over all p values of one question, whatever the metric.

    Rows of other questions, and rows without a p value, stay as they are.
    """
    found = [dict(row) for row in rows]
    for question in sorted(questions):
        family = [row for row in found if row["question"] == question]
        for row, p in zip(family, holm([row.get("p_value") for row in family]), strict=True):
            row["p_adjusted"] = p
    return found


def out_of_reach(rows: Sequence[Row]) -> list[str]:
    """Return a warning that names the questions whose adjusted p values cannot be small, whatever the data: too many tests.

    Holm's smallest adjusted p is the smallest p of its tests times their number. Rows whose test has no smallest p count as
    tests that may reach any.
    """
    found = []
    for question in dict.fromkeys(row["question"] for row in rows if row.get("p_adjusted") is not None):
        tests = [row for row in rows if row["question"] == question and row.get("p_adjusted") is not None]
        if any(row.get("smallest_p") is None for row in tests):
            continue
        least = smallest_adjusted_p(min(row["smallest_p"] for row in tests), len(tests), rule="holm")
        if least > ALPHA:
            found.append(f"{question} (not under {least:.2g}, {len(tests):,} tests)")
    if not found:
        return []
    return [
        f"no adjusted p can be small, whatever the data, for {'; '.join(found)}: fewer runs or one metric bring it within"
        " reach, and more permutations where they are random"
    ]
