"""Checkpoints of planted training runs: put in order, told apart, and their critical weights followed."""

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from esa.artifact import make_table
from esa.artifact.gather import Gathered
from esa.artifact.grouping import group
from esa.errors import ArtifactError
from esa.scale.checkpoints import Trajectory
from esa.scale.checkpoints import trajectories as trajectories_of
from esa.scale.following import (
    emergence_rows,
    followed,
    gaps,
    num_unlisted,
    sentence,
    summary,
    trajectory_rows,
)
from esa.scale.models import home, members
from esa.scale.quantities.measured import Wanted
from tests.planted_runs import Planted

DOWN = "model.layers.0.mlp.down_proj.weight"
ALWAYS, LATE, LEAVES, BLINKS = (f"{DOWN}:{at}" for at in ("3,5", "1,2", "0,7", "6,0"))
# At each step the critical weights and their scores: LATE comes at step 200 and stays, LEAVES is lost there, BLINKS comes,
# goes and comes again. Three of them at a time, so that they are the whole top 3.
COURSE: dict[int, dict[str, float]] = {
    0: {ALWAYS: 30, LEAVES: 20, BLINKS: 10},
    50: {LEAVES: 30, ALWAYS: 20, f"{DOWN}:7,7": 10},
    100: {ALWAYS: 30, BLINKS: 20, LEAVES: 10},
    200: {LATE: 30, ALWAYS: 20, f"{DOWN}:7,7": 10},
    400: {LATE: 30, BLINKS: 20, ALWAYS: 10},
}
LAST = 400


def trajectories(runs: Sequence[Gathered]) -> list[Trajectory]:
    """Return the training runs of some runs."""
    return trajectories_of(members(runs, checkpoints=True))


def checkpoint(root: Path, step: int, **knobs: Any) -> Gathered:
    """Write a run of one checkpoint and return it; the last one lies above the others."""
    member = knobs.pop("member", "tiny-seed0")
    name = knobs.pop("name", f"{member}_{step}")
    training = {"step": step, "num_tokens": 1024 * step, "seed": 0} | knobs.pop("training", {})
    run = Planted(
        root, name, model_id=f"family/{member}" + ("" if step == LAST else f"/checkpoint-{step:06d}"), seed_noise=0.0,
        ks=(1, 3), critical=knobs.pop("critical", COURSE[step]), training=training, draws=1, steps=("score", "rank"), **{"seeds": (0,), **knobs},
    )  # fmt: skip
    run.facts = {"num_eligible": run.num_weights, **run.facts}
    return group([run.write()]).runs[0]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Gathered]:
    """Return the planted training run's checkpoints, out of order."""
    root = tmp_path_factory.mktemp("checkpoints")
    return [checkpoint(root, step) for step in (400, 50, 0, 200, 100)]


def emerged(runs: list[Gathered], k: int = 3) -> Mapping[str, Mapping[str, Any]]:
    """Return the emergence of the only training run at k by target."""
    (trajectory,) = trajectories(runs)
    (found,) = [one for one in followed(trajectory, Wanted()) if one.k == k]
    rows = make_table("emergence/1", emergence_rows(found)).frame
    return {row["target"]: row for row in rows.to_dicts()}


def test_checkpoints_stand_in_the_order_of_their_steps(runs: list[Gathered]) -> None:
    """Runs named in any order become one training run, ascending in steps, its axis the tokens seen."""
    (trajectory,) = trajectories(runs)
    assert trajectory.model == "tiny-seed0"
    assert [one.step for one in trajectory.checkpoints] == [0, 50, 100, 200, 400]
    assert (trajectory.x_name, trajectory.checkpoints[1].num_tokens) == ("num_tokens", 51_200)


