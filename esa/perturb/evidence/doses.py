"""Dose-response of a campaign: how damage grows with a method's option, and at which dose which method tells weights apart."""

import json
from collections.abc import Callable, Sequence
from itertools import groupby
from typing import Any

import numpy as np

from esa.perturb.cases import DOSES
from esa.perturb.evidence.confirmation import screened_draws
from esa.perturb.evidence.effects import Array, Effect, Together, Windows
from esa.spec import Spec, generator
from esa.statistics.bootstrap import paired_interval
from esa.statistics.dose import monotonicity, page_p, random_ceiling, separation
from esa.statistics.effects import auc, z_score
from esa.statistics.fits import Fit, compare_curves, fit_rows
from esa.statistics.permutation import monte_carlo_p, smallest_monte_carlo_p

Row = dict[str, Any]
_FEWEST = 3  # doses of a response
_CURVED = ("joint", "cumulative")  # units whose series are fitted: one per single target would be hundreds, 0.2 s each
_TREND = ("spearman", "kendall", "p_value", "rising", "isotonic_r2")
# Of a method's option: how it becomes a strength that does more as it grows. Others are one already.
_STRENGTHS: dict[tuple[str, str], Callable[[float], float]] = {
    ("scale", "factor"): lambda factor: abs(factor - 1),
    ("quantize", "bits"): lambda bits: 1 / (2 ** (bits - 1) - 1),  # the step between levels, the largest weight being 1
    ("clamp", "quantile"): lambda quantile: 1 - quantile,
}


class Series:
    """The effects of one group under one method that differ in one option alone, or in K, weakest first."""

    def __init__(self, option: str, found: Sequence[Effect]) -> None:
        method = found[0].about["method"]
        strength = _STRENGTHS.get((method, option), float)
        doses = [float(one.about["k"] if option == "k" else json.loads(one.about["options"])[option]) for one in found]
        order = sorted(range(len(found)), key=lambda place: strength(doses[place]))
        self.option, self.effects = option, [found[place] for place in order]
        self.doses = [doses[place] for place in order]
        self.strengths = [float(strength(dose)) for dose in self.doses]

    def dose_at(self, strength: float | None) -> float | None:
        """Return the option's own value at a strength."""
        return None if strength is None else self.doses[self.strengths.index(strength)]


def dose_series(found: Sequence[Effect]) -> list[Series]:
    """Return every series of three doses or more, in the order of their first effects; random groups are no series."""
    grouped: dict[tuple[Any, ...], list[Effect]] = {}
    for one in found:
        if one.about["group"] == "random_k":
            continue
        options = json.loads(one.about["options"])
        if one.about["unit"] == "cumulative":
            known = one.where(
                "metric", "seed", "group", "draw", "method", "unit", "options"
            )  # of K = 1 the target is named
            grouped.setdefault((*known, "k", ""), []).append(one)
        for option, value in options.items():
            if option in DOSES and value is not None:
                rest = json.dumps({key: other for key, other in options.items() if key != option}, sort_keys=True)
                if one.about["method"] == "scale":  # shrinking and growing a weight are two responses
                    rest += " below 1" if value < 1 else " above 1"
                keys = ("metric", "seed", "group", "draw", "method", "unit", "k", "target")
                grouped.setdefault((*one.where(*keys), option, rest), []).append(one)
    return [Series(key[-2], effects) for key, effects in grouped.items() if len(effects) >= _FEWEST]


def dose_rows(run: str, found: Sequence[Effect], spec: Spec, floor: float | None) -> tuple[list[Row], list[Row]]:
    """Return the rows of ``dose/1``, one per series, and those of ``fits/1``: the curves through it.

    A series holds one set of weights and one method, by ascending strength of one option, or of cumulative K: its value, but
    ``abs(factor - 1)`` of ``scale`` (below and above 1 apart), ``1 / (2^(bits - 1) - 1)`` of ``quantize``, 1 - quantile of
    ``clamp``. ``spearman``, ``kendall`` with its p, ``rising`` and ``isotonic_r2``: ``esa.statistics.dose.monotonicity`` of the
    damages; ``page_p``: the trend within every window. ``separates_at``: the smallest dose at which the low end of the damage's
    interval is above every random draw of the same k at that dose and above the noise floor; ``merges_at``: the first larger
    one at which it no longer is; null without random draws or where there is none. Doses that left NaN or infinite logits are
    counted (``num_broken``), stand apart from draws that live, and are left out of the rest.
    Curves through joint and cumulative damages at strengths above zero: power, hill and weibull, with AICc, weights, profile
    intervals.
    Cost: 0.2 s per series of five doses.
    """
    together = Together(found, screened_draws(spec))
    rows, fits = [], []
    for series in dose_series(found):
        first = series.effects[0].about
        whole = [place for place, one in enumerate(series.effects) if one.differences is not None]
        strengths = [series.strengths[place] for place in whole]
        parts = [one.differences for one in series.effects if one.differences is not None]
        damages = [float(one.estimate or 0.0) for one in series.effects if one.differences is not None]
        trend = monotonicity(strengths, damages, floor or 0.0)
        shown = {key: None if trend is None else getattr(trend, key) for key in _TREND}
        table = np.stack(parts, axis=1) if len(parts) >= _FEWEST else np.zeros((0, 0))
        apart = _separation(series, together, spec, floor)
        curves = _curves(strengths, damages) if first["unit"] in _CURVED else []
        best = max((fit for fit in curves if fit.weight is not None), key=lambda fit: fit.weight or 0.0, default=None)
        rows.append({
            "run": run, **{key: first[key] for key in ("metric", "seed", "group", "draw", "method")},
            "option": series.option, "unit": first["unit"], "k": None if series.option == "k" else first["k"],
            "target": None if series.option == "k" else first["target"],
            "doses": " ".join(f"{dose!r}" for dose in series.doses), "num_doses": len(series.doses),
            "num_broken": len(series.doses) - len(whole),
            **shown, "page_p": page_p(table) if table.size else None,
            "separates_at": apart[0], "merges_at": apart[1], "curve": None if best is None else best.model,
        })  # fmt: skip
        quantity = _quantity(first, series.option)
        fits += fit_rows(run, quantity, curves)
    return rows, fits


