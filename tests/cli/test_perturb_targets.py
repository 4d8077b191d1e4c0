"""``esa perturb`` on regions, by unit, and what its dry run promises."""

import re
from pathlib import Path

import polars as pl
import pytest

from esa.artifact import find_table
from tests.cli.conftest import Invoke

DOWN = "model.layers.1.mlp.down_proj.weight"
REGIONS = [f"{DOWN}:5,:", f"{DOWN}::,7", "component=mlp.*,block=2", "block=1,head=3"]


def words(*regions: str) -> list[str]:
    """Return the options that name targets."""
    return [word for region in regions for word in ("--target", region)]


def test_targets_may_be_regions_and_units_several(folder: Path, esa: Invoke) -> None:
    """--target takes rows, columns, selections and heads, --unit several units: a row for each part, named canonically."""
    done = esa(
        "perturb", "-s", "s.toml", *words(*REGIONS), "--method", "zero", "--unit", "single", "--unit", "pairs", "-q"
    )
    assert done.exit_code == 0, done.output
    damage = find_table(done.stdout.strip(), "damage/1").frame
    assert damage["unit"].to_list() == ["single"] * 4 + ["pairs"] * 6
    assert damage["target"].to_list()[:5] == [*REGIONS, f"{DOWN}:5,: + {DOWN}::,7"]
    assert damage["k"].to_list() == [1] * 4 + [2] * 6


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (["--target", "block=1,head=4"], "--target: 'block=1,head=4': there are 4 heads, 0 to 3"),
        (["--target", "component=mlp.dwn"], "--target: 'component=mlp.dwn' selects no parameter of the model"),
        (
            ["--target", DOWN, "--unit", "leave_one_out"],
            "perturb.0.unit: 'leave_one_out' needs two targets, targets has 1",
        ),
        (
            ["--target", DOWN, "--unit", "trio"],
            "--method: perturb.0.unit.0: input should be 'joint', 'single', 'leave_one_out'",
        ),
    ],
)
def test_refusals(folder: Path, esa: Invoke, extra: list[str], message: str) -> None:
    """Targets and units that there are not end with exit code 3 before a folder appears."""
    done = esa("perturb", "-s", "s.toml", "--method", "zero", "-q", *extra)
    assert done.exit_code == 3
    assert done.stderr.startswith(f"esa: error: {message}")
    assert not (folder / "outputs").exists()


CAMPAIGNS = {
    "units": 'perturb=[{method="zero", unit=["joint", "single", "leave_one_out", "cumulative"]}]',
    "doses": 'perturb=[{method="gauss_noise", sigma=[0.1, 0.2, 0.4], repeats=2}, {method="bit_flip", bit=[1, 2]}]',
    "pairs": 'perturb=[{method="zero", unit="pairs", k=3, groups=["top_k"]}, {method="clamp", quantile=[0.5, 0.9]}]',
}


@pytest.mark.parametrize("campaign", CAMPAIGNS)
@pytest.mark.parametrize(
    "confirm", [(), ("--set", "confirm.metric=act_mag", "--set", "confirm.draws=29", "--set", "confirm.k=2")]
)
def test_the_dry_run_counts_the_rows(folder: Path, esa: Invoke, campaign: str, confirm: tuple[str, ...]) -> None:
    """What --dry-run counts as cases is what the damage table has as rows, whatever the units, doses and repeats."""
    if confirm and campaign != "units":
        confirm = (*confirm, "--set", f"confirm.method={'gauss_noise' if campaign == 'doses' else 'zero'}")
    asked = ["--set", CAMPAIGNS[campaign], "--set", "rank.k=[1, 2, 5]", *confirm]
    score = esa("score", "-s", "s.toml", "-q").stdout.strip()
    ranked = esa("rank", score, "-s", "s.toml", "-q", *asked).stdout.strip()
    plan = esa("perturb", "-s", "s.toml", "--targets", ranked, "-n", *asked).stdout
    counted = re.search(r"at most ([\d,]+) cases", plan)
    assert counted is not None
    done = esa("perturb", "-s", "s.toml", "--targets", ranked, "-q", *asked)
    assert done.exit_code == 0, done.output
    step = done.stdout.strip()
    assert int(counted[1].replace(",", "")) == find_table(step, "damage/1").frame.height
    tests = find_table(step, "tests/1").frame.filter(pl.col("phase") == "screen")
    promised = {"hurts": "hurts", "more than random": "more_than_random"}
    for words_of, claim in promised.items():
        found = re.search(rf"{words_of}: .* adjusted over ([\d,]+) tests", plan)
        assert int(found[1].replace(",", "") if found else 0) == tests.filter(pl.col("claim") == claim).height


@pytest.mark.parametrize("mode", ["per_layer", "per_block", "per_component"])
def test_the_dry_run_counts_every_list(folder: Path, esa: Invoke, mode: str) -> None:
    """Where K weights are taken of every tensor, block or component, each of them is a case of its own."""
    units = 'perturb=[{method="zero", unit=["joint", "single", "leave_one_out"], groups=["top_k"]}]'
    asked = ["--set", units, "--set", "rank.k=[2]", "--set", f"rank.mode={mode}", "--set", "score.metrics=['act_mag']"]
    score = esa("score", "-s", "s.toml", "-q", *asked).stdout.strip()
    ranked = esa("rank", score, "-s", "s.toml", "-q", *asked).stdout.strip()
    plan = esa("perturb", "-s", "s.toml", "--targets", ranked, "-n", *asked).stdout
    counted = re.search(r"at most ([\d,]+) cases", plan)
    step = esa("perturb", "-s", "s.toml", "--targets", ranked, "-q", *asked).stdout.strip()
    assert counted is not None
    assert int(counted[1].replace(",", "")) == find_table(step, "damage/1").frame.height > 5


def test_the_dry_run_tells_the_smallest_p(folder: Path, esa: Invoke) -> None:
    """--dry-run says of each test which p it can reach at best, alone, adjusted over the screen, and at its level."""
    asked = ["--set", CAMPAIGNS["units"], "--set", "rank.k=[1, 2]", "--set", "eval.windows=10", "--set", "rank.draws=9"]
    asked += ["--set", "confirm.metric=act_mag", "--set", "confirm.k=2"]
    plan = esa("perturb", "-s", "s.toml", "--targets", "no.csv", "-n", *asked).stdout.splitlines()
    start = plan.index("# smallest p")
    # 3 metrics x (2 joint + 2 single + 2 leave_one_out + 2 cumulative) of top_k and bottom_k
    assert plan[start + 1 : start + 4] == [
        "#   hurts: 0.000977, all sign flips of 10 windows; adjusted over 48 tests 0.000977 where all reach it, 0.0469 where one"
        " alone does",
        "#   more than random: 0.1, 9 draws of random_k; adjusted over 5 tests 0.1 where all reach it, 0.5 where one alone does"
        ": never at most statistics.fdr = 0.05",
        "#   confirmatory, act_mag zero k = 2: 0.005, 199 draws of random_k",
    ]


def test_the_dry_run_of_addresses_counts_them(folder: Path, esa: Invoke) -> None:
    """On --target the groups are not those of a ranking: six pairs of four, and no random draws to compare with."""
    done = esa("perturb", "-s", "s.toml", *words(*REGIONS), "--method", "zero", "--unit", "pairs", "-n")
    assert "at most 6 cases" in done.stdout
    assert "more than random" not in done.stdout
