"""The informed methods, and those that draw for several weights at once, in whole campaigns."""

from pathlib import Path
from typing import Any

import polars as pl
import pytest

from esa.errors import EsaError
from esa.model import fingerprint
from esa.progress import Silent
from tests.conftest import load
from tests.perturb.planted import BOTTOM, RANDOM, TOP, frame, perturb, ranking, rows, spec

RANKED: dict[str, Any] = {"groups": ["top_k", "bottom_k"]}
TABLES: list[dict[str, Any]] = [
    {"method": "gradient", "epsilon": [0.01, 0.1], "direction": ["aligned", "opposed"]},
    {"method": "adaptive", "strength": [0.5, 1.0], **RANKED},
    {"method": "quantize", "bits": [2, 8]},
    {"method": "clamp", "quantile": 0.2},
    {"method": "correlated", "sigma": 0.5, "shared_by": ["row", "component"], "repeats": 2},
    {"method": "swap", "repeats": 3},
]


@pytest.mark.parametrize("architecture", ["llama", "llama_tied"])
def test_every_new_method_runs_and_restores(architecture: str, tmp_path: Path) -> None:
    """One row per dose, group, K and repeat, damage in all of them, and the model as it was; a second run is the same."""
    loaded = load(architecture)
    before = fingerprint(loaded.weights)
    tied = architecture == "llama_tied"
    parts = [
        rows(metric, 0, group, [t for t in targets if not (tied and t[0] == "lm_head.weight")], draw)
        for metric, group, targets, draw in (
            ("act_mag", "top_k", TOP, None), ("act_mag", "bottom_k", BOTTOM, None), (None, "random_k", RANDOM, 0),
        )
    ]  # fmt: skip
    chosen = spec(*TABLES, rank={"k": [2]}, eval={"windows": 3, "length": 12})
    damage = frame(perturb(chosen, ranking(*parts), tmp_path / "one", loaded=loaded))
    assert fingerprint(loaded.weights) == before
    counts = {str(method): count for method, count in damage.group_by("method").len().iter_rows()}
    assert counts == {"gradient": 12, "adaptive": 4, "quantize": 6, "clamp": 3, "correlated": 12, "swap": 9}
    assert damage["delta_nll"].null_count() == 0
    moved = damage.group_by("method").agg((pl.col("delta_nll") != 0).mean())
    assert all(share > 0.8 for _, share in moved.iter_rows())
    again = frame(perturb(chosen, ranking(*parts), tmp_path / "two", loaded=load(architecture)))
    assert damage.drop("run").equals(again.drop("run"))


def test_aligned_hurts_and_opposed_helps(tmp_path: Path) -> None:
    """Where damage is measured on the text that the gradient is of, a small step along it hurts and one against it helps."""
    text = {"source": "builtin:sentences", "windows": 4, "length": 12, "sample": "first"}
    chosen = spec(
        {"method": "gradient", "epsilon": 0.01, "direction": ["aligned", "opposed"]}, rank={"k": [3]},
        calibration=text, eval=text,
    )  # fmt: skip
    progress = Silent()
    damage = frame(perturb(chosen, ranking(rows("act_mag", 0, "top_k", TOP)), tmp_path, progress=progress))
    aligned, opposed = damage["delta_nll"]
    assert aligned > 0 > opposed
    assert abs(aligned + opposed) < 0.2 * aligned
    assert any("the calibration windows are the evaluation windows" in warning for warning in progress.warnings)


def test_adaptive_refuses_random_groups_before_anything_is_evaluated(tmp_path: Path) -> None:
    """Without groups the random ones are asked for, which no metric ranked: an error names the key, and no folder is left."""
    with pytest.raises(EsaError) as raised:
        perturb(spec({"method": "zero"}, {"method": "adaptive"}), ranking(), tmp_path)
    assert raised.value.where == "perturb.1.groups"
    assert raised.value.what == "adaptive needs the scores of a metric, and no metric ranked random_k"
    assert raised.value.hint == 'give it ranked groups: groups = ["top_k"]'
    assert not list(tmp_path.rglob("*.toml"))


def test_metrics_that_rank_the_same_weights_are_adapted_apart(tmp_path: Path) -> None:
    """Two metrics' top groups of the same weights are one case to zero and two to adaptive, whose scores differ."""
    one = rows("magnitude", 0, "top_k", TOP)
    two = [{**row, "metric": "obd", "score": 1 / (4 - int(str(row["rank"])))} for row in one]  # the order turned
    damage = frame(perturb(spec({"method": "zero"}, {"method": "adaptive"}), ranking(one, two), tmp_path))
    at_three = damage.filter(pl.col("k") == 3)
    cases = at_three.group_by("method", maintain_order=True).agg(pl.col("case").n_unique(), pl.col("nll").n_unique())
    assert cases.rows() == [("zero", 1, 1), ("adaptive", 2, 2)]
