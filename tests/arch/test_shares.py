"""Shares and densities by component, part and block against sums by hand, and which damage counts for which of them."""

import math
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from esa.arch.comparison.findings import Options
from esa.arch.comparison.regions import tensors_of
from esa.arch.comparison.shares import compare
from esa.arch.comparison.sources import part_of
from esa.artifact import make_table
from tests.arch.planted_mixtures import dense, mixture, opened
from tests.planted_runs import Planted

OPTIONS = Options(("act_mag",), 10)


def shares(*made: Planted, options: Options = OPTIONS) -> pl.DataFrame:
    """Return ``shares/1`` of planted runs."""
    runs = opened(*(one.write() for one in made))
    return make_table("shares/1", list(compare(runs, options).tables["shares/1"])).frame


def row(frame: pl.DataFrame, by: str, value: str, seed: int = 0) -> dict[str, Any]:
    """Return the one row of a group."""
    (found,) = frame.filter(pl.col("by") == by, pl.col("value") == value, pl.col("seed") == seed).to_dicts()
    return found


def test_shares_are_sums_over_the_tensors(tmp_path: Path) -> None:
    """Share of weights, share of score and density of every component, part and block are those of naive sums."""
    made = dense(tmp_path, density={"mlp.down": 5.0})
    frame = shares(made)
    scores = made.scores["act_mag", 1]
    total, weights = sum(float(one.sum()) for one in scores.values()), made.num_weights

    def expected(chosen: Any) -> tuple[float, float]:
        names = [one.name for one in made.parameters if chosen(one)]
        share = sum(float(scores[name].sum()) for name in names) / total
        return sum(scores[name].size for name in names) / weights, share

    groups = {
        ("component", "mlp.down"): lambda one: one.component == "mlp.down",
        ("part", "attention"): lambda one: one.component.startswith("attn"),
        ("part", "head"): lambda one: one.component == "lm_head",
        ("depth", "2"): lambda one: one.block == 2,
    }
    for (by, value), chosen in groups.items():
        found = row(frame, by, value, seed=1)
        weight_share, score_share = expected(chosen)
        assert found["weight_share"] == pytest.approx(weight_share)
        assert found["score_share"] == pytest.approx(score_share)
        assert found["density"] == pytest.approx(score_share / weight_share)
    assert row(frame, "depth", "2")["relative_depth"] == pytest.approx(2.5 / 4)
    for by in ("component", "part"):
        whole = frame.filter(pl.col("by") == by, pl.col("seed") == 0)
        assert whole["score_share"].sum() == pytest.approx(1)
        assert whole["num_top"].sum() == 10


def test_a_dense_component_is_found(tmp_path: Path) -> None:
    """A component whose weights score twenty times the others' has the highest density, above a factor of five."""
    frame = shares(dense(tmp_path, density={"attn.v": 20.0})).filter(pl.col("by") == "component", pl.col("seed") == 0)
    assert frame.sort("density")["value"][-1] == "attn.v"
    assert frame["density"].max() > 5  # type: ignore[operator]


def test_what_was_not_scored_is_null(tmp_path: Path) -> None:
    """Weights that no metric scored have a row of their own with their number, and nothing about their score."""
    made = dense(tmp_path)
    made.stated_parameters = made.num_weights + 36
    found = row(shares(made), "part", "not scored")
    assert found.pop("numel") == 36
    assert {name for name, value in found.items() if value is not None} == {"label", "metric", "seed", "by", "value"}


def test_a_tied_head_is_said(tmp_path: Path) -> None:
    """Of a tied model there is an embedding and no head, and a warning says that they are one."""
    made = dense(tmp_path, tied=True)
    found = compare(opened(made.write()), OPTIONS)
    values = [one["value"] for one in found.tables["shares/1"] if one["by"] == "part"]
    assert "embedding" in values
    assert "head" not in values
    assert found.warnings == (
        "dense: embedding and head are one tied tensor, model.embed_tokens.weight, counted as the embedding",
    )


def test_a_run_without_scores_is_said(tmp_path: Path) -> None:
    """A run of a rank step alone gives no shares, and a warning."""
    made = dense(tmp_path, steps=("rank",))
    found = compare(opened(made.write()), OPTIONS)
    assert found.tables["shares/1"] == []
    assert found.warnings == ("dense: holds no scores; its shares are not known",)


DOWN = "model.layers.1.mlp.down_proj.weight"


def damaged(made: Planted, **columns: Any) -> dict[str, Any]:
    """Return a row of damage/1 by the method zero."""
    base = {"case": "c", "method": "zero", "options": "{}", "unit": "single", "k": 1, "metric": "act_mag", "seed": 0}
    return base | {"group": "top_k", "outcome": "ok"} | columns


