"""Models that trip naive scorers: frozen parameters, shared embeddings, mixed dtypes."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from esa.model import LoadedModel, prepare
from tests.conftest import build, load, make_tokenizer, tiny_spec
from tests.score.naive import (
    CURVED,
    FIRST_ORDER,
    assert_scores,
    dense,
    engine_scores,
    first_order,
    inputs,
    load_double,
    probed_diagonal,
    unequal_windows,
)

# Relative differences that bfloat16 gradients bring; those of a summed and of a mean loss round apart.
ROUNDED = {
    "super_activation": 0.02, "grad_x_weight": 0.02, "grad_squared": 0.02, "fisher_obd": 0.02, "ggn_diag": 0.3,
    "ggn_obd": 0.3,
}  # fmt: skip


def frozen(architecture: str) -> LoadedModel:
    """Return a model of which every second parameter is frozen."""
    loaded = load(architecture)
    for parameter in list(loaded.model.parameters())[::2]:
        parameter.requires_grad_(False)
    return loaded


def test_frozen_parameters_are_scored(architecture: str) -> None:
    """Frozen parameters get the very scores of trainable ones from every metric, and stay frozen."""
    metrics, windows = [*FIRST_ORDER, *CURVED], unequal_windows()
    expected = engine_scores(load(architecture), windows, metrics, probes=2)
    loaded = frozen(architecture)
    before = [parameter.requires_grad for parameter in loaded.model.parameters()]
    found = engine_scores(loaded, windows, metrics, probes=2)
    assert not all(before)
    for metric in metrics:
        for name, scores in expected[metric].items():
            assert torch.equal(found[metric][name].score, scores.score), (metric, name)
    assert [parameter.requires_grad for parameter in loaded.model.parameters()] == before


@pytest.mark.parametrize("architecture", ["llama_tied", "gpt2"])
def test_shared_embeddings_are_scored_once_with_both_uses(architecture: str) -> None:
    """A tied embedding is one parameter: its inputs add up over both uses, its gradient is that of both."""
    loaded, windows = load_double(architecture), unequal_windows()
    info = next(info for info in loaded.table.values() if info.tied)
    metrics = ["act_mag", "wanda", "grad_x_weight", "grad_squared", "hutchinson_diag"]
    found = engine_scores(loaded, windows, metrics, probes=2, include=(info.name,))
    expected = first_order(loaded, windows)
    uses = inputs(loaded, windows)[info.name]
    assert len(uses) == 2
    for metric in metrics[:-1]:
        assert_scores(dense(found[metric]), {info.name: expected[metric][info.name]})
    mean, _ = probed_diagonal(loaded, windows, [info.name], probes=2)[info.name]
    assert_scores({info.name: found["hutchinson_diag"][info.name].signed}, {info.name: mean}, rtol=1e-3)
    unseen = sorted(set(range(96)) - {token for ids in windows.ids for token in ids})
    as_head = loaded.parameters()[info.name].detach().abs() * uses[1][0]
    torch.testing.assert_close(found["act_mag"][info.name].score[unseen].double(), as_head[unseen], rtol=1e-5, atol=0)


def mixed(architecture: str) -> LoadedModel:
    """Return a model whose embedding and head are float32 and whose blocks are bfloat16, cast at the borders."""
    model = build(architecture)
    inner = model.model
    inner.layers.to(torch.bfloat16)
    inner.norm.to(torch.bfloat16)

    def down(_: nn.Module, __: Any, output: Tensor) -> Tensor:
        return output.to(torch.bfloat16)

    def up(_: nn.Module, args: tuple[Tensor]) -> tuple[Tensor]:
        return (args[0].float(),)

    inner.embed_tokens.register_forward_hook(down)
    model.lm_head.register_forward_pre_hook(up)
    return prepare(model, make_tokenizer(), tiny_spec().model, torch.device("cpu"))


@pytest.mark.parametrize("architecture", ["llama", "llama_tied"])
def test_mixed_dtypes_are_scored_in_float32(architecture: str) -> None:
    """With a float32 embedding and bfloat16 blocks every score is float32 and that of the model's own gradients."""
    loaded, windows = mixed(architecture), unequal_windows()
    assert {weight.dtype for weight in loaded.weights.values()} == {torch.float32, torch.bfloat16}
    found = engine_scores(loaded, windows, FIRST_ORDER, peak_ratio=1.0)
    expected = first_order(loaded, windows)
    for metric in FIRST_ORDER:
        assert {scores.dtype for scores in dense(found[metric]).values()} == {torch.float32}
        assert_scores(dense(found[metric]), expected[metric], rtol=ROUNDED.get(metric, 1e-5))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_sums_are_float32(dtype: torch.dtype) -> None:
    """A hundred equal windows of a half-precision model give the mean of one: the sums lose no small term."""
    loaded = load("llama", dtype)
    one = unequal_windows(lengths=(6,))
    many = type(one)(one.ids * 100, "drawn", "lines", 6, False, 100, 0)
    name = "model.layers.2.mlp.down_proj.weight"
    for metric in ("act_mag", "wanda", "grad_x_weight", "grad_squared"):
        single = engine_scores(loaded, one, [metric], include=(name,))[metric]
        found = engine_scores(loaded, many, [metric], include=(name,))[metric]
        assert_scores(dense(found), {name: single[name].score.double()}, rtol=1e-4)
