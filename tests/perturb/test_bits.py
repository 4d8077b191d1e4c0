"""Bits are flipped in the stored number itself."""

import struct
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from esa.errors import EsaError
from esa.perturb.apply import Change, fault_rows, plan_changes, same_bits
from esa.perturb.methods import INTEGERS, bit_field, flip_masks, int_view
from esa.spec import generator
from tests.conftest import load

NAME = "model.layers.1.mlp.down_proj.weight"
WIDTHS = {torch.float32: 32, torch.bfloat16: 16, torch.float16: 16}
FIELDS = {torch.float32: (23, 8), torch.bfloat16: (7, 8), torch.float16: (10, 5)}  # mantissa, exponent
VALUES = [1.0, -2.5, 0.0, -0.0, 3.14159, 1e-30, -65504.0, float("inf"), float("nan")]


def stored_bits(value: Tensor) -> int:
    """Return a number's bits by way of struct: bfloat16 is the upper half of a float32."""
    number = float(value)
    if value.dtype == torch.float16:
        return struct.unpack("<H", np.float16(number).tobytes())[0]
    (bits,) = struct.unpack("<I", struct.pack("<f", number))
    return bits >> 16 if value.dtype == torch.bfloat16 else bits


def number_of(bits: int, dtype: torch.dtype) -> float:
    """Return the number that bits stand for, by way of struct."""
    if dtype == torch.float16:
        return struct.unpack("<e", struct.pack("<H", bits))[0]
    return struct.unpack("<f", struct.pack("<I", bits << 16 if dtype == torch.bfloat16 else bits))[0]


def flipped(dtype: torch.dtype, values: list[float], options: dict[str, Any], seed: int = 0) -> tuple[Tensor, Tensor]:
    """Return values as stored, and after bit_flip."""
    loaded = load("llama", dtype)
    with torch.no_grad():
        loaded.parameters()[NAME].view(-1)[: len(values)] = torch.tensor(values, dtype=dtype)
    targets = [(NAME, index) for index in range(len(values))]
    (change,) = plan_changes(loaded, targets, "bit_flip", options, generator(seed, "bit_flip", 0))
    return change.before, change.after


@pytest.mark.parametrize(("dtype", "bit"), [(dtype, bit) for dtype, width in WIDTHS.items() for bit in range(width)])
def test_every_bit_is_an_xor_of_the_stored_number(dtype: torch.dtype, bit: int) -> None:
    """Each bit of each dtype flips alone, for ordinary numbers, zeros of both signs, infinity and NaN."""
    before, after = flipped(dtype, VALUES, {"bit": bit})
    unsigned = (1 << WIDTHS[dtype]) - 1
    old, new = ([n & unsigned for n in int_view(part).tolist()] for part in (before, after))
    assert old[:-1] == [stored_bits(value) for value in before[:-1]]
    assert new == [bits ^ (1 << bit) for bits in old]
    for found, bits in zip(after.tolist(), new, strict=True):
        expected = number_of(bits, dtype)
        assert found == expected or (np.isnan(found) and np.isnan(expected))


@pytest.mark.parametrize("dtype", WIDTHS)
def test_fields_of_the_number(dtype: torch.dtype) -> None:
    """Bits are named mantissa, exponent and sign from the least significant one up."""
    mantissa, exponent = FIELDS[dtype]
    expected = ["mantissa"] * mantissa + ["exponent"] * exponent + ["sign"]
    assert [bit_field(bit, dtype) for bit in range(WIDTHS[dtype])] == expected


@pytest.mark.parametrize("value", [0.75, 0.01, -0.5, 1e-20])
def test_bit_14_of_a_bfloat16_below_one_multiplies_by_2_to_the_128(value: float) -> None:
    """The highest exponent bit of a small bfloat16 is worth 2^128; of one at 1 or above it takes as much away."""
    before, after = flipped(torch.bfloat16, [value], {"bit": 14})
    assert float(after[0].double()) == float(before[0].double()) * 2.0**128
    before, after = flipped(torch.bfloat16, [5.875], {"bit": 14})
    assert float(after[0].double()) == 5.875 * 2.0**-128


def test_sign_bit_and_infinity() -> None:
    """Bit 15 of a bfloat16 turns the sign; bit 14 of exactly 1 gives infinity."""
    _before, after = flipped(torch.bfloat16, [1.0, -3.0], {"bit": 15})
    assert after.tolist() == [-1.0, 3.0]
    assert flipped(torch.bfloat16, [1.0], {"bit": 14})[1].tolist() == [float("inf")]


