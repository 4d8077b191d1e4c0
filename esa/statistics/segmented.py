"""Two slopes that meet: where a quantity over size changes its slope, how sure that is, and intervals of both slopes."""

from dataclasses import dataclass

import numpy as np

from esa.spec import generator
from esa.statistics.bootstrap import UNKNOWN, Interval
from esa.statistics.law_fitting import fit_many
from esa.statistics.law_forms import Array, form_of, scaling_of
from esa.statistics.laws import LAWS, Points, model_means, refusal
from esa.statistics.permutation import monte_carlo_p

PERMUTATIONS = 1999
RESAMPLES = 999
_BREAKS = 161  # breaks tried between the inner sizes
_BLOCK = 2_000_000  # residual sums of squares held at once: 16 MB


@dataclass(frozen=True)
class Changepoint:
    """Where the slope changes; ``reason`` says why nothing can be told, and then everything else is None.

    ``x`` with its interval ``low`` to ``high`` (an end is None where the data do not bound it within the sizes);
    ``slope_below`` and ``slope_above`` of the response per unit of ln x; ``p_value`` of one straight line.
    """

    x: float | None
    low: float | None
    high: float | None
    slope_below: float | None
    slope_above: float | None
    p_value: float | None
    reason: str | None = None


@dataclass(frozen=True)
class Segments:
    """Two lines over an axis u for K breaks: bases ``(K, M, 3)`` of (value at the break, both slopes), solved once."""

    breaks: Array
    basis: Array
    orthogonal: Array
    inverse: Array

    def rss(self, responses: Array) -> Array:
        """Return the residual sums of squares of responses ``(R, M)`` for every break: ``(R, K)``."""
        number, places, _ = self.orthogonal.shape
        flat = np.moveaxis(self.orthogonal, 1, 0).reshape(places, -1)
        explained = ((responses @ flat) ** 2).reshape(len(responses), number, 3).sum(axis=2)
        return np.asarray(np.maximum((responses**2).sum(axis=1)[:, None] - explained, 0.0))

    def contrast(self, rows: Array) -> tuple[Array, Array]:
        """Return of ``rows (K, 3) @ coefficients`` the weights ``(K, M)`` on the response and the variance over s^2 ``(K,)``."""
        weights = np.einsum("ki,kij,kmj->km", rows, self.inverse, self.basis)
        return weights, np.einsum("ki,kij,kj->k", rows, self.inverse, rows)


def changepoint(
    points: Points, permutations: int = PERMUTATIONS, resamples: int = RESAMPLES, seed: int = 0, level: float = 0.95
) -> Changepoint:
    """Return where the slope of the response over ln x changes, and whether it does: segmented regression on model means.

    Fitted is ``z = c + b1 min(ln x - k, 0) + b2 max(ln x - k, 0)``, z = ln y or y, one mean per model, the break k
    between the second and the second last size. p value: of ``F = (RSS_line - RSS) / (RSS / (M - 4))``, maximised over
    k, among permutations of the single line's residuals over the models, ``(1 + reached) / (1 + permutations)``: the
    search for the break is part of every permutation (the usual F test, which takes k as given, is far too easy on it).
    The interval of the break is ``profile_intervals``'s.

    Returns: Changepoint, with a reason where there are fewer than 6 models or distinct sizes, or z does not vary.
    Cost: 50 ms. Source: Muggeo, "Estimating regression models with unknown break-points", Statistics in Medicine 22,
    2003; Davies, "Hypothesis testing when a nuisance parameter is present only under the alternative", Biometrika 74,
    1987 (why the search counts); Freedman and Lane, "A nonstochastic interpretation of reported significance levels",
    J. Business and Economic Statistics 1, 1983 (permuted residuals).
    """
    means = model_means(points)
    reason = refusal(LAWS["broken_power"], means)
    if reason:
        return Changepoint(None, None, None, None, None, None, reason.replace("broken_power", "a changepoint"))
    scaling = scaling_of(means.x)
    # The broken power law in ln y is this very regression: two lines in whatever response it is given.
    best = fit_many(form_of("broken_power", "log", scaling), means.x, means.response[None]).coordinates[0]
    axis = scaling.log(means.x)
    segments = segments_of(axis, *scaling.log(np.asarray([scaling.inner_low, scaling.inner_high])))
    interval = profile_intervals(
        segments, means.response, [], resamples, generator(seed, "changepoint", "interval"), level
    )[-1]
    low, high = (None if end is None else float(scaling.low * np.exp(end * scaling.reach)) for end in interval)
    return Changepoint(
        float(scaling.low * np.exp(best[3] * scaling.reach)), low, high, float(best[1] / scaling.reach),
        float(best[2] / scaling.reach), _permutation_p(segments, axis, means.response, permutations, seed),
    )  # fmt: skip


def segments_of(axis: Array, low: float, high: float) -> Segments:
    """Return the two lines over sizes on an axis ``(M,)`` for breaks from low to high."""
    breaks = np.linspace(low, high, _BREAKS)
    basis = break_rows(axis, breaks)
    orthogonal, _ = np.linalg.qr(basis)
    return Segments(breaks, basis, orthogonal, np.linalg.inv(np.einsum("kmi,kmj->kij", basis, basis)))


def break_rows(axis: Array, breaks: Array) -> Array:
    """Return the rows ``(K, M, 3)``: 1, the way below the break, the way above it."""
    away = axis[None, :] - breaks[:, None]
    return np.stack([np.ones_like(away), np.minimum(away, 0), np.maximum(away, 0)], axis=-1)


