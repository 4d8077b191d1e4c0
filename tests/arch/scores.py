"""Planted scores of a model as the comparisons read them, without files: a sum per tensor is all they need."""

from collections.abc import Mapping

import polars as pl

from esa.arch.comparison.scored import Scored
from esa.artifact.schemas import SCHEMAS

COMPONENTS = ("attn.q", "attn.k", "attn.v", "attn.o", "mlp.gate", "mlp.up", "mlp.down")
NUMEL = 100


def scores(
    label: str,
    blocks: int,
    sums: Mapping[tuple[str, int | None], float] | None = None,
    *,
    family: str | None = None,
    model: str | None = None,
    components: tuple[str, ...] = COMPONENTS,
) -> Scored:
    """Return scores that sum to ``sums`` of (component, block), else to 1 per tensor of 100 weights, embedding included."""
    known = dict(sums or {})
    rows = [
        {"parameter": f"{block}.{component}", "block": block, "component": component, "numel": NUMEL,
         "sum": known.get((component, block), 1.0), "shape": "(10, 10)"}
        for component, block in [("embed", None), *((c, b) for b in range(blocks) for c in components)]
    ]  # fmt: skip
    schema = SCHEMAS["tensors/1"]
    frame = pl.DataFrame([{name: row.get(name) for name in schema} for row in rows], schema=schema)
    return Scored(label, "act_mag", frame, None, None, blocks, model or label, family)
