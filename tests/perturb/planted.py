"""Small rankings of a tiny Llama, and the specs that perturb them."""

from pathlib import Path
from typing import Any

import polars as pl

import esa.perturb
from esa.artifact import Table, make_table, read_table
from esa.perturb import PerturbResult
from esa.spec import Spec
from tests.conftest import load, tiny_spec

DOWN = "model.layers.1.mlp.down_proj.weight"  # (16, 24)
UP = "model.layers.0.mlp.up_proj.weight"  # (24, 16)
HEAD = "lm_head.weight"  # (96, 16)
TOP = [(DOWN, 127), (UP, 5), (HEAD, 40)]
BOTTOM = [(DOWN, 1), (DOWN, 2), (UP, 300)]
RANDOM = [(UP, 77), (DOWN, 200), (HEAD, 9)]

Row = dict[str, object]


def rows(
    metric: str | None, seed: int | None, group: str, targets: list[tuple[str, int]], draw: int | None = None
) -> list[Row]:
    """Return the ranking's rows of one group."""
    return [
        {"run": "r", "metric": metric, "seed": seed, "mode": "global", "group": group, "draw": draw, "rank": rank,
         "parameter": name, "index": index, "score": 0.5 / rank}
        for rank, (name, index) in enumerate(targets, start=1)
    ]  # fmt: skip


def ranking(*parts: list[Row]) -> Table:
    """Return rows as a ranking; by default one metric's top, bottom and two draws of shared random weights."""
    chosen = parts or (
        rows("act_mag", 0, "top_k", TOP),
        rows("act_mag", 0, "bottom_k", BOTTOM),
        rows(None, 0, "random_k", RANDOM, draw=0),
        rows(None, 0, "random_k", RANDOM[::-1], draw=1),
    )
    return make_table("ranking/1", [row for part in chosen for row in part])


def spec(*perturb: dict[str, Any], **sections: Any) -> Spec:
    """Return a spec with the given ``[[perturb]]`` tables, zero by default, at K = 1 and 3."""
    tables = list(perturb) or [{"method": "zero"}]
    return tiny_spec(**{"rank": {"k": [1, 3]}, "perturb": tables, "eval": {"windows": 4, "length": 12}, **sections})


def perturb(chosen: Spec, targets: Any, root: Path, **more: Any) -> PerturbResult:
    """Run a campaign on the tiny Llama."""
    return esa.perturb.run(chosen, targets, loaded=more.pop("loaded", None) or load("llama"), root=root, **more)


def frame(result: PerturbResult, kind: str = "damage/1") -> pl.DataFrame:
    """Return a table that a campaign wrote, read from its file."""
    return read_table(result.folder / f"{kind.partition('/')[0]}.csv", kind).frame
