"""What the reducers keep of a tensor is what a dense sort of all its scores gives."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from esa.errors import EsaError
from esa.model import ParameterInfo
from esa.score.metric import Scores
from esa.score.reduce import Reduced, bin_edges, reduce_scores
from esa.score.scored import ScoredTensor
from tests.conftest import load

KEEP = 20
BIN = 10 ** (1 / 64) * (1 + 1e-4)  # the width of a bin, and the rounding of its edge
SHAPE = (40, 25)
QUANTILES = {"q50": 0.5, "q90": 0.9, "q95": 0.95, "q99": 0.99, "q999": 0.999}


def lognormal(draw: np.random.Generator) -> np.ndarray:
    """Return scores over many decades."""
    return draw.lognormal(0, 3, SHAPE)


KINDS: dict[str, Callable[[np.random.Generator], np.ndarray]] = {
    "spread": lognormal,
    "half_zero": lambda draw: lognormal(draw) * (draw.random(SHAPE) < 0.5),
    "nearly_all_zero": lambda draw: lognormal(draw) * (np.arange(1000).reshape(SHAPE) % 100 == 7),
    "all_zero": lambda draw: np.zeros(SHAPE),
    "all_equal": lambda draw: np.full(SHAPE, 0.7),
    "quantised": lambda draw: np.ceil(draw.random(SHAPE) * 6) / 6,
    "few_zeros": lambda draw: np.ceil(draw.random(SHAPE) * 6) / 6 * (np.arange(1000).reshape(SHAPE) >= 5),
    "tiny": lambda draw: lognormal(draw) * 1e-42,
    "huge": lambda draw: draw.random(SHAPE) * 3e38,
    "powers_of_ten": lambda draw: 10.0 ** draw.integers(-30, 30, SHAPE),
}


def matrix(shape: tuple[int, ...] = SHAPE) -> ParameterInfo:
    """Return the description of a matrix, or of fused experts."""
    expert = 0 if len(shape) == 3 else None
    axes = {"output_axis": len(shape) - 2, "input_axis": len(shape) - 1, "expert_axis": expert}
    return ParameterInfo("m.weight", "m", 0, "mlp.down", shape, int(np.prod(shape)), uses=("m.weight",), **axes)


def draw_scores(kind: str) -> tuple[Tensor, Tensor]:
    """Return scores and weights, float32."""
    draw = np.random.default_rng(5)
    scores = torch.from_numpy(KINDS[kind](draw)).float()
    return scores, torch.from_numpy(draw.standard_normal(SHAPE)).float()


def reduced(scores: Tensor, weight: Tensor, keep: int = KEEP, seed: int = 0) -> Reduced:
    """Reduce plain scores."""
    return reduce_scores(scored(Scores(scores), weight), keep, seed)


def scored(
    scores: Scores, weight: Tensor, info: ParameterInfo | None = None, usage: Tensor | None = None
) -> ScoredTensor:
    """Return scores of a tensor as the reducer takes them."""
    return ScoredTensor.of("wanda", info or matrix(tuple(weight.shape)), weight, scores, usage)


def assert_strata(found: Reduced, scores: Tensor, weight: Tensor) -> None:
    """Raise AssertionError unless top, bottom, sample and large are what sorting everything gives, with their columns."""
    flat, w = scores.reshape(-1).double().numpy(), weight.reshape(-1).numpy()
    index = np.arange(flat.size)
    assert list(found.strata) == ["top", "bottom", "sample", "large"]
    assert np.array_equal(found.strata["top"], np.lexsort((index, -flat))[:KEEP]), "top"
    assert np.array_equal(found.strata["large"], np.lexsort((index, -np.abs(w)))[:KEEP]), "large"
    bottom = found.strata["bottom"]
    assert len(set(bottom.tolist())) == KEEP, "bottom"
    assert np.array_equal(flat[bottom], np.sort(flat)[:KEEP]), "bottom"
    assert len(set(found.strata["sample"].tolist())) == KEEP, "sample"
    assert np.array_equal(found.strata["sample"], np.sort(found.strata["sample"])), "sample"
    kept = np.concatenate(list(found.strata.values()))
    assert np.array_equal(found.columns["score"], flat.astype(np.float32)[kept]), "score"
    assert np.array_equal(found.columns["weight"], w[kept]), "weight"


@pytest.mark.parametrize("kind", KINDS)
def test_strata_equal_a_dense_sort(kind: str) -> None:
    """Highest, lowest, sampled and largest rows are exact for spread, tied, zero, tiny and huge scores alike."""
    scores, weight = draw_scores(kind)
    assert_strata(reduced(scores, weight), scores, weight)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [1, 70, 999])
def test_pieces_change_nothing(kind: str, size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A tensor reduced in pieces of any size keeps the same rows and counts, and the same sums to float64 rounding."""
    scores, weight = draw_scores(kind)
    whole = reduced(scores, weight)
    monkeypatch.setattr("esa.score.pieces._CPU", size)
    monkeypatch.setattr("esa.score.reduce._TRIMMED", 0)  # many ties: the picked are trimmed on the way
    found = reduced(scores, weight)
    for name, index in whole.strata.items():
        assert np.array_equal(found.strata[name], index), name
    for name, column in whole.columns.items():
        assert column is None or np.array_equal(found.columns[name], column), name
    assert all(np.array_equal(a, b) for a, b in zip(found.histogram, whole.histogram, strict=True))
    for name, value in whole.statistics[0].items():
        assert found.statistics[0][name] == (value if value is None else pytest.approx(value, rel=1e-12)), name
    for axis, (sums, maxima) in whole.margins.items():
        np.testing.assert_allclose(found.margins[axis][0], sums, rtol=1e-12)
        np.testing.assert_array_equal(found.margins[axis][1], maxima)


