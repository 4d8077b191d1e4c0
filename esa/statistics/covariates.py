"""What goes with a quantity beside size: categorical covariates of models in one regression, by permutation."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from esa.spec import generator
from esa.statistics.laws import Points, Response, model_means
from esa.statistics.multiplicity import holm
from esa.statistics.permutation import PERMUTATIONS, monte_carlo_p

Array = npt.NDArray[np.float64]

_PER_LEVEL = 2
_FREEDOM = 2  # residual degrees of freedom that a term must leave
_ALIASED = 1e-9


@dataclass(frozen=True)
class CovariateEffect:
    """One level of a term against its reference, or (``why``) the reason why the term has none.

    ``estimate``: mean response of the level less that of ``against``, at equal size and equal other terms; under the
    response log, ``exp`` of it is a factor. ``p_value`` belongs to the whole term, ``p_adjusted`` is Holm's over terms.
    """

    term: str
    level: str | None
    against: str | None
    estimate: float | None
    low: float | None
    high: float | None
    p_value: float | None
    p_adjusted: float | None
    num_models: int
    num_points: int
    why: str | None


class _Term(NamedTuple):
    name: str
    against: str
    levels: tuple[str, ...]
    columns: Array


def covariate_effects(
    y: Sequence[float], x: Sequence[float], models: Sequence[str], columns: Mapping[str, Sequence[str | None]],
    response: Response, permutations: int = PERMUTATIONS, seed: int = 0, level: float = 0.95,
) -> list[CovariateEffect]:  # fmt: skip
    """Return the effects of categorical covariates of models (family, dense or MoE, base or instruct) beside size.

    One regression of the M model means of the response on ``1, ln x`` and every term that can be told apart, as dummies
    against its commonest level (the first of these by name). A term is refused with a reason where it is unknown for a
    model, the same for all, has a level with fewer than 2 models, cannot be told from size and the terms before it, or
    would leave fewer than 2 residual degrees of freedom. Intervals: ``estimate -+ t_(M-P) * standard error``, HC3:
    ``(X'X)^-1 X' diag(e_m^2 / (1 - h_m)^2) X (X'X)^-1``, which holds where families vary differently. p value of a
    term: its F among permutations over the models of the residuals of the regression without it, which leaves size and
    the other terms in place; adjusted over the terms by Holm.

    Args: per point, all of the same length: y, x (a model's points share one), models (the model's name), columns (per
    term, in the order in which they enter, its level; a model's points share one); response: ``log`` or ``natural``.
    Returns: per level other than the reference an effect, terms in the order given, levels by name; one row with ``why``
    for a refused term. Raises: ValueError for points that do not fit together (see ``Points``).
    Source: Freedman and Lane, "A nonstochastic interpretation of reported significance levels", J. Business and
    Economic Statistics 1, 1983; MacKinnon and White, J. Econometrics 29, 1985, and Long and Ervin, American
    Statistician 54, 2000 (HC3); Holm, Scandinavian J. Statistics 6, 1979.
    """
    names, first, cluster = np.unique(
        np.asarray(models, dtype=object).astype(str), return_index=True, return_inverse=True
    )
    points = Points(np.asarray(x, dtype=float), np.asarray(y, dtype=float), cluster.astype(np.int64), response)
    means = model_means(points)
    size = np.log(means.x)
    design = np.column_stack([np.ones_like(size), size - size.mean()])
    design = design if np.ptp(size) > 0 else design[:, :1]
    taken: list[_Term] = []
    refused: dict[str, str] = {}
    for name, levels in columns.items():
        if any(levels[at] != levels[int(first[one])] for at, one in enumerate(cluster)):
            raise ValueError(f"the points of one model must share one {name}")
        found = _term(name, [levels[int(at)] for at in first], design, taken)
        if isinstance(found, str):
            refused[name] = found
        else:
            taken.append(found)
    whole = np.column_stack([design, *(term.columns for term in taken)])
    estimates, errors = _hc3(whole, means.response)
    counts = (len(names), len(points.x))
    rows: dict[str, list[CovariateEffect]] = {}
    p_values = [
        _term_p(term.name, whole, _places(design, taken, number), means.response, permutations, seed)
        for number, term in enumerate(taken)
    ]
    reach = _quantile(len(names) - whole.shape[1], level) if taken else 0.0
    for number, (term, p_value, adjusted) in enumerate(zip(taken, p_values, holm(p_values), strict=True)):
        rows[term.name] = [
            CovariateEffect(
                term.name, label, term.against, float(estimates[at]), float(estimates[at] - reach * errors[at]),
                float(estimates[at] + reach * errors[at]), p_value, adjusted, *counts, None,
            )
            for label, at in zip(term.levels, _places(design, taken, number), strict=True)
        ]  # fmt: skip
    for name, why in refused.items():
        rows[name] = [CovariateEffect(name, None, None, None, None, None, None, None, *counts, why)]
    return [row for name in columns for row in rows[name]]


def _term(name: str, levels: Sequence[str | None], design: Array, taken: Sequence[_Term]) -> _Term | str:
    """Return the dummies of a term, or why it has none."""
    unknown = sum(level is None for level in levels)
    if unknown:
        return f"unknown for {unknown} of {len(levels)} models"
    counts = Counter(str(level) for level in levels)
    if len(counts) < 2:
        return f"the same for all models: {next(iter(counts))}"
    few = sorted(level for level, number in counts.items() if number < _PER_LEVEL)
    if few:
        return f"fewer than {_PER_LEVEL} models of {', '.join(few)}"
    against = min(counts, key=lambda level: (-counts[level], level))
    others = tuple(sorted(level for level in counts if level != against))
    dummies = np.asarray([[float(level == other) for other in others] for level in levels])
    before = np.column_stack([design, *(term.columns for term in taken)])
    if np.linalg.matrix_rank(np.column_stack([before, dummies])) < before.shape[1] + len(others):
        alias = [term.name for term in taken if _aliased(np.column_stack([design, term.columns]), dummies)]
        return f"cannot be told from {' and '.join(alias) if alias else 'size and the terms before it'}"
    freedom = len(levels) - before.shape[1] - len(others)
    if freedom < _FREEDOM:
        return f"leaves {freedom} residual degrees of freedom of {len(levels)} models, needs {_FREEDOM}"
    return _Term(name, against, others, dummies)


def _aliased(design: Array, dummies: Array) -> bool:
    """Tell whether one term with size explains another wholly."""
    return bool(np.linalg.matrix_rank(np.column_stack([design, dummies])) < design.shape[1] + dummies.shape[1])


def _places(design: Array, taken: Sequence[_Term], number: int) -> list[int]:
    """Return the columns of a term in the whole design."""
    first = design.shape[1] + sum(term.columns.shape[1] for term in taken[:number])
    return list(range(first, first + taken[number].columns.shape[1]))


def _hc3(design: Array, response: Array) -> tuple[Array, Array]:
    """Return the least-squares coefficients and their HC3 standard errors; infinite where a model decides one alone."""
    inverse = np.linalg.inv(design.T @ design)
    coefficients = inverse @ design.T @ response
    residuals = response - design @ coefficients
    room = 1 - np.einsum("mp,pq,mq->m", design, inverse, design)
    with np.errstate(divide="ignore", invalid="ignore"):
        spread = np.where(room > _ALIASED, residuals**2 / room**2, np.inf)
        meat = np.einsum("mp,m,mq->pq", design @ inverse, spread, design @ inverse)
    return coefficients, np.sqrt(np.diag(meat))


def _term_p(name: str, whole: Array, places: list[int], response: Array, permutations: int, seed: int) -> float:
    """Return the permutation p value of a term's F given all others."""
    reduced = np.delete(whole, places, axis=1)
    q_reduced, q_whole = np.linalg.qr(reduced)[0], np.linalg.qr(whole)[0]
    fit = q_reduced @ (q_reduced.T @ response)
    rng = generator(seed, "covariates", name)
    draws = rng.permuted(np.broadcast_to(response - fit, (permutations, len(response))), axis=1)

    def statistic(rows: Array) -> Array:
        total = (rows**2).sum(axis=1)
        without = total - ((rows @ q_reduced) ** 2).sum(axis=1)
        within = np.maximum(total - ((rows @ q_whole) ** 2).sum(axis=1), 1e-12 * total)
        return np.asarray((without - within) / np.maximum(within, np.finfo(float).tiny))

    return monte_carlo_p(float(statistic((response - fit)[None])[0]), statistic(draws))


def _quantile(freedom: int, level: float) -> float:
    """Return the two-sided Student quantile."""
    from scipy.special import stdtrit

    return float(stdtrit(freedom, (1 + level) / 2))
