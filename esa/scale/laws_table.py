"""Fit laws to a series of values and write down what came out: rows of ``laws/1``, ``fits/1`` and ``bands/1``."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from esa.artifact import finite
from esa.scale.models import FEW_MODELS, FEWEST_MODELS
from esa.scale.points import Series
from esa.scale.verdicts import Evidence, verdict
from esa.statistics.bootstrap import UNKNOWN, Interval
from esa.statistics.law_bootstrap import LawIntervals, bootstrap_laws
from esa.statistics.laws import LAWS, LawFit, compare_laws, leave_one_model_out
from esa.statistics.segmented import changepoint

GRID = 40  # sizes at which a band is drawn
DECIDED = 0.5  # the Akaike weight from which on one law has more of it than all others
RANGES = {  # what a quantity can be
    "half_share": (0.0, 0.5), "top_to_median": (1.0, math.inf), "tail_index": (0.0, math.inf),
    "noise_doubling": (0.0, math.inf), "intact_nll": (0.0, math.inf), "held_out_nll": (0.0, math.inf),
    **dict.fromkeys(("seed_jaccard", "final_jaccard", "consecutive_jaccard"), (0.0, 1.0)),
}  # fmt: skip
FAR = 10.0  # times the largest measured size: an extrapolation beyond says so

Array = npt.NDArray[np.float64]
Row = dict[str, Any]


@dataclass(frozen=True)
class Settings:
    """How laws are fitted: sizes to extrapolate to, and the draws of bootstrap and permutation."""

    targets: tuple[float, ...] = ()
    seed: int = 0
    resamples: int = 999
    permutations: int = 9999  # 999 cannot reach 0.05 after Holm over more than 50 series
    level: float = 0.95


@dataclass
class Fitted:
    """The rows of one series: one of ``laws/1``, those of ``fits/1`` and ``bands/1``."""

    law: Row
    fits: list[Row] = field(default_factory=list)
    bands: list[Row] = field(default_factory=list)


def fit_series(series: Series, over: str, settings: Settings, model: str | None = None) -> Fitted:
    """Return what the laws make of one series.

    ``law``, ``weight``, ``r2``: the law that AICc prefers. ``power_r2``, ``exponent`` with its interval: of the power law,
    whichever is preferred. ``prediction_error``: root mean square error of a model left out, of the preferred law, in the
    response (0.3 in ln y: typically a factor of 1.35). ``predicted``: y at the first target, where a law stands (see
    ``verdict``), with its interval: what the fit does not know, given that this law goes on holding. ``changepoint``: size at
    which a broken line in the response over ln x bends, with the slopes below and above. ``fits``: every law's parameters,
    intervals of the preferred and the power law. ``bands``: both over the measured sizes, on to the farthest target, and at
    every target.
    ``flags``: ``few_models`` (under 3: refused), ``indicative`` (under 6), ``constant``, ``left_out`` (a run without a usable
    value), ``collapsed``, ``nonfinite`` (some of those for that reason: what is left is what survived), ``below_floor`` (a
    value under its run's noise floor), ``unclear`` (a damage whose own interval holds 0), ``undecided`` (no law has half of
    the Akaike weight), ``far`` (a target over 10 times
    the largest size measured), ``out_of_range`` (a prediction that the quantity cannot take). ``model``: of a law within one
    training run, its name.
    """
    about: Row = {
        "over": over, "model": model, "quantity": series.quantity, "subject": series.subject,
        "num_models": series.num_models, "num_points": len(series.x),
    }  # fmt: skip
    flags, models = _flags(series, settings), list(dict.fromkeys(series.models))
    told = Evidence(
        models, "checkpoints" if over == "checkpoints" else "models", [reason for _, reason in series.left_out],
        few=series.num_models < FEW_MODELS, num_values=len(series.x), unclear=series.unclear,
    )  # fmt: skip
    if series.num_models < FEWEST_MODELS:
        return Fitted({**about, "flags": ",".join(flags), "verdict": verdict(told, FEWEST_MODELS).text})
    points = series.points
    fits = compare_laws(points)
    best, power = preferred(fits), next(fit for fit in fits if fit.law == "power")
    if best is None:
        flags.append("constant")
    elif (best.weight or 0.0) < DECIDED:
        flags.append("undecided")
    drawn = [fit for fit in fits if fit.reason is None and fit.law in ("power", best.law if best else None)]
    at = grid(series.x, settings.targets)
    intervals = bootstrap_laws(points, drawn, at, settings.resamples, settings.seed, settings.level)
    exponent = intervals["power"].parameters[1] if "power" in intervals else UNKNOWN
    straight = best is not None and LAWS[best.law].parameters == ("a", "b")
    slope = intervals[best.law].parameters[1] if best is not None and straight else UNKNOWN
    found = verdict(replace(told, best=best, slope=slope, power=power, exponent=exponent), FEWEST_MODELS)
    law = {
        **about, "response": points.response, "power_r2": power.r2, "exponent": power.values[1] if power.values else None,
        "exponent_low": exponent.low, "exponent_high": exponent.high, "verdict": found.text,
    }  # fmt: skip
    if best is not None:
        law |= {"law": best.law, "weight": best.weight, "r2": best.r2}
        law |= {"prediction_error": leave_one_model_out(points, best.law).error, **_changepoint(series, settings)}
    if settings.targets:
        law["target"] = settings.targets[0]
        if found.law is not None:
            law |= _predicted(series, found.law, at, intervals[found.law.law], settings.targets[0], flags)
    law["flags"] = ",".join(flags) or None
    return Fitted(law, list(_fit_rows(series, fits, intervals, model)), list(_band_rows(about, at, drawn, intervals)))


def _predicted(series: Series, law: LawFit, at: Array, band: LawIntervals, target: float, flags: list[str]) -> Row:
    """Return the columns of an extrapolation; a value that the quantity cannot take is flagged."""
    place = int(np.flatnonzero(at == target)[0])
    value = float(LAWS[law.law](at[place : place + 1], law.values)[0])
    least, most = RANGES.get(series.quantity, (-math.inf, math.inf))
    if not least <= value <= most:
        flags.append("out_of_range")
    low, high = float(band.band_low[place]), float(band.band_high[place])
    return {"predicted": finite(value), "predicted_low": finite(low), "predicted_high": finite(high)}


def preferred(fits: Sequence[LawFit]) -> LawFit | None:
    """Return the fit of the highest Akaike weight, the first of equal ones; None where no law could be fitted."""
    weighed = [fit for fit in fits if fit.reason is None and fit.weight is not None]
    return max(weighed, key=lambda fit: fit.weight or 0.0) if weighed else None


def grid(x: Array, targets: Sequence[float]) -> Array:
    """Return the sizes of a band: evenly in the logarithm over all that is measured and targeted, and every target itself."""
    ends = [float(x.min()), float(x.max()), *targets]
    even = np.geomspace(min(ends), max(ends), GRID)
    even[0], even[-1] = min(ends), max(ends)  # exactly, for a target among them is looked up
    return np.unique(np.concatenate([even, np.asarray(targets, dtype=float)]))


def _flags(series: Series, settings: Settings) -> list[str]:
    """Return the flags that the data set."""
    reasons = [reason for _, reason in series.left_out]
    far = len(series.x) > 0 and any(target > FAR * series.x.max() for target in settings.targets)
    found = {
        "few_models": series.num_models < FEWEST_MODELS,
        "indicative": FEWEST_MODELS <= series.num_models < FEW_MODELS,
        "left_out": bool(reasons),
        "collapsed": any(reason.startswith("collapsed") for reason in reasons),
        "nonfinite": any(reason.startswith("nonfinite") for reason in reasons),
        "below_floor": series.below_floor > 0,
        "unclear": series.unclear > 0,
        "far": far,
    }
    return [name for name, holds in found.items() if holds]


def _changepoint(series: Series, settings: Settings) -> Row:
    """Return the columns of the changepoint, empty where the sizes are too few for one."""
    found = changepoint(series.points, settings.permutations, settings.resamples, settings.seed)
    if found.reason is not None:
        return {}
    return {
        "changepoint": found.x, "changepoint_low": found.low, "changepoint_high": found.high,
        "slope_below": found.slope_below, "slope_above": found.slope_above, "changepoint_p": found.p_value,
    }  # fmt: skip


def _fit_rows(
    series: Series, fits: Sequence[LawFit], intervals: dict[str, LawIntervals], model: str | None
) -> Sequence[Row]:
    """Return the rows of ``fits/1``: a row per parameter of every law that could be fitted."""
    name = series.name if model is None else f"{model}: {series.name}"
    rows = []
    for fit in fits:
        if fit.reason is not None:
            continue
        parameters = LAWS[fit.law].parameters
        ends: Sequence[Interval] = (
            intervals[fit.law].parameters if fit.law in intervals else [UNKNOWN] * len(parameters)
        )
        for parameter, value, (low, high) in zip(parameters, fit.values, ends, strict=True):
            rows.append({
                "quantity": name, "model": fit.law, "parameter": parameter, "value": finite(value), "low": low, "high": high,
                "r2": fit.r2, "aicc": fit.aicc, "weight": fit.weight, "num_points": fit.num_points,
            })  # fmt: skip
    return rows


def _band_rows(about: Row, at: Array, drawn: Sequence[LawFit], intervals: dict[str, LawIntervals]) -> Sequence[Row]:
    """Return the rows of ``bands/1``: y with its interval over the grid, law by law."""
    rows = []
    for fit in drawn:
        band = intervals[fit.law]
        for x, y, low, high in zip(at, LAWS[fit.law](at, fit.values), band.band_low, band.band_high, strict=True):
            rows.append({
                **{key: about[key] for key in ("over", "model", "quantity", "subject")}, "law": fit.law, "x": float(x),
                "y": finite(y), "low": finite(low), "high": finite(high),
            })  # fmt: skip
    return [row for row in rows if row["y"] is not None and not math.isnan(row["y"])]
