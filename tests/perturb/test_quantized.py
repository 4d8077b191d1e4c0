"""Quantised weights are changed to the nearest codes, bits of codes and scales are flipped, and all of it comes back."""

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from torch import Tensor

from esa.errors import CheckError, EsaError
from esa.eval import Evaluator
from esa.model import LoadedModel, fingerprint
from esa.perturb import apply
from esa.perturb.apply import applied, fault_rows, neighbours, plan_changes
from esa.perturb.cases import plan_cases
from esa.perturb.groups import group_from_addresses
from esa.perturb.hooks import hooked
from esa.perturb.targets import Target
from esa.progress import Silent
from esa.registry import METHODS
from esa.spec import generator
from tests.conftest import tiny_spec
from tests.perturb.given import given
from tests.perturb.planted import frame, perturb, ranking, rows, spec
from tests.perturb.test_apply import OPTIONS
from tests.perturb.test_hooks import eval_windows
from tests.quantized import DOWN, EMBEDDING, KINDS, UP, dense_twin, load_quantized, weight_of

TARGETS: list[Target] = [(DOWN, 7), (UP, 300), (DOWN, 6), (DOWN, 3), (EMBEDDING, 9), (UP, 300), (UP, 301)]


def changes_of(loaded: LoadedModel, method: str, options: dict[str, Any] | None = None, targets: Any = TARGETS) -> Any:
    """Plan a method's changes."""
    chosen = OPTIONS[method] if options is None else options
    return plan_changes(loaded, targets, method, chosen, generator(0, method, 0), given(targets))


def snapshot(loaded: LoadedModel) -> dict[str, list[Tensor]]:
    """Return the bytes of every weight, codes and scales."""
    return {name: [piece.clone() for piece in weight.pieces()] for name, weight in loaded.weights.items()}


def assert_same(loaded: LoadedModel, before: dict[str, list[Tensor]]) -> None:
    """Raise AssertionError, naming the tensor, unless all codes, scales and numbers have the bits they had."""
    for name, pieces in snapshot(loaded).items():
        for found, expected in zip(pieces, before[name], strict=True):
            assert torch.equal(found.view(torch.uint8), expected.view(torch.uint8)), name


def test_the_comparison_can_fail() -> None:
    """One code beside the right one is noticed."""
    loaded = load_quantized("nf4")
    before = snapshot(loaded)
    weight, index = weight_of(loaded, DOWN), torch.tensor([7])
    weight.put(index, weight.held(index) ^ 1)
    with pytest.raises(AssertionError, match="down_proj"):
        assert_same(loaded, before)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("method", METHODS)
def test_bits_come_back(method: str, kind: str) -> None:
    """Each method stores what it says it stores, in the targets alone, and every bit comes back, exception or not."""
    loaded = load_quantized(kind)
    before, numbers = snapshot(loaded), {name: w.values().reshape(-1).clone() for name, w in loaded.weights.items()}
    changes = changes_of(loaded, method)
    targets = {EMBEDDING: [9], UP: [300, 301], DOWN: [3, 6, 7]}
    assert [change.name for change in changes] == list(targets)
    for change in changes:
        found = change.index.tolist()
        own = [index for index in found if index in targets[change.name]]
        assert own == targets[change.name]
        assert len(found) == len(own) * (2 if method == "swap" else 1)  # it has partners
    assert_same(loaded, before)
    for error in (ValueError, KeyboardInterrupt):
        with pytest.raises(error), applied(loaded, changes):  # noqa: PT012
            for change in changes:
                inside = loaded.weights[change.name].values().reshape(-1)
                assert torch.equal(inside[change.index], change.after)
                assert torch.equal(numbers[change.name][change.index], change.before)
                differing = (inside != numbers[change.name]).nonzero().flatten().tolist()
                assert set(differing) <= set(change.index.tolist())
            raise error
        assert_same(loaded, before)


