"""Test-retest reliability of a campaign: would other draws, and other evaluation windows, say the same."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from esa.perturb.evidence.effects import Effect, Windows
from esa.statistics.reliability import icc_2_1, split_means, spread

Row = dict[str, Any]
_SPLITS = 2


def reliability_rows(run: str, found: Sequence[Effect], windows: Windows, level: float) -> list[Row]:
    """Return the rows of ``reliability/1``: the spread over repeats, then the agreement of disjoint evaluation windows.

    ``over = "repeats"``, per effect with two or more: mean, sd (R - 1 below the line) and coefficient of variation of their
    damages (nats per token). ``over = "windows"``, per method, options, unit and k with two or more effects: every effect is
    measured on the even and on the odd windows; ``icc`` is ICC(2,1) of these two measurements with its interval; ``sd`` is
    the root mean square over effects of their standard deviation between the two, and ``cv`` that over the mean abs(damage).
    Nonfinite effects are left out and counted (``num_broken``).
    """
    rows = [row for effect in found if len(effect.cases) > 1 and (row := _repeats(run, effect, windows))]
    groups: dict[tuple[Any, ...], list[Effect]] = {}
    for effect in found:
        groups.setdefault(effect.where("method", "options", "unit", "k"), []).append(effect)
    rows += [row for some in groups.values() if (row := _halves(run, some, windows, level))]
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
    about = {key: value for key, value in effect.about.items() if key != "repeat"}
    return _row(
        run, "repeats", about, num_cases=1, num_measurements=len(values), num_broken=len(parts) - len(values),
        mean=found.mean, sd=found.sd, cv=found.cv,
    )  # fmt: skip


def _halves(run: str, some: Sequence[Effect], windows: Windows, level: float) -> Row | None:
    distinct = list({effect.cases: effect for effect in some}.values())  # one case may stand in several groups
    finite = [effect.differences for effect in distinct if effect.differences is not None]
    if len(finite) < 2 or len(windows.num_tokens) < 2 * _SPLITS:
        return None
    table = split_means(np.stack(finite), windows.num_tokens.astype(int).tolist(), _SPLITS)
    sd = float(np.sqrt(np.mean(table.var(axis=1, ddof=1))))
    size = float(np.mean(np.abs(table.mean(axis=1))))
    found = icc_2_1(table, level)
    keys = ("method", "options", "unit", "k")
    about = {**dict.fromkeys(some[0].about), **{key: some[0].about[key] for key in keys}}
    ends = {} if found is None else {"icc": found.value, "low": found.low, "high": found.high}
    return _row(
        run, "windows", about, num_cases=len(finite), num_measurements=_SPLITS, num_broken=len(distinct) - len(finite),
        mean=float(table.mean()), sd=sd, cv=sd / size if size else None, **ends,
    )  # fmt: skip
