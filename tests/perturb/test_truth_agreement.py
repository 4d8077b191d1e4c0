"""Agreement on a weighted sample: every figure against the same one on the population that the weights stand for."""

import numpy as np
import pytest
from scipy.stats import spearmanr

from esa.perturb.truth.agreement import Agreement, Changes, Line, Spearman, TopShare, agreements, behind_best
from esa.spec.sections import Statistics

DRAW = np.random.default_rng(4)
NUMBER = 60
WEIGHT = DRAW.integers(1, 9, NUMBER).astype(float)
TRUE = DRAW.lognormal(0, 1, NUMBER).round(1)  # rounded, so that some are equal
SCORE = (TRUE * DRAW.lognormal(0, 0.8, NUMBER)).round(1)
RULES = Statistics(resamples=299)
ALL = np.arange(NUMBER)[None]


def population(values: np.ndarray) -> np.ndarray:
    """Return every number as often as its weight says."""
    return np.repeat(values, WEIGHT.astype(int))


def changes(delta: np.ndarray, weight: np.ndarray = WEIGHT, floor: float = 0.0) -> Changes:
    """Return measured changes of which the first five were certain."""
    return Changes(weight, np.arange(len(delta)) < 5, delta, np.abs(delta) <= floor)


def figures(score: np.ndarray, delta: np.ndarray, floor: float = 0.0, **more: np.ndarray) -> dict[str, Agreement]:
    """Return a metric's figures by name."""
    predicted = more.get("predicted")
    found = agreements(score, predicted, changes(delta, floor=floor), 6, RULES, seed=0)
    return {one.quantity: one for one in found}


def test_weighted_spearman_is_that_of_the_population() -> None:
    """With whole weights it equals Spearman's correlation with every weight written out as often, ties included."""
    expected = spearmanr(population(SCORE), population(TRUE)).statistic
    assert Spearman(SCORE, TRUE, WEIGHT)(ALL)[0] == pytest.approx(expected, abs=1e-12)
    assert Spearman(SCORE, TRUE, np.ones(NUMBER))(ALL)[0] == pytest.approx(spearmanr(SCORE, TRUE).statistic, abs=1e-12)


def test_a_resample_is_the_sample_of_its_rows() -> None:
    """A row of indices gives the correlation of those rows with their weights."""
    picks = DRAW.integers(0, NUMBER, (3, NUMBER))
    found = Spearman(SCORE, TRUE, WEIGHT)(picks)
    for row, value in zip(picks, found, strict=True):
        assert value == pytest.approx(Spearman(SCORE[row], TRUE[row], WEIGHT[row])(ALL)[0], abs=1e-12)


@pytest.mark.parametrize("share", [0.01, 0.1, 0.37])
def test_the_shared_top_is_that_of_the_population(share: float) -> None:
    """It is the mean overlap of the largest shares as equal numbers are ordered at random, what one stands for kept together."""
    size, draw, overlaps = share * WEIGHT.sum(), np.random.default_rng(1), []
    for _ in range(3000):
        parts = []
        for values in (SCORE, TRUE):
            order = np.lexsort((draw.random(NUMBER), -values))
            above = np.cumsum(WEIGHT[order]) - WEIGHT[order]
            part = np.empty(NUMBER)
            part[order] = np.clip((size - above) / WEIGHT[order], 0, 1)
            parts.append(part)
        overlaps.append(float((WEIGHT * np.minimum(*parts)).sum()) / size)
    assert TopShare(SCORE, TRUE, WEIGHT, share=share)(ALL)[0] == pytest.approx(np.mean(overlaps), abs=0.03)


def test_the_shared_top_without_ties_counts_sets() -> None:
    """Of distinct numbers, each counted once, it is the share of the truly largest that the scores name."""
    score, true = DRAW.random(100), DRAW.random(100)
    expected = len(set(np.argsort(-score)[:10].tolist()) & set(np.argsort(-true)[:10].tolist())) / 10
    assert TopShare(score, true, np.ones(100), share=0.1)(np.arange(100)[None])[0] == pytest.approx(expected)


def test_a_share_that_the_sample_cannot_resolve_is_null() -> None:
    """Where one weight stands for more than 1 % of the model there is no top 1 %; with enough weights there is."""
    assert WEIGHT.max() > 0.01 * WEIGHT.sum()
    assert figures(SCORE, TRUE)["top_1_percent"].value is None
    many = np.arange(1.0, 301.0)
    (one,) = (
        o for o in agreements(many, None, changes(many, np.ones(300)), 6, RULES, 0) if o.quantity == "top_1_percent"
    )
    assert one.value == pytest.approx(1.0)


def test_the_line_is_weighted_least_squares() -> None:
    """Slope and intercept are those of numpy's weighted fit."""
    line = Line(SCORE, TRUE, WEIGHT)
    slope, intercept = np.polyfit(SCORE, TRUE, 1, w=np.sqrt(WEIGHT))
    assert line.slope(ALL)[0] == pytest.approx(slope)
    assert line.intercept(ALL)[0] == pytest.approx(intercept)