@pytest.mark.parametrize("kind", KINDS)
def test_methods_compute_on_numbers_and_store_codes(kind: str) -> None:
    """Zero is exact; others are the code nearest to what the method gives on the number, within half a step."""
    loaded = load_quantized(kind)
    for method in METHODS:
        if method == "bit_flip":
            continue
        for change in changes_of(loaded, method, targets=[(DOWN, index) for index in range(0, 4096, 37)]):
            weight = weight_of(loaded, change.name)
            scale = weight.scales[weight.groups_of(change.index)]
            steps = weight.layer.weight.quant_state.code if kind == "nf4" else torch.arange(-127, 128) / 127
            wanted = {
                "zero": torch.zeros_like(change.before), "zero_keep_peak": torch.zeros_like(change.before),
                "scale": change.before.double() * 1.2, "sign_flip": -change.before,
            }.get(method)  # fmt: skip
            if wanted is not None:
                best = (steps[None] * scale[:, None] - wanted[:, None]).abs().argmin(1)
                assert torch.allclose(change.after, steps[best] * scale, rtol=1e-6, atol=0), method
            if method.startswith("zero"):
                assert change.after.abs().max() == 0
            assert change.codes is not None
            assert torch.equal(weight.decode(change.index, change.codes.after), change.after)


@pytest.mark.parametrize("kind", KINDS)
def test_bit_flip_flips_bits_of_codes(kind: str) -> None:
    """Every bit of a code is flipped alone; both halves of an NF4 byte are, and the byte beside them stays."""
    loaded = load_quantized(kind)
    weight, width = weight_of(loaded, DOWN), {"nf4": 4, "int8": 8}[kind]
    raw = weight.layer.weight.data.reshape(-1).view(torch.uint8).clone().numpy()
    targets = [(DOWN, index) for index in (6, 7, 9)]
    for bit in range(width):
        (change,) = changes_of(loaded, "bit_flip", {"bit": bit}, targets)
        with applied(loaded, [change]):
            now = weight.layer.weight.data.reshape(-1).view(torch.uint8).clone().numpy()
        mask = np.zeros_like(raw)
        if kind == "int8":
            mask[[6, 7, 9]] = 1 << bit
        else:
            mask[3], mask[4] = (1 << bit) * 0x11, 1 << bit
        assert (raw ^ now).tolist() == mask.tolist()
    (change,) = changes_of(loaded, "bit_flip", {"prob": 1.0}, targets)
    with applied(loaded, [change]):
        now = weight.layer.weight.data.reshape(-1).view(torch.uint8).clone().numpy()
    flipped = (raw ^ now)[[6, 7, 9]] if kind == "int8" else (raw ^ now)[[3, 4]]
    assert flipped.tolist() == ([255, 255, 255] if kind == "int8" else [255, 15])


