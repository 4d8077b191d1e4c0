"""Methods that need to know more than the weight: the calibration gradient, or the score that ranked it."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any, Protocol

import torch
from torch import Tensor

from esa.artifact import to_json
from esa.errors import EsaError, ModelError
from esa.model import LoadedModel, Weight
from esa.model.precision import wide
from esa.perturb.methods import require_partner
from esa.perturb.place import Given, Place
from esa.spec.methods import Adaptive, Gradient, Perturb, Swap

__all__ = ["LAWS", "Given", "Law", "Scored", "adaptive", "check_informed", "gradient", "known_by"]


@dataclass(frozen=True)
class Law:
    """How a metric's predicted damage depends on the change: ``D(dw) = zeroing(score, w) |dw / w|^power``."""

    power: int
    zeroing: Callable[[Tensor, Tensor], Tensor]  # scores and weights, float64 -> the predicted damage of zeroing each


def _score(score: Tensor, weight: Tensor) -> Tensor:
    return score


_LINEAR, _QUADRATIC = Law(1, _score), Law(2, _score)
_CURVATURE = Law(2, lambda score, weight: score * weight.square() / 2)

# metric -> its law; ``adaptive`` derives them. taylor2 is the sum of two powers whose parts no score keeps apart; an ensemble
# is a rank. They predict nothing for half a change.
LAWS: dict[str, Law] = {
    "magnitude": _LINEAR,
    "act_mag": _LINEAR,
    "wanda": _LINEAR,
    "super_activation": _LINEAR,
    "grad_x_weight": _LINEAR,
    "grad_squared": Law(1, lambda score, weight: score.sqrt() * weight.abs()),
    "fisher_obd": _QUADRATIC,
    "ggn_obd": _QUADRATIC,
    "obd": _QUADRATIC,
    "ggn_diag": _CURVATURE,
    "hutchinson_diag": _CURVATURE,
}


def gradient(values: Tensor, options: Mapping[str, Any], place: Place) -> Tensor:
    """Step along the gradient's sign: ``w <- w + epsilon |w| sign(g)`` (``aligned``), or minus it (``opposed``).

    g: gradient of L, the mean NLL per predicted token of the calibration windows, at the intact model
    (``esa.perturb.gradients``); its sign alone counts, and where it is zero the weight stays. To first order L changes by
    ``epsilon sum |w g|``, up or down. In float64, then rounded to storage.
    Source: the fast gradient sign step of Goodfellow et al., Explaining and Harnessing Adversarial Examples, ICLR 2015, taken on
    weights and in units of their own size, as the bound relative to the weights' norm in Wu et al., Adversarial Weight
    Perturbation Helps Robust Generalization, NeurIPS 2020.
    """
    gradients = place.given.gradients
    assert gradients is not None, "gradients are taken before a case is changed"
    known, found = gradients[place.info.name]
    at = torch.searchsorted(known, place.index.to(known.device)).clamp_(max=len(known) - 1)
    assert torch.equal(known[at], place.index.to(known.device)), "the gradient is known at every touched weight"
    exact = wide(values)
    toward = {"aligned": 1.0, "opposed": -1.0}[options["direction"]]
    step = exact.abs() * wide(found[at]).sign().to(exact.device)
    return exact.add(step, alpha=toward * options["epsilon"]).to(values)


def adaptive(values: Tensor, options: Mapping[str, Any], place: Place) -> Tensor:
    """Shrink each weight until the ranking metric predicts the same damage of all: ``w <- w - sign(w) |dw|``.

    |dw| solves ``D(dw) = strength x median of D(w)``, the median over all targets of the group, D the metric's predicted damage
    of a change by dw; it is capped at |w|, where the weight is zero and the prediction falls short. With the metric's law
    ``D(dw) = D(w) |dw / w|^p`` (``LAWS``): ``|dw| = |w| min(1, (strength median / D(w))^(1/p))``.
    magnitude, act_mag, wanda: what the weight adds to its output, |w| times the input's size: p = 1. super_activation: what it
    adds to the massive activation: p = 1 while it is not larger than that. grad_x_weight, |w g|: p = 1. grad_squared, the mean of
    g^2: the root mean square of g times |dw|, p = 1, D(w) = sqrt(score) |w|. fisher_obd, ggn_obd, obd, w^2 h / 2: p = 2.
    ggn_diag, hutchinson_diag, h itself: h dw^2 / 2, p = 2, D(w) = score w^2 / 2. A score of zero predicts no damage at any
    size: that weight is zeroed. In float64, then rounded to storage.
    Raises EsaError, when the cases are planned, for a metric without a law, a group without scores, or a median of zero.
    Source: the predictions are the metrics' own (of LeCun et al., Optimal Brain Damage, 1990, where quadratic); equal predicted
    damage as a dose is esa's own.
    """
    given = place.given
    assert given.metric is not None, "check_informed refuses a group without a metric"
    law, exact = LAWS[given.metric], wide(values)
    scores = [given.scores[place.info.name, index] for index in place.index.tolist()]
    whole = law.zeroing(torch.tensor(scores, dtype=torch.float64, device=exact.device), exact)
    level = options["strength"] * median_damage(given, place.weights)
    share = (level / whole).pow(1 / law.power).clamp(max=1)  # of |w|; infinite where no damage is predicted
    return exact.mul(1 - share).to(values)


