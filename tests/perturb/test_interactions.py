"""Interactions: joint minus the sum of singles, window by window, against plain loops and planted truths."""

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from esa.artifact import make_table
from esa.perturb.evidence.interactions import Changed, interaction_rows
from esa.statistics.bootstrap import paired_interval
from tests.perturb.planted import frame, perturb, ranking, spec

NUM_TOKENS = [11, 11, 7, 9, 11, 11, 8, 11]
DRAW = np.random.default_rng(5)
SINGLE = {name: DRAW.lognormal(0, 0.4, 8) for name in ("w:0", "w:1", "w:2")}


def changed(unit: str, targets: tuple[str, ...], differences: Any, **about: Any) -> Changed:
    """Return a set of targets that was changed, zeroed unless said otherwise."""
    known = {"metric": "obd", "seed": 0, "group": "top_k", "draw": None, "method": "zero", "options": "{}"}
    all_about = {**known, "unit": unit, "k": len(targets), **about}
    return Changed(all_about, targets, (f"{unit}-{'-'.join(targets)}",), differences)


def singles(**about: Any) -> list[Changed]:
    """Return the three targets changed one by one."""
    return [changed("single", (name,), difference, **about) for name, difference in SINGLE.items()]


def rows(*found: Changed) -> list[dict[str, Any]]:
    """Return the table's rows as read back."""
    made = interaction_rows("r", list(found), NUM_TOKENS, seed=3, resamples=499)
    return make_table("interactions/1", made).frame.to_dicts()


def test_the_interaction_is_joint_minus_singles_and_its_interval_is_of_that_difference() -> None:
    """A plain loop over windows gives the same three numbers; the interval is the paired one of joint against the sum."""
    joint = DRAW.lognormal(1.5, 0.3, 8)
    (row,) = rows(*singles(), changed("joint", tuple(SINGLE), joint))
    total = sum(NUM_TOKENS)
    apart = [sum(float(SINGLE[name][n]) for name in SINGLE) for n in range(8)]
    assert row["joint"] == pytest.approx(sum(joint.tolist()) / total)
    assert row["sum_of_singles"] == pytest.approx(sum(apart) / total)
    assert row["interaction"] == pytest.approx(row["joint"] - row["sum_of_singles"])
    expected = paired_interval(joint.tolist(), apart, NUM_TOKENS, 3, "interaction+joint-w:0-w:1-w:2", 0.95, 499)
    assert (row["low"], row["high"]) == pytest.approx(tuple(expected))
    assert row["low"] < row["interaction"] < row["high"]
    assert (row["unit"], row["k"], row["num_windows"], row["target_a"]) == ("joint", 3, 8, None)


def test_additive_damage_has_no_interaction_and_planted_synergy_is_found() -> None:
    """Where the joint change is the sum of the single ones the interval holds zero; half a nat more per window is found."""
    additive = sum(SINGLE.values())
    noise = DRAW.normal(0, 0.01, 8)
    noise -= noise.mean()
    (none,) = rows(*singles(), changed("joint", tuple(SINGLE), additive + noise))
    (some,) = rows(*singles(), changed("joint", tuple(SINGLE), additive + noise + 0.5 * np.array(NUM_TOKENS)))
    assert none["low"] < 0 < none["high"]
    assert some["low"] > 0.4
    assert some["interaction"] == pytest.approx(none["interaction"] + 0.5)


def test_pairs_name_their_two_targets() -> None:
    """Every pair is a row with both addresses, in the order of the cases."""
    pairs = [("w:0", "w:1"), ("w:0", "w:2"), ("w:1", "w:2")]
    found = rows(*singles(), *(changed("pairs", pair, SINGLE[pair[0]] + SINGLE[pair[1]]) for pair in pairs))
    assert [(row["target_a"], row["target_b"]) for row in found] == pairs
    assert [row["interaction"] for row in found] == pytest.approx([0.0] * 3, abs=1e-15)


def test_a_set_without_all_its_singles_gives_no_row() -> None:
    """Nothing is claimed of a joint change whose single changes were not measured, or under another method, group or draw."""
    joint = changed("joint", tuple(SINGLE), sum(SINGLE.values()))
    assert rows(joint) == []
    assert rows(*singles()[:2], joint) == []
    assert rows(*singles(method="mean"), joint) == []
    assert rows(*singles(group="random_k"), joint) == []
    assert rows(*singles(draw=1), joint) == []
    assert rows(*singles(options='{"factor":2.0}'), joint) == []
    assert len(rows(*singles(), joint)) == 1
    assert rows(*singles(), changed("joint", ("w:0",), SINGLE["w:0"])) == []


def test_a_nonfinite_case_gives_nulls() -> None:
    """A joint or single change that left no finite logits makes a row without numbers, not one without a row."""
    joint = changed("joint", tuple(SINGLE), None)
    (row,) = rows(*singles(), joint)
    numbers = ("joint", "sum_of_singles", "interaction", "low", "high")
    assert [row[key] for key in numbers] == [None] * 5
    broken = [*singles()[:2], changed("single", ("w:2",), None)]
    (row,) = rows(*broken, changed("joint", tuple(SINGLE), sum(SINGLE.values())))
    assert [row[key] for key in numbers] == [None] * 5


def test_a_campaign_writes_what_its_windows_say(tmp_path: Path) -> None:
    """joint, single and pairs of a real campaign: the table's numbers follow from damage/1 and windows/1 alone."""
    tables = {"method": "zero", "unit": ["joint", "single", "pairs", "cumulative"], "groups": ["top_k"], "k": [3]}
    noise = {"method": "gauss_noise", "sigma": 2.0, "repeats": 3, "unit": ["joint", "single"], "groups": ["top_k"]}
    result = perturb(spec(tables, {**noise, "k": [3]}), ranking(), tmp_path)
    damage, found = frame(result), frame(result, "interactions/1")
    shown = [(row["method"], row["unit"], row["k"]) for row in found.to_dicts()]
    assert shown == [
        ("zero", "joint", 3), *[("zero", "pairs", 2)] * 3, ("zero", "cumulative", 2), ("zero", "cumulative", 3),
        ("gauss_noise", "joint", 3),
    ]  # fmt: skip
    for row in found.filter(pl.col("unit") == "pairs").to_dicts():
        both = damage.filter(pl.col("target") == f"{row['target_a']} + {row['target_b']}")["delta_nll"].item()
        damages = damage.filter((pl.col("unit") == "single") & (pl.col("method") == "zero"))
        alone = dict(damages.select("target", "delta_nll").iter_rows())
        apart = alone[row["target_a"]] + alone[row["target_b"]]
        assert row["interaction"] == pytest.approx(both - apart, abs=1e-12)
        assert row["low"] <= row["interaction"] <= row["high"]
    noisy = damage.filter(pl.col("method") == "gauss_noise")
    joint = noisy.filter(pl.col("unit") == "joint")["delta_nll"].mean()
    singles = noisy.filter(pl.col("unit") == "single")["delta_nll"].sum() / 3
    assert found[-1, "interaction"] == pytest.approx(joint - singles, abs=1e-12)


def test_a_campaign_without_singles_writes_no_table(tmp_path: Path) -> None:
    """Joint changes alone say nothing of interactions."""
    assert not (perturb(spec(), ranking(), tmp_path).folder / "interactions.csv").exists()
