"""A ranking is read from a step, a file, a pipe, or an older list under its own column names; text is never evaluated."""

import io
import sys
from pathlib import Path

import pytest

from esa.artifact import Step, make_table, parse_indices, read_ranking, write_table
from esa.errors import ArtifactError
from esa.spec import spec_from_dict

KEPT = ("parameter", "index", "indices", "score", "rank")
ALLOWED = "is not an index; allowed: 128000,3303 or (128000, 3303)"


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Read lists by relative paths, as a person does."""
    monkeypatch.chdir(tmp_path)


def rows(text: str | bytes) -> list[tuple[object, ...]]:
    """Return parameter, index, indices, score and rank of a list."""
    Path("old.csv").write_bytes(text if isinstance(text, bytes) else text.encode())
    table = read_ranking("old.csv")
    assert table.kind == "ranking/1"
    return table.frame.select(KEPT).rows()


@pytest.mark.parametrize("score", ["sensitivity_score", "sensitivity", "score"])
@pytest.mark.parametrize("index", ["indices", "index"])
@pytest.mark.parametrize("parameter", ["parameter", "parameter_name", "layer"])
def test_every_older_spelling_is_read(parameter: str, index: str, score: str) -> None:
    """Any older names of the three columns, in any order and among others, give the ranking by score."""
    text = f'rank,{score},{index},{parameter}\n9,1e-3,"(1, 2)",a\n8,2.5,"3,4",b\n'
    assert rows(text) == [("b", None, "(3, 4)", 2.5, 1), ("a", None, "(1, 2)", 0.001, 2)]


SPELLINGS = [
    ('"(128000, 3303)"', None, "(128000, 3303)"), ('"128000,3303"', None, "(128000, 3303)"), ('" ( 1 ,2 ) "', None, "(1, 2)"),
    ('"(1,2,3)"', None, "(1, 2, 3)"), ("7", 7, None), ('"(7,)"', 7, None), ("(7)", 7, None),
    (str(2**63 - 1), 2**63 - 1, None),
]  # fmt: skip


@pytest.mark.parametrize(("text", "index", "indices"), SPELLINGS)
def test_every_spelling_of_an_index_is_read(text: str, index: int | None, indices: str | None) -> None:
    """Coordinates are read with and without brackets; a single number is the row-major index."""
    assert rows(f"layer,indices,score\na,{text},1\n") == [("a", index, indices, 1.0, 1)]


MALICIOUS = [
    "__import__('os')", "__import__('pathlib').Path('marker').touch()", "(1, open('marker','w'))", "[1, 2]", "1;2", "-3", "3.0",
    "0x10", "1e3", "", "()", "(1, 2", "1 2", "nan", "²", str(2**63),
]  # fmt: skip


@pytest.mark.parametrize("text", MALICIOUS)
def test_text_is_never_evaluated(text: str) -> None:
    """What is no index is refused at its line and column, and nothing of it is run."""
    with pytest.raises(ArtifactError) as caught:
        rows(f'layer,indices,score\na,"(1, 2)",1\nb,"{text}",2\n')
    assert str(caught.value) == f"old.csv:3: indices: {text!r} {ALLOWED}"
    assert not Path("marker").exists()


def test_indices_are_parsed_alone() -> None:
    """parse_indices gives numbers, or None for any other text."""
    assert [parse_indices(text) for text in ("(128000, 3303)", "5", "a", "(1, a)")] == [
        (128000, 3303),
        (5,),
        None,
        None,
    ]


def test_coordinates_are_preferred() -> None:
    """Where a list has both columns the coordinates are read: an older index may count in another way."""
    assert rows('layer,index,indices,score\na,99,"(1, 2)",3\n') == [("a", None, "(1, 2)", 3.0, 1)]


def test_without_scores_the_lines_give_the_order() -> None:
    """A list without a score column is ranked by its lines; a missing score comes last; equal ones keep their order."""
    assert [row[0] for row in rows("layer,index\nb,1\na,2\n")] == ["b", "a"]
    assert [row[0] for row in rows("layer,index,score\nc,1,\nb,1,2\na,2,2\nd,3,5\n")] == ["d", "b", "a", "c"]


def test_an_older_list_is_one_group() -> None:
    """An older list is the group top_k of a global ranking whose ranks count from 1."""
    Path("old.csv").write_text("layer,index,score\na,1,2\nb,2,1\n", encoding="utf-8")
    frame = read_ranking("old.csv").frame
    assert frame.select("mode", "group").unique().rows() == [("global", "top_k")]
    assert frame["rank"].to_list() == [1, 2]
    assert frame.select("metric", "seed", "block", "weight").unique().rows() == [(None, None, None, None)]


REFUSED = {
    "not a number": ('layer,indices,score\na,"(1, 2)",os\n', "old.csv:2: score: 'os' is not a number"),
    "NaN": ("layer,index,score\na,1,2\nb,1,nan\n", "old.csv:3: score: nan is not a score; a number is finite or null"),
    "infinity": ("layer,index,score\na,1,-inf\n", "old.csv:2: score: -inf is not a score; a number is finite or null"),
    "a short line": ("layer,score,index\na,1\n", f"old.csv:2: index: '' {ALLOWED}"),
    "no index": (
        "layer,score\na,1\n",
        "old.csv: has neither the columns of ranking/1 nor of an older list: it needs one of parameter, parameter_name,"
        " layer and one of index, indices; it has layer, score",
    ),
    "other separators": (
        "parameter;index;score\na;1;1\n",
        "old.csv: has neither the columns of ranking/1 nor of an older list: it needs one of parameter, parameter_name,"
        " layer and one of index, indices; it has parameter;index;score",
    ),
    "not UTF-8": (b"layer,index\n\xff,1\n", "old.csv: is not UTF-8: byte 12"),
    "nothing": ("", "old.csv: is empty; a table of ranking/1 was expected"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_no_list_is_refused(case: str) -> None:
    """A list that cannot be read is refused by one line: file, line, column, value, and what is allowed."""
    text, message = REFUSED[case]
    with pytest.raises(ArtifactError) as caught:
        rows(text)
    assert str(caught.value) == message


def test_a_spreadsheet_s_list_is_read() -> None:
    """A byte order mark, line ends of Windows and empty lines do not keep a list from being read."""
    assert rows(b"\xef\xbb\xbflayer,index,score\r\na,1,2\r\n\r\nb,2,1\r\n") == [
        ("a", 1, None, 2.0, 1),
        ("b", 2, None, 1.0, 2),
    ]


@pytest.mark.parametrize("name", ["t.csv", "t.parquet"])
def test_a_ranking_of_esa_is_read_as_it_is(name: str) -> None:
    """The standard table keeps its order and its groups, from a file of either format, a step's folder, or a pipe."""
    table = make_table("ranking/1", [
        {"parameter": "a", "index": 1, "group": "bottom_k", "rank": 1, "score": 1.0},
        {"parameter": "b", "index": 2, "group": "top_k", "rank": 1, "score": 9.0},
    ])  # fmt: skip
    write_table(table, name)
    assert read_ranking(name).frame.equals(table.frame)
    step = Step("rank", spec_from_dict({"name": "x", "model": {"id": "m"}}), {}, folder=Path("step"))
    step.begin()
    step.write(table, name)
    step.finish(tables={name: "ranking/1"})
    assert read_ranking("step").frame.equals(table.frame)


def test_an_older_list_comes_through_a_pipe(monkeypatch: pytest.MonkeyPatch) -> None:
    """Standard input may hold an older list; its errors call it by that name."""
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"layer,index\na,7\n")))
    assert read_ranking("-").frame.select(KEPT).rows() == [("a", 7, None, None, 1)]
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"layer,index\na,x\n")))
    with pytest.raises(ArtifactError, match=r"^standard input:2: index: 'x' is not an index"):
        read_ranking("-")
