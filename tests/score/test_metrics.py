"""Every first-order metric equals the slow transcription of its formula."""

from functools import cache

import pytest
import torch

from esa.data import TokenWindows
from esa.registry import METRICS
from tests.conftest import load
from tests.score.naive import (
    CURVED,
    FIRST_ORDER,
    Tensors,
    assert_scores,
    dense,
    engine_scores,
    first_order,
    gradients,
    load_double,
    mean_over_windows,
    unequal_windows,
)


@cache
def both(architecture: str) -> tuple[dict[str, Tensors], dict[str, Tensors]]:
    """Return the engine's and the naive scores of one architecture, in one pass each."""
    loaded, windows = load_double(architecture), unequal_windows()
    found = engine_scores(loaded, windows, FIRST_ORDER, peak_ratio=1.0)
    return {metric: dense(scores) for metric, scores in found.items()}, first_order(loaded, windows)


@pytest.mark.parametrize("metric", FIRST_ORDER)
def test_metric_equals_its_formula(architecture: str, metric: str) -> None:
    """On every architecture, with windows of unequal lengths, each metric gives what its definition says."""
    found, expected = both(architecture)
    assert_scores(found[metric], expected[metric])


@pytest.mark.parametrize("metric", ["grad_x_weight", "grad_squared"])
def test_the_mean_reduction_equals_its_formula(architecture: str, metric: str) -> None:
    """reduction = "mean" takes the size or the square of the mean gradient; windows of opposite sign cancel."""
    loaded, windows = load_double(architecture), unequal_windows()
    found = engine_scores(loaded, windows, [metric], reduction="mean")[metric]
    each = gradients(loaded, windows)
    mean = {name: mean_over_windows(windows, [g[name] for g in each]) for name in found}
    weights = {name: loaded.parameters()[name].detach().double() for name in found}
    if metric == "grad_squared":
        assert_scores(dense(found), {name: g**2 for name, g in mean.items()}, rtol=1e-4)
    else:
        assert_scores(dense(found), {name: (weights[name] * g).abs() for name, g in mean.items()}, rtol=1e-4)
        signed = {name: scores.signed for name, scores in found.items()}
        assert_scores(signed, {name: -weights[name] * g for name, g in mean.items()}, rtol=1e-4)


def test_every_metric_has_a_case() -> None:
    """A metric that enters the registry needs a formula here or among the curvatures."""
    assert {*FIRST_ORDER, *CURVED} == set(METRICS)


def test_the_comparison_can_fail() -> None:
    """A score that is one part in a thousand off fails the comparison, and so does a tensor left out."""
    found, expected = both("llama")
    name = next(iter(found["wanda"]))
    with pytest.raises(AssertionError, match=name):
        assert_scores({**found["wanda"], name: found["wanda"][name] * 1.001}, expected["wanda"])
    with pytest.raises(AssertionError):
        assert_scores({name: found["wanda"][name]}, expected["wanda"])


def test_windows_are_weighted_by_their_predicted_tokens() -> None:
    """The plain mean over windows would give another number: the weights T_n are really there."""
    loaded, windows = load_double("llama"), unequal_windows()
    name = "model.layers.1.mlp.down_proj.weight"
    single = [first_order(loaded, unequal_windows_of(windows, n))["grad_squared"][name] for n in range(3)]
    found = both("llama")[0]["grad_squared"][name]
    assert_scores({name: found}, {name: sum(t * s for t, s in zip((8, 11, 4), single, strict=True)) / 23})
    with pytest.raises(AssertionError):
        assert_scores({name: found}, {name: sum(single) / 3})


def unequal_windows_of(windows: TokenWindows, number: int) -> TokenWindows:
    """Return one of the windows alone."""
    return TokenWindows((windows.ids[number],), "drawn", "lines", windows.length, False, 1, 0)


@pytest.mark.parametrize("metric", [name for name in FIRST_ORDER if not name.startswith("ggn")])
def test_order_of_windows_does_not_matter(metric: str) -> None:
    """Windows in another order give the same scores beyond rounding; sampled labels go by the window's number."""
    windows = unequal_windows()
    turned = TokenWindows(windows.ids[::-1], "drawn", "lines", windows.length, False, 3, 0)
    found = [
        dense(engine_scores(load_double("mixtral"), w, [metric], peak_ratio=1.0)[metric]) for w in (windows, turned)
    ]
    assert_scores(found[0], {name: scores.double() for name, scores in found[1].items()}, rtol=1e-5)


def test_metrics_of_one_pass_equal_each_alone(architecture: str) -> None:
    """Scored together or alone, every metric gives the same bits."""
    loaded, windows = load(architecture), unequal_windows()
    metrics = [*FIRST_ORDER, *CURVED]
    together = engine_scores(loaded, windows, metrics, probes=2)
    for metric in metrics:
        alone = engine_scores(loaded, windows, [metric], probes=2)[metric]
        assert list(alone)
        for name, scores in alone.items():
            assert torch.equal(scores.score, together[metric][name].score), (metric, name)


@pytest.mark.parametrize("metric", ["act_mag", "wanda"])
def test_experts_that_see_no_token_score_zero(metric: str) -> None:
    """An expert to which no token is routed scores zero, not NaN; the two that saw every token do not."""
    name = "model.layers.1.mlp.experts.down_proj"
    same_token = TokenWindows(((5, 5, 5),), "drawn", "lines", 3, False, 1, 0)  # equal inputs, so equal routes
    found = engine_scores(load("mixtral"), same_token, [metric])[metric][name].score
    assert sorted(int((expert == 0).all()) for expert in found) == [0, 0, 1, 1]
    assert bool(torch.isfinite(found).all())
