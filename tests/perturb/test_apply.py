"""Whatever happens while weights are changed, the exact stored bits come back."""

import os
import signal
from typing import Any

import pytest
import torch
from torch import Tensor

from esa.errors import CheckError
from esa.model import LoadedModel, Weight, fingerprint
from esa.perturb import apply
from esa.perturb.apply import applied, neighbours, plan_changes
from esa.perturb.methods import int_view
from esa.perturb.targets import Target, by_tensor
from esa.registry import METHODS
from esa.spec import generator
from tests.conftest import load
from tests.perturb.given import given

DOWN = "model.layers.1.mlp.down_proj.weight"
UP = "model.layers.0.mlp.up_proj.weight"
TARGETS: list[Target] = [(DOWN, 7), (UP, 300), (DOWN, 3), (DOWN, 7), (UP, 300)]
OPTIONS: dict[str, dict[str, Any]] = {
    "zero": {}, "zero_keep_peak": {}, "mean": {"over": "output"}, "scale": {"factor": 1.2}, "sign_flip": {"factor": 1.0},
    "gradient": {"epsilon": 0.1, "direction": "aligned"}, "adaptive": {"strength": 1.0}, "quantize": {"bits": 4},
    "clamp": {"quantile": 0.3}, "gauss_noise": {"sigma": 0.5, "relative_to": "tensor_std"},
    "correlated": {"sigma": 0.5, "relative_to": "weight", "shared_by": "layer"}, "swap": {}, "bit_flip": {"bits": 3},
}  # fmt: skip
SPECIAL = [float("nan"), -0.0, 0.0, float("inf"), -1e-41, 1e-45]
STORAGE = {
    "float32": (torch.float32, {}),
    "bfloat16": (torch.bfloat16, {}),
    "float16": (torch.float16, {}),
    "bfloat16_in_float32": (torch.bfloat16, {"compute": "float32"}),
}


def with_special_values(storage: str) -> tuple[LoadedModel, list[Target]]:
    """Return a model of which some targets are NaN, infinite, subnormal or minus zero, and targets that hit them twice."""
    dtype, section = STORAGE[storage]
    loaded = load("llama", dtype, **section)
    with torch.no_grad():
        loaded.parameters()[DOWN].view(-1)[10:16] = torch.tensor(SPECIAL).to(dtype)
    return loaded, [*TARGETS, *[(DOWN, index) for index in range(10, 16)]]


def bits(loaded: LoadedModel) -> dict[str, Tensor]:
    """Return the bits of every parameter."""
    return {name: int_view(parameter.detach()).clone() for name, parameter in loaded.parameters().items()}


def assert_same_model(loaded: LoadedModel, before: dict[str, Tensor]) -> None:
    """Raise AssertionError, naming the tensor, unless every parameter has the bits it had."""
    for name, found in bits(loaded).items():
        assert torch.equal(found, before[name]), name


def changes_of(loaded: LoadedModel, method: str, targets: list[Target]) -> Any:
    """Plan a method's changes."""
    return plan_changes(loaded, targets, method, OPTIONS[method], generator(0, method, 0), given(targets))


def test_the_comparison_can_fail() -> None:
    """A zero in place of a minus zero fails the comparison."""
    loaded, _ = with_special_values("float32")
    before = bits(loaded)
    with torch.no_grad():
        loaded.parameters()[DOWN].view(-1)[11] = 0.0
    with pytest.raises(AssertionError, match="down_proj"):
        assert_same_model(loaded, before)


@pytest.mark.parametrize("storage", STORAGE)
@pytest.mark.parametrize("method", METHODS)
def test_bits_come_back(method: str, storage: str) -> None:
    """Each method changes the model and every bit comes back, for NaN, minus zero, subnormals and targets named twice."""
    loaded, targets = with_special_values(storage)
    before = bits(loaded)
    changes = changes_of(loaded, method, targets)
    assert_same_model(loaded, before)
    with applied(loaded, changes):
        touched = {name for name, found in bits(loaded).items() if not torch.equal(found, before[name])}
        assert touched == {DOWN, UP}
        for change in changes:
            inside = loaded.parameters()[change.name].detach().reshape(-1)[change.index]
            assert apply.same_bits(inside, change.after.to(inside.dtype))
    assert_same_model(loaded, before)


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("method", METHODS)
def test_bits_come_back_after_an_exception(method: str, error: type[BaseException]) -> None:
    """An error or an interrupt inside the evaluation passes on, with every bit in its place."""
    loaded, targets = with_special_values("bfloat16")
    before = bits(loaded)
    with pytest.raises(error), applied(loaded, changes_of(loaded, method, targets)):
        raise error
    assert_same_model(loaded, before)


