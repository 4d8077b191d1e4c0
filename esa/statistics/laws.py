"""Laws of a quantity over the size of models: fits with one vote per model, AICc weights, leave-one-model-out error."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from esa.statistics.law_fitting import fit_many, predict
from esa.statistics.law_forms import form_of, scaling_of

Array = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Response = Literal["log", "natural"]

_EXACT = (
    1e-12  # residuals below this share of the largest response are rounding: an exact fit, whose AICc would be -inf
)


@dataclass(frozen=True)
class Points:
    """A quantity measured on models of several sizes.

    ``x`` ``(N,)`` above zero (parameters, tokens), ``y`` ``(N,)``, ``cluster`` ``(N,)``: which model a point is of; its
    points are its runs (training seeds) and score seeds, and share one x. ``response``: what is fitted, ln y where the
    noise is a factor (``log``: every y above zero), else y (``natural``).

    Raises: ValueError where lengths differ, a number is not finite, an x or (log) a y is not above zero, or the points of
    one model have two x.
    """

    x: Array
    y: Array
    cluster: Ints
    response: Response

    def __post_init__(self) -> None:
        if not len(self.x) == len(self.y) == len(self.cluster):
            raise ValueError("x, y and cluster differ in length")
        if not (np.isfinite(self.x).all() and np.isfinite(self.y).all()):
            raise ValueError("a point is not finite")
        if not (self.x > 0).all() or (self.response == "log" and not (self.y > 0).all()):
            raise ValueError("x, and y under the response log, must be above zero")
        if len(np.unique(np.column_stack([self.cluster, self.x]), axis=0)) != len(np.unique(self.cluster)):
            raise ValueError("the points of one model must share one x")

    def without(self, cluster: int) -> "Points":
        """Return the points of all other models."""
        kept = self.cluster != cluster
        return Points(self.x[kept], self.y[kept], self.cluster[kept], self.response)


class Means(NamedTuple):
    """One value per model, in order of its cluster number: x ``(M,)``, mean response ``(M,)``, points ``(M,)``."""

    x: Array
    response: Array
    num_points: Ints


@dataclass(frozen=True)
class Law:
    """A law: its formula, the names of its parameters, and from how many models on it is fitted."""

    name: str
    formula: str
    parameters: tuple[str, ...]
    needs: int
    value: Callable[[Array, Array], Array]

    def __call__(self, x: Array, values: Sequence[float] | Array) -> Array:
        """Return y at x ``(V,)``, above zero, for the parameters' values ``(P,)``."""
        with np.errstate(over="ignore", invalid="ignore"):
            return np.asarray(self.value(np.asarray(x, dtype=float), np.asarray(values, dtype=float)), dtype=float)


def power(x: Array, v: Array) -> Array:
    """Return ``a x^b``, v = (a, b): a line of ln y over ln x."""
    return np.asarray(v[0] * x ** v[1])


def linear(x: Array, v: Array) -> Array:
    """Return ``a + b x``, v = (a, b)."""
    return np.asarray(v[0] + v[1] * x)


def logarithmic(x: Array, v: Array) -> Array:
    """Return ``a + b ln x``, v = (a, b)."""
    return np.asarray(v[0] + v[1] * np.log(x))


def exponential(x: Array, v: Array) -> Array:
    """Return ``a exp(b x)``, v = (a, b): a line of ln y over x."""
    return np.asarray(v[0] * np.exp(v[1] * x))


def saturating(x: Array, v: Array) -> Array:
    """Return ``c + a x^b``, v = (c, a, b) with b < 0: it settles at c (Kaplan et al. 2020, Hoffmann et al. 2022: losses)."""
    return np.asarray(v[0] + v[1] * x ** v[2])


def broken_power(x: Array, v: Array) -> Array:
    """Return ``a x^b1`` up to the break x0 and ``a x0^(b1 - b2) x^b2`` behind it, v = (a, b1, b2, x0)."""
    return np.asarray(v[0] * np.where(x <= v[3], x ** v[1], v[3] ** (v[1] - v[2]) * x ** v[2]))


