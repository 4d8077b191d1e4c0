"""gradient steps where the loss rises or falls, and adaptive makes the ranking metric predict the same damage of all."""

from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from typing import Any

import numpy as np
import pytest
import torch

from esa.errors import EsaError
from esa.eval import Evaluator
from esa.model import LoadedModel
from esa.perturb.apply import applied, plan_changes
from esa.perturb.gradients import touched_gradients
from esa.perturb.informed import LAWS, Given, check_informed, known_by
from esa.perturb.place import Given as PlacedGiven
from esa.perturb.targets import Region, Target
from esa.progress import Silent
from esa.registry import METRICS
from esa.spec import generator
from esa.spec.methods import Perturb
from tests.conftest import load, tiny_spec
from tests.perturb.given import given
from tests.perturb.test_hooks import eval_windows
from tests.score.naive import engine_scores

DOWN = "model.layers.1.mlp.down_proj.weight"
UP = "model.layers.0.mlp.up_proj.weight"
EMBEDDING = "model.embed_tokens.weight"
TARGETS: list[Target] = [(DOWN, 7), (UP, 300), (DOWN, 3), (UP, 0), (UP, 45)]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def changed(
    loaded: LoadedModel, method: str, options: dict[str, Any], known: Given, targets: list[Target] = TARGETS
) -> dict[Target, tuple[float, float]]:
    """Return the old and the new stored value of every target."""
    changes = plan_changes(loaded, targets, method, options, generator(0, method), known)
    return {
        (change.name, index): (old, new)
        for change in changes
        for index, old, new in zip(change.index.tolist(), change.before.tolist(), change.after.tolist(), strict=True)
    }


def rounded(value: float, dtype: torch.dtype) -> float:
    """Return a float64 number as a storage dtype holds it."""
    return float(torch.tensor(value, dtype=torch.float64).to(dtype))


def test_given_is_one_class() -> None:
    """Who imports Given from the informed methods has the one that a place holds."""
    assert Given is PlacedGiven


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("direction", "toward"), [("aligned", 1), ("opposed", -1)])
def test_gradient_by_hand(dtype: torch.dtype, direction: str, toward: int) -> None:
    """W +/- epsilon |w| sign(g), rounded to storage once; where g is zero the weight stays, and its size does not matter."""
    loaded, known = load("llama", dtype), given(TARGETS)
    assert known.gradients is not None
    known.gradients[UP][1][1] = 0.0  # index 45
    found = changed(loaded, "gradient", {"epsilon": 0.3, "direction": direction}, known)
    signs = {(DOWN, 3): -1, (DOWN, 7): -1, (UP, 0): 1, (UP, 45): 0, (UP, 300): 1}
    assert found.keys() == signs.keys()
    for target, (old, new) in found.items():
        assert new == rounded(old + toward * 0.3 * abs(old) * signs[target], dtype), target
        assert (new == old) == (target == (UP, 45))


def test_a_case_of_fewer_weights_takes_its_own_gradients() -> None:
    """Gradients of a whole group serve each of its weights alone."""
    loaded, known = load("llama"), given(TARGETS)
    options = {"epsilon": 0.3, "direction": "aligned"}
    whole = changed(loaded, "gradient", options, known)
    for target in TARGETS:
        assert changed(loaded, "gradient", options, known, [target]) == {target: whole[target]}


@pytest.mark.parametrize("name", ["llama", "gpt2", "mixtral", "llama_tied"])
def test_the_loss_rises_along_and_falls_against(name: str) -> None:
    """Planted truth: for a small epsilon the loss changes by epsilon sum |w g| up or down, within second order."""
    loaded, windows = load(name), eval_windows()
    names = [n for n, info in loaded.table.items() if len(info.shape) >= 2][2:8]
    targets: list[Target] = [(n, index) for n in names for index in range(0, loaded.table[n].numel, 3)]
    touched = {n: torch.arange(0, loaded.table[n].numel, 3) for n in names}
    known = Given(gradients=touched_gradients(loaded, windows, touched, 1000, Silent()))
    assert known.gradients is not None
    first = sum(
        float((loaded.weights[n].stored(index).double() * g.double()).abs().sum())
        for n, (index, g) in known.gradients.items()
    )
    evaluator = Evaluator(loaded, windows, 1000)
    base = evaluator.measure().mean_nll
    assert base is not None
    moved = {}
    for direction in ("aligned", "opposed"):
        options = {"epsilon": 1e-3, "direction": direction}
        changes = plan_changes(loaded, targets, "gradient", options, generator(0), known)
        with applied(loaded, changes):
            nll = evaluator.measure().mean_nll
        assert nll is not None
        moved[direction] = nll - base
    assert moved["aligned"] == pytest.approx(1e-3 * first, rel=0.1)
    assert moved["opposed"] == pytest.approx(-1e-3 * first, rel=0.1)