def profile_intervals(
    segments: Segments, response: Array, contrasts: list[Array], resamples: int, draw: np.random.Generator, level: float
) -> list[Interval]:
    """Return the intervals of linear contrasts of two lines with an unknown break, and last of the break itself.

    An interval holds the values v whose profile ``min over k of RSS(k, v)`` is at most ``RSS (1 + F / (M - 4))``: for a
    given break, RSS is a parabola in v, so the ends are exact for every break tried. F is the larger of the quantile
    ``level`` of F(1, M - 4) and of the bootstrapped F* of the estimate itself: M residuals of the fit, each divided by
    ``sqrt(1 - leverage)``, centred and scaled to the residual variance, are drawn with replacement onto the fit, and
    the break is sought anew. F* alone is too small where two residual degrees of freedom repeat themselves, F(1, M - 4)
    where the noise nearly hides the break. An end of the break is None where its profile is still below at the innermost
    break tried.

    Args: response ``(M,)``; contrasts: each ``(K, 3)``, rows on (value at the break, slope below, slope above).
    Source: Bates and Watts, Nonlinear Regression Analysis and its Applications, 1988, section 6.1 (profiles); Davison
    and Hinkley, Bootstrap Methods and their Application, 1997, sections 6.2 (residuals) and 5.2 (pivots); Hansen,
    "Sample splitting and threshold estimation", Econometrica 68, 2000 (inverting the test of the break).
    """
    from scipy.special import fdtri

    rss = segments.rss(response[None])[0]
    place, freedom = int(rss.argmin()), len(response) - 4
    fit = segments.orthogonal[place] @ (segments.orthogonal[place].T @ response)
    least = max(float(rss[place]), len(response) * (1e-12 * max(1.0, float(np.abs(response).max()))) ** 2)
    draws = fit + _resampled(response - fit, segments.orthogonal[place], freedom, resamples, draw)
    solved = [segments.contrast(rows) for rows in contrasts]
    reached = [_bootstrap_f(segments, draws, place, weights @ response, (weights, scale)) for weights, scale in solved]
    reached.append(_bootstrap_f(segments, draws, place, None, None))
    theory, found = float(fdtri(1, freedom, level)), []
    for statistics, pair in zip(reached, [*solved, None], strict=True):
        threshold = least * (1 + max(float(np.quantile(statistics, level)), theory) / freedom)
        inside = rss <= threshold
        if pair is None:
            found.append(_break_ends(segments.breaks, inside))
            continue
        weights, scale = pair
        values, away = (weights @ response)[inside], np.sqrt(scale[inside] * np.maximum(threshold - rss[inside], 0))
        found.append(Interval(float((values - away).min()), float((values + away).max())))
    return found


def _resampled(residuals: Array, q: Array, freedom: int, resamples: int, draw: np.random.Generator) -> Array:
    """Return residuals drawn with replacement ``(R, M)``, adjusted for leverage, centred, of the residual variance."""
    adjusted = residuals / np.sqrt(np.maximum(1 - (q**2).sum(axis=1), 0.05))
    adjusted -= adjusted.mean()
    spread = float((adjusted**2).mean())
    if spread == 0:
        return np.zeros((resamples, len(residuals)))
    adjusted *= np.sqrt(float((residuals**2).sum()) / freedom / spread)
    return np.asarray(adjusted[draw.integers(0, len(residuals), (resamples, len(residuals)))])


def _bootstrap_f(
    segments: Segments, draws: Array, place: int, values: Array | None, pair: tuple[Array, Array] | None
) -> Array:
    """Return F* of the estimate in every resample ``(R,)``: of a contrast, or of the break where there is none."""
    freedom, parts = draws.shape[1] - 4, []
    rows = max(1, _BLOCK // len(segments.breaks))
    for first in range(0, len(draws), rows):
        part = draws[first : first + rows]
        rss = segments.rss(part)
        least = np.maximum(rss.min(axis=1), np.finfo(float).tiny)
        if pair is None or values is None:
            held = rss[:, place]
        else:
            held = (rss + (part @ pair[0].T - values[place]) ** 2 / pair[1]).min(axis=1)
        parts.append((held - rss.min(axis=1)) / (least / freedom))
    return np.concatenate(parts)


def _break_ends(breaks: Array, inside: Array) -> Interval:
    """Return the ends of the breaks inside, each moved out by one break tried; None where the outermost is inside."""
    places = np.flatnonzero(inside)
    if not len(places):
        return UNKNOWN
    first, last = int(places[0]), int(places[-1])
    return Interval(
        float(breaks[first - 1]) if first > 0 else None,
        float(breaks[last + 1]) if last < len(breaks) - 1 else None,
    )


def _permutation_p(segments: Segments, axis: Array, response: Array, permutations: int, seed: int) -> float:
    """Return the p value of a single line among permutations of its residuals."""
    line, _ = np.linalg.qr(np.column_stack([np.ones_like(axis), axis]))
    fit = line @ (line.T @ response)
    if np.abs(response - fit).max() <= 1e-12 * max(1.0, float(np.abs(response).max())):
        return 1.0  # on a straight line but for rounding
    rng = generator(seed, "changepoint", "permutation")
    draws = rng.permuted(np.broadcast_to(response - fit, (permutations, len(axis))), axis=1)

    def statistic(rows: Array) -> Array:
        single = (rows**2).sum(axis=1) - ((rows @ line) ** 2).sum(axis=1)
        least = np.maximum(segments.rss(rows).min(axis=1), 1e-12 * single)
        return np.asarray((single - least) / np.maximum(least, np.finfo(float).tiny))

    return monte_carlo_p(float(statistic((response - fit)[None])[0]), statistic(draws))
