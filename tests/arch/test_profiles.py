"""Features of blocks, and their clusters."""

import math
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from esa.arch.comparison import profiles
from esa.arch.comparison.findings import Options
from esa.arch.comparison.scored import all_scored
from esa.arch.comparison.sources import labelled
from esa.artifact.grouping import group
from tests.arch.scores import scores
from tests.planted_runs import Planted

FEW = Options(("act_mag",), 10, permutations=19)


def test_features_are_those_of_the_scores_themselves(tmp_path: Path) -> None:
    """Density, tail ratio and share of the top of every block equal what the planted scores give when counted naively."""
    run = Planted(tmp_path, blocks=3, ks=(10,), draws=1, depth=lambda block: 1.0 + block, steps=("score", "rank"))
    one = all_scored(labelled(group([run.write()]).runs), "act_mag", FEW)[0]
    found = {(row["block"], row["feature"]): row["value"] for row in profiles.block_features(one).to_dicts()}
    every = run.scores["act_mag", 0]
    total, numel = sum(part.sum() for part in every.values()), sum(part.size for part in every.values())
    top = [name for name, _, _ in run.ordered("act_mag", 0)[:10]]
    for block in range(3):
        here = {name: part for name, part in every.items() if f"layers.{block}." in name}
        mlp = np.concatenate([part.ravel() for name, part in here.items() if ".mlp." in name])
        attention = np.concatenate([part.ravel() for name, part in here.items() if ".self_attn." in name])
        for part, feature in ((mlp, "log_density_mlp"), (attention, "log_density_attention")):
            assert found[block, feature] == pytest.approx(math.log(part.sum() / total * numel / part.size))
        both = np.concatenate([mlp, attention])
        ratio = math.log(np.quantile(both, 0.99) / np.quantile(both, 0.5))
        assert found[block, "log_top_to_median"] == pytest.approx(
            ratio, abs=0.2
        )  # two bins, and few weights at the top
        assert found[block, "share_of_top"] == pytest.approx(sum(f"layers.{block}." in name for name in top) / 10)
        assert found[block, "log_peak_ratio"] is None


def test_planted_kinds_of_blocks_are_found() -> None:
    """Blocks of two kinds, early and late in two models, are two k-means clusters that follow depth and not the model."""
    noise = np.random.default_rng(0)
    kinds = {"attn.q": -1.0, "attn.o": -1.0, "mlp.up": 1.0, "mlp.down": 1.0}  # of the first third of the blocks
    sums = [
        {
            (component, block): math.exp(0.1 * noise.standard_normal() + (raised if block < 4 else 0.0))
            for component, raised in kinds.items()
            for block in range(12)
        }
        for _ in range(2)
    ]
    subjects = [scores(label, 12, one) for label, one in zip("ab", sums, strict=True)]
    rows, comparison = profiles.cluster_blocks(subjects, FEW)
    found = {(row["subject"], row["quantity"]): row for row in comparison}
    assert found["k-means", "num_clusters"]["value"] == 2
    assert found["k-means", "silhouette"]["p_value"] == found["k-means", "silhouette"]["smallest_p"] == 1 / 20
    assert found["k-means clusters and thirds of the depth", "adjusted_rand"]["p_value"] == 1 / 20
    assert abs(found["k-means clusters and runs", "adjusted_rand"]["value"]) < 0.1
    early = {row["kmeans"] for row in rows if row["block"] < 4}
    assert len(early) == 1
    assert early.isdisjoint({row["kmeans"] for row in rows if row["block"] >= 4})
    assert found["HDBSCAN", "num_clusters"]["value"] == 2
    assert "log_peak_ratio" in found["k-means", "silhouette"]["why"]


def test_blocks_without_kinds_have_no_clusters(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where features are independent noise the silhouette's p is small about as often as it says."""
    monkeypatch.setattr(profiles, "NUM_CLUSTERS", range(2, 4))
    monkeypatch.setattr(profiles, "_STARTS", 1)
    small = 0
    for trial in range(24):
        points = np.random.default_rng(trial).standard_normal((16, 2))
        draw = np.random.default_rng(1000 + trial)
        null = [profiles.best_kmeans(draw.permuted(points, axis=0), 0)[1] for _ in range(9)]
        small += sum(value >= profiles.best_kmeans(points, 0)[1] for value in null) == 0  # p = .1
    assert small <= 7  # of 24 at 10 %: more has a chance of 1 in 500


def test_too_few_blocks_are_refused_with_their_features_kept() -> None:
    """Under 8 blocks the profile is written, without clusters, and the comparison says why."""
    rows, comparison = profiles.cluster_blocks([scores("a", 4)], FEW)
    assert len(rows) == 4 * len(profiles.FEATURES)
    assert {row["kmeans"] for row in rows} == {None}
    assert comparison[0]["why"].startswith("4 blocks with 0 features")
    assert comparison[0].get("value") is None


def test_a_feature_without_spread_is_left_out_by_name() -> None:
    """A feature that is the same in all blocks, or missing in one, is not standardised."""
    frame = pl.DataFrame(
        {
            "feature": [name for _ in range(3) for name in profiles.FEATURES],
            "value": [0.1, 1.0, 2.0, None, 0.5, 0.2, 1.0, 3.0, 4.0, 0.25, 0.6, 1.0, 4.0, 5.0, 0.25],
        }
    )
    points, used, left_out = profiles.standardised(frame)
    assert used == ["log_density_attention", "log_top_to_median", "share_of_top"]
    assert left_out == ["log_density_mlp", "log_peak_ratio"]
    assert points.mean(axis=0) == pytest.approx(np.zeros(3), abs=1e-12)
    assert points.std(axis=0) == pytest.approx(np.ones(3))
