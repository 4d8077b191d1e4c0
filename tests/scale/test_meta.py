"""Effects of planted models pooled: a known mean, a known spread between models, and what is left out."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from esa.artifact import make_table
from esa.artifact.grouping import group
from esa.errors import ArtifactError
from esa.scale.meta import Pooled, cautions, effect_rows, meta_row, pooled
from esa.scale.models import members
from esa.scale.quantities.measured import Wanted
from esa.spec import generator
from esa.statistics.random_effects import random_effects
from tests.planted_runs import Case, Planted, family

SMALL: dict[str, Any] = {"blocks": 1, "vocabulary": 8, "seeds": (0,), "ks": (1, 10), "singles": 0}
WIDTHS = (2, 4, 6, 8)
Damage = Callable[[Planted, Case], float | None]


def costing(top: Callable[[Planted], float | None]) -> Damage:
    """Return a damage: ``top(run)`` nats for the top weights, next to nothing for random ones."""

    def damage(run: Planted, case: Case) -> float | None:
        return top(run) if case.group == "top_k" else 0.01 * (case.draw or 0) if case.group == "random_k" else 0.0

    return damage


def pool(runs: Sequence[Planted], exclude: Sequence[str] = (), **wanted: Any) -> list[Pooled]:
    """Return the pooled effects of written runs."""
    folders = [run.root / "outputs" / run.name for run in runs]
    return pooled(members(group(folders).runs, exclude=exclude), Wanted(**({"ks": (10,)} | wanted)))


def test_a_planted_mean_and_spread_are_found(tmp_path: Path) -> None:
    """Twelve models whose true effects have mean 2 and standard deviation 0.5: both are found, and a new model foretold."""
    widths = range(2, 26, 2)
    planted = dict(zip(widths, 2 + 0.5 * generator(3, "test", "effects").standard_normal(12), strict=True))
    made = family(tmp_path, list(widths), damage=costing(lambda run: planted[run.width]), **SMALL)
    (found,) = pool(made)
    one = found.found
    assert one is not None
    assert one.mean is not None
    assert one.tau2 is not None
    assert one.mean == pytest.approx(np.mean(list(planted.values())) - 0.01, abs=0.02)
    assert one.low is not None
    assert one.high is not None
    assert one.low < 2 < one.high
    assert one.tau2**0.5 == pytest.approx(np.std(list(planted.values()), ddof=1), rel=0.1)
    assert one.prediction_low is not None
    assert one.prediction_low < one.low
    assert one.i2 is not None
    assert one.i2 > 0.9
    assert found.subject.text == "act_mag, zero, top 10"


def test_models_that_agree_have_no_heterogeneity(tmp_path: Path) -> None:
    """One true effect in all models: no variance between them, Q in keeping."""
    (found,) = pool(family(tmp_path, WIDTHS, damage=costing(lambda run: 1.5), **SMALL))
    assert found.found is not None
    assert (found.found.tau2, found.found.i2) == (0.0, 0.0)
    assert found.found.mean == pytest.approx(1.49)
    assert found.found.q_p is not None
    assert found.found.q_p > 0.5


def test_equal_effects_are_no_special_case(tmp_path: Path) -> None:
    """Models that show the very same number have a mean, and no heterogeneity."""
    (found,) = pool(family(tmp_path, WIDTHS, damage=costing(lambda run: 1.5), half_width=0.0, **SMALL))
    assert found.found is not None
    assert (found.found.q, found.found.i2, found.found.tau2) == pytest.approx((0.0, 0.0, 0.0))


def test_rows_are_a_row_per_model_and_one_per_subject(tmp_path: Path) -> None:
    """Smaller models come first, with intervals around their effects and weights that add up to one; the tables take the rows."""
    made = family(tmp_path, WIDTHS[::-1], damage=costing(lambda run: 0.1 * run.width), **SMALL)
    (found,) = pool(made)
    frame = make_table("effects/1", effect_rows(found)).frame
    assert frame["label"].to_list() == [f"w{width}_seed0" for width in WIDTHS]
    assert frame["effect"].to_list() == pytest.approx([0.1 * width - 0.01 for width in WIDTHS])
    assert ((frame["low"] < frame["effect"]) & (frame["effect"] < frame["high"])).all()
    assert frame["weight"].sum() == pytest.approx(1)
    expected = random_effects(frame["effect"].to_list(), frame["stderr"].to_list())
    row = make_table("meta/1", [meta_row(found)]).frame.row(0, named=True)
    assert (row["mean"], row["low"], row["tau2"], row["q"]) == (expected.mean, expected.low, expected.tau2, expected.q)
    assert (row["subject"], row["num_models"]) == ("act_mag, zero, top 10", 4)
    assert row["why"] == (
        "4 models: indicative, 6 are wanted; all of the family llama: a mean over its members, not over architectures"
    )


def test_training_seeds_count_as_one_model(tmp_path: Path) -> None:
    """Three models of two training seeds are three studies, each the mean of its seeds; two such models are too few."""
    made = family(
        tmp_path,
        WIDTHS[:3],
        training_seeds=(0, 1),
        damage=costing(lambda run: 1.0 + (run.training or {})["seed"]),
        **SMALL,
    )
    (found,) = pool(made)
    assert len(found.studies) == 3
    assert [one.effect.value for one in found.studies] == pytest.approx([1.49] * 3)
    assert found.studies[0].label == "w2_seed0, w2_seed1"
    with pytest.raises(
        ArtifactError, match=r"^--meta: act_mag, zero, top 10: .* \(2 of 2\); a mean over models needs at least 3"
    ):
        pool(made[:4])


def test_a_broken_model_is_left_out_and_named(tmp_path: Path) -> None:
    """A model whose top weights break it has no effect: its row says why, and so does the mean."""
    made = family(tmp_path, WIDTHS, damage=costing(lambda run: None if run.width == 4 else 1.0), **SMALL)
    (found,) = pool(made)
    rows = effect_rows(found)
    assert [row["excluded"] for row in rows] == [None, "nonfinite: 1 of 1 top case", None, None]
    assert [row["weight"] is None for row in rows] == [False, True, False, False]
    assert f"left out: {rows[1]['model']} (nonfinite: 1 of 1 top case)" in cautions(found)
    assert found.found is not None
    assert meta_row(found)["num_models"] == 3


def test_a_collapsed_model_is_named(tmp_path: Path) -> None:
    """A model that guesses after the change stays in the mean, and the mean says that its damage is bounded."""
    made = family(tmp_path, WIDTHS, damage=costing(lambda run: 1 + 0.01 * run.width), **SMALL)
    made[0].damage = costing(lambda run: 6.0)
    made[0].write()
    (found,) = pool(made)
    assert len(found.included) == 4
    assert cautions(found)[2].startswith("collapsed: w2; no damage is larger than guessing")


def test_too_few_models_are_refused_with_their_reasons(tmp_path: Path) -> None:
    """Where fewer than three models are left the refusal names them and why the others are out."""
    made = family(tmp_path, WIDTHS, damage=costing(lambda run: None if run.width > 4 else 1.0), **SMALL)
    with pytest.raises(
        ArtifactError, match=r"\(2 of 4\); a mean over models needs at least 3.*nonfinite: 1 of 1 top case"
    ) as caught:
        pool(made)
    assert caught.value.exit_code == 3


def test_a_subject_of_too_few_models_says_so(tmp_path: Path) -> None:
    """A K that two models alone were measured at has a row without a mean, beside one that has it."""
    made = family(tmp_path, WIDTHS[:2], damage=costing(lambda run: 1.0), **SMALL)
    made += family(tmp_path, WIDTHS[2:], damage=costing(lambda run: 1.0), **{**SMALL, "ks": (10,)})
    one, ten = pool(made, ks=())
    row = meta_row(one)
    assert (one.subject.k, row["num_models"], row.get("mean")) == (1, 2, None)
    assert str(row["why"]).startswith("2 models: at least 3 are needed")
    assert ten.found is not None


def test_a_model_that_learnt_too_little_is_named(tmp_path: Path) -> None:
    """A member that does not beat the bigram has no place in the mean; one left out by hand is named, too."""
    made = family(tmp_path, WIDTHS, damage=costing(lambda run: 1 + 0.01 * run.width), **SMALL)
    made += family(tmp_path, [10], damage=costing(lambda run: 9.0), training={"held_out_nll": 5.5}, **SMALL)
    (found,) = pool(made, exclude=["w2_seed0"])
    out = {one.label: one.effect.excluded for one in found.excluded}
    assert out == {
        "w2_seed0": "left out by --exclude",
        "w10_seed0": "learnt too little: held-out NLL 5.500, a bigram's is 5.000",
    }
    assert found.found is not None
    assert found.found.mean == pytest.approx(1.05, abs=0.01)


def test_runs_without_random_weights_are_refused(tmp_path: Path) -> None:
    """Where nothing was compared with random weights there is nothing to pool."""
    made = family(tmp_path, WIDTHS[:3], damage=costing(lambda run: 1.0), **{**SMALL, "ks": (1,)})
    with pytest.raises(ArtifactError, match="no run has changed top and random weights together by one method and K"):
        pool(made, ks=(7,))