@dataclass(frozen=True)
class Prediction:
    """A metric's predicted damage of a change dw of w, written out: the score is that of the intact weight."""

    score: Callable[[float, float], float]  # of w and of what the metric knows of its surroundings, c
    damage: Callable[[float, float, float], float]  # of dw, w and c


# Of each metric the score and the damage by its own definition: c is the input's size, the gradient or the curvature.
PREDICTIONS = {
    "magnitude": Prediction(lambda w, c: abs(w), lambda dw, w, c: abs(dw)),
    "act_mag": Prediction(lambda w, c: c * abs(w), lambda dw, w, c: c * abs(dw)),
    "wanda": Prediction(lambda w, c: c * abs(w), lambda dw, w, c: c * abs(dw)),
    "super_activation": Prediction(lambda w, c: c * abs(w), lambda dw, w, c: c * abs(dw)),
    "grad_x_weight": Prediction(lambda w, c: c * abs(w), lambda dw, w, c: c * abs(dw)),
    "grad_squared": Prediction(lambda w, c: c**2, lambda dw, w, c: c * abs(dw)),
    "fisher_obd": Prediction(lambda w, c: w**2 * c / 2, lambda dw, w, c: dw**2 * c / 2),
    "ggn_obd": Prediction(lambda w, c: w**2 * c / 2, lambda dw, w, c: dw**2 * c / 2),
    "obd": Prediction(lambda w, c: w**2 * c / 2, lambda dw, w, c: dw**2 * c / 2),
    "ggn_diag": Prediction(lambda w, c: c, lambda dw, w, c: dw**2 * c / 2),
    "hutchinson_diag": Prediction(lambda w, c: c, lambda dw, w, c: dw**2 * c / 2),
}


def test_every_metric_has_a_law_or_a_reason() -> None:
    """The metrics with a law are those written out here; taylor2 alone, a sum of two powers, has none."""
    assert set(LAWS) == set(PREDICTIONS) == set(METRICS) - {"taylor2"}


@pytest.mark.parametrize("strength", [0.1, 1.0, 3.0])
@pytest.mark.parametrize("metric", PREDICTIONS)
def test_adaptive_predicts_the_same_damage_of_all(metric: str, strength: float) -> None:
    """After the change the metric predicts strength x the median of all, but for weights that are zero: those fall short."""
    loaded, rule = load("llama"), PREDICTIONS[metric]
    known = dict(zip(TARGETS, (0.5, 3.0, 0.02, 1.3, 7.0), strict=True))
    old = {(name, index): float(loaded.parameters()[name].detach().reshape(-1)[index]) for name, index in TARGETS}
    scores = {target: rule.score(old[target], c) for target, c in known.items()}
    level = strength * median(rule.damage(old[target], old[target], c) for target, c in known.items())
    found = changed(loaded, "adaptive", {"strength": strength}, Given(metric, scores))
    for target, (before, after) in found.items():
        assert before == old[target]
        damage = rule.damage(before - after, before, known[target])
        if rule.damage(before, before, known[target]) <= level * (1 + 1e-9):
            assert after == 0, target
        else:
            assert damage == pytest.approx(level, rel=1e-4), target
            assert np.sign(after) == np.sign(before)
    if strength == 1.0:  # those up to the median
        assert sum(after == 0 for _, after in found.values()) == 3


def test_the_median_is_the_whole_groups() -> None:
    """A weight alone changes as it does among all: the median is over the group, not over the case."""
    loaded, known = load("llama"), given(TARGETS)
    whole = changed(loaded, "adaptive", {"strength": 0.4}, known)
    for target in TARGETS:
        assert changed(loaded, "adaptive", {"strength": 0.4}, known, [target]) == {target: whole[target]}
        alone = changed(loaded, "adaptive", {"strength": 0.4}, given([target]), [target])
        assert alone[target][1] == pytest.approx(0.6 * alone[target][0], rel=1e-6)


def test_a_score_of_zero_is_zeroed() -> None:
    """A weight that the metric thinks harmless reaches no damage at any size: it goes to zero."""
    loaded, known = load("llama"), given(TARGETS)
    scores = {**known.scores, (UP, 45): 0.0}
    found = changed(loaded, "adaptive", {"strength": 0.5}, Given("act_mag", scores))
    assert found[UP, 45][1] == 0


@pytest.mark.parametrize("dtype", DTYPES)
def test_adaptive_rounds_to_storage_once(dtype: torch.dtype) -> None:
    """Computed in float64 from the stored numbers."""
    loaded = load("llama", dtype)
    scores = dict(zip(TARGETS, (1.0, 2.0, 4.0, 8.0, 16.0), strict=True))
    found = changed(loaded, "adaptive", {"strength": 1.0}, Given("grad_x_weight", scores))
    for target, (old, new) in found.items():
        assert new == rounded(old * (1 - min(1.0, 4.0 / scores[target])), dtype)


