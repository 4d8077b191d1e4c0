"""The classifier of families that leaves one model out."""

import numpy as np
import pytest

from esa.arch.comparison import classifier
from esa.arch.comparison.classifier import classify, leave_one_out
from esa.arch.comparison.findings import Options
from tests.arch.scores import scores

NOW = Options(("act_mag",), None, permutations=99)


def families(separate: float, models: int = 3, seeds: int = 1) -> list:  # type: ignore[type-arg]
    """Return models of two families whose MLP outputs' sums differ by a factor ``exp(separate)``, and are noisy besides."""
    draw = np.random.default_rng(0)
    found = []
    for number in range(2 * models):
        family = ("llama", "gpt2")[number % 2]
        own = draw.standard_normal()
        for seed in range(seeds):
            size = np.exp(separate * (family == "gpt2") + 0.2 * own + 0.02 * draw.standard_normal())
            sums = {("mlp.down", block): float(size) for block in range(4)}
            found.append(scores(f"m{number}s{seed}", 4, sums, family=family, model=f"m{number}"))
    return found


def test_a_planted_family_is_recognised_by_the_planted_feature() -> None:
    """Two families that differ in one role are told apart, by that role first, at the smallest p that six models allow."""
    features, row = classify(families(3.0), NOW)
    assert row["value"] == 1.0
    assert row["num"] == 6
    assert row["null"] == "families relabelled, all of them"
    assert row["p_value"] == row["smallest_p"] == 2 / 20  # 20 ways to halve six models, two of them this partition
    assert row["low"] == pytest.approx(0.6097, abs=1e-3)  # Wilson at 6 of 6
    assert row["subject"] == "gpt2, llama"
    assert features[0]["feature"] == "log density of mlp out"
    assert features[0]["families"] == "gpt2, llama"
    assert features[0]["low"] <= features[0]["importance"] <= features[0]["high"]


def test_training_seeds_of_a_model_leave_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """No fold trains on a run of the model that it tests: models that only repeat themselves are not recognised."""
    draw = np.random.default_rng(1)
    groups = np.repeat(np.arange(6), 4)
    of_model = np.array([0, 1, 0, 1, 0, 1])
    points = draw.standard_normal((6, 5))[groups] + 0.001 * draw.standard_normal((24, 5))
    split = leave_one_out(points, groups, of_model)[0]
    leaking = leave_one_out(points, np.arange(24), of_model[groups])[0]
    assert leaking == 24  # a seed left behind gives its model away
    assert split < 6
    seen: list[tuple[set[int], int]] = []
    real = classifier.leave_one_out

    def watched(points, groups, of_model):  # type: ignore[no-untyped-def]
        seen.append((set(groups.tolist()), len(of_model)))
        return real(points, groups, of_model)

    monkeypatch.setattr(classifier, "leave_one_out", watched)
    _, row = classify(families(3.0, seeds=2), NOW)
    assert row["num"] == 6
    assert seen[0] == (set(range(6)), 6)


def test_the_p_value_is_calibrated() -> None:
    """Where any labelling is as likely as the next, p is at most alpha in at most alpha of them, for every alpha."""
    points, of_model = np.random.default_rng(0).standard_normal((6, 3)), np.array([0, 0, 0, 1, 1, 1])
    null, exact = classifier._null(points, np.arange(6), of_model, NOW, "x")
    assert (len(null), exact) == (20, True)
    assert leave_one_out(points, np.arange(6), of_model)[0] == null[0]  # the true one is the first in order
    p_values = np.array([np.mean(np.asarray(null) >= right) for right in null])
    for alpha in (0.1, 0.2, 0.5):
        assert np.mean(p_values <= alpha) <= alpha
    assert len(set(null)) > 2


def test_random_relabellings_stand_in_where_all_are_too_many() -> None:
    """Nine models of two families have 126 relabellings; under fewer permutations they are drawn."""
    draw = np.random.default_rng(0)
    points, of_model = draw.standard_normal((9, 2)), np.array([0] * 4 + [1] * 5)
    null, exact = classifier._null(points, np.arange(9), of_model, Options(("m",), None, permutations=25), "x")
    assert (len(null), exact) == (25, False)


def test_too_few_models_are_refused_with_their_numbers() -> None:
    """Under two families of three models there is no accuracy, and the comparison counts what there is."""
    features, row = classify(families(3.0, models=2), NOW)
    assert features == []
    assert row.get("value") is None
    assert row["why"] == "models by family: gpt2 2, llama 2; at least 2 families of 3 models each are needed"
    unknown = [*families(3.0), scores("stranger", 4), scores("lone", 4, family="phi")]
    assert classify(unknown, NOW)[1]["why"] == "left out: stranger, lone"