def test_bits_come_back_when_writing_breaks_off() -> None:
    """If the second tensor cannot be written, the first is restored."""
    loaded = load("llama")
    before = bits(loaded)
    changes = changes_of(loaded, "zero", TARGETS)
    changes[1].after = torch.zeros(5)  # two targets, five values
    with pytest.raises((RuntimeError, IndexError)), applied(loaded, changes):
        pytest.fail("the body must not run")
    assert_same_model(loaded, before)


def test_only_the_targets_change() -> None:
    """No other weight than the targets changes meanwhile."""
    loaded = load("llama")
    before = {name: p.detach().clone() for name, p in loaded.parameters().items()}
    with applied(loaded, changes_of(loaded, "zero", TARGETS)):
        changed = [
            (name, index)
            for name, p in loaded.parameters().items()
            for index in (p.detach() != before[name]).reshape(-1).nonzero().flatten().tolist()
        ]
    assert changed == [(UP, 300), (DOWN, 3), (DOWN, 7)]


def test_a_tied_weight_changes_in_both_uses() -> None:
    """A change in a tied embedding is one in the head as well, and comes back in both."""
    loaded = load("llama_tied")
    before = bits(loaded)
    with applied(loaded, changes_of(loaded, "zero", [("model.embed_tokens.weight", 5 * 16 + 2)])):
        assert float(loaded.model.lm_head.weight.detach()[5, 2]) == 0
    assert_same_model(loaded, before)


@pytest.mark.parametrize("method", ["gauss_noise", "scale", "bit_flip", "mean"])
def test_storage_narrower_than_compute(method: str) -> None:
    """With bfloat16 storage computed in float32 the changed weights are bfloat16 numbers, those of a bfloat16 model."""
    narrow, wide = load("llama", torch.bfloat16), load("llama", torch.bfloat16, compute="float32")
    assert wide.parameters()[DOWN].dtype == torch.float32
    with applied(wide, changes_of(wide, method, TARGETS)), applied(narrow, changes_of(narrow, method, TARGETS)):
        for name in (UP, DOWN):
            found, expected = wide.parameters()[name].detach(), narrow.parameters()[name].detach()
            assert torch.equal(found.nan_to_num(), expected.float().nan_to_num()), name


def test_a_restore_that_fails_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """If the bits that were written back differ from those saved, the check fails with exit code 4."""
    loaded = load("llama")
    with (
        pytest.raises(CheckError, match=f"{UP} was not restored bit for bit") as raised,
        applied(loaded, changes_of(loaded, "zero", TARGETS)),
    ):
        monkeypatch.setattr(apply, "same_bits", lambda left, right: False)
    assert raised.value.exit_code == 4


def test_the_fingerprint_sees_a_single_bit() -> None:
    """The checksum over the touched tensors changes with one bit, and not with other tensors."""
    loaded = load("llama")
    before = fingerprint(loaded.weights, {DOWN})
    with torch.no_grad():
        loaded.parameters()[UP].view(-1)[0] = 9.0
        assert fingerprint(loaded.weights, {DOWN}) == before
        loaded.parameters()[DOWN].view(-1)[0].nextafter_(torch.tensor(torch.inf))
    assert fingerprint(loaded.weights, {DOWN}) != before


def test_targets_are_sorted_by_address_once() -> None:
    """Targets come in named_parameters() order, ascending, each once."""
    found = by_tensor(load("llama"), TARGETS)
    assert {name: index.tolist() for name, index in found.items()} == {UP: [300], DOWN: [3, 7]}
    assert list(found) == [UP, DOWN]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("value", [1.0, -1.0, 0.3, -1e-3])
def test_a_neighbour_is_the_next_representable_number(dtype: torch.dtype, value: float) -> None:
    """The rewrite of the noise floor goes to the adjacent number of the storage dtype away from zero."""
    loaded = load("llama", dtype)
    with torch.no_grad():
        loaded.parameters()[DOWN].view(-1)[7] = value
    (change,) = neighbours(loaded, (DOWN, 7))
    old, new = float(change.before[0]), float(change.after[0])
    assert abs(new) > abs(old)
    middle = torch.tensor((old + new) / 2, dtype=torch.float64).to(dtype)
    assert float(middle) in (old, new)


def test_ctrl_c_waits_for_the_restoration(monkeypatch: pytest.MonkeyPatch) -> None:
    """A Ctrl-C in the middle of the restoration is raised once every bit is back."""
    loaded = load("llama")
    before = fingerprint(loaded.weights)
    targets = [(DOWN, 3), (UP, 5)]
    changes = plan_changes(loaded, targets, "zero", {}, generator(0, "zero"))
    restore = Weight.restore

    def interrupted(self: Weight, index: torch.Tensor, held: torch.Tensor) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        restore(self, index, held)

    monkeypatch.setattr(Weight, "restore", interrupted)
    with pytest.raises(KeyboardInterrupt), applied(loaded, changes):
        assert fingerprint(loaded.weights) != before
    assert fingerprint(loaded.weights) == before