def test_the_comparison_can_fail() -> None:
    """Two rows of the top in the wrong order fail the comparison."""
    scores, weight = draw_scores("spread")
    found = reduced(scores, weight)
    found.strata["top"][:2] = found.strata["top"][[1, 0]]
    with pytest.raises(AssertionError, match="top"):
        assert_strata(found, scores, weight)


@pytest.mark.parametrize("kind", KINDS)
def test_histogram_adds_up(kind: str) -> None:
    """The bins hold every score once, zeros in a bin of their own, and each score lies between its bin's edges."""
    scores, weight = draw_scores(kind)
    bins, counts = reduced(scores, weight).histogram
    low, high = bin_edges(bins)
    assert counts.sum() == scores.numel()
    assert (counts > 0).all()
    assert (np.diff(bins) > 0).all()
    assert (counts[bins < 0].tolist() or [0]) == [int((scores == 0).sum())]
    values = np.sort(scores.reshape(-1).double().numpy())
    assert (values >= np.repeat(low, counts) * (1 - 1e-4)).all()
    assert (values <= np.repeat(high, counts) * (1 + 1e-4)).all()


@pytest.mark.parametrize("kind", KINDS)
def test_statistics_are_those_of_all_scores(kind: str) -> None:
    """Moments are exact to float64 rounding, and each quantile lies within a bin's width of the sorted one."""
    scores, weight = draw_scores(kind)
    (row,) = reduced(scores, weight).statistics
    flat = scores.reshape(-1).double().numpy()
    exact = {"numel": 1000, "num_zero": (flat == 0).sum(), "mean": flat.mean(), "std": flat.std(), "min": flat.min(),
             "max": flat.max(), "sum": flat.sum(), "expert": None, "usage": None}  # fmt: skip
    assert set(row) == {*exact, *QUANTILES}
    for name, value in exact.items():
        scale = None if name != "std" else 1e-7 * flat.mean()  # a difference of squares
        assert row[name] == (value if value is None else pytest.approx(value, rel=1e-9, abs=scale)), name
    for name, share in QUANTILES.items():
        sorted_one = np.quantile(flat, share, method="inverted_cdf")
        assert sorted_one / BIN <= row[name] <= sorted_one * BIN, name


def test_margins_are_sums_and_maxima_over_each_axis() -> None:
    """Every output and every input has the sum and the maximum of its scores."""
    scores, weight = draw_scores("spread")
    margins = reduced(scores, weight).margins
    exact = scores.double().numpy()
    assert set(margins) == {"output", "input"}
    for axis, other in (("output", 1), ("input", 0)):
        np.testing.assert_allclose(margins[axis][0], exact.sum(other), rtol=1e-12)
        np.testing.assert_array_equal(margins[axis][1], exact.max(other))


def test_margins_follow_the_semantic_axes() -> None:
    """In a matrix that is stored (in, out) the outputs are the columns."""
    info = load("gpt2").table["transformer.h.0.mlp.c_fc.weight"]
    scores = torch.rand(info.shape)
    margins = reduce_scores(scored(Scores(scores), scores, info), 500, 0).margins
    assert {axis: len(sums) for axis, (sums, _) in margins.items()} == {"output": 64, "input": 16}
    np.testing.assert_allclose(margins["output"][0], scores.double().sum(0).numpy(), rtol=1e-12)


