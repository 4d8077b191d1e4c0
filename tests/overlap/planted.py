"""Small rankings with a known truth, for the tests of overlap."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import polars as pl

from esa.artifact import Table, make_table, write_table
from esa.overlap import RankedList
from esa.overlap.lists import lists_of

# Two blocks of an nn.Linear stored (out, in), a GPT-2 Conv1D stored (in, out), and an embedding (token, channel).
TENSORS: list[dict[str, Any]] = [
    {"parameter": "wte.weight", "layer": "wte", "block": None, "component": "embed", "shape": [20, 4],
     "output_axis": 1, "input_axis": 0},
    {"parameter": "h.0.c_fc.weight", "layer": "h.0.c_fc", "block": 0, "component": "mlp.up", "shape": [4, 6],
     "output_axis": 1, "input_axis": 0},
    {"parameter": "h.0.down.weight", "layer": "h.0.down", "block": 0, "component": "mlp.down", "shape": [4, 6],
     "output_axis": 0, "input_axis": 1},
    {"parameter": "h.1.down.weight", "layer": "h.1.down", "block": 1, "component": "mlp.down", "shape": [5, 8],
     "output_axis": 0, "input_axis": 1},
]  # fmt: skip
for _tensor in TENSORS:
    _tensor["numel"] = _tensor["shape"][0] * _tensor["shape"][1]
NUM_WEIGHTS = sum(tensor["numel"] for tensor in TENSORS)
DOWN = "h.0.down.weight"


def ranking(
    addresses: Sequence[tuple[str, int]],
    *,
    metric: str | None = "act_mag",
    seed: int | None = 0,
    mode: str = "global",
    group: str = "top_k",
    draw: int | None = None,
    anatomy: bool = True,
) -> Table:
    """Return a ``ranking/1`` whose rows are the addresses, best first (in per-unit modes best first in each unit)."""
    known = {tensor["parameter"]: tensor for tensor in TENSORS}
    places: dict[str, int] = {}
    rows = []
    for parameter, index in addresses:
        tensor = known[parameter]
        columns = {"per_layer": parameter, "per_block": tensor["block"], "per_component": tensor["component"]}
        unit = str(columns.get(mode, "all"))
        places[unit] = places.get(unit, 0) + 1
        row, column = divmod(index, tensor["shape"][1])
        rows.append(
            {
                "run": "0123456789ab", "metric": metric, "seed": seed, "mode": mode, "unit_name": unit, "group": group,
                "draw": draw, "rank": places[unit], "parameter": parameter, "index": index,
                "indices": f"({row}, {column})", "layer": tensor["layer"], "block": tensor["block"],
                "component": tensor["component"], "score": 1 / places[unit],
            }
        )  # fmt: skip
    meta = {"anatomy": json.dumps(TENSORS)} if anatomy else {}
    return make_table("ranking/1", rows, meta)


def joined(*tables: Table) -> Table:
    """Return the rows of several rankings as one file holds them."""
    return make_table("ranking/1", pl.concat(table.frame for table in tables), tables[0].meta)


def lists(*tables: Table) -> list[RankedList]:
    """Return the lists of tables, as if read from ``0.csv``, ``1.csv`` and so on."""
    return lists_of([(f"{number}.csv", table) for number, table in enumerate(tables)])


def saved(table: Table, path: Path) -> Path:
    """Write a table and return its path."""
    write_table(table, path)
    return path


def older(path: Path, rows: Sequence[tuple[str, str, float]], header: str = "parameter,indices,score") -> Path:
    """Write an older list and return its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [header, *(f'{parameter},"{indices}",{score}' for parameter, indices, score in rows)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path
