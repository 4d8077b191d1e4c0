"""What counts as the same, by weight, output, input, layer, block and component."""

from pathlib import Path

import polars as pl
import pytest

from esa.artifact import Table, make_table
from esa.errors import SelectionError
from esa.overlap import read_lists
from esa.overlap.members import encode
from tests.overlap.planted import DOWN, lists, older, ranking, saved

UP, EMBED, LAST = "h.0.c_fc.weight", "wte.weight", "h.1.down.weight"


def same(first: tuple[str, int], second: tuple[str, int], by: str) -> bool:
    """Tell whether two weights are the same member."""
    a, b = encode(lists(ranking([first]), ranking([second])), by, "global")
    return bool(a.code[0] == b.code[0])


@pytest.mark.parametrize(
    ("by", "first", "second", "expected"),
    [
        ("weight", (DOWN, 7), (DOWN, 7), True),
        ("weight", (DOWN, 7), (UP, 7), False),
        ("output", (DOWN, 6), (DOWN, 11), True),  # (1, 0) and (1, 5): row 1 of an nn.Linear
        ("output", (DOWN, 1), (DOWN, 7), False),  # column 1
        ("input", (DOWN, 1), (DOWN, 7), True),
        ("output", (UP, 1), (UP, 7), True),  # column 1 of a Conv1D, which is stored (in, out)
        ("input", (UP, 6), (UP, 11), True),
        ("input", (UP, 1), (UP, 7), False),
        ("input", (EMBED, 40), (EMBED, 43), True),  # one token
        ("output", (EMBED, 40), (EMBED, 44), True),  # one channel
        ("output", (DOWN, 6), (LAST, 8), False),  # row 1 of another matrix
        ("layer", (DOWN, 0), (DOWN, 23), True),
        ("layer", (DOWN, 0), (UP, 0), False),
        ("block", (DOWN, 0), (UP, 0), True),
        ("block", (DOWN, 0), (LAST, 0), False),
        ("block", (EMBED, 0), (EMBED, 1), True),  # outside any block
        ("block", (EMBED, 0), (DOWN, 0), False),
        ("component", (DOWN, 0), (LAST, 0), True),
        ("component", (DOWN, 0), (UP, 0), False),
    ],
)
def test_members_are_semantic(by: str, first: tuple[str, int], second: tuple[str, int], expected: bool) -> None:
    """Outputs and inputs follow the axes of the anatomy, not storage; a block outside the decoder is one of its own."""
    assert same(first, second, by) is expected


def test_a_member_stands_at_its_best_weight() -> None:
    """Several weights of one output are one member, at the place of the best; k cuts weights, not members."""
    [a] = encode(lists(ranking([(DOWN, 6), (DOWN, 7), (DOWN, 0), (DOWN, 8), (DOWN, 18)])), "output", "global")
    assert a.position.tolist() == [0, 2, 4]
    assert a.rank.tolist() == [1, 2, 3]
    assert a.sizes == {"": 5}


@pytest.mark.parametrize("by", ["output", "input"])
def test_axes_must_be_known(by: str) -> None:
    """Storage alone does not tell an output from an input: without an anatomy the comparison is refused."""
    bare = ranking([(DOWN, 1)], anatomy=False)
    with pytest.raises(SelectionError) as error:
        encode(lists(bare, bare), by, "global")
    assert str(error.value) == (
        f"0.csv: does not say which axis of h.0.down.weight is the {by}; storage does not tell (nn.Linear is stored"
        " output by input, GPT-2's Conv1D input by output, an embedding token by channel)\n"
        "hint: a rank step's folder carries the anatomy, and so does its ranking as Parquet"
    )


@pytest.mark.parametrize("by", ["block", "component"])
def test_older_lists_have_no_blocks(tmp_path: Path, by: str) -> None:
    """An older list does not say where its weights are, and the name of a parameter is not parsed for it."""
    path = older(tmp_path / "a.csv", [(DOWN, "(0, 1)", 1.0)])
    with pytest.raises(SelectionError) as error:
        encode(read_lists([path, path]), by, "global")
    assert str(error.value) == (
        f"a.csv: does not say in which {by} h.0.down.weight is\n"
        "hint: older lists do not know it: compare by weight or layer, or beside a rank step of the same model"
    )


