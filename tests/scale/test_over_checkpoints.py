"""Laws and critical weights over the checkpoints of planted training runs, as the step writes them."""

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from esa.artifact.gather import Gathered
from esa.artifact.grouping import group
from esa.progress import Recording
from esa.scale import Asked, Settings, plan, run
from esa.scale.laws_table import fit_series
from esa.scale.models import members
from esa.scale.over_checkpoints import OVER, UNTRAINED, checkpoint_tables, with_shift
from esa.scale.points import Series
from esa.scale.quantities import Wanted
from esa.spec import generator
from tests.planted_runs import Case, Planted

STEPS = (0, 10, 20, 40, 80, 160, 320, 640)
QUICK = Settings(resamples=49, permutations=49)
SMALL: dict[str, Any] = {
    "blocks": 1,
    "width": 4,
    "vocabulary": 8,
    "seeds": (0, 1),
    "ks": (1, 10),
    "singles": 0,
    "draws": 1,
}


def grows(run: Planted, case: Case) -> float | None:
    """Cost a thousandth of the root of the tokens seen, of top weights."""
    tokens = (run.training or {})["num_tokens"] or 0
    return 0.001 * tokens**0.5 if case.group == "top_k" else 1e-9


def training_run(root: Path, member: str = "tiny-seed0", **knobs: Any) -> list[Path]:
    """Write a run per checkpoint of a training run and return their folders, the last first."""
    seed = int(member[-1])
    training = {"seed": seed, "held_out_nll": 5.5, "bigram_nll": 5.0}
    folders = []
    for step in STEPS[::-1]:
        home = f"family/{member}" if step == STEPS[-1] else f"family/{member}/checkpoint-{step:06d}"
        one = Planted(
            root, f"{member}_{step}", model_id=home, training={**training, "step": step, "num_tokens": 1000 * step},
            **{"damage": grows, "model_seed": seed, **SMALL, **knobs},
        )  # fmt: skip
        folders.append(one.write())
    return folders


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Return the runs of two training runs, mixed."""
    root = tmp_path_factory.mktemp("over")
    return list(itertools.chain(*zip(training_run(root), training_run(root, "tiny-seed1"), strict=True)))


def test_the_step_writes_laws_over_tokens_for_each_training_run(folders: list[Path], tmp_path: Path) -> None:
    """Damage planted to grow with the root of the tokens has the exponent one half in both training runs, each by itself."""
    asked = Asked(OVER, Wanted(ks=(10,), metrics=("act_mag",)), QUICK)
    found = run(folders, asked, out=tmp_path / "scale")
    assert set(found.tables) >= {"points/1", "laws/1", "bands/1", "trajectory/1", "emergence/1"}
    laws = found.tables["laws/1"].frame.filter(pl.col("quantity") == "damage_top_k")
    assert laws["model"].to_list() == ["tiny-seed0", "tiny-seed1"]
    assert laws["over"].unique().to_list() == [OVER]
    assert laws["exponent"].to_list() == pytest.approx([0.5, 0.5])
    assert laws["num_models"].to_list() == [7, 7]  # checkpoints, without the untrained one
    points = found.tables["points/1"].frame
    assert points["model"].unique(maintain_order=True).to_list() == ["tiny-seed0", "tiny-seed1"]
    untrained = points.filter((pl.col("step") == 0) & pl.col("value").is_not_null())
    assert untrained["excluded"].unique().to_list() == [UNTRAINED]
    later = points.filter((pl.col("step") == 640) & (pl.col("quantity") == "damage_top_k"))
    assert later["excluded"].null_count() == later.height > 0  # not beating the bigram excludes no checkpoint
    bands = found.tables["bands/1"].frame
    assert (bands["x"].min(), bands["x"].max()) == (10_000, 640_000)


def test_the_plan_names_the_training_runs(folders: list[Path], tmp_path: Path) -> None:
    """What a dry run prints has each training run with its checkpoints and its axis, and nothing is written."""
    lines, folder = plan(folders, Asked(OVER), out=tmp_path / "scale")
    assert lines[-2:] == [
        f"training run tiny-seed{seed}: 8 checkpoints, step 0 to 640, over tokens seen" for seed in (0, 1)
    ]
    assert not folder.exists()


def test_agreement_is_among_the_points(folders: list[Path]) -> None:
    """The lists of the planted runs differ by nothing but seed noise: each checkpoint agrees with the last one as planted."""
    rows = checkpoint_tables(
        members(group(folders).runs, checkpoints=True), Wanted(ks=(10,)), QUICK, Recording(None)
    ).tables["points/1"]
    found = [row for row in rows if row["quantity"] in ("final_jaccard", "consecutive_jaccard")]
    assert {row["value"] for row in found} == {1.0}  # one model_seed: the same scores at every step
    assert {(row["subject"], row["k"]) for row in found} == {("act_mag, top 10", 10)}
    steps = {
        q: [r["step"] for r in found if r["quantity"] == q and r["seed"] == 0 and r["model"] == "tiny-seed1"]
        for q in ("final_jaccard", "consecutive_jaccard")
    }
    assert steps == {"final_jaccard": list(STEPS[:-1]), "consecutive_jaccard": list(STEPS[1:])}


def test_the_summary_has_a_sentence_per_training_run(folders: list[Path]) -> None:
    """What is said of the weights is said of K = 10 alone, all score seeds together, and the laws come with their caution."""
    listener = Recording(None)
    found = checkpoint_tables(members(group(folders).runs, checkpoints=True), Wanted(), QUICK, listener)
    assert [text.partition(" for good")[0] for text in found.summary] == [
        f"tiny-seed{seed}: act_mag (2 score seeds): of the top 10 at step 640, 10 are there" for seed in (0, 1)
    ]
    assert any("say nothing of another" in text for text in listener.warnings)


def test_a_run_without_rankings_still_has_its_laws(tmp_path: Path) -> None:
    """Checkpoints without a ranking over the whole model have quantities and laws, no weights, and a warning."""
    folders = training_run(tmp_path, steps=("score",))
    runs: list[Gathered] = group(folders).runs
    listener = Recording(None)
    rows = checkpoint_tables(members(runs, checkpoints=True), Wanted(), QUICK, listener).tables
    assert (rows["trajectory/1"], rows["emergence/1"]) == ([], [])
    assert {row["quantity"] for row in rows["laws/1"]} >= {"half_share", "tail_index"}
    assert any("no weights are followed" in text for text in listener.warnings)


def long_series(level: float) -> Series:
    """Return 30 checkpoints on a power law, the last 12 of them shifted in the logarithm, under small noise."""
    x = np.geomspace(1e3, 1e6, 30)
    noise = generator(0, "test", "long").normal(0, 0.02, 30)
    y = np.exp(0.1 * np.log(x) + noise + level * (np.arange(30) >= 18))
    return Series("intact_nll", "", x, y, tuple(f"c{n}" for n in range(30)), ())


def test_a_shift_of_a_long_series_is_found() -> None:
    """Of 20 checkpoints and more the changepoint lies between the two where the level shifts; without a shift there is none."""
    series = long_series(0.6)
    found = with_shift(fit_series(series, OVER, QUICK, "m"), series).law
    assert (found["changepoint_low"], found["changepoint_high"]) == (series.x[17], series.x[18])
    assert found["changepoint"] == series.x[18]
    assert found["slope_below"] is None
    assert "level_shift" in found["flags"]
    flat = long_series(0.0)
    found = with_shift(fit_series(flat, OVER, QUICK, "m"), flat).law
    assert found["changepoint"] is None
    assert "level_shift" not in (found["flags"] or "")


def test_a_short_series_keeps_its_change_of_slope() -> None:
    """Under 20 checkpoints nothing is put in the place of the segmented regression."""
    series = long_series(0.6)
    short = Series(series.quantity, "", series.x[::3], series.y[::3], series.models[::3], ())
    fitted = fit_series(short, OVER, QUICK, "m")
    assert with_shift(fitted, short) is fitted