@pytest.mark.parametrize(
    ("target", "final_rank", "first", "stays", "num_in_top", "num_exits"),
    [
        (LATE, 1, 200, 200, 2, 0),
        (BLINKS, 2, 0, 400, 3, 2),
        (ALWAYS, 3, 0, 0, 5, 0),
        (LEAVES, None, 0, None, 3, 1),
        (f"{DOWN}:7,7", None, 50, None, 2, 2),
    ],
)
def test_planted_weights_come_stay_and_leave_as_planted(
    runs: list[Gathered],
    target: str,
    final_rank: int | None,
    first: int,
    stays: int | None,
    num_in_top: int,
    num_exits: int,
) -> None:
    """When critical weights appear and whether they stay is what was planted, told in steps."""
    row = emerged(runs)[target]
    assert (row["final_rank"], row["first_in_top"], row["stays_from"]) == (final_rank, first, stays)
    assert (row["num_in_top"], row["num_exits"], row["num_checkpoints"]) == (num_in_top, num_exits, 5)
    assert (row["metric"], row["seed"], row["parameter"]) == ("act_mag", 0, DOWN)


def test_nothing_but_the_planted_weights_is_followed(runs: list[Gathered]) -> None:
    """At K = 3 five weights were ever in the top; at K = 1 the reference is the one at the end."""
    assert set(emerged(runs)) == {LATE, BLINKS, ALWAYS, LEAVES, f"{DOWN}:7,7"}
    single = emerged(runs, 1)
    assert {target: row["final_rank"] for target, row in single.items()} == {LATE: 1, ALWAYS: None, LEAVES: None}


def test_rank_and_score_are_there_as_far_as_the_ranking_goes(runs: list[Gathered]) -> None:
    """At every checkpoint a weight has the rank and score of the ranking, null where the ranking ends before it."""
    (trajectory,) = trajectories(runs)
    (one,) = [found for found in followed(trajectory, Wanted()) if found.k == 1]
    frame = make_table("trajectory/1", trajectory_rows(one)).frame
    late = frame.filter(pl.col("target") == LATE)
    assert late["step"].to_list() == [0, 50, 100, 200, 400]
    assert late["rank"].to_list() == [None, None, None, 1, 1]
    assert late["in_top"].to_list() == [False, False, False, True, True]
    always = frame.filter(pl.col("target") == ALWAYS)
    assert always["rank"].to_list() == [1, 2, 1, 2, 3]  # beyond K = 1 and within the three that are ranked
    ranking = runs[0].ranking
    assert ranking is not None
    known = ranking.filter((pl.col("group") == "top_k") & (pl.col("rank") == 3)).row(0, named=True)
    last = always.filter(pl.col("step") == LAST).row(0, named=True)
    assert (last["score"], last["index"], last["num_tokens"]) == (known["score"], known["index"], 1024 * LAST)


def test_agreement_with_the_end_and_with_the_step_before(runs: list[Gathered]) -> None:
    """The Jaccard indices over the steps are those of the planted sets."""
    (trajectory,) = trajectories(runs)
    (one,) = [found for found in followed(trajectory, Wanted()) if found.k == 3]
    sets = {step: set(planted) for step, planted in COURSE.items()}
    steps = list(sets)

    def index(a: set[str], b: set[str]) -> float:
        return len(a & b) / len(a | b)

    found = {(at.step, value.quantity): value.value for at, value in one.agreement()}
    expected = {(step, "final_jaccard"): index(sets[step], sets[LAST]) for step in steps[:-1]}
    expected |= {(b, "consecutive_jaccard"): index(sets[a], sets[b]) for a, b in itertools.pairwise(steps)}
    assert found == expected


def test_the_sentence_tells_when_the_list_came_together(runs: list[Gathered]) -> None:
    """The summary counts what is there for good, what vanished, and says what chance would share."""
    (trajectory,) = trajectories(runs)
    assert summary(followed(trajectory, Wanted())) == [
        "tiny-seed0: act_mag: of the top 3 at step 400, 1 is there for good from the first checkpoint (step 0) on, half by step"
        " 200, 2 by step 200, the last but one; 2 other weights came and went; two random lists share 0.0014 of their weights"
    ]


