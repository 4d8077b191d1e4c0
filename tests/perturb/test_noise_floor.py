"""The noise floor: what rewriting weights that do not matter to the adjacent number does to the NLL."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from esa.artifact import read_manifest
from esa.eval import INTACT
from esa.model import LoadedModel
from esa.perturb.campaign import floor_targets
from esa.perturb.groups import groups_from_ranking
from esa.spec.sections import Eval
from tests.conftest import load
from tests.perturb.planted import BOTTOM, HEAD, TOP, UP, frame, perturb, ranking, rows, spec

NUM_REWRITES = Eval().rewrites


def floors(table: Any, loaded: LoadedModel, seed: int = 0) -> list[tuple[str, int]]:
    """Return the weights that the noise floor rewrites."""
    chosen = [name for name, info in loaded.table.items() if len(info.shape) > 1]
    return floor_targets(groups_from_ranking(table.frame, loaded.table, "t"), loaded, chosen, seed, NUM_REWRITES)


def test_the_noise_floor_takes_low_scores() -> None:
    """Twenty distinct weights in address order: the bottom's, where neither score nor value is zero, then random ones."""
    loaded = load("llama")
    unread = BOTTOM[2]
    with torch.no_grad():
        loaded.parameters()[BOTTOM[0][0]].view(-1)[BOTTOM[0][1]] = 0
    bottom = [
        {**row, "score": 0.0} if row["index"] == unread[1] else row for row in rows("act_mag", 0, "bottom_k", BOTTOM)
    ]
    found = floors(ranking(rows("act_mag", 0, "top_k", TOP), bottom), loaded)
    assert len(found) == len(set(found)) == NUM_REWRITES == 20
    assert set(found) & {*TOP, *BOTTOM} == {BOTTOM[1]}
    order = list(loaded.table)
    assert found == sorted(found, key=lambda target: (order.index(target[0]), target[1]))


def test_the_noise_floor_is_drawn_by_seed() -> None:
    """Of many bottom weights twenty are drawn, the same for a seed, others for another."""
    loaded = load("llama")
    many = ranking(rows("act_mag", 0, "bottom_k", [(UP, index) for index in range(100)]))
    drawn = floors(many, loaded)
    assert len(drawn) == 20
    assert {name for name, _ in drawn} == {UP}
    assert drawn == floors(many, loaded)
    assert drawn != floors(many, loaded, seed=1)


def test_weights_without_a_neighbour_are_no_floor() -> None:
    """NaN and infinite weights are never rewritten."""
    loaded = load("llama")
    with torch.no_grad():
        loaded.parameters()[UP].view(-1)[:90] = torch.tensor([float("nan"), float("inf")]).repeat(45)
    drawn = floors(ranking(rows("act_mag", 0, "bottom_k", [(UP, index) for index in range(100)])), loaded)
    assert len(drawn) == 20
    assert {index for name, index in drawn if name == UP} >= set(range(90, 100))
    assert not {index for name, index in drawn if name == UP} & set(range(90))


def test_the_noise_floor_is_the_largest_change_of_its_rewrites(tmp_path: Path) -> None:
    """The floor is the largest absolute change among the journalled rewrites; rounding moves a real model that much."""
    finished = perturb(spec(), ranking(), tmp_path)
    lines = [json.loads(line) for line in (finished.folder / "cases.jsonl").read_text().splitlines()]
    nll = {line["key"]: sum(line["measured"]["nll"]) / 44 for line in lines if "measured" in line}
    rewrites = [value for key, value in nll.items() if key.startswith("floor-")]
    assert len(rewrites) == NUM_REWRITES
    floor = read_manifest(finished.folder)["noise_floor"]
    assert floor == pytest.approx(max(abs(value - nll[INTACT]) for value in rewrites), rel=1e-6, abs=1e-14)
    assert 0 < floor < 1e-5
    assert frame(finished)["noise_floor"][0] == floor


def test_damage_below_the_floor_is_flagged(tmp_path: Path) -> None:
    """A change that does nothing is below the floor, one that matters is not."""
    loaded = load("llama")
    table = ranking(rows("act_mag", 0, "top_k", [(HEAD, 40)]))
    result = perturb(
        spec({"method": "scale", "factor": 1.0}, {"method": "scale", "factor": -40.0}), table, tmp_path, loaded=loaded
    )
    assert frame(result)["below_floor"].to_list() == [True, False]
    assert frame(result)["delta_nll"][0] == 0
    assert frame(result).select("agreement", "delta_low", "delta_high").row(0) == (1.0, 0.0, 0.0)
