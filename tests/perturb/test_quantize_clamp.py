"""quantize rounds to the levels of an output, clamp cuts at an exact quantile: by hand, on every storage and layout."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from esa.model import LoadedModel
from esa.perturb.apply import plan_changes
from esa.perturb.methods import clamp
from esa.perturb.place import Place
from esa.perturb.targets import Target
from esa.spec import generator
from tests.conftest import load
from tests.quantized import DOWN as WIDE_DOWN
from tests.quantized import KINDS, load_quantized, weight_of

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
DOWN = "model.layers.1.mlp.down_proj.weight"
# architecture, parameter, and the axes over which one output's weights lie
LAYOUTS: list[tuple[str, str, tuple[int, ...]]] = [
    ("llama", DOWN, (1,)),
    ("gpt2", "transformer.h.1.mlp.c_fc.weight", (0,)),  # Conv1D: stored (in, out)
    ("llama", "model.embed_tokens.weight", (0,)),
    ("llama", "lm_head.weight", (1,)),
    ("mixtral", "model.layers.1.mlp.experts.gate_up_proj", (2,)),
    ("llama", "model.norm.weight", (0,)),
    ("gpt2", "transformer.h.1.mlp.c_fc.bias", (0,)),
]


def after(loaded: LoadedModel, method: str, options: dict[str, Any], name: str, index: list[int]) -> np.ndarray:
    """Return the new stored values of some weights of a tensor, float64."""
    targets: list[Target] = [(name, i) for i in index]
    (change,) = plan_changes(loaded, targets, method, options, generator(0, method))
    assert change.index.tolist() == sorted(index)
    return change.after.double().numpy()


def rounded(values: np.ndarray, dtype: torch.dtype) -> np.ndarray:
    """Return float64 numbers as a storage dtype holds them."""
    return torch.from_numpy(values).to(dtype).double().numpy()


def shaken(loaded: LoadedModel, name: str) -> Tensor:
    """Return a tensor's numbers, of different sizes and signs even where it is a norm of ones."""
    weight = loaded.parameters()[name].detach()
    if weight.ndim == 1:
        weight.copy_(torch.randn(weight.shape, generator=torch.Generator().manual_seed(3)))
    return weight.double()


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("architecture", "name", "axes"), LAYOUTS)
def test_quantize_by_hand(architecture: str, name: str, axes: tuple[int, ...], dtype: torch.dtype, bits: int) -> None:
    """S q with q = rint(w / s), s the output's largest abs(w) over 2^(bits - 1) - 1; the tensor whole or a few of its weights."""
    loaded = load(architecture, dtype)
    weight = shaken(loaded, name).numpy()
    levels = 2 ** (bits - 1) - 1
    scale = np.abs(weight).max(axis=axes, keepdims=True) / levels
    wanted = rounded(np.rint(weight / scale) * scale, dtype).reshape(-1)
    every = list(range(weight.size))
    assert np.array_equal(after(loaded, "quantize", {"bits": bits}, name, every), wanted)
    few = [1, 5, 11]
    assert np.array_equal(after(loaded, "quantize", {"bits": bits}, name, few), wanted[few])
    largest = np.abs(weight).reshape(-1).argmax()
    assert wanted[largest] == weight.reshape(-1)[largest]  # the outermost level is the largest weight itself
    steps = np.abs(np.rint(weight / scale))
    assert steps.max() == levels


def test_quantize_breaks_ties_to_even() -> None:
    """Halfway between two levels the even one is taken, on both sides of zero; a row of zeros stays zero."""
    loaded = load("llama")
    weight = loaded.parameters()[DOWN].detach()
    weight[2] = torch.tensor([0.5, -0.5, 1.5, -1.5, 2.5, -2.5, 7.0, *[0.1] * 17])
    weight[3] = 0.0
    found = after(loaded, "quantize", {"bits": 4}, DOWN, list(range(2 * 24, 4 * 24)))
    assert found[:7].tolist() == [0, 0, 2, -2, 2, -2, 7]
    assert not found[24:].any()