@pytest.mark.parametrize("by", ["weight", "output", "input", "layer", "block", "component"])
def test_an_older_list_beside_a_ranking_borrows_its_anatomy(tmp_path: Path, by: str) -> None:
    """Everything can be compared with an older list of the same model once one ranking carries the anatomy."""
    path = older(tmp_path / "a.csv", [(DOWN, "(1, 0)", 2.0), (EMBED, "(10, 1)", 1.0)])
    full = saved(ranking([(DOWN, 6), (EMBED, 41)]), tmp_path / "b.parquet")
    a, b = encode(read_lists([path, full]), by, "global")
    assert a.code.tolist() == b.code.tolist()


def test_flat_indices_and_tuples_are_compared_through_the_shape(tmp_path: Path) -> None:
    """A list of flat indices and one of tuples need the shape; with it they agree, without it they are refused."""
    tuples = older(tmp_path / "a.csv", [(DOWN, "(1, 0)", 1.0)])
    flat = older(tmp_path / "b.csv", [(DOWN, "6", 1.0)], header="parameter,index,score")
    with pytest.raises(SelectionError) as error:
        encode(read_lists([tuples, flat]), "weight", "global")
    assert str(error.value) == (
        "b.csv: gives h.0.down.weight by flat index and another list by indices; without the tensor's shape they cannot"
        " be compared\nhint: a rank step's folder carries the anatomy, and so does its ranking as Parquet"
    )
    full = saved(ranking([(DOWN, 6)]), tmp_path / "c.parquet")
    a, b, c = encode(read_lists([tuples, flat, full]), "weight", "global")
    assert a.code[0] == b.code[0] == c.code[0]


def test_spelling_of_indices_does_not_matter(tmp_path: Path) -> None:
    """``(1, 0)``, ``1,0`` and ``(1,0)`` are one weight."""
    paths = [older(tmp_path / f"{n}.csv", [(DOWN, text, 1.0)]) for n, text in enumerate(["(1, 0)", "1,0", "(1,0)"])]
    a, b, c = encode(read_lists(paths), "weight", "global")
    assert a.code[0] == b.code[0] == c.code[0]


def test_an_address_outside_the_tensor_is_refused() -> None:
    """An index beyond the tensor is an error that names it, not another output."""
    table = ranking([(DOWN, 1)])
    wrong = Table(table.kind, table.frame.with_columns(pl.lit(24, pl.Int64).alias("index")), table.meta)
    with pytest.raises(SelectionError) as error:
        encode(lists(wrong), "output", "global")
    assert str(error.value) == "0.csv: h.0.down.weight:24 is not a weight of a tensor of shape (4, 6)"


def whole(indices: str) -> Table:
    """Return a ranking of whole outputs or inputs, as ``rank.aggregate`` gives it."""
    frame = ranking([(DOWN, 0)]).frame.with_columns(
        pl.lit(None, pl.Int64).alias("index"), pl.lit(indices).alias("indices")
    )
    return make_table("ranking/1", frame, ranking([(DOWN, 0)]).meta)


def test_whole_outputs_are_members_by_output() -> None:
    """A ranking of whole outputs is compared by output, with a ranking of weights too, and refused by input."""
    a, b = encode(lists(whole("(1, :)"), ranking([(DOWN, 6)])), "output", "global")
    assert a.code[0] == b.code[0]
    with pytest.raises(SelectionError) as error:
        encode(lists(whole("(1, :)")), "input", "global")
    assert str(error.value) == (
        "0.csv: ranks h.0.down.weight:1,: as a whole, which is no single input\n"
        "hint: compare by weight, which takes each row as it is, or by layer, block or component"
    )


def test_units_follow_the_mode() -> None:
    """In per-unit modes positions and ranks start anew in each unit."""
    rows = [(EMBED, 1), (UP, 2), (DOWN, 3), (LAST, 4), (DOWN, 5), (LAST, 6)]
    for mode, sizes in [
        ("global", {"": 6}),
        ("per_layer", {EMBED: 1, UP: 1, DOWN: 2, LAST: 2}),
        ("per_block", {"0": 3, "1": 2, "outside": 1}),
        ("per_component", {"embed": 1, "mlp.up": 1, "mlp.down": 4}),
    ]:
        [members] = encode(lists(ranking(rows, mode=mode)), "weight", mode)
        assert members.sizes == sizes
        assert sorted(members.rank.tolist()) == sorted(n for size in sizes.values() for n in range(1, size + 1))
