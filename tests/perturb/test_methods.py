"""Every method gives what its formula gives by hand, on the stored numbers."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from esa.errors import EsaError
from esa.model import LoadedModel
from esa.perturb.apply import plan_changes
from esa.perturb.targets import Target
from esa.registry import METHODS
from esa.spec import generator
from esa.spec.methods import TABLES
from tests.conftest import load
from tests.perturb.test_apply import OPTIONS

DOWN = "model.layers.1.mlp.down_proj.weight"
UP = "model.layers.0.mlp.up_proj.weight"
TARGETS: list[Target] = [(DOWN, 7), (UP, 300), (DOWN, 3), (UP, 0)]
BY_ADDRESS = [(UP, 0), (UP, 300), (DOWN, 3), (DOWN, 7)]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def applied_to(
    loaded: LoadedModel,
    method: str,
    options: dict[str, Any],
    targets: list[Target] = TARGETS,
    seed: int = 0,
    repeat: int = 0,
) -> dict[Target, tuple[float, float]]:
    """Return the old and the new stored value of every target, in address order."""
    changes = plan_changes(loaded, targets, method, options, generator(seed, method, repeat))
    return {
        (change.name, index): (old, new)
        for change in changes
        for index, old, new in zip(change.index.tolist(), change.before.tolist(), change.after.tolist(), strict=True)
    }


def rounded(value: float, dtype: torch.dtype) -> float:
    """Return a float64 number as a storage dtype holds it."""
    return float(torch.tensor(value, dtype=torch.float64).to(dtype))


def flat(loaded: LoadedModel, name: str) -> Tensor:
    """Return a parameter's weights, row-major."""
    return loaded.parameters()[name].detach().reshape(-1)


def test_every_method_has_a_section_and_a_case() -> None:
    """The methods of the registry are those whose options the spec knows, and of each there is a case that is restored."""
    assert list(TABLES) == list(METHODS) == list(OPTIONS)
    for method, section in TABLES.items():
        assert section.model_fields["method"].annotation.__args__ == (method,)  # type: ignore[union-attr]
        assert set(OPTIONS[method]) <= set(section.model_fields)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("method", "options", "formula"),
    [
        ("zero", {}, lambda w: 0.0),
        ("scale", {"factor": 1.2}, lambda w: 1.2 * w),
        ("scale", {"factor": -0.5}, lambda w: -0.5 * w),
        ("scale", {"factor": 0.0}, lambda w: 0.0 * w),
        ("sign_flip", {"factor": 1.0}, lambda w: -w),
        ("sign_flip", {"factor": 3.3}, lambda w: -3.3 * w),
    ],
)
def test_deterministic_methods(dtype: torch.dtype, method: str, options: dict[str, Any], formula: Any) -> None:
    """Zero, scale and sign_flip compute in float64 and round to the storage dtype once."""
    loaded = load("llama", dtype)
    found = applied_to(loaded, method, options)
    assert list(found) == BY_ADDRESS
    for (name, index), (old, new) in found.items():
        assert old == float(flat(loaded, name)[index])
        assert new == rounded(formula(old), dtype)


@pytest.mark.parametrize(
    ("architecture", "name", "index", "slices"),
    [
        ("llama", DOWN, (5, 7), {"output": np.s_[5, :], "input": np.s_[:, 7]}),
        ("gpt2", "transformer.h.1.mlp.c_fc.weight", (5, 7), {"output": np.s_[:, 7], "input": np.s_[5, :]}),
        ("llama", "model.embed_tokens.weight", (5, 7), {"output": np.s_[:, 7], "input": np.s_[5, :]}),
        (
            "mixtral",
            "model.layers.1.mlp.experts.down_proj",
            (2, 5, 7),
            {"output": np.s_[2, 5, :], "input": np.s_[2, :, 7]},
        ),
    ],
)
def test_mean_over_tensor_output_and_input(
    architecture: str, name: str, index: tuple[int, ...], slices: dict[str, Any]
) -> None:
    """The mean is that of the whole tensor, or of the semantic row or column, also where storage is transposed or fused."""
    loaded = load(architecture)
    weight = loaded.parameters()[name].detach().double()
    target = (name, int(np.ravel_multi_index(index, weight.shape)))
    for over, part in {"tensor": ..., **slices}.items():
        ((_, new),) = applied_to(loaded, "mean", {"over": over}, [target]).values()
        assert new == pytest.approx(float(weight[part].mean()), rel=1e-6), over