def test_quantize_takes_the_intact_outputs_scale() -> None:
    """The scale is that of the output's largest weight though that one is not touched."""
    loaded = load("llama")
    weight = loaded.parameters()[DOWN].detach()
    weight[2] = 0.01
    weight[2, 20] = 7.0
    assert after(loaded, "quantize", {"bits": 4}, DOWN, [2 * 24]).tolist() == [0.0]
    assert after(loaded, "quantize", {"bits": 16}, DOWN, [2 * 24])[0] == pytest.approx(0.01, abs=7 / 32767)


@pytest.mark.parametrize("quantile", [1e-6, 0.07, 0.5, 0.9, 0.99, 1.0])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("architecture", "name", "axes"), LAYOUTS)
def test_clamp_by_hand(
    architecture: str, name: str, axes: tuple[int, ...], dtype: torch.dtype, quantile: float
) -> None:
    """The limit is one of the tensor's own sizes, the inverted_cdf quantile of NumPy; signs and what is within stay."""
    loaded = load(architecture, dtype)
    weight = shaken(loaded, name).numpy().reshape(-1)
    limit = np.quantile(np.abs(weight), quantile, method="inverted_cdf")
    wanted = np.sign(weight) * np.minimum(np.abs(weight), limit)
    found = after(loaded, "clamp", {"quantile": quantile}, name, list(range(len(weight))))
    assert np.array_equal(found, wanted)
    assert limit in np.abs(weight)
    few = [0, 3, 7]
    assert np.array_equal(after(loaded, "clamp", {"quantile": quantile}, name, few), wanted[few])


@pytest.mark.parametrize("percent", [1, 7, 14, 28, 55, 57, 99, 100])
def test_the_quantile_is_the_decimal_that_was_written(percent: int) -> None:
    """Of the sizes 1 to 100 the quantile 0.07 is 7, though 0.07 * 100 is 7.000000000000001 in binary."""
    values, info = torch.arange(1.0, 101.0), load("llama").table[DOWN]
    place = Place(lambda: values, info, torch.arange(100), generator(0))
    assert float(clamp(values, {"quantile": percent / 100}, place).max()) == percent


def test_clamp_leaves_bits_within_the_limit_alone() -> None:
    """Minus zero stays minus zero, NaN stays NaN, infinity is cut."""
    loaded = load("llama")
    weight = loaded.parameters()[DOWN].detach().view(-1)
    weight[:3] = torch.tensor([-0.0, float("nan"), float("-inf")])
    found = after(loaded, "clamp", {"quantile": 0.9}, DOWN, [0, 1, 2])
    assert np.signbit(found[0])
    assert found[0] == 0
    assert np.isnan(found[1])
    assert found[2] == -np.sort(weight.abs().numpy())[int(np.ceil(0.9 * 384)) - 1]


@pytest.mark.parametrize("kind", KINDS)
def test_codes_take_the_nearest_of_their_own_levels(kind: str) -> None:
    """On quantised weights both compute on what the codes stand for, and the nearest code is stored."""
    loaded = load_quantized(kind)
    weight = weight_of(loaded, WIDE_DOWN)
    numbers = weight.values().double().numpy()
    index = list(range(0, numbers.size, 13))
    scale = np.abs(numbers).max(axis=1, keepdims=True) / 7
    limit = np.quantile(np.abs(numbers), 0.9, method="inverted_cdf")
    wanted = {
        "quantize": np.rint(numbers / scale) * scale,
        "clamp": np.sign(numbers) * np.minimum(np.abs(numbers), limit),
    }
    for method, options in (("quantize", {"bits": 4}), ("clamp", {"quantile": 0.9})):
        at = torch.tensor(index)
        nearest = weight.encode(at, torch.from_numpy(wanted[method].reshape(-1)[index]))
        found = after(loaded, method, options, WIDE_DOWN, index)
        assert np.array_equal(found, weight.decode(at, nearest).double().numpy()), method
