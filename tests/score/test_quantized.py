"""Scores of quantised weights: those of the numbers that the codes stand for, with gradients rebuilt at the layer."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import esa.score
from esa.artifact import read_manifest
from esa.errors import ModelError
from esa.model import LoadedModel, eligible, fingerprint
from esa.model.differentiable import differentiable
from esa.model.quantized import QuantizedWeight
from esa.registry import METRIC_KEYS
from tests.conftest import tiny_spec
from tests.quantized import DOWN, EMBEDDING, KINDS, dense_twin, load_quantized, turned, weight_of, wide_model
from tests.score.naive import (
    FIRST_ORDER,
    dense,
    engine_scores,
    gradients,
    mean_over_windows,
    unequal_windows,
    window_nll,
)


def assert_close(found: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float) -> None:
    """Raise AssertionError, naming the tensor, unless all scores differ by at most a share of their tensor's largest."""
    assert found.keys() == expected.keys()
    for name, scores in found.items():
        wanted = expected[name].double()
        worst = float((scores.double() - wanted).abs().max() / wanted.abs().max().clamp(min=1e-30))
        assert worst <= tolerance, (name, worst)


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_nf4_scores_are_those_of_the_dense_model(name: str) -> None:
    """Every metric without curvature gives on NF4 weights what it gives on a dense model of the same numbers."""
    loaded, windows = load_quantized("nf4", name), unequal_windows()
    found = engine_scores(loaded, windows, FIRST_ORDER, peak_ratio=1.0)
    expected = engine_scores(dense_twin(loaded, name), windows, FIRST_ORDER, peak_ratio=1.0)
    for metric in FIRST_ORDER:
        assert found[metric]
        scores = {key: s.T if turned(name, loaded, key) else s for key, s in dense(found[metric]).items()}
        assert_close(scores, dense(expected[metric]), 1e-4)