def median_damage(given: Given, weights: Mapping[str, Weight]) -> float:
    """Return the median over the group's targets of the damage that its metric predicts for zeroing each; kept in ``given``."""
    assert given.metric is not None
    if given.metric not in given.medians:
        by_name: dict[str, list[tuple[int, float | None]]] = {}
        for (name, index), score in given.scores.items():
            by_name.setdefault(name, []).append((index, score))
        found: list[float] = []
        for name, known in by_name.items():
            values = wide(weights[name].stored(torch.tensor([index for index, _ in known])))
            scores = torch.tensor([score for _, score in known], dtype=torch.float64, device=values.device)
            found += LAWS[given.metric].zeroing(scores, values).tolist()
        given.medians[given.metric] = median(found)
    return given.medians[given.metric]


def known_by(method: str, given: Given) -> dict[str, str]:
    """Return what beside method, options, targets and repeat tells a case apart: of ``adaptive`` the metric and its scores."""
    if method != "adaptive":
        return {}
    scores = sorted((str(target), score) for target, score in given.scores.items())
    return {"metric": str(given.metric), "scores": hashlib.sha256(to_json(scores).encode()).hexdigest()[:12]}


class Scored(Protocol):
    """A group of targets, as a ranking gives it."""

    @property
    def name(self) -> str:
        """Return its name, such as top_k."""

    @property
    def metric(self) -> str | None:
        """Return the metric that ranked it, None for random groups."""

    @property
    def targets(self) -> Sequence[Any]:
        """Return its targets."""

    @property
    def names(self) -> Sequence[str]:
        """Return the parameters that its targets touch."""

    @property
    def scores(self) -> Sequence[float | None]:
        """Return a score per target, or none."""


def check_informed(section: Perturb, group: Scored, loaded: LoadedModel, where: str) -> None:
    """Raise, when cases are planned, where a method lacks what it needs; ``where``: the section, such as perturb.0.

    EsaError for ``adaptive`` on a group that no metric ranked, without a score for every single weight, by a metric without a
    law, or whose median predicted damage is zero; for ``swap`` of a tensor of one weight. ModelError for ``gradient`` on a model
    that computes in float16 or is spread over several devices.
    """
    if isinstance(section, Swap):
        for name in group.names:
            require_partner(loaded.table[name], f"{where}.method")
    if isinstance(section, Gradient):
        _check_differentiable(loaded, where)
    if isinstance(section, Adaptive):
        _check_scored(group, loaded, where)


def _check_differentiable(loaded: LoadedModel, where: str) -> None:
    if loaded.facts.get("compute") == "float16":
        raise ModelError(
            "'float16' cannot hold the gradients that gradient needs: those under 6e-8 become zero",
            where=f"{where}.method",
            hint='set model.compute = "float32", which holds every float16 weight exactly, or dtype = "bfloat16"',
        )
    devices = {str(parameter.device) for parameter in loaded.parameters().values() if not parameter.is_meta}
    if len(devices) > 1:
        raise ModelError(
            f"gradient needs gradients, and the model is spread over {', '.join(sorted(devices))}",
            where=f"{where}.method",
            hint='leave model.device_map out, with model.residency = "disk" where the model does not fit',
        )


def _check_scored(group: Scored, loaded: LoadedModel, where: str) -> None:
    ranked = 'give it ranked groups: groups = ["top_k"]'
    if group.metric is None:
        raise EsaError(
            f"adaptive needs the scores of a metric, and no metric ranked {group.name}",
            where=f"{where}.groups",
            hint=ranked,
        )
    if group.metric not in LAWS:
        raise EsaError(
            f"adaptive needs a metric that predicts the damage of a part of the change; '{group.metric}' does not;"
            f" allowed: {', '.join(LAWS)}",
            where=f"{where}.method",
            hint="give it a ranking by one of those",
        )
    single = all(isinstance(target, tuple) and isinstance(target[1], int) for target in group.targets)
    if not single or len(group.scores) != len(group.targets) or None in group.scores:
        raise EsaError(
            f"adaptive needs a score of every single weight, and {group.name} of {group.metric} has none for some",
            where=f"{where}.groups",
            hint="rank single weights, rank.aggregate = 'weight', and keep the ranking's column score",
        )
    scores = dict(zip(group.targets, group.scores, strict=True))
    if median_damage(Given(group.metric, scores), loaded.weights) == 0:
        raise EsaError(
            f"half of {group.name} has a predicted damage of 0 by {group.metric}: there is no median to be equal to",
            where=f"{where}.groups",
            hint=ranked,
        )