def test_score_seeds_are_told_together(tmp_path: Path) -> None:
    """Numbers that differ between score seeds are said from the smallest to the largest, and how far the seeds agree."""

    def by_seed(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Let the second seed always find the last list but for its third weight."""
        changed = {row["rank"]: row for row in rows if row["seed"] == 1 and row["group"] == "top_k"}
        changed[1] |= {"parameter": DOWN, "indices": "(1, 2)"}
        changed[2] |= {"parameter": DOWN, "indices": "(6, 0)"}
        changed[3] |= {"parameter": "model.embed_tokens.weight", "indices": "(1, 1)"}
        return rows

    runs = []
    for step in (0, 50, 100, 400):
        runs.append(checkpoint(tmp_path, step, seeds=(0, 1), tables={"ranking.csv": by_seed}))
    (trajectory,) = trajectories(runs)
    (text,) = summary(followed(trajectory, Wanted()))
    assert text == (
        "tiny-seed0: act_mag (2 score seeds): of the top 3 at step 400, 1 to 3 are there for good from the first checkpoint"
        " (step 0) on, half by step 0 to 100, 2 to 3 by step 100, the last but one; 0 to 2 other weights came and went; score"
        " seeds share 67 % of their lists at the last; two random lists share 0.0014 of their weights"
    )


def test_a_list_that_never_changes_says_so(tmp_path: Path) -> None:
    """Where the top stays the same, all of it is there from the first checkpoint on and nothing more is said."""
    runs = [checkpoint(tmp_path, step, critical={ALWAYS: 5.0}) for step in (0, 50, 400)]
    (trajectory,) = trajectories(runs)
    assert sentence(followed(trajectory, Wanted())[-1:]).startswith(
        "tiny-seed0: act_mag: of the top 3 at step 400, 3 are there for good from the first checkpoint (step 0) on; 0 other"
    )


def test_training_runs_are_told_apart_by_home_seed_and_shape(tmp_path: Path) -> None:
    """Two sizes and two seeds of checkpoints are four training runs, each under the name of its folder."""
    members = [("a-seed0", 0, 4), ("a-seed1", 1, 4), ("b-seed0", 0, 8), ("b-seed1", 1, 8)]
    runs = [
        checkpoint(tmp_path, step, member=member, training={"seed": seed}, width=width, critical={})
        for step in (0, 50, 400) for member, seed, width in members
    ]  # fmt: skip
    found = trajectories(runs)
    assert [one.model for one in found] == [member for member, _, _ in members]
    assert all([one.step for one in each.checkpoints] == [0, 50, 400] for each in found)


def test_two_seeds_of_one_home_are_two_training_runs(tmp_path: Path) -> None:
    """A home whose checkpoints state two training seeds is two training runs, and their names say the seed."""
    runs = [
        checkpoint(tmp_path, step, name=f"s{seed}_{step}", training={"seed": seed})
        for seed in (0, 1)
        for step in (0, 50, 400)
    ]
    assert [one.model for one in trajectories(runs)] == ["family/tiny-seed0 seed 0", "family/tiny-seed0 seed 1"]


def test_equal_folder_names_are_told_apart_by_their_paths(tmp_path: Path) -> None:
    """Two folders of one name go by their whole path."""
    runs = [
        checkpoint(tmp_path, step, member=f"{where}/tiny", name=f"{where}_{step}")
        for where in "xy"
        for step in (0, 50, 400)
    ]
    assert [one.model for one in trajectories(runs)] == ["family/x/tiny", "family/y/tiny"]


@pytest.mark.parametrize(
    ("model_id", "step", "expected"),
    [
        ("family/llama-1.3m-seed0/checkpoint-000175", 175, "family/llama-1.3m-seed0"),
        ("family/llama-1.3m-seed0", 1400, "family/llama-1.3m-seed0"),
        ("out/global_step1000", 1000, "out"),
        ("out/step1000-tokens4B", 1000, "out"),
        ("out/checkpoint-1000", 10, "out/checkpoint-1000"),  # another number is no name of this step
        ("out/seed0", 0, "out/seed0"),
        ("EleutherAI/pythia-70m", 1000, "EleutherAI/pythia-70m"),
        ("checkpoint-5", 5, "."),
        ("out/tiny-step1000", 1000, "out/tiny"),
        ("out/checkpoint-5", None, "out/checkpoint-5"),
    ],
)
def test_the_home_of_a_checkpoint(model_id: str, step: int | None, expected: str) -> None:
    """A last part that names the step is no part of a training run's home."""
    assert home(model_id, step) == expected


def test_a_run_without_a_training_step_is_refused_by_name(tmp_path: Path) -> None:
    """A model that is no checkpoint cannot be placed, and the refusal names its run."""
    runs = [checkpoint(tmp_path, step) for step in (0, 50)]
    finished = Planted(tmp_path, "finished", ks=(1,), seeds=(0,), steps=("score", "rank")).write()
    with pytest.raises(
        ArtifactError, match=r"^finished: 'finished' has no training step in the run's manifests"
    ) as caught:
        trajectories([*runs, group([finished]).runs[0]])
    assert (caught.value.where, caught.value.exit_code) == ("finished", 3)


def test_the_same_step_twice_is_refused(tmp_path: Path) -> None:
    """Two runs of one checkpoint are named."""
    runs = [checkpoint(tmp_path, step) for step in (0, 50, 400)] + [checkpoint(tmp_path, 50, name="again")]
    with pytest.raises(ArtifactError, match="tiny-seed0_50 and again are both step 50"):
        trajectories(runs)


def test_two_checkpoints_are_too_few(tmp_path: Path) -> None:
    """A training run of two checkpoints is refused with its steps."""
    with pytest.raises(ArtifactError, match=r"has 2 checkpoints \(step 0, 400\); at least 3 are needed"):
        trajectories([checkpoint(tmp_path, step) for step in (400, 0)])


def test_unknown_tokens_make_steps_the_axis(tmp_path: Path) -> None:
    """Where a checkpoint's tokens are unknown the axis is the step; the untrained one has seen none in any case."""
    runs = [checkpoint(tmp_path, step, training={"num_tokens": None}) for step in (0, 50, 400)]
    (trajectory,) = trajectories(runs)
    assert (trajectory.x_name, [one.num_tokens for one in trajectory.checkpoints]) == ("step", [0, None, None])
    assert trajectory.words == (
        "training run tiny-seed0: 3 checkpoints, step 0 to 400, over steps, as the tokens of a checkpoint are unknown"
    )


def test_a_checkpoint_without_the_list_is_named_and_passed_over(tmp_path: Path) -> None:
    """A metric that a checkpoint is not ranked by is followed through the others, and a warning names it."""
    runs = [checkpoint(tmp_path, step) for step in (0, 100, 400)]
    runs.append(checkpoint(tmp_path, 50, metrics=("wanda",)))
    (trajectory,) = trajectories(runs)
    assert [[one.step for one in found.checkpoints] for found in followed(trajectory, Wanted()) if found.k == 3] == [
        [0, 100, 400]
    ]
    assert gaps(trajectory) == [
        "tiny-seed0: act_mag, seed 0: not ranked over the whole model in tiny-seed0_50; its weights are followed through the"
        " others",
        "tiny-seed0: wanda, seed 0: not ranked over the whole model in tiny-seed0_0, tiny-seed0_100, tiny-seed0_400; there is"
        " nothing to follow",
    ]


def test_lists_of_every_layer_are_not_followed(tmp_path: Path) -> None:
    """A ranking per layer has no top K of the model: nothing is followed, and that is said."""

    def per_layer(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [{**row, "mode": "per_layer", "unit_name": row["parameter"]} for row in rows]

    runs = [checkpoint(tmp_path, step, tables={"ranking.csv": per_layer}) for step in (0, 50, 400)]
    (trajectory,) = trajectories(runs)
    assert followed(trajectory, Wanted()) == []
    assert gaps(trajectory) == ["tiny-seed0: no ranking with rank.mode = 'global': no weights are followed"]


def test_long_lists_are_listed_in_part(tmp_path: Path) -> None:
    """Tables list a hundred weights of the last top K and a hundred that vanished, and the rest is counted."""
    runs = []
    for step in (0, 50, 400):
        run = Planted(
            tmp_path, f"long_{step}", model_id="m", seeds=(0,), ks=(300,), draws=1, model_seed=step, steps=("score", "rank"),
            training={"step": step, "num_tokens": step, "seed": 0}, tied=True,
        )  # fmt: skip
        runs.append(group([run.write()]).runs[0])
    (trajectory,) = trajectories(runs)
    (found,) = followed(trajectory, Wanted())
    rows = emergence_rows(found)
    assert [row["final_rank"] for row in rows] == [*range(1, 101), *[None] * 100]
    assert len(trajectory_rows(found)) == 3 * len(rows)
    assert num_unlisted([found]) == len(found.courses) - 200
