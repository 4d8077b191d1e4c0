"""How sure a place among the top K is: shares by hand, and intervals that hold a planted order."""

import itertools

import numpy as np
import polars as pl
import pytest

from esa.overlap.confidence import RESAMPLES, confidence, resampled
from esa.overlap.seed_scores import groups_of, seed_scores
from tests.overlap.noisy import ADDRESSES, TRUTH, noisy, noisy_scores
from tests.overlap.planted import DOWN, joined, lists, ranking


def test_seed_share_counts_the_seeds() -> None:
    """The share of seeds that have a weight in their first K, for every weight that any has."""
    sets = {0: [1, 2, 3], 1: [1, 3, 4], 2: [1, 5, 3]}
    groups = groups_of(lists(joined(*(ranking([(DOWN, i) for i in ix], seed=s) for s, ix in sets.items()))))
    frame = confidence(groups, [2]).frame
    found = {row["index"]: row["seed_share"] for row in frame.to_dicts()}
    assert found[1] == 1
    assert [found[i] for i in (2, 3, 5)] == pytest.approx([1 / 3, 1 / 3, 1 / 3])
    assert frame["index"][0] == 1
    assert set(frame["num_seeds"]) == {3}


def test_resamples_are_all_draws_of_two_seeds() -> None:
    """Over all four equally likely draws of two seeds, shares, mean rank and interval are those worked out by hand."""
    groups = groups_of(lists(noisy(0.5, seeds=[0, 1], k=len(ADDRESSES))))
    matrix = seed_scores(groups[0])
    draws = np.asarray([[2.0, 0.0], [1.0, 1.0], [1.0, 1.0], [0.0, 2.0]])
    found = resampled(matrix, draws, [3, 10])
    place = {address: n for n, address in enumerate(ADDRESSES)}
    order = [place[row] for row in matrix.frame.select("parameter", "index").iter_rows()]
    scores = [noisy_scores(0.5, seed)[order] for seed in (0, 1)]
    ranks = np.array(
        [
            np.argsort(np.argsort(-(scores[a] + scores[b]), kind="stable")) + 1
            for a, b in itertools.product((0, 1), repeat=2)
        ]
    )
    np.testing.assert_allclose(found.mean, ranks.mean(axis=0))
    np.testing.assert_allclose(found.shares, [(ranks <= 3).mean(axis=0), (ranks <= 10).mean(axis=0)])
    np.testing.assert_array_equal(found.low, ranks.min(axis=0))
    np.testing.assert_array_equal(found.high, ranks.max(axis=0))


def test_a_weight_far_above_the_rest_is_certain() -> None:
    """The planted first weight makes every top in every seed and resample, at rank 1, and stands first in the table."""
    frame = confidence(groups_of(lists(noisy(0.05, k=30))), [1, 10]).frame
    best = ADDRESSES[int(np.argmax(TRUTH))]
    for k in (1, 10):
        first = frame.filter(pl.col("k") == k).row(0, named=True)
        assert (first["parameter"], first["index"]) == best
        assert (first["seed_share"], first["resample_share"], first["low"], first["high"]) == (1, 1, 1, 1)
    shares = frame.filter(pl.col("k") == 10)["resample_share"]
    assert shares.to_list() == sorted(shares, reverse=True)
    assert shares.sum() == pytest.approx(10)  # every resample has ten places
    assert RESAMPLES == 999


def test_noise_makes_places_unsure() -> None:
    """With noise the shares of the weights around the cut lie between 0 and 1, and their ranks spread."""
    quiet, loud = (confidence(groups_of(lists(noisy(noise, k=30))), [10]).frame for noise in (0.02, 0.8))
    assert len(loud) > len(quiet) >= 10
    assert (loud["high"] - loud["low"]).mean() > 3 * (quiet["high"] - quiet["low"]).mean()


def test_per_layer_ranks_are_within_the_tensor() -> None:
    """In mode per_layer every tensor has its own ranks and its own K places."""
    frame = confidence(groups_of(lists(noisy(0.3, k=6, mode="per_layer"))), [4]).frame
    sums = frame.group_by("unit_name").agg(pl.col("resample_share").sum(), pl.col("mean_rank").min())
    assert sums["resample_share"].to_list() == pytest.approx([4.0] * 4)
    assert sums["mean_rank"].max() < 3


def test_the_same_seed_gives_the_same_table() -> None:
    """The resamples come from a named stream: equal tables for one seed, others for another."""
    groups = groups_of(lists(noisy(0.5)))
    assert confidence(groups, [10]).frame.equals(confidence(groups, [10]).frame)
    assert not confidence(groups, [10]).frame.equals(confidence(groups, [10], seed=1).frame)


def test_one_seed_has_no_confidence() -> None:
    """A metric of one seed is left out."""
    assert confidence(groups_of(lists(noisy(0.5, seeds=[0]))), [10]).frame.is_empty()
