"""A sweep gives every bit of every target its row: what the number becomes, and what that does."""

from pathlib import Path
from typing import Any

import pytest
import torch

from esa.artifact import make_table, read_table
from esa.perturb.faults.bit_sweep import bit_rows, stored_width, sweep_table, unswept
from esa.perturb.methods import int_view
from esa.spec import spec_from_dict
from tests.conftest import load
from tests.perturb.planted import BOTTOM, TOP, frame, perturb, ranking, rows, spec
from tests.quantized import EMBEDDING, UP, load_quantized

WIDTHS = {"float32": 32, "bfloat16": 16, "float16": 16}


def damage(case: str, target: str | None, ppl: float = 2.0, unit: str = "single") -> dict[str, Any]:
    """Return the part of a damage row that a sweep reads."""
    return {"run": "r", "case": case, "target": target, "nll": 1.0, "delta_nll": 0.5, "delta_low": 0.1, "delta_high": 0.9,
            "ppl": ppl, "outcome": "ok", "unit": unit}  # fmt: skip


def fault(case: str, parameter: str, index: int, bit: int, field: str = "exponent") -> dict[str, Any]:
    """Return a row of ``faults/1``."""
    return {"run": "r", "case": case, "parameter": parameter, "index": index, "bit": bit, "field": field,
            "old_bits": "0x40bc", "new_bits": "0x00bc", "old": 5.9, "new": None}  # fmt: skip


def test_only_single_flips_of_one_weight_have_a_row_each_once() -> None:
    """Joint cases and cases of several bits have none; a case of two groups has one; weights as they come, then bits."""
    found = bit_rows(
        [damage("b2", "v:0", unit="leave_one_out"), damage("b9", "w:1"), damage("b2", "w:1"), damage("v", "v:0"), damage("b9", "w:1", 7.0), damage("two", "w:1"),
         damage("joint", None), damage("scale", "w:1"), damage("zero", "w:1")],
        [fault("b9", "w", 1, 9), fault("b2", "w", 1, 2), fault("v", "v", 0, 0), fault("two", "w", 1, 0),
         fault("two", "w", 1, 1), fault("joint", "w", 1, 0), fault("scale", "w", 0, 0, "scale.mantissa")],
    )  # fmt: skip
    assert [(row["case"], row["ppl"]) for row in found] == [("b2", 2.0), ("b9", 2.0), ("scale", 2.0), ("v", 2.0)]
    assert make_table("bits/1", found).frame["new"].to_list() == [None] * 4


@pytest.mark.parametrize("dtype", list(WIDTHS))
def test_a_sweep_covers_the_storage(dtype: str, tmp_path: Path) -> None:
    """Every bit of both targets has its row, with the numbers that XOR makes and the damage of its case."""
    width = stored_width(dtype, "none")
    assert width == WIDTHS[dtype]
    loaded = load("llama", getattr(torch, dtype))
    chosen = spec(sweep_table(width), model={"id": "tiny", "dtype": dtype}, rank={"k": [2]})
    done = perturb(
        chosen, ranking(rows("act_mag", 0, "top_k", TOP), rows("obd", 0, "top_k", TOP)), tmp_path, loaded=loaded
    )
    table = frame(done, "bits/1")
    assert table.height == 2 * width
    assert table["bit"].to_list() == [*range(width)] * 2
    assert set(table["run"]) == {done.id}
    by_case = {row["case"]: row for row in frame(done).iter_rows(named=True)}
    for row in table.iter_rows(named=True):
        name, index = TOP[0] if row["target"] == table["target"][0] else TOP[1]
        stored = loaded.weights[name].stored(torch.tensor([index]))
        bits = int(int_view(stored)) & ((1 << width) - 1)
        assert (row["parameter"], row["index"]) == (name, index)
        assert (int(row["old_bits"], 16), int(row["new_bits"], 16)) == (bits, bits ^ 1 << row["bit"])
        assert row["old"] == float(stored)
        assert all(
            row[key] == by_case[row["case"]][key] for key in ("nll", "delta_low", "delta_high", "ppl", "outcome")
        )
    assert table["field"].value_counts().sort("field")["count"].sum() == 2 * width


def test_the_top_exponent_bit_of_a_bfloat16_below_one_is_fatal(tmp_path: Path) -> None:
    """Bit 14 multiplies it by 2^128, which leaves uniform logits; that of a larger number makes it nearly zero."""
    loaded = load("llama", torch.bfloat16)
    with torch.no_grad():
        for (name, index), value in zip([TOP[0], BOTTOM[0]], [0.75, 5.875], strict=True):
            loaded.parameters()[name].view(-1)[index] = value
    chosen = spec({"method": "bit_flip", "bit": 14, "unit": "single"}, model={"id": "tiny", "dtype": "bfloat16"},
                  rank={"k": [2]})  # fmt: skip
    done = perturb(chosen, ranking(rows("act_mag", 0, "top_k", [TOP[0], BOTTOM[0]])), tmp_path, loaded=loaded)
    small, large = frame(done, "bits/1").to_dicts()
    assert small["new"] == 0.75 * 2.0**128
    assert small["outcome"] in ("uniform", "nonfinite", "collapsed")
    assert large["new"] == pytest.approx(1.7e-38, rel=0.02)
    assert large["new"] == 5.875 * 2.0**-128


def test_a_campaign_without_single_flips_has_no_sweep(tmp_path: Path) -> None:
    """Zeroing and joint flips write no ``bits.csv``."""
    done = perturb(spec({"method": "zero"}, {"method": "bit_flip", "bit": 3}, rank={"k": [3]}), ranking(), tmp_path)
    assert not (done.folder / "bits.csv").exists()


@pytest.mark.parametrize(("kind", "width"), [("int8", 8), ("nf4", 4)])
def test_a_sweep_over_codes_says_what_it_leaves_out(kind: str, width: int, tmp_path: Path) -> None:
    """A quantised weight has the bits of its code; an embedding beside it, stored as numbers, has more than were swept."""
    assert stored_width("float32", kind) == width
    chosen = spec(sweep_table(width), model={"id": "tiny", "quantization": kind}, rank={"k": [2]})
    targets = ranking(rows("act_mag", 0, "top_k", [(UP, 3), (EMBEDDING, 200)]))
    done = perturb(chosen, targets, tmp_path, loaded=load_quantized(kind))
    found = read_table(done.folder / "bits.csv", "bits/1").frame.to_dicts()
    assert [row["field"] for row in found[:width]] == ["code"] * width
    assert unswept(found, width) == {EMBEDDING: 32}
    assert unswept(found[:width], width) == {}


def test_a_sweep_is_a_table_that_a_spec_can_hold() -> None:
    """The shorthand is one valid ``[[perturb]]`` table, a list of bits and the unit ``single``."""
    tree = {"name": "t", "model": {"id": "m"}, "perturb": [sweep_table(16)]}
    (section,) = spec_from_dict(tree).perturb
    assert [table.options() for table in section.expanded()] == [{"bit": bit} for bit in range(16)]