def test_adaptive_on_scores_of_the_engine() -> None:
    """With real act_mag scores the contribution that a change takes away, |dw| mean |x|, is the same for all uncapped ones."""
    loaded, windows = load("llama"), eval_windows()
    scored = engine_scores(loaded, windows, ["act_mag"])["act_mag"][DOWN].score
    targets: list[Target] = [(DOWN, index) for index in range(0, 384, 11)]
    known = Given("act_mag", {target: float(scored.reshape(-1)[target[1]]) for target in targets})
    found = changed(loaded, "adaptive", {"strength": 1.0}, known, targets)
    size = {target: known.scores[target] / abs(old) for target, (old, _) in found.items()}  # type: ignore[operator]
    lost = [size[target] * abs(new - old) for target, (old, new) in found.items() if new != 0]
    assert 10 < len(lost) < len(targets)
    assert max(lost) == pytest.approx(min(lost), rel=1e-4)


@dataclass(frozen=True)
class Group:
    """A group as a ranking gives it."""

    name: str
    metric: str | None
    targets: tuple[Any, ...]
    scores: tuple[float | None, ...]
    names: tuple[str, ...] = (DOWN, UP)


def section(method: str) -> Perturb:
    """Return one ``[[perturb]]`` table."""
    return tiny_spec(perturb=[{"method": method}]).perturb[0]


TWO = ((DOWN, 7), (UP, 300))
ROW = Region(f"{DOWN}:3,:", ((DOWN, ((3, 4), (0, 24))),))
REFUSED: dict[str, tuple[Group, str, str]] = {
    "random weights": (
        Group("random_k", None, TWO, (None, None)), "perturb.0.groups",
        "adaptive needs the scores of a metric, and no metric ranked random_k",
    ),
    "taylor2": (
        Group("top_k", "taylor2", TWO, (1.0, 2.0)), "perturb.0.method",
        "adaptive needs a metric that predicts the damage of a part of the change; 'taylor2' does not; allowed: "
        + ", ".join(LAWS),
    ),
    "an ensemble": (
        Group("top_k", "ensemble", TWO, (1.0, 2.0)), "perturb.0.method",
        "adaptive needs a metric that predicts the damage of a part of the change; 'ensemble' does not; allowed: "
        + ", ".join(LAWS),
    ),
    "no score": (
        Group("top_k", "act_mag", TWO, (1.0, None)), "perturb.0.groups",
        "adaptive needs a score of every single weight, and top_k of act_mag has none for some",
    ),
    "a row": (
        Group("top_k", "act_mag", ((DOWN, 7), ROW), (1.0, 2.0)), "perturb.0.groups",
        "adaptive needs a score of every single weight, and top_k of act_mag has none for some",
    ),
    "zeros": (
        Group("bottom_k", "act_mag", (*TWO, (UP, 1)), (0.0, 0.0, 1.0)), "perturb.0.groups",
        "half of bottom_k has a predicted damage of 0 by act_mag: there is no median to be equal to",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_a_group_without_what_adaptive_needs_is_refused(case: str) -> None:
    """Random groups, metrics without a law, missing scores, whole rows and a median of zero are refused when planned."""
    group, where, what = REFUSED[case]
    with pytest.raises(EsaError) as raised:
        check_informed(section("adaptive"), group, load("llama"), "perturb.0")
    assert (raised.value.where, raised.value.what, raised.value.exit_code) == (where, what, 3)
    assert raised.value.hint is not None
    check_informed(section("zero"), group, load("llama"), "perturb.0")


def test_a_ranked_group_is_taken() -> None:
    """Scores for all targets and a metric with a law: nothing is raised."""
    check_informed(section("adaptive"), Group("top_k", "obd", TWO, (1.0, 2.0)), load("llama"), "perturb.0")


def test_float16_has_no_gradients() -> None:
    """Gradients under 6e-8 vanish in float16: refused, and taken where float32 computes over it."""
    group = Group("random_k", None, TWO, (None, None))
    with pytest.raises(EsaError) as raised:
        check_informed(section("gradient"), group, load("llama", torch.float16), "perturb.0")
    assert raised.value.where == "perturb.0.method"
    assert raised.value.what == "'float16' cannot hold the gradients that gradient needs: those under 6e-8 become zero"
    check_informed(section("gradient"), group, load("llama", torch.float16, compute="float32"), "perturb.0")
    check_informed(section("adaptive"), Group("t", "obd", TWO, (1.0, 2.0)), load("llama", torch.float16), "perturb.0")


def test_a_case_is_told_apart_by_its_scores() -> None:
    """The same weights under other scores change otherwise with adaptive, and with no other method."""
    one, other = given(TARGETS), given(TARGETS, metric="wanda")
    again = Given(one.metric, dict(reversed(list(one.scores.items()))))
    moved = Given(one.metric, {**one.scores, (UP, 45): 17.0})
    assert known_by("adaptive", one) == known_by("adaptive", again)
    assert known_by("adaptive", one) != known_by("adaptive", other)
    assert known_by("adaptive", one) != known_by("adaptive", moved)
    assert known_by("zero", one) == known_by("gradient", one) == {}
