"""Candidates: merged over seeds, compared with what was published, grouped by the rows and columns they share."""

from typing import Any

import pytest

from esa.errors import TargetError
from esa.model.published import Match, Published
from esa.perturb.detector.candidates import Candidate, coordinates, from_records, groups_of, with_published
from tests.conftest import load


def down(block: int) -> str:
    """Return the name of a tiny Llama's output projection, (16, 24)."""
    return f"model.layers.{block}.mlp.down_proj.weight"


def at(block: int, row: int, column: int, growth: float | None = 1.0) -> Candidate:
    """Return a candidate of the tiny Llama."""
    return Candidate((down(block), row * 24 + column), growth)


def record(address: str, growth: float, seed: int = 0, ratio: float | None = 30.0) -> dict[str, Any]:
    """Return what a score manifest says of a candidate."""
    return {"address": address, "growth": growth, "peak_ratio": ratio, "seed": seed}


def test_seeds_are_merged() -> None:
    """A weight that several seeds saw is one candidate, with its strongest growth; writers come first, erasers last."""
    records = [
        record(f"{down(2)}:5,1", -90.0), record(f"{down(1)}:5,7", 100.0, ratio=21.0), record(f"{down(0)}:5,2", 20.0),
        record(f"{down(1)}:5,7", 300.0, seed=1, ratio=40.0), record(f"{down(2)}:3,3", -5.0, seed=1),
    ]  # fmt: skip
    found = from_records(records, load("llama").table, "x")
    assert [(one.target, one.growth, one.num_seeds, one.role) for one in found] == [
        ((down(1), 127), 300.0, 2, "writer"), ((down(0), 122), 20.0, 1, "writer"), ((down(2), 75), -5.0, 1, "eraser"),
        ((down(2), 121), -90.0, 1, "eraser"),
    ]  # fmt: skip
    assert found[0].peak_ratio == 40.0


def test_an_address_of_another_model_is_refused() -> None:
    """An address that the model does not have is an error that names the folder."""
    with pytest.raises(TargetError, match="score-x: 'model.layers.9.*is not a parameter of the model"):
        from_records([record(f"{down(9)}:5,1", 1.0)], load("llama").table, "score-x")


GROUPS = {
    "a row across blocks": ([at(0, 5, 1), at(1, 5, 7), at(2, 5, 3)], {"row 5 of blocks 0, 1, 2": [0, 1, 2]}),
    "a column within a block": ([at(1, 5, 7), at(1, 9, 7), at(1, 3, 7)], {"column 7 of block 1": [0, 1, 2]}),
    "a column of two blocks is none": ([at(0, 5, 7), at(1, 9, 7)], {}),
    "links chain": (
        [at(0, 5, 7), at(0, 9, 7), at(2, 9, 1), at(2, 4, 4)],
        {"row 9 of blocks 0, 2; column 7 of block 0": [0, 1, 2]},
    ),
    "two groups": (
        [at(0, 5, 7), at(0, 9, 7), at(2, 2, 1), at(1, 2, 4)],
        {"column 7 of block 0": [0, 1], "row 2 of blocks 1, 2": [2, 3]},
    ),
    "erasers are a group of their own": (
        [at(0, 5, 1), at(1, 5, 7), at(2, 5, 3, -1.0), at(2, 5, 4, -2.0)],
        {"row 5 of blocks 0, 1": [0, 1], "row 5 of block 2 (erasers)": [2, 3]},
    ),
    "what was missed, too": (
        [at(1, 5, 7), at(0, 5, 1, None), at(1, 5, 2, None)],
        {"row 5 of blocks 0, 1 (missed)": [1, 2]},
    ),
    "alone": ([at(1, 5, 7)], {}),
}


@pytest.mark.parametrize("case", GROUPS)
def test_groups_share_a_row_or_a_column(case: str) -> None:
    """Weights of one output in any block, or of one input of a matrix, are one group, named for what they share."""
    candidates, expected = GROUPS[case]
    found = groups_of(candidates, load("llama").table)
    assert found == {name: [candidates[i].target for i in places] for name, places in expected.items()}


def test_a_transposed_matrix_shares_its_outputs_as_columns() -> None:
    """GPT-2 stores the outputs of a projection as columns: the group and the coordinates are called as stored."""
    table = load("gpt2").table
    name = "transformer.h.{}.mlp.c_proj.weight"  # (64, 16): inputs by outputs
    candidates = [Candidate((name.format(0), 7 * 16 + 5), 2.0), Candidate((name.format(2), 9 * 16 + 5), 1.0)]
    assert list(groups_of(candidates, table)) == ["column 5 of blocks 0, 2"]
    assert coordinates(candidates[0].target, table) == (None, 7, 5)


def test_experts_share_outputs_and_not_inputs() -> None:
    """Two experts write to one channel, and read different states of their own."""
    table = load("mixtral").table
    info = next(one for one in table.values() if one.component == "expert.down")
    size = info.numel // info.shape[0]
    width = info.shape[2]
    same_row = [Candidate((info.name, expert * size + 3 * width + expert), 1.0) for expert in (0, 2)]
    same_column = [Candidate((info.name, expert * size + expert * width + 3), 1.0) for expert in (0, 2)]
    assert [len(members) for members in groups_of(same_row, table).values()] == [2]
    assert groups_of(same_column, table) == {}
    assert coordinates(same_row[1].target, table) == (2, 3, 2)


def test_published_weights_are_found_or_missed() -> None:
    """What stands out is marked, what was published and does not stand out comes behind it, and both are told apart."""
    table = load("llama").table
    one = Published("Tiny", (), {}, ((1, 5, 7), (2, 5, 23)))
    given = [at(1, 5, 7), at(0, 5, 1)]
    found, [comparison] = with_published(given, [Match(one, exact=True)], table)
    assert [(each.target, each.published, each.role) for each in found] == [
        ((down(1), 127), True, "writer"), ((down(0), 121), False, "writer"), ((down(2), 143), True, None),
    ]  # fmt: skip
    assert comparison.found == ((down(1), 127),)
    assert comparison.missed == ((down(2), 143),)
    assert with_published(given, [], table) == (given, [])
    assert given[0].published is None