def test_a_perfect_metric_and_its_opposite() -> None:
    """The measured size itself scores 1 everywhere, its negative -1 and no shared top."""
    delta = DRAW.normal(0, 1, NUMBER)
    right, wrong = figures(np.abs(delta), delta), figures(-np.abs(delta), delta)
    for name in ("spearman", "spearman_measured", "top_10_percent", "top_measured"):
        assert right[name].value == pytest.approx(1.0)
        assert wrong[name].value == pytest.approx(-1.0 if "spearman" in name else 0.0, abs=1e-12)
    assert abs(right["spearman_signed"].value or 0) < 0.5
    assert figures(delta, delta)["spearman_signed"].value == pytest.approx(1.0)


def test_effects_under_the_floor_are_tied_at_zero() -> None:
    """How a metric orders effects that the noise hides counts for nothing; above the floor it does."""
    delta = np.concatenate([DRAW.normal(0, 1e-6, 40), DRAW.uniform(1, 2, 20)])
    shuffled = np.concatenate([DRAW.permutation(np.abs(delta[:40])), delta[40:]])
    hidden, seen = (figures(shuffled, delta, floor=floor)["spearman"].value for floor in (1e-3, 0.0))
    tied = np.where(np.abs(delta) <= 1e-3, 0, delta)
    assert hidden == pytest.approx(spearmanr(population(shuffled), population(tied)).statistic)
    assert hidden != pytest.approx(seen, abs=1e-3)


def test_intervals_hold_the_value_and_widen_with_fewer_weights() -> None:
    """Each figure lies in its interval; chance agreement's interval holds zero; a quarter of the sample is less sure."""
    found = figures(SCORE, TRUE)
    for one in (one for name, one in found.items() if name != "top_1_percent"):
        assert one.value is not None
        assert one.ends.low is not None
        assert one.ends.high is not None
        assert one.ends.low <= one.value <= one.ends.high
    chance = figures(DRAW.random(NUMBER), TRUE)["spearman"].ends
    assert chance.low is not None
    assert chance.high is not None
    assert chance.low < 0 < chance.high
    few = agreements(SCORE[:15], None, changes(TRUE[:15], WEIGHT[:15]), 6, RULES, seed=0)[0].ends
    whole = found["spearman"].ends
    assert (few.high or 0) - (few.low or 0) > (whole.high or 0) - (whole.low or 0)


def test_a_nonfinite_model_is_the_largest_change() -> None:
    """A weight whose zeroing leaves no finite logits ranks above all others, and stays out of the line."""
    delta = DRAW.uniform(1, 2, NUMBER)
    delta[7] = np.inf
    score = np.where(np.isinf(delta), 3.0, delta)
    found = figures(score, delta, predicted=score)
    assert found["spearman"].value == pytest.approx(1.0)
    assert (found["slope"].value, found["slope"].num_weights) == (pytest.approx(1.0), NUMBER - 1)


def test_calibration_finds_a_planted_line_where_the_prediction_is_known() -> None:
    """Measured = 0.8 predicted + 0.1 is found, weights without a prediction left out."""
    predicted = DRAW.normal(0, 1, NUMBER)
    delta = 0.8 * predicted + 0.1
    predicted[:4] = np.nan
    found = figures(np.abs(delta), delta, predicted=predicted)
    assert found["slope"].value == pytest.approx(0.8)
    assert found["intercept"].value == pytest.approx(0.1)
    assert found["slope"].num_weights == NUMBER - 4
    assert "slope" not in figures(np.abs(delta), delta)


@pytest.mark.parametrize("flat", ["score", "delta"])
def test_a_column_without_spread_gives_no_figure(flat: str) -> None:
    """Where all scores are equal, or every effect is under the floor, there is no number and no interval."""
    found = figures(np.ones(NUMBER) if flat == "score" else SCORE, TRUE, floor=1e9 if flat == "delta" else 0.0)
    for one in found.values():
        assert (one.value, one.ends.low, one.ends.high) == (None, None, None)


def test_the_lead_of_the_best_is_a_paired_difference() -> None:
    """The best metric is 0 behind; a worse one as far as the difference says, surer than two intervals side by side."""
    near, poor = SCORE * DRAW.lognormal(0, 0.1, NUMBER), DRAW.random(NUMBER)
    first, second, third, flat = behind_best([near, SCORE, poor, np.ones(NUMBER)], changes(TRUE), RULES, seed=0)
    values = [figures(score, TRUE)["spearman"] for score in (near, SCORE, poor)]
    best = max(one.value or 0 for one in values)
    for one, alone in zip((first, second, third), values, strict=True):
        assert one.value == pytest.approx(best - (alone.value or 0), abs=1e-12)
    leader = min((first, second), key=lambda one: one.value or 0)
    assert (leader.value, leader.ends.low, leader.ends.high) == (0, 0, 0)
    follower = max((first, second), key=lambda one: one.value or 0)
    width = (follower.ends.high or 0) - (follower.ends.low or 0)
    assert width < 0.5 * ((values[1].ends.high or 0) - (values[1].ends.low or 0))
    assert (third.ends.low or 0) > 0
    assert flat.value is None
