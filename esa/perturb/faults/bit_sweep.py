"""What every bit of a weight is worth: a campaign's single flipped bits beside the damage they did."""

from collections.abc import Iterable, Mapping
from typing import Any

Row = dict[str, object]
_DAMAGE = ("run", "case", "target", "nll", "delta_nll", "delta_low", "delta_high", "ppl", "outcome")


def sweep_table(width: int) -> dict[str, Any]:
    """Return the ``[[perturb]]`` table of a sweep: every bit of every target, a case each."""
    return {"method": "bit_flip", "bit": list(range(width)), "unit": "single"}


def stored_width(dtype: str, quantization: str) -> int:
    """Return the bits of a stored number, by ``model.dtype`` and ``model.quantization``: of a code where there are codes."""
    if quantization != "none":
        return {"int8": 8, "nf4": 4}[quantization]
    return {"float32": 32, "bfloat16": 16, "float16": 16}[dtype]


def bit_rows(damage: Iterable[Mapping[str, Any]], faults: Iterable[Mapping[str, Any]]) -> list[Row]:
    """Return the rows of ``bits/1``: the cases that flip exactly one bit of one weight, each once.

    damage: rows of ``damage/1``; faults: those of ``faults/1`` of the same campaign. Order: weights as they first come in
    the damage, a scale behind the weight that names it, then from the least significant bit on.
    """
    flips: dict[str, list[Mapping[str, Any]]] = {}
    for fault in faults:
        flips.setdefault(fault["case"], []).append(fault)
    found: dict[str, Row] = {}
    places: dict[str, int] = {}
    for row in damage:
        single = flips.get(row["case"], [])
        named = (
            row["target"] is not None and row["unit"] != "leave_one_out"
        )  # which names the weight that is left alone
        if named and len(single) == 1:
            places.setdefault(row["target"], len(places))
            found.setdefault(row["case"], {**single[0], **{key: row[key] for key in _DAMAGE}})
    return sorted(found.values(), key=lambda row: _order(row, places))


def _order(row: Mapping[str, Any], places: Mapping[str, int]) -> tuple[int, bool, int]:
    return places[row["target"]], row["field"].startswith("scale"), row["bit"]


def unswept(bits: Iterable[Mapping[str, Any]], width: int) -> dict[str, int]:
    """Return the parameters of rows of ``bits/1`` whose numbers have more bits than ``width``, and how many they have.

    Of a quantised model that is what is not quantised: the embedding, say.
    """
    widths = {row["parameter"]: 4 * (len(row["old_bits"]) - 2) for row in bits}
    return {name: found for name, found in widths.items() if found > width}