def test_mean_of_a_vector_has_no_input() -> None:
    """A parameter without inputs refuses a mean over them, and says its shape."""
    loaded = load("llama")
    with pytest.raises(EsaError) as raised:
        applied_to(loaded, "mean", {"over": "input"}, [("model.norm.weight", 3)])
    assert raised.value.what == "model.norm.weight has no inputs; its shape is (16,)"


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("relative_to", ["weight", "tensor_std", "absolute"])
def test_gauss_noise_by_hand(dtype: torch.dtype, relative_to: str) -> None:
    """W + sigma r e: e from the repeat's own stream in address order over all tensors, r as asked for."""
    loaded = load("llama", dtype)
    found = applied_to(loaded, "gauss_noise", {"sigma": 0.3, "relative_to": relative_to}, seed=5, repeat=2)
    draws = generator(5, "gauss_noise", 2).standard_normal(4)
    assert list(found) == BY_ADDRESS
    for ((name, _), (old, new)), e in zip(found.items(), draws, strict=True):
        std = float(flat(loaded, name).double().numpy().std())
        r = {"weight": abs(old), "tensor_std": std, "absolute": 1.0}[relative_to]
        assert new == pytest.approx(rounded(old + 0.3 * r * e, dtype), rel=1e-6)
        assert new != old


@pytest.mark.parametrize("relative_to", ["weight", "tensor_std", "absolute"])
def test_gauss_noise_has_the_spread_it_names(relative_to: str) -> None:
    """Over a whole tensor the noise in units of r has mean 0 and standard deviation sigma."""
    loaded = load("llama")
    name = "lm_head.weight"
    found = applied_to(
        loaded, "gauss_noise", {"sigma": 0.3, "relative_to": relative_to}, [(name, i) for i in range(1536)]
    )
    old, new = np.array(list(found.values())).T
    r = {"weight": np.abs(old), "tensor_std": flat(loaded, name).double().numpy().std(), "absolute": 1.0}[relative_to]
    noise = (new - old) / r
    assert abs(noise.mean()) < 4 * 0.3 / np.sqrt(1536)
    assert noise.std() == pytest.approx(0.3, rel=0.08)


def test_doses_share_their_draws_and_repeats_do_not() -> None:
    """Twice the sigma is twice the same noise; another repeat or seed is another noise."""
    loaded = load("llama")

    def noise(sigma: float, seed: int, repeat: int) -> np.ndarray:
        found = applied_to(loaded, "gauss_noise", {"sigma": sigma, "relative_to": "absolute"}, seed=seed, repeat=repeat)
        return np.array([new - old for old, new in found.values()])

    np.testing.assert_allclose(noise(0.2, 0, 0), 2 * noise(0.1, 0, 0), rtol=1e-4, atol=1e-6)
    assert np.abs(noise(0.1, 0, 1) - noise(0.1, 0, 0)).min() > 1e-4
    assert np.abs(noise(0.1, 1, 0) - noise(0.1, 0, 0)).min() > 1e-4


def test_the_order_of_the_targets_does_not_matter() -> None:
    """However the targets are listed, each gets the same noise: they are drawn in address order."""
    loaded, options = load("llama"), {"sigma": 0.1, "relative_to": "weight"}
    assert applied_to(loaded, "gauss_noise", options) == applied_to(loaded, "gauss_noise", options, TARGETS[::-1])