def test_every_expert_has_its_own_row() -> None:
    """Fused experts get one row together and one each, with their own statistics and share of the tokens."""
    scores = torch.rand(3, 20, 10) * torch.tensor([0.0, 1.0, 10.0]).view(3, 1, 1)
    usage = torch.tensor([0.0, 0.75, 0.25])
    found = reduce_scores(scored(Scores(scores), torch.rand(3, 20, 10), usage=usage), KEEP, 0)
    assert [row["expert"] for row in found.statistics] == [None, 0, 1, 2]
    assert [row["usage"] for row in found.statistics] == [None, 0.0, 0.75, 0.25]
    assert [row["num_zero"] for row in found.statistics][1:3] == [200, 0]
    for row in found.statistics[1:]:
        part = scores[row["expert"]].double()
        assert row["numel"] == 200
        assert row["sum"] == pytest.approx(float(part.sum()))
        assert row["max"] == float(part.max())
        assert row["q90"] <= float(part.max())
    assert found.margins == {}


@pytest.mark.parametrize(("keep", "strata"), [(250, ["all"]), (249, ["top", "bottom", "sample", "large"])])
def test_small_tensors_are_kept_whole(keep: int, strata: list[str]) -> None:
    """A tensor of at most 4 keep weights is kept whole in storage order; one weight more is cut into strata."""
    scores, weight = draw_scores("spread")
    found = reduced(scores, weight, keep)
    assert list(found.strata) == strata
    if strata == ["all"]:
        assert np.array_equal(found.columns["score"], scores.reshape(-1).numpy())


def test_ties_at_the_bottom_are_a_uniform_draw() -> None:
    """Where more scores tie at the bottom than fit, each is as likely as the other, and a seed fixes the draw."""
    scores, weight = draw_scores("all_zero")
    draws = [reduced(scores, weight, seed=seed).strata["bottom"] for seed in range(200)]
    assert np.array_equal(draws[0], reduced(scores, weight, seed=0).strata["bottom"])
    assert not np.array_equal(np.sort(draws[0]), np.sort(draws[1]))
    hits = np.bincount(np.concatenate(draws), minlength=1000)  # mean 4, standard deviation 2
    assert hits.max() <= 14
    assert hits.reshape(4, 250).sum(1) == pytest.approx(1000, abs=120)


def test_every_sample_is_a_uniform_draw() -> None:
    """The sample does not look at the scores: over many seeds every weight is drawn about as often."""
    scores, weight = draw_scores("spread")
    hits = np.bincount(
        np.concatenate([reduced(scores, weight, seed=s).strata["sample"] for s in range(200)]), minlength=1000
    )
    assert hits.max() <= 14
    assert hits.reshape(4, 250).sum(1) == pytest.approx(1000, abs=120)


def test_large_weights_may_be_known_from_before() -> None:
    """The largest weights depend on no score: given from an earlier metric they enter as they are."""
    scores, weight = draw_scores("spread")
    large = reduced(scores.flip(0), weight.bfloat16()).strata["large"]
    found = reduce_scores(scored(Scores(scores), weight), KEEP, 0, large=large)
    assert found.strata["large"] is large
    kept = np.concatenate(list(found.strata.values()))
    assert np.array_equal(found.columns["weight"], weight.reshape(-1).numpy()[kept])


def test_signed_and_stderr_are_kept_with_their_scores() -> None:
    """Sign and standard error stand beside the score of the same weight, null where the metric has none."""
    scores, weight = draw_scores("spread")
    signs = torch.where(torch.rand(SHAPE) < 0.5, -1.0, 1.0)
    found = reduce_scores(scored(Scores(scores, scores * signs, scores / 3), weight), KEEP, 0)
    kept = np.concatenate(list(found.strata.values()))
    assert np.array_equal(found.columns["signed"], (scores * signs).reshape(-1).numpy()[kept])
    assert np.array_equal(found.columns["stderr"], (scores / 3).reshape(-1).numpy()[kept])
    assert reduced(scores, weight).columns["signed"] is None


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_scores_that_are_no_numbers_are_refused(bad: float) -> None:
    """NaN and infinite scores are counted and named, never ranked."""
    scores, weight = draw_scores("spread")
    scores[3, 4] = scores[5, 6] = bad
    with pytest.raises(EsaError) as raised:
        reduced(scores, weight)
    assert raised.value.what == "wanda of m.weight: 2 of 1000 scores are NaN or infinite"
    assert raised.value.where == "score.metrics"