@pytest.mark.parametrize("kind", KINDS)
def test_bit_flip_flips_bits_of_scales(kind: str) -> None:
    """A scale is flipped once however many of its weights are targets; all its weights change, others do not."""
    loaded = load_quantized(kind)
    weight, group = weight_of(loaded, DOWN), {"nf4": 64, "int8": 128}[kind]
    before, numbers = snapshot(loaded), weight.values().reshape(-1).clone()
    targets = [(DOWN, index) for index in (group + 5, group + 9, 3 * group)]
    (change,) = changes_of(loaded, "bit_flip", {"bit": 23, "of": "scale"}, targets)
    assert change.index.tolist() == [group + 5, 3 * group]
    assert torch.equal(change.before.view(torch.int32) ^ (1 << 23), change.after.view(torch.int32))
    with applied(loaded, [change]):
        inside = weight.values().reshape(-1)
        assert torch.equal(weight.scales[[1, 3]], change.after)
        changed = torch.unique((inside != numbers).nonzero().flatten() // group).tolist()
        assert changed == [1, 3]
        factor = float(change.after[0] / change.before[0])
        assert factor in (0.5, 2.0)
        block = slice(group, 2 * group)
        assert torch.allclose(inside[block], numbers[block] * factor, rtol=1e-6, atol=0)
    assert_same(loaded, before)
    found = fault_rows("r", "c", [change])
    assert [(row["index"], row["bit"], row["field"]) for row in found] == [
        (group + 5, 23, "scale.exponent"), (3 * group, 23, "scale.exponent"),
    ]  # fmt: skip
    assert [(row["old"], row["new"]) for row in found] == list(
        zip(change.before.tolist(), change.after.tolist(), strict=True)
    )
    fields = {31: "scale.sign", 22: "scale.mantissa"}
    for bit, field in fields.items():
        (row, *_) = fault_rows("r", "c", changes_of(loaded, "bit_flip", {"bit": bit, "of": "scale"}, targets))
        assert row["field"] == field


@pytest.mark.parametrize("kind", KINDS)
def test_fault_rows_tell_of_codes(kind: str) -> None:
    """Per flipped bit the code before and after, in as many digits as it has, and the numbers they stand for."""
    loaded = load_quantized(kind)
    (change,) = changes_of(loaded, "bit_flip", {"bits": 2}, [(DOWN, 6), (DOWN, 7)])
    found = fault_rows("r", "c", [change])
    assert len(found) == 4
    width = {"nf4": 4, "int8": 8}[kind]
    for position, index in enumerate((6, 7)):
        own = [row for row in found if row["index"] == index]
        old, new = (int(str(own[0][key]), 16) for key in ("old_bits", "new_bits"))
        assert sum(1 << int(str(row["bit"])) for row in own) == old ^ new
        assert {len(str(row[key])) for row in own for key in ("old_bits", "new_bits")} == {2 + width // 4}
        assert {row["field"] for row in own} == {"code"}
        assert {(row["old"], row["new"]) for row in own} == {
            (float(change.before[position]), float(change.after[position]))
        }
        codes = weight_of(loaded, DOWN).held(torch.tensor([index]))
        assert old == int(codes) & ((1 << width) - 1)


@pytest.mark.parametrize("kind", KINDS)
def test_a_neighbour_is_the_adjacent_code(kind: str) -> None:
    """The noise floor rewrites a quantised weight to the next code away from zero."""
    loaded = load_quantized(kind)
    weight = weight_of(loaded, DOWN)
    (change,) = neighbours(loaded, (DOWN, 70))
    assert change.codes is not None
    assert abs(int(change.codes.after) - int(change.codes.before)) == 1
    assert change.after.tolist() == weight.decode(change.index, weight.adjacent(change.index)).tolist()


def plan(loaded: LoadedModel, name: str, index: str, **options: Any) -> Any:
    """Plan bit_flip on one named weight, as a campaign does."""
    section = tiny_spec(perturb=[{"method": "bit_flip", **options}]).perturb
    return plan_cases(section, group_from_addresses([f"{name}:{index}"], loaded.table), [1], loaded, Silent())


REFUSED: dict[str, tuple[str, str, dict[str, Any], str, str]] = {
    "bit of nf4": ("nf4", DOWN, {"bit": 4}, "perturb.0.bit", f"4, but {DOWN} is stored as 4-bit nf4 codes: at most 3"),
    "bits of nf4": ("nf4", DOWN, {"bits": 5}, "perturb.0.bits", f"5, but {DOWN} is stored as 4-bit nf4 codes: at most 4"),
    "bit of int8": ("int8", DOWN, {"bit": 8}, "perturb.0.bit", f"8, but {DOWN} is stored as 8-bit int8 codes: at most 7"),
    "scale of a number": (
        "nf4", EMBEDDING, {"bit": 3, "of": "scale"}, "perturb.0.of",
        f"{EMBEDDING} is stored as torch.float32, without scales; scales of int8 and nf4 weights can be flipped",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_bits_that_are_not_there_are_refused(case: str) -> None:
    """A bit beyond the code, and the scale of what has none, are refused when the cases are planned."""
    kind, name, options, where, what = REFUSED[case]
    with pytest.raises(EsaError) as raised:
        plan(load_quantized(kind), name, "5,6", **options)
    assert (raised.value.where, raised.value.what, raised.value.exit_code) == (where, what, 3)


def test_the_highest_bits_are_there() -> None:
    """Bit 3 of an NF4 code, 7 of an int8 code, 31 of a scale: planned. The default is not written into the options."""
    for kind, options in (("nf4", {"bit": 3}), ("int8", {"bit": 7}), ("nf4", {"bit": 31, "of": "scale"})):
        (case,) = plan(load_quantized(kind), DOWN, "5,6", **options).cases.values()
        assert case.options == options
    (case,) = plan(load_quantized("nf4"), DOWN, "5,6", bit=3, of="weight").cases.values()
    assert case.options == {"bit": 3}


def test_double_quantised_scales_are_refused() -> None:
    """Scales that are codes themselves cannot be flipped."""
    loaded = load_quantized("nf4")
    weight_of(loaded, DOWN).layer.weight.quant_state.nested = True
    with pytest.raises(EsaError) as raised:
        plan(loaded, DOWN, "5,6", bit=3, of="scale")
    assert raised.value.where == "perturb.0.of"
    assert raised.value.what == f"the scales of {DOWN} are quantised themselves, with others of its tensor"


def test_a_restore_that_fails_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """If codes that were written back differ from those saved, the check fails."""
    loaded = load_quantized("nf4")
    with (
        pytest.raises(CheckError, match="was not restored bit for bit"),
        applied(loaded, changes_of(loaded, "zero", targets=[(DOWN, 3)])),
    ):
        monkeypatch.setattr(apply, "same_bits", lambda left, right: False)


def test_nf4_keeps_the_peak_as_the_dense_model_does() -> None:
    """zero_keep_peak on an NF4 map measures what it measures on a dense model of the same numbers."""
    loaded = load_quantized("nf4")
    targets = [(DOWN, 5 * 128 + 7), (DOWN, 5 * 128 + 9), (DOWN, 3 * 128 + 2)]
    measured = []
    for model in (loaded, dense_twin(loaded)):
        evaluator = Evaluator(model, eval_windows(), 1000)
        changes = changes_of(model, "zero_keep_peak", {}, targets)
        with applied(model, changes), hooked(model, "zero_keep_peak", changes):
            measured.append(evaluator.measure().nll)
    assert measured[0] == pytest.approx(measured[1], rel=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_a_campaign_on_codes(kind: str, tmp_path: Path) -> None:
    """A whole campaign runs, restores, and its faults name codes and scales; a noise floor is measured."""
    loaded = load_quantized(kind)
    before = fingerprint(loaded.weights)
    chosen = spec(
        {"method": "zero"}, {"method": "bit_flip", "bit": 2}, {"method": "bit_flip", "bit": 25, "of": "scale"},
        model={"quantization": kind}, rank={"k": [2]},
    )  # fmt: skip
    ranked = ranking(
        rows("act_mag", 0, "top_k", [(DOWN, 6), (DOWN, 7)]), rows("act_mag", 0, "bottom_k", [(UP, 5), (UP, 9)])
    )
    done = perturb(chosen, ranked, tmp_path, loaded=loaded)
    damage = frame(done)
    assert damage["delta_nll"].null_count() == 0
    assert (damage.filter(pl.col("group") == "top_k")["delta_nll"] != 0).all()
    assert float(damage["noise_floor"][0]) > 0
    faults = frame(done, "faults/1")
    assert set(faults["field"]) == {"code", "scale.exponent"}
    assert faults.filter(pl.col("field") == "code").height == 4
    assert faults.filter(pl.col("field") == "scale.exponent").height == 2
    assert fingerprint(loaded.weights) == before