# name -> law, in the order of esa.registry.FITS: simpler ones first, so that ties fall to them
LAWS: dict[str, Law] = {
    law.name: law
    for law in (
        Law("power", "a x^b", ("a", "b"), 3, power),
        Law("linear", "a + b x", ("a", "b"), 3, linear),
        Law("logarithmic", "a + b ln x", ("a", "b"), 3, logarithmic),
        Law("exponential", "a exp(b x)", ("a", "b"), 3, exponential),
        Law("saturating", "c + a x^b, b < 0", ("c", "a", "b"), 5, saturating),
        Law("broken_power", "a x^b1 to x0, then a x0^(b1 - b2) x^b2", ("a", "b1", "b2", "x0"), 6, broken_power),
    )
}


@dataclass(frozen=True)
class LawFit:
    """A fitted law; ``reason`` says why there is none, and then everything behind it is empty."""

    law: str
    num_points: int
    num_models: int
    reason: str | None = None
    values: tuple[float, ...] = ()
    r2: float | None = None
    aicc: float | None = None
    weight: float | None = None


@dataclass(frozen=True)
class LeaveOneOut:
    """How well a law foretells a model that it has not seen.

    ``error``: root mean square over the models of (mean response - foretold response); ``factor``: under the response
    log the same as a share of y, ``exp(error) - 1`` (0.3: typically 30 % off), else None; ``models`` and ``predictions``:
    cluster numbers and what the other models foretell of y, None where they cannot carry the law. ``reason`` says why
    there is no error.
    """

    error: float | None
    factor: float | None
    models: tuple[int, ...]
    predictions: tuple[float | None, ...]
    reason: str | None = None


def response_of(y: Sequence[float] | Array) -> Response:
    """Return what is fitted: ``log`` where every y is above zero (noise is then taken as a factor), else ``natural``."""
    return "log" if (np.asarray(y, dtype=float) > 0).all() else "natural"


def model_means(points: Points) -> Means:
    """Return the mean response of each model: of ln y or of y, over its runs and score seeds, each point once."""
    clusters, first, places = np.unique(points.cluster, return_index=True, return_inverse=True)
    y = np.log(points.y) if points.response == "log" else np.asarray(points.y, dtype=float)
    counts = np.bincount(places, minlength=len(clusters))
    return Means(points.x[first].astype(float), np.bincount(places, weights=y) / counts, counts.astype(np.int64))


def compare_laws(points: Points, names: Sequence[str] = tuple(LAWS)) -> list[LawFit]:
    """Return the least-squares fits of laws, in the order given, with their Akaike weights; every model has one vote.

    Training seeds and score seeds of one model share what the law leaves unexplained of it, so they are no independent
    witnesses of the law: 6 models with 2 runs and 3 score seeds are 6 observations of it, not 36. Fitted are therefore
    the M model means of the response (z = ln y or y). For equally many points per model this is the likelihood of the
    random-effects model itself: its part within the models does not contain the law's parameters. With P parameters::

        RSS  = sum over models (z_m - f(x_m))^2
        r2   = 1 - RSS / sum (z_m - mean z)^2                      (of the model means, in the response)
        aicc = M ln(RSS / M) + 2 q + 2 q (q + 1) / (M - q - 1),    q = P + 1 (the variance counts)
        weight_i = exp(-(aicc_i - min) / 2) / sum_j exp(-(aicc_j - min) / 2)

    aicc is None where M <= q + 1, which empties its denominator (a broken power law of six models), and then such a law
    has no weight. Where no law has an AICc (three or four models), the weights are those of the laws of fewest
    parameters, between which the missing term is the same and cancels.

    Returns: LawFits; with a reason where the models, or their distinct sizes, are fewer than the law needs (3 for two
    parameters, 5 for three, 6 for four) or the response does not vary. Raises: KeyError for a name not in LAWS.
    Cost: 10 ms. Source: Burnham and Anderson, Model Selection and Multimodel Inference, 2002, sections 2.4 and 2.9; on
    units of analysis, Hurlbert, "Pseudoreplication and the design of ecological field experiments", Ecological
    Monographs 54, 1984.
    """
    return _weighted([_fit_law(points, LAWS[name]) for name in names])