def test_the_comparison_can_fail() -> None:
    """A score that is a thousandth off is noticed."""
    with pytest.raises(AssertionError, match="w"):
        assert_close({"w": torch.tensor([1.0, 2.0])}, {"w": torch.tensor([1.0, 2.002])}, 1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_inputs_are_those_of_the_layer(kind: str) -> None:
    """act_mag and wanda are the numbers times statistics of each layer's inputs, which hooks on the layers see too."""
    loaded, windows = load_quantized(kind), unequal_windows()
    seen: dict[str, list[Tensor]] = {}
    hooks = [
        weight.layer.register_forward_pre_hook(
            lambda _, args, name=name: seen.setdefault(name, []).append(args[0].reshape(-1, args[0].shape[-1]))
        )
        for name, weight in loaded.weights.items()
        if isinstance(weight, QuantizedWeight)
    ]
    with torch.no_grad():
        for ids in windows.ids:
            loaded.model(input_ids=torch.tensor([ids]), use_cache=False)
    for hook in hooks:
        hook.remove()
    found = engine_scores(loaded, windows, ["magnitude", "act_mag", "wanda"])
    assert len(seen) == 14
    for name, parts in seen.items():
        x, size = torch.cat(parts).double(), loaded.weights[name].values().double().abs()
        expected = {"magnitude": size, "act_mag": size * x.abs().mean(0), "wanda": size * x.square().mean(0).sqrt()}
        for metric, scores in expected.items():
            assert_close({name: found[metric][name].score}, {name: scores}, 1e-5)


def straight_through(loaded: LoadedModel) -> tuple[LoadedModel, dict[str, Tensor]]:
    """Return a model whose layers give what the quantised ones give, and pass gradients as plain products with the numbers."""
    leaves: dict[str, Tensor] = {}
    for name, weight in loaded.weights.items():
        if isinstance(weight, QuantizedWeight):
            leaves[name] = weight.values().clone().requires_grad_()
            layer, own = weight.layer, weight.layer.forward

            def forward(x: Tensor, leaf: Tensor = leaves[name], layer: Any = layer, own: Any = own) -> Tensor:
                plain = F.linear(x, leaf, layer.bias)
                return plain + (own(x) - plain).detach()

            layer.forward = forward
        else:
            leaves[name] = weight.parameter
    return loaded, leaves


def test_int8_gradients_look_past_the_rounding_of_inputs() -> None:
    """An int8 layer rounds what it reads; its gradients are those of the same layers, the rounding taken for a constant."""
    windows = unequal_windows()
    found = engine_scores(load_quantized("int8"), windows, ["grad_x_weight", "grad_squared"])
    loaded, leaves = straight_through(load_quantized("int8"))
    chosen = list(eligible(loaded.table))
    each = []
    for ids in windows.ids:
        slopes = torch.autograd.grad(window_nll(loaded, ids), [leaves[name] for name in chosen])
        each.append({name: slope.double() for name, slope in zip(chosen, slopes, strict=True)})
    squares = {name: mean_over_windows(windows, [g[name].square() for g in each]) for name in chosen}
    sizes = {
        name: mean_over_windows(windows, [(g[name] * leaves[name].detach().double()).abs() for g in each])
        for name in chosen
    }
    assert_close(dense(found["grad_squared"]), squares, 1e-4)
    assert_close(dense(found["grad_x_weight"]), sizes, 1e-4)
    twin = dense_twin(load_quantized("int8"))
    plain = {name: mean_over_windows(windows, [g[name].square() for g in gradients(twin, windows)]) for name in chosen}
    with pytest.raises(AssertionError):
        assert_close(dense(found["grad_squared"]), plain, 1e-4)


def test_gradients_are_of_the_chosen_weights_alone() -> None:
    """While gradients are wanted exactly the named weights have a leaf that requires one; codes never do, and it ends there."""
    loaded = load_quantized("nf4")
    loaded.weights[EMBEDDING].requires_grad = False
    before = {name: weight.requires_grad for name, weight in loaded.weights.items()}
    weight = weight_of(loaded, DOWN)
    with differentiable(loaded, {DOWN: None, EMBEDDING: None}):
        assert [name for name, other in loaded.weights.items() if other.requires_grad] == [EMBEDDING, DOWN]
        assert not weight.parameter.requires_grad
        assert weight.source().untyped_storage().nbytes() == 4
        loss = loaded.model(torch.arange(1, 9)[None]).logits.square().mean()
        gradient, other = torch.autograd.grad(loss, [weight.source(), loaded.weights[EMBEDDING].source()])
        assert gradient.shape == (64, 128)
        assert float(gradient.abs().max()) > 0
        assert float(other.abs().max()) > 0
    assert {name: weight.requires_grad for name, weight in loaded.weights.items()} == before
    assert weight.source().grad is None
    with torch.no_grad():
        assert not loaded.model(torch.arange(1, 9)[None]).logits.requires_grad


def planted(kind: str) -> LoadedModel:
    """Return a model with one large weight that reads a large input: (5, 7) of the last output projection."""
    model = wide_model()
    with torch.no_grad():
        model.get_parameter(DOWN)[5, 7] = 3.0
        model.model.layers[1].mlp.up_proj.weight[7] *= 8
        model.model.layers[1].mlp.gate_proj.weight[7] *= 8
    return load_quantized(kind, model=model)


@pytest.mark.parametrize("kind", KINDS)
def test_a_planted_super_weight_is_found(kind: str) -> None:
    """One large weight that reads a large input is first of the output projections by every kind of metric."""
    loaded, windows = planted(kind), unequal_windows()
    projections = ("*.mlp.down_proj.weight",)
    metrics = ["act_mag", "wanda", "super_activation", "grad_x_weight", "ggn_obd"]
    found = engine_scores(loaded, windows, metrics, include=projections, peak_ratio=3.0)
    for metric, scores in found.items():
        name, best = max(scores.items(), key=lambda item: float(item[1].score.max()))
        assert (metric, name, int(best.score.argmax())) == (metric, DOWN, 5 * 128 + 7)


@pytest.mark.parametrize("kind", KINDS)
def test_a_second_round_zeroes_what_the_first_found(kind: str, tmp_path: Path) -> None:
    """super_activation looks again with the weight found at the zero code, and brings its code back."""
    loaded = planted(kind)
    before = fingerprint(loaded.weights)
    settings = {"metrics": ["super_activation"], "rounds": 2, "peak_ratio": 3.0}
    done = esa.score.run(
        tiny_spec(model={"id": "tiny", "quantization": kind}, score=settings), loaded=loaded, root=tmp_path
    )
    first, second = read_manifest(done.folder)["super_weights"]
    assert first["address"] == f"{DOWN}:5,7"
    assert second["address"] != first["address"]
    assert abs(second["peak"]) < abs(first["peak"]) / 2
    assert fingerprint(loaded.weights) == before


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("metric", METRIC_KEYS["probes"])
def test_curvature_is_refused_before_anything_is_loaded(metric: str, kind: str, tmp_path: Path) -> None:
    """Curvature of codes is refused with the reason and a way out, exit code 3, and nothing is written."""
    spec = tiny_spec(model={"id": "nowhere", "quantization": kind}, score={"metrics": ["act_mag", metric]})
    with pytest.raises(ModelError) as raised:
        esa.score.run(spec, loaded=load_quantized(kind), root=tmp_path)
    assert (raised.value.where, raised.value.exit_code) == ("score.metrics", 3)
    assert raised.value.what == (
        f"{metric} needs second derivatives; {kind} layers pass gradients back through a function of their codes that has none"
    )
    assert raised.value.hint == (
        "score curvature with model.quantization = 'none' and give that ranking to esa perturb, or score ggn_obd"
    )
    assert list(tmp_path.iterdir()) == []