@pytest.mark.parametrize("width", [16, 32])
@pytest.mark.parametrize("bits", [1, 2, 7, 16])
def test_bits_draws_that_many_distinct_ones(width: int, bits: int) -> None:
    """Each weight gets a mask of exactly that many bits, every position as often as the other, masks differing."""
    masks = flip_masks(2000, width, {"bits": bits}, generator(0, "x")).numpy() & ((1 << width) - 1)
    ones = (masks[:, None] >> np.arange(width)) & 1
    assert set(ones.sum(axis=1)) == {bits}
    share = bits / width
    assert ones.mean(axis=0) == pytest.approx(share, abs=5 * np.sqrt(share * (1 - share) / 2000) + 1e-12)
    assert bits == width or len(set(masks.tolist())) > min(width, 15)


@pytest.mark.parametrize("width", [16, 32])
@pytest.mark.parametrize("prob", [0.01, 0.5, 1.0])
def test_prob_flips_each_bit_by_chance(width: int, prob: float) -> None:
    """Every bit of every weight is flipped with the given probability, independently of the others."""
    masks = flip_masks(4000, width, {"prob": prob}, generator(0, "x")).numpy() & ((1 << width) - 1)
    ones = (masks[:, None] >> np.arange(width)) & 1
    spread = np.sqrt(prob * (1 - prob) / 4000)
    assert ones.mean(axis=0) == pytest.approx(prob, abs=5 * spread + 1e-12)
    assert ones.sum(axis=1).var() == pytest.approx(width * prob * (1 - prob), rel=0.1, abs=1e-12)


@pytest.mark.parametrize("dtype", WIDTHS)
def test_several_flips_of_one_weight_are_one_mask(dtype: torch.dtype) -> None:
    """Many bits of the same weight change together: the new number differs in all of them, the integer view fits."""
    before, after = flipped(dtype, [0.3, -0.7], {"bits": WIDTHS[dtype]})
    assert after.dtype == dtype
    ones = -1  # all bits, in two's complement
    assert (int_view(before) ^ int_view(after)).tolist() == [ones, ones]
    before, after = flipped(dtype, [0.3, -0.7], {"bits": 5})
    unsigned = (1 << WIDTHS[dtype]) - 1
    differing = (int_view(before) ^ int_view(after)).tolist()
    assert [(mask & unsigned).bit_count() for mask in differing] == [5, 5]


@pytest.mark.parametrize("dtype", WIDTHS)
def test_fault_rows_name_every_flipped_bit(dtype: torch.dtype) -> None:
    """Each flipped bit is a row with position, field, bits and values before and after; NaN and infinity become null."""
    before, after = flipped(dtype, [1.0, -0.25, 3.0], {"bits": 3})
    before, after = before.clone(), after.clone()
    after[2] = float("nan")
    rows = fault_rows("r", "c", [Change(NAME, torch.tensor([0, 1, 2]), before, after)])
    digits = WIDTHS[dtype] // 4
    for position in range(2):
        own = [row for row in rows if row["index"] == position]
        assert len(own) == 3
        old, new = (int(own[0][key], 16) for key in ("old_bits", "new_bits"))
        assert sum(1 << row["bit"] for row in own) == old ^ new
        assert old == stored_bits(before[position])
        assert number_of(new, dtype) == pytest.approx(float(after[position]), nan_ok=True)
        assert [row["bit"] for row in own] == sorted(row["bit"] for row in own)
        assert {(row["old_bits"], row["new_bits"]) for row in own} == {(f"0x{old:0{digits}x}", f"0x{new:0{digits}x}")}
        assert all(row["field"] == bit_field(row["bit"], dtype) for row in own)
        assert own[0]["old"] == float(before[position])
    assert {row["new"] for row in rows if row["index"] == 2} == {None}


def test_bits_of_other_dtypes_are_refused() -> None:
    """A dtype without bits to flip here is an error that names the tensor."""
    loaded = load("llama")
    loaded.weights[NAME].dtype = torch.float64
    loaded.model.double()
    with pytest.raises(EsaError) as raised:
        plan_changes(loaded, [(NAME, 0)], "bit_flip", {"bit": 0}, generator(0, "x"))
    assert (
        raised.value.what == f"{NAME} is stored as torch.float64; bits of float32, bfloat16 and float16 can be flipped"
    )


@pytest.mark.parametrize("dtype", [*WIDTHS, torch.float64])
def test_same_bits_tells_zeros_apart(dtype: torch.dtype) -> None:
    """Equal NaN are the same bits, zero and minus zero are not."""
    number = torch.tensor([1.0, -2.0], dtype=dtype)
    assert same_bits(number, number.clone())
    assert not same_bits(number, torch.tensor([1.0, -2.1], dtype=dtype))
    if dtype in INTEGERS:
        nan = torch.tensor([float("nan")], dtype=dtype)
        assert same_bits(nan, nan.clone())
        assert not same_bits(torch.tensor([0.0], dtype=dtype), torch.tensor([-0.0], dtype=dtype))