def leave_one_model_out(points: Points, law: str) -> LeaveOneOut:
    """Return how well a law, fitted without a model, foretells that model's mean response, over all models.

    ``error = sqrt(mean over m of (z_m - f_(-m)(x_m))^2)``, f_(-m) fitted to the means of all other models, in units of
    the response (ln y or y). The first and the last model are extrapolated to.

    Returns: LeaveOneOut; without an error, and with a reason, where a model is missing that the law needs, or a
    foretold response is no number (a line that falls below zero before the model left out).
    Cost: M fits, 50 ms. Source: Stone, "Cross-validatory choice and assessment of statistical predictions", JRSS B 36, 1974.
    """
    clusters = tuple(int(cluster) for cluster in np.unique(points.cluster))
    means, errors, reasons = model_means(points), [], []
    predictions: list[float | None] = []
    for place, cluster in enumerate(clusters):
        fit = _fit_law(points.without(cluster), LAWS[law])
        if fit.reason:
            reasons.append(f"without one model: {fit.reason}")
            predictions.append(None)
            continue
        found = float(LAWS[law](means.x[place : place + 1], fit.values)[0])
        usable = math.isfinite(found) and (points.response == "natural" or found > 0)
        predictions.append(found if usable else None)
        if not usable:
            reasons.append(f"the other models foretell no value at x = {means.x[place]:g}")
            continue
        errors.append(float(means.response[place]) - (math.log(found) if points.response == "log" else found))
    if reasons:
        return LeaveOneOut(None, None, clusters, tuple(predictions), reasons[0])
    error = math.sqrt(math.fsum(value**2 for value in errors) / len(errors))
    return LeaveOneOut(error, math.expm1(error) if points.response == "log" else None, clusters, tuple(predictions))


def refusal(law: Law, means: Means) -> str | None:
    """Return why the models cannot carry a law, or None."""
    if len(means.x) < law.needs:
        return f"{len(means.x)} models, {law.name} needs {law.needs}"
    if len(np.unique(means.x)) < law.needs:
        return f"{len(np.unique(means.x))} distinct sizes, {law.name} needs {law.needs}"
    if np.ptp(means.response) <= _EXACT * max(1.0, float(np.abs(means.response).max())):
        return "it does not vary"
    return None


def _fit_law(points: Points, law: Law) -> LawFit:
    """Return the fit of one law, without its weight."""
    means = model_means(points)
    number, reason = len(means.x), refusal(law, means)
    if reason:
        return LawFit(law.name, len(points.x), number, reason)
    form = form_of(law.name, points.response, scaling_of(means.x))
    fitted = fit_many(form, means.x, means.response[None])
    floor = number * (_EXACT * max(1.0, float(np.abs(means.response).max()))) ** 2
    rss = max(float(((means.response - predict(form, means.x, fitted.coordinates)[0]) ** 2).sum()), floor)
    q = len(law.parameters) + 1
    room = number - q - 1
    return LawFit(
        law.name, len(points.x), number,
        values=tuple(float(value) for value in form.values(fitted.coordinates)[0]),
        r2=1 - rss / float(((means.response - means.response.mean()) ** 2).sum()),
        aicc=number * math.log(rss / number) + 2 * q + 2 * q * (q + 1) / room if room > 0 else None,
    )  # fmt: skip


def _weighted(fits: list[LawFit]) -> list[LawFit]:
    """Return the fits with their weights."""
    fitted = [fit for fit in fits if fit.reason is None and fit.r2 is not None]
    judged = {fit.law: fit.aicc for fit in fitted if fit.aicc is not None}
    if not judged and fitted:
        fewest = min(len(fit.values) for fit in fitted)
        # 1 - r2 is the RSS over the same sum of squares for all: their logarithms differ as the AICc would
        judged = {
            fit.law: fit.num_models * math.log(max(1 - fit.r2, _EXACT**2))
            for fit in fitted
            if fit.r2 is not None and len(fit.values) == fewest
        }
    least = min(judged.values(), default=0.0)
    shares = {law: math.exp((least - value) / 2) for law, value in judged.items()}
    total = math.fsum(shares.values())
    return [replace(fit, weight=shares[fit.law] / total if fit.law in shares else None) for fit in fits]
