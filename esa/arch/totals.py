"""Sums over the rows of an ``arch/1`` table alone: per component and block, tied and fused parts, dtypes, sizes."""

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass

import polars as pl

NF4_BLOCK = 64  # weights that share one float32 scale
FUSED = {
    "attn.qkv": "query, key, value", "mlp.gate_up": "gate, up", "expert.gate_up": "gate, up", "expert.gate": "gate",
    "expert.up": "up", "expert.down": "down",
}  # fmt: skip


@dataclass(frozen=True)
class BlockGroup:
    """Decoder blocks of equal make: the same components in the same shapes. ``num_bytes``: of the smallest and the largest."""

    blocks: tuple[int, ...]
    num_tensors: int
    numel: int
    active: int | None
    num_bytes: tuple[int, int] | None


@dataclass(frozen=True)
class FusedPart:
    """Tensors of one component and shape in which several projections, or all experts, lie together."""

    component: str
    shape: tuple[int, ...]
    num_tensors: int
    parts: str
    num_experts: int | None


def component_totals(frame: pl.DataFrame) -> pl.DataFrame:
    """Return a row per component, in the order of the model: ``component, tensors, numel, share, active, bytes, dtype``.

    ``share`` is of all weights; ``active`` and ``bytes`` are null where a tensor's are; ``dtype`` names every one.
    """
    return _totals(frame, "component").with_columns(share=pl.col("numel") / frame["numel"].sum())


def dtype_totals(frame: pl.DataFrame) -> pl.DataFrame:
    """Return a row per dtype, the most weights first: ``dtype, tensors, numel, bytes``."""
    totals = frame.group_by("dtype", maintain_order=True).agg(_TENSORS, pl.col("numel").sum(), _sum_or_null("bytes"))
    return totals.sort("numel", descending=True)


_TENSORS = pl.len().cast(pl.Int64).alias("tensors")


def _sum_or_null(column: str) -> pl.Expr:
    return pl.when(pl.col(column).null_count() == 0).then(pl.col(column).sum()).alias(column)


def _totals(frame: pl.DataFrame, by: str) -> pl.DataFrame:
    return frame.group_by(by, maintain_order=True).agg(
        _TENSORS,
        pl.col("numel").sum(),
        _sum_or_null("active"),
        _sum_or_null("bytes"),
        pl.col("dtype").unique(maintain_order=True).drop_nulls().str.join(", "),
    )


def block_groups(frame: pl.DataFrame) -> list[BlockGroup]:
    """Return the decoder's blocks, those of equal make together, in the order of their first one."""
    groups: dict[tuple[tuple[str, str], ...], list[tuple[int, pl.DataFrame]]] = {}
    for (block,), part in frame.filter(pl.col("block").is_not_null()).group_by("block", maintain_order=True):
        make = tuple(sorted(zip(part["component"], part["shape"], strict=True)))
        groups.setdefault(make, []).append((int(str(block)), part))
    return [_group(members) for members in groups.values()]


def _group(members: list[tuple[int, pl.DataFrame]]) -> BlockGroup:
    first = members[0][1]
    sizes = [int(part["bytes"].sum()) for _, part in members]
    known = all(part["bytes"].null_count() == 0 for _, part in members)
    return BlockGroup(
        blocks=tuple(block for block, _ in members),
        num_tensors=first.height,
        numel=int(first["numel"].sum()),
        active=None if first["active"].null_count() else int(first["active"].sum()),
        num_bytes=(min(sizes), max(sizes)) if known else None,
    )


def ranges(numbers: Iterable[int]) -> str:
    """Return ``0-3, 5`` for 0, 1, 2, 3, 5."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ", ".join(str(low) if low == high else f"{low}-{high}" for low, high in runs)


def tied_parts(frame: pl.DataFrame) -> list[tuple[str, ...]]:
    """Return the names of every tensor that is used under more than one; the first is its address."""
    return [tuple(uses.split(" ")) for uses in frame.filter("tied")["uses"]]


def fused_parts(frame: pl.DataFrame) -> list[FusedPart]:
    """Return what lies together in one tensor: query, key and value; gate and up; the experts of a block."""
    rows = frame.filter(pl.col("component").is_in(list(FUSED)) & (_num_axes() >= 2))
    parts = []
    for (component, text), part in rows.group_by("component", "shape", maintain_order=True):
        shape = shape_of(str(text))
        experts = shape[0] if len(shape) == 3 else None
        parts.append(FusedPart(str(component), shape, part.height, FUSED[str(component)], experts))
    return parts


def shape_of(text: str) -> tuple[int, ...]:
    """Return the numbers of ``(507, 1229)``."""
    return tuple(int(number) for number in re.findall(r"\d+", text))


def _num_axes() -> pl.Expr:
    return pl.col("shape").str.count_matches(r"\d+")


def scored(frame: pl.DataFrame) -> pl.DataFrame:
    """Return the rows that esa scores by default: tensors of two dimensions or more."""
    return frame.filter(_num_axes() >= 2)


def not_scored(frame: pl.DataFrame) -> pl.DataFrame:
    """Return the rows that esa leaves out by default: tensors of one dimension."""
    return frame.filter(_num_axes() < 2)


def sizes(frame: pl.DataFrame) -> dict[str, int]:
    """Return the bytes of the whole model by number format.

    ``float32``, ``bfloat16``: 4 and 2 bytes per weight. ``int8``: a byte per weight and a float32 scale per row, for the
    matrices of the decoder's blocks; ``nf4``: half a byte, and a float32 scale per ``NF4_BLOCK`` of them (4.5 bits); what is
    no matrix or stands outside the blocks remains bfloat16, as quantizers leave it. A tied tensor counts once.
    """
    matrices = scored(frame).filter(pl.col("block").is_not_null())
    total, inside = int(frame["numel"].sum()), int(matrices["numel"].sum())
    rows = sum(math.prod(shape_of(text)[:-1]) for text in matrices["shape"])
    scales = sum(math.ceil(numel / NF4_BLOCK) for numel in matrices["numel"])
    halves = sum(math.ceil(numel / 2) for numel in matrices["numel"])
    rest = 2 * (total - inside)
    return {
        "float32": 4 * total,
        "bfloat16": 2 * total,
        "int8": inside + 4 * rows + rest,
        "nf4": halves + 4 * scales + rest,
    }


def names_without_block(frame: pl.DataFrame) -> list[str]:
    """Return the parameters' names, the number of their block written as ``*``, each once."""
    names = (
        name if block is None else re.sub(rf"\.{block}\.", ".*.", name, count=1)
        for name, block in zip(frame["parameter"], frame["block"], strict=True)
    )
    return list(dict.fromkeys(names))
