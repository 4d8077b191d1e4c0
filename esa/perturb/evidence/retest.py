"""Test-retest reliability of a campaign: would other draws, and other evaluation windows, say the same."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from esa.perturb.evidence.effects import Array, Effect, Windows
from esa.statistics.reliability import icc_2_1, split_means, spread

Row = dict[str, Any]
_SPLITS = 2
_ALIKE = ("group", "method", "options", "unit", "k")  # what effects share that are compared


def reliability_rows(run: str, found: Sequence[Effect], windows: Windows, level: float) -> list[Row]:
    """Return the rows of ``reliability/1``: the spread over repeats, then the agreement of disjoint evaluation windows.

    ``over = "repeats"``, per effect with two or more: mean, sd (R - 1 below the line) and coefficient of variation of their
    damages (nats per token). Then per group, method, options, unit and k with two or more effects, ICC(2,1) with its interval, of
    the effects' repeats (``num_cases`` effects, where all have as many), and ``over = "windows"`` of two measurements, on the
    even and on the odd windows; ``sd`` is there the root mean square over effects of their standard deviation between the
    measurements, ``cv`` that over the mean abs(damage). Nonfinite effects are left out and counted (``num_broken``).
    """
    rows = [row for effect in found if len(effect.cases) > 1 and (row := _repeats(run, effect, windows))]
    groups: dict[tuple[Any, ...], list[Effect]] = {}
    for effect in found:
        groups.setdefault(effect.where(*_ALIKE), []).append(effect)
    for some in groups.values():
        distinct = list({effect.cases: effect for effect in some}.values())  # one case may stand for several metrics
        for over, tables in (("repeats", _by_repeats(distinct, windows)), ("windows", _by_halves(distinct, windows))):
            if len(tables) > 1:
                rows.append(_agreement(run, over, distinct, np.stack(tables), level))
    return rows


def _row(run: str, over: str, about: Any, **more: Any) -> Row:
    empty = dict.fromkeys(("mean", "sd", "cv", "icc", "low", "high"))
    return {"run": run, "over": over, **about, **empty, **more}


def _repeats(run: str, effect: Effect, windows: Windows) -> Row | None:
    total = float(windows.num_tokens.sum())
    parts = [windows.difference(case) for case in effect.cases]
    values = [float(part.sum()) / total for part in parts if part is not None]
    found = spread(values)
    if found is None:
        return None
    return _row(
        run, "repeats", effect.about, num_cases=1, num_measurements=len(values), num_broken=len(parts) - len(values),
        mean=found.mean, sd=found.sd, cv=found.cv,
    )  # fmt: skip


def _by_repeats(some: Sequence[Effect], windows: Windows) -> list[Array]:
    """Return each whole effect's damage by repeat; none where the effects have one, or not equally many."""
    if len({len(effect.cases) for effect in some}) > 1 or len(some[0].cases) < 2:
        return []
    total = float(windows.num_tokens.sum())
    found = []
    for effect in some:
        parts = [windows.difference(case) for case in effect.cases]
        if effect.differences is not None:
            found.append(np.array([part.sum() / total for part in parts if part is not None]))
    return found


def _by_halves(some: Sequence[Effect], windows: Windows) -> list[Array]:
    """Return each whole effect's damage on disjoint splits of the windows; none where these are too few."""
    finite = [effect.differences for effect in some if effect.differences is not None]
    if not finite or len(windows.num_tokens) < 2 * _SPLITS:
        return []
    return list(split_means(np.stack(finite), windows.num_tokens.astype(int).tolist(), _SPLITS))


def _agreement(run: str, over: str, some: Sequence[Effect], table: Array, level: float) -> Row:
    """Return the row of a table of damages, ``(effects, measurements)``."""
    sd = float(np.sqrt(np.mean(table.var(axis=1, ddof=1))))
    size = float(np.mean(np.abs(table.mean(axis=1))))
    found = icc_2_1(table, level)
    about = {**dict.fromkeys(some[0].about), **{key: some[0].about[key] for key in _ALIKE}}
    ends = {} if found is None else {"icc": found.value, "low": found.low, "high": found.high}
    number, measurements = table.shape
    return _row(
        run, over, about, num_cases=number, num_measurements=measurements, num_broken=len(some) - number,
        mean=float(table.mean()), sd=sd, cv=sd / size if size else None, **ends,
    )  # fmt: skip