def _separation(
    series: Series, together: Together, spec: Spec, floor: float | None
) -> tuple[float | None, float | None]:
    draws = [together.others(one, "random_k") for one in series.effects]
    if not all(draws):
        return None, None
    lows = [_low(one, spec) for one in series.effects]
    highs = random_ceiling([[one.order for one in some] for some in draws])
    found = separation(series.strengths, lows, highs, floor or 0.0)
    return series.dose_at(found.separates_at), series.dose_at(found.merges_at)


def _low(effect: Effect, spec: Spec) -> float | None:
    """Return the low end of an effect's interval; a broken model is as far from random ones as can be."""
    if effect.differences is None:
        return float("inf")
    tokens = effect.num_tokens.astype(int).tolist()
    zeros, settings = [0.0] * len(tokens), spec.statistics
    ends = paired_interval(
        effect.differences.tolist(), zeros, tokens, spec.score.seeds[0], effect.name, settings.level, settings.resamples
    )
    return ends.low


def _curves(strengths: Sequence[float], damages: Sequence[float]) -> list[Fit]:
    points = [(x, y) for x, y in zip(strengths, damages, strict=True) if x > 0]
    if not points:
        return []
    return compare_curves([x for x, _ in points], [y for _, y in points])


def _quantity(about: Any, option: str) -> str:
    """Return what ``fits/1`` calls a series: damage by method, option, metric, group, unit and k."""
    k = "" if option == "k" else f" k={about['k']}"
    words = [about["metric"] or "all", about["group"], f"{about['unit']}{k}", about["target"] if k else None]
    return f"damage of {about['method']} by {option}: {', '.join(word for word in words if word)}"


def discrimination_rows(run: str, found: Sequence[Effect], windows: Windows, spec: Spec) -> list[Row]:
    """Return the rows of ``discrimination/1``: which method at which dose tells top weights from random ones best.

    Per metric, seed, method, options and k, of the joint top_k against the R draws of random_k: ``z`` of its damage among
    the draws'; ``auc`` of its repeats against the draws' repeats (1: all above); ``p_value`` by Monte Carlo; and ``power``: the
    share of bootstrap resamples of the windows in which that p is at most ``statistics.fdr``, what another text of as many
    windows would show; null where R draws cannot give such a p. ``place`` ranks by power, then z (a top group that left NaN
    or infinite logits first), within metric, seed and k.
    """
    together, rows = Together(found, screened_draws(spec)), []
    for effect in found:
        if effect.where("group", "unit") != ("top_k", "joint") or not (draws := together.others(effect, "random_k")):
            continue
        values = [one.order for one in draws]
        area = auc(_of_cases(effect, windows), [value for one in draws for value in _of_cases(one, windows)])
        rows.append({
            "run": run, **{key: effect.about[key] for key in ("metric", "seed", "method", "options")},
            "dose": effect.dose, "k": effect.about["k"], "damage": effect.estimate, "num_draws": len(draws),
            "z": z_score(effect.order, values), "auc": None if area is None else area.value,
            "p_value": monte_carlo_p(effect.order, values), "power": _power(effect, draws, spec),
        })  # fmt: skip
    for _, some in groupby(sorted(rows, key=_series), key=_series):
        for place, row in enumerate(sorted(some, key=_by_place), start=1):
            row["place"] = place
    return rows


def _by_place(row: Row) -> tuple[float, float]:
    """Return what discrimination is ordered by: power where it is known, then z; a top group that broke is the farthest."""
    far = float("inf") if row["damage"] is None else row["z"]
    return -(row["power"] or 0.0), float("inf") if far is None else -far


def _series(row: Row) -> tuple[str, int, int]:
    return str(row["metric"]), -1 if row["seed"] is None else row["seed"], row["k"]


def _of_cases(effect: Effect, windows: Windows) -> list[float]:
    """Return the damage of every repeat; a broken one is infinite."""
    total = float(windows.num_tokens.sum())
    parts = [windows.difference(case) for case in effect.cases]
    return [float("inf") if part is None else float(part.sum()) / total for part in parts]


def _power(effect: Effect, draws: Sequence[Effect], spec: Spec) -> float | None:
    """Return the share of resamples of the windows in which the Monte-Carlo p is at most the level; None where none can be."""
    if smallest_monte_carlo_p(len(draws)) > spec.statistics.fdr:
        return None
    number = len(effect.num_tokens)
    rng = generator(spec.score.seeds[0], "bootstrap", f"power {effect.name}")
    counts = rng.multinomial(number, np.full(number, 1 / number), spec.statistics.resamples).astype(np.float64)
    top = _resampled(effect, counts)
    reached = sum((_resampled(one, counts) >= top).astype(np.int64) for one in draws)
    return float(np.mean((1 + reached) / (1 + len(draws)) <= spec.statistics.fdr))


def _resampled(effect: Effect, counts: Array) -> Array:
    if effect.differences is None:
        return np.full(len(counts), np.inf)
    found: Array = (counts @ effect.differences) / (counts @ effect.num_tokens)
    return found