def test_damage_goes_to_its_component(tmp_path: Path) -> None:
    """Single weights count once each, by component, part and block; other methods, groups, units and seeds do not count."""
    made = dense(tmp_path)
    rows = [
        damaged(made, target=f"{DOWN}:0,1", delta_nll=2.0),
        damaged(made, target=f"{DOWN}:0,1", delta_nll=2.0, unit="joint"),
        damaged(made, target=f"{DOWN}:3,2", delta_nll=1.0, metric=None, seed=None, group="targets"),
        damaged(made, target=f"{DOWN}:3,3", delta_nll=7.0, method="sign_flip"),
        damaged(made, target=f"{DOWN}:3,4", delta_nll=7.0, group="random_k", metric=None),
        damaged(made, target=f"{DOWN}:3,5", delta_nll=7.0, unit="leave_one_out"),
        damaged(made, target=f"{DOWN}:3,6", delta_nll=7.0, seed=1),
    ]
    made.tables = {"damage.csv": rows}
    frame = shares(made)
    for by, value in (("component", "mlp.down"), ("part", "mlp"), ("depth", "1")):
        found = row(frame, by, value)
        assert (found["num_tested"], found["mean_damage"], found["max_damage"]) == (2, 1.5, 2.0)
    other = row(frame, "component", "attn.q")
    assert (other["num_tested"], other["mean_damage"], other["max_damage"]) == (None, None, None)


def test_a_region_is_the_damage_of_all_of_its_group(tmp_path: Path) -> None:
    """The case that zeroed a whole component, part, block or tensor is the joint damage of just that, with its interval."""
    made = dense(tmp_path)
    given = {"group": "targets", "metric": None, "seed": None, "unit": "joint"}
    texts = {"component=mlp.down": 3.0, "component=attn.*": 4.0, "block=2": 5.0, "model.embed_tokens.weight": 6.0,
             "component=mlp.*,block=1": 9.0, f"{DOWN}:2,:": 9.0}  # fmt: skip
    made.tables = {
        "damage.csv": [
            damaged(made, **given, target=text, delta_nll=size, delta_low=size - 1, delta_high=size + 1)
            for text, size in texts.items()
        ]
    }
    frame = shares(made).filter(pl.col("joint_damage").is_not_null(), pl.col("seed") == 0)
    found = {(one["by"], one["value"]): one["joint_damage"] for one in frame.to_dicts()}
    assert found == {
        ("component", "mlp.down"): 3.0, ("part", "attention"): 4.0, ("depth", "2"): 5.0, ("component", "embed"): 6.0,
        ("part", "embedding"): 6.0,
    }  # fmt: skip
    first = row(frame, "component", "mlp.down")
    assert (first["joint_low"], first["joint_high"]) == (2.0, 4.0)


def test_a_broken_model_is_no_damage_in_nats(tmp_path: Path) -> None:
    """A weight whose loss leaves a nonfinite model is left out of the mean, and a warning counts it."""
    made = dense(tmp_path)
    made.tables = {
        "damage.csv": [
            damaged(made, target=f"{DOWN}:0,1", delta_nll=2.0),
            damaged(made, target=f"{DOWN}:0,2", delta_nll=None, outcome="nonfinite"),
        ]
    }
    found = compare(opened(made.write()), OPTIONS)
    assert "dense: 1 of 2 weights zeroed one by one left a nonfinite model: no damage in nats" in found.warnings
    assert [
        one["num_tested"] for one in found.tables["shares/1"] if one["value"] == "mlp.down" and one["seed"] == 0
    ] == [1]


@pytest.mark.parametrize(
    "text", ["expert=2", "component=mlp.down,expert=1", f"{DOWN}:0,1", "no.such.tensor", f"{DOWN}:@head=1"]
)
def test_a_part_of_a_tensor_is_no_whole_region(text: str, tmp_path: Path) -> None:
    """Regions that hold a part of a tensor, or none that was scored, are nobody's joint damage."""
    frame = opened(dense(tmp_path).write())[0].tensors("act_mag", 0)
    assert frame is not None
    assert tensors_of(text, frame) is None


def test_experts_are_a_part_of_their_own(tmp_path: Path) -> None:
    """A mixture has the parts expert and router, whose weights and scores add up with the others."""
    frame = shares(mixture(tmp_path)).filter(pl.col("by") == "part", pl.col("seed") == 0)
    assert frame["value"].to_list() == ["attention", "expert", "router", "embedding", "head"]
    assert math.isclose(frame["weight_share"].sum(), 1)


@pytest.mark.parametrize(
    ("component", "part"),
    [("attn.qkv", "attention"), ("mlp.gate_up", "mlp"), ("expert.down", "expert"), ("router", "router"), ("embed", "embedding"),
     ("lm_head", "head"), ("norm", "norm"), ("other", "other")],
)  # fmt: skip
def test_every_component_has_a_part(component: str, part: str) -> None:
    """Components belong to the part that they are named for."""
    assert part_of(component) == part
