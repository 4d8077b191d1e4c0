"""Tables go through CSV and Parquet, files and pipes, without losing a bit, and refuse what is no table."""

import io
import math
import struct
import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest

from esa.artifact import Table, find_table, finite, make_table, read_table, to_json, write_table
from esa.artifact.schemas import SCHEMAS
from esa.artifact.tables import decode, encode
from esa.errors import ArtifactError

TEXTS = [
    "a,b", 'say "hi"', "two\nlines", "two\r\nlines", "ünï → 漢字 🤖", "", None, " padded ", "'", "# no comment", "NULL",
    "null", "nan", "1e5", "(507, 1229)", "\\n", "-",
]  # fmt: skip
INTEGERS = [2**53 + 1, 2**63 - 1, -(2**63), 0, -1, None]
REALS = [
    1e-45, 0.1 + 0.2, -0.0, 0.0, 5e-324, 1.7976931348623157e308, 1 / 3, 1e16, 123456789012345680.0, 1e-7, -2.5, 1e22, None,
]  # fmt: skip
SINGLES = [1e-45, 0.1, -0.0, 0.0, 3.4028234663852886e38, 1 / 3, 16777217.0, 1.1754942106924411e-38, 1e-7, None]
RANKING_HEADER = ",".join(SCHEMAS["ranking/1"])


def cycle(values: list[object], count: int) -> list[object]:
    """Return ``count`` values, over and over."""
    return [values[i % len(values)] for i in range(count)]


def hard_ranking() -> Table:
    """Return a ranking of everything that is hard to write down."""
    count = len(TEXTS) * 3
    rows: list[dict[str, object]] = [
        {"run": "r", "parameter": text, "unit_name": other, "index": integer, "score": real, "signed": again, "rank": i}
        for i, (text, other, integer, real, again) in enumerate(
            zip(
                cycle(TEXTS, count), cycle(TEXTS[3:], count), cycle(INTEGERS, count), cycle(REALS, count),
                cycle(REALS[2:], count), strict=True,
            )
        )
    ]  # fmt: skip
    return make_table("ranking/1", rows, {"run": "abc", "spec": '{"name":"ü"}', "inputs": "{}"})


def hard_scores() -> Table:
    """Return scores at the edges of float32."""
    frame = pl.DataFrame({"parameter": ["p"] * len(SINGLES), "score": SINGLES, "index": cycle(INTEGERS, len(SINGLES))})
    return make_table("scores/1", frame, {"run": "abc"})


def hard_damage() -> Table:
    """Return damage with truth values and nulls."""
    rows: list[dict[str, object]] = [{"case": "a", "below_floor": flag, "nll": 2.5} for flag in (True, False, None)]
    return make_table("damage/1", rows)


TABLES = {"ranking": hard_ranking, "scores": hard_scores, "damage": hard_damage}


def bits(value: object) -> object:
    """Return a value so that -0.0 differs from 0.0."""
    return struct.pack("<d", value) if isinstance(value, float) else value


def assert_same_table(found: Table, expected: Table) -> None:
    """Raise AssertionError unless both have the same kind, columns, types and values, to the last bit."""
    assert found.kind == expected.kind
    assert found.frame.schema == expected.frame.schema
    for name in expected.frame.columns:
        left = [bits(value) for value in found.frame[name]]
        right = [bits(value) for value in expected.frame[name]]
        assert left == right, name


@pytest.fixture(params=list(TABLES))
def table(request: pytest.FixtureRequest) -> Table:
    """Give each hard table in turn."""
    return TABLES[str(request.param)]()


@pytest.mark.parametrize("suffix", ["csv", "parquet", "PARQUET", "txt"])
def test_a_file_reads_back_the_same(table: Table, suffix: str, tmp_path: Path) -> None:
    """A table written to a file reads back bit for bit, whatever its values and its suffix."""
    path = tmp_path / f"t.{suffix}"
    write_table(table, path)
    assert_same_table(read_table(path, table.kind), table)
    assert (path.read_bytes()[:4] == b"PAR1") is (suffix.lower() == "parquet")


@pytest.mark.parametrize("format", ["csv", "parquet"])
def test_a_pipe_carries_what_a_file_holds(
    table: Table,
    format: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfdbinary: pytest.CaptureFixture[bytes],
) -> None:
    """Standard output takes the very bytes of the file, and standard input gives the same table back."""
    path = tmp_path / f"t.{format}"
    write_table(table, path)
    write_table(table, "-", format)
    piped = capfdbinary.readouterr().out
    assert piped == path.read_bytes()
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(piped)))
    assert_same_table(read_table("-", table.kind), table)


@pytest.mark.parametrize("format", ["csv", "parquet"])
def test_a_long_pipe_loses_nothing(format: str) -> None:
    """A table longer than the pipe's buffer passes through another process unchanged."""
    rows = pl.DataFrame({"parameter": ["p" * 50] * 20_000, "index": list(range(20_000))}).with_columns(
        score=(pl.col("index") * 0.1234567).sin()
    )
    data = encode(make_table("ranking/1", rows), format)
    code = (
        f"from esa.artifact import read_table, write_table\nwrite_table(read_table('-', 'ranking/1'), '-', {format!r})"
    )
    done = subprocess.run([sys.executable, "-c", code], input=data, capture_output=True, check=True)
    assert len(data) > 1 << 17
    assert done.stdout == data


def test_the_comparison_can_fail() -> None:
    """A sign of zero, a type, a null or another kind fails the comparison."""
    table = make_table("ranking/1", [{"score": 0.0}])
    for other in (
        make_table("ranking/1", [{"score": -0.0}]),
        make_table("ranking/1", [{"score": None}]),
        Table("ranking/1", table.frame.with_columns(pl.col("rank").cast(pl.Int32))),
        Table("scores/1", table.frame),
    ):
        with pytest.raises(AssertionError):
            assert_same_table(other, table)


def test_csv_is_plain() -> None:
    """CSV is RFC 4180: its lines end in CR LF, null is empty, text is quoted where it must be, numbers are shortest."""
    rows: list[dict[str, object]] = [
        {"run": "r", "parameter": 'a,"b"', "index": 2**53 + 1, "score": 0.1 + 0.2, "weight": None, "unit_name": ""}
    ]
    assert encode(make_table("ranking/1", rows), "csv").decode() == (
        f'{RANKING_HEADER}\r\nr,,,,"",,,,"a,""b""",9007199254740993,,,,,,0.30000000000000004,,,\r\n'
    )


@pytest.mark.parametrize("format", ["csv", "parquet"])
def test_the_same_table_gives_the_same_bytes(format: str) -> None:
    """Writing a table twice gives the same file."""
    assert encode(hard_ranking(), format) == encode(hard_ranking(), format)


def test_parquet_carries_where_it_comes_from(tmp_path: Path) -> None:
    """Parquet keeps the table's kind and what it carries beside its rows; CSV has no place for it."""
    table = hard_ranking()
    for name in ("t.parquet", "t.csv"):
        write_table(table, tmp_path / name)
    assert pl.read_parquet_metadata(tmp_path / "t.parquet")["esa.kind"] == "ranking/1"
    assert read_table(tmp_path / "t.parquet", "ranking/1").meta == table.meta
    assert read_table(tmp_path / "t.csv", "ranking/1").meta == {}


def test_scores_go_to_a_pipe_as_parquet(capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    """On standard output scores are Parquet and everything else is CSV, unless a format is asked for."""
    write_table(hard_scores(), "-")
    assert capfdbinary.readouterr().out[:4] == b"PAR1"
    write_table(hard_damage(), "-")
    assert capfdbinary.readouterr().out.startswith(b"run,case,metric")
    write_table(hard_scores(), "-", "csv")
    assert capfdbinary.readouterr().out.startswith(b"run,metric,seed")


@pytest.mark.parametrize("format", ["csv", "parquet"])
def test_a_table_without_rows_is_a_table(format: str) -> None:
    """A table of no rows keeps its columns and their types."""
    empty = make_table("ranking/1", [])
    assert empty.frame.schema == pl.Schema(SCHEMAS["ranking/1"])
    assert_same_table(decode(encode(empty, format), "ranking/1", "f"), empty)


def test_columns_are_put_in_order() -> None:
    """Rows in any order of columns become the kind's columns, the missing ones null and the foreign ones left out."""
    table = make_table("faults/1", [{"new": 2, "case": "c", "colour": "red"}])
    assert table.frame.columns == list(SCHEMAS["faults/1"])
    assert table.frame.row(0, named=True) == {**dict.fromkeys(SCHEMAS["faults/1"]), "new": 2.0, "case": "c"}


def test_some_columns_of_parquet_are_read_alone(tmp_path: Path) -> None:
    """Named columns of a Parquet file are read without the others; a column that is not there is named."""
    path = tmp_path / "t.parquet"
    write_table(hard_scores(), path)
    assert read_table(path, "scores/1", ["parameter", "score"]).frame.columns == ["parameter", "score"]
    with pytest.raises(ArtifactError, match=r"t\.parquet: cannot be read as Parquet: .*nope"):
        read_table(path, "scores/1", ["nope"])


def line(**values: object) -> bytes:
    """Return one CSV line of a ranking."""
    return ",".join(str(values.get(name, "")) for name in SCHEMAS["ranking/1"]).encode() + b"\r\n"


def parquet(values: dict[str, list[object]], drop: tuple[str, ...] = ()) -> bytes:
    """Return a Parquet file of a ranking's columns that esa did not write."""
    columns = {name: [None] for name in SCHEMAS["ranking/1"] if name not in drop}
    buffer = io.BytesIO()
    pl.DataFrame({**columns, **values}).write_parquet(buffer)
    return buffer.getvalue()


HEADER = RANKING_HEADER.encode() + b"\r\n"
WHOLE_CSV = encode(make_table("ranking/1", [{"parameter": "p", "score": 1.5, "match_ratio": 1.25}]), "csv")
WHOLE_PARQUET = encode(make_table("ranking/1", [{"parameter": "p", "score": 1.5}]), "parquet")
MOST = ", ".join(name for name in SCHEMAS["ranking/1"] if name not in ("score", "parameter"))
REFUSED = {
    "nothing": (b"", "f.x: is empty; a table of ranking/1 was expected"),
    "a CSV cut in its last line": (WHOLE_CSV[:-4], "f.x: is truncated: its last line does not end"),
    "a CSV cut behind a carriage return": (WHOLE_CSV[:-1], "f.x: is truncated: its last line does not end"),
    "a CSV header cut": (HEADER[:-30], "f.x: lacks score, signed, weight, match_ratio of ranking/1; it has "),
    "a Parquet without its end": (WHOLE_PARQUET[:-1], "f.x: is a truncated Parquet file: its footer is missing"),
    "a Parquet cut in half": (WHOLE_PARQUET[:200], "f.x: is a truncated Parquet file: its footer is missing"),
    "a Parquet with a hole": (WHOLE_PARQUET[:50] + WHOLE_PARQUET[-8:], "f.x: cannot be read as Parquet: "),
    "Parquet's magic alone": (b"PAR1", "f.x: cannot be read as Parquet: "),
    "another kind": (encode(make_table("scores/1", []), "parquet"), "f.x: holds scores/1 where ranking/1 was expected"),
    "a CSV of another kind": (
        b"parameter,score\r\n", f"f.x: lacks {MOST} of ranking/1; it has parameter, score",
    ),
    "a Parquet that lacks a column": (parquet({}, drop=("index", "rank")), "f.x: lacks rank, index of ranking/1; it has run,"),
    "bytes of something else": (b"\x89PNG\xff\xfe\n\x00", "f.x: is neither Parquet nor CSV: 'utf-8' codec can't decode byte 0x89"),
    "text that is not UTF-8": (HEADER + line(parameter="ü").decode().encode("latin1"), "f.x: cannot be read as CSV: invalid utf-8"),
    "a word for a number in CSV": (
        HEADER + line(index="abc"), "f.x: cannot be read as CSV: could not parse `abc` as dtype `i64` at column 'index'",
    ),
    "a number too large for its column": (
        HEADER + line(index=2**63), "f.x: cannot be read as CSV: could not parse `9223372036854775808` as dtype `i64`",
    ),
    "a line too long": (HEADER + b"1," * 30 + b"\r\n", "f.x: cannot be read as CSV: "),
    "a word for a number in Parquet": (
        parquet({"score": ["abc"]}), "f.x: is no table of ranking/1: conversion from `str` to `f64` failed in column 'score'",
    ),
    "NaN in CSV": (HEADER + line(score=1) + line(score="nan"), "f.x: ranking/1: score: row 1: nan; a number is finite or null"),
    "infinity in CSV": (HEADER + line(weight="-inf"), "f.x: ranking/1: weight: row 0: -inf; a number is finite or null"),
    "a number that overflows": (HEADER + line(score="1e400"), "f.x: ranking/1: score: row 0: inf; a number is finite or null"),
    "NaN in Parquet": (parquet({"score": [math.nan]}), "f.x: ranking/1: score: row 0: nan; a number is finite or null"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_no_table_is_refused(case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bytes that are no whole, finite table of the kind are refused by one line that names the file and the fault."""
    data, text = REFUSED[case]
    monkeypatch.chdir(tmp_path)
    Path("f.x").write_bytes(data)
    with pytest.raises(ArtifactError) as caught:
        read_table("f.x", "ranking/1")
    assert str(caught.value).startswith(text)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 3


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A missing file and a folder are refused by name."""
    monkeypatch.chdir(tmp_path)
    for name, text in (("nope.csv", "nope.csv: no such file"), (".", ".: cannot be read: Is a directory")):
        with pytest.raises(ArtifactError) as caught:
            read_table(name, "ranking/1")
        assert str(caught.value) == text


def test_nan_is_never_written() -> None:
    """A table of NaN or infinity cannot be made, and the error names kind, column and row."""
    for value in (math.nan, math.inf):
        with pytest.raises(ArtifactError) as caught:
            make_table("damage/1", [{"nll": 1.0}, {"nll": value}])
        assert str(caught.value) == f"damage/1: nll: row 1: {value}; a number is finite or null"
    assert [finite(value) for value in (1.5, math.nan, math.inf, -math.inf, None)] == [1.5, None, None, None, None]


def test_a_foreign_csv_is_read(tmp_path: Path) -> None:
    """A CSV as others write it is read too: plain line ends, quotes everywhere, a byte order mark, an empty last line."""
    names = list(SCHEMAS["ranking/1"])
    values = ["p" if name == "parameter" else "7" if name == "index" else "" for name in names]
    quoted = "\n".join(",".join(f'"{cell}"' for cell in row) for row in (names, values))
    path = tmp_path / "t.csv"
    path.write_bytes(b"\xef\xbb\xbf" + quoted.encode() + b"\n\n")
    frame = read_table(path, "ranking/1").frame
    assert frame.select("parameter", "index", "score").rows() == [("p", 7, None)]


def test_standard_input_is_told_apart_by_its_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Parquet and CSV on standard input are recognised without being named; nothing at all is an error."""
    table = hard_ranking()
    for format in ("csv", "parquet"):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(encode(table, format))))
        assert_same_table(find_table("-", "ranking/1"), table)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"")))
    with pytest.raises(ArtifactError) as caught:
        read_table("-", "ranking/1")
    assert str(caught.value) == "standard input: is empty; a table of ranking/1 was expected"


def test_a_terminal_is_no_table(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reading a table from a terminal is refused rather than waited for."""
    terminal = io.TextIOWrapper(io.BytesIO())
    monkeypatch.setattr(terminal, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(sys, "stdin", terminal)
    with pytest.raises(ArtifactError) as caught:
        read_table("-", "ranking/1")
    assert str(caught.value) == "-: standard input is a terminal; a table was expected from a pipe"


def test_json_has_one_spelling() -> None:
    """Equal values give equal JSON, in sorted keys and without spaces, and NaN has none."""
    assert to_json({"b": (1, 2.5), "a": None}) == '{"a":null,"b":[1,2.5]}'
    assert to_json({"a": None, "b": [1, 2.5]}) == to_json({"b": (1, 2.5), "a": None})
    with pytest.raises(ValueError, match="Out of range float values"):
        to_json(math.nan)


def test_every_table_starts_with_its_run() -> None:
    """The first column of every kind is the step that wrote it."""
    assert {next(iter(columns)) for columns in SCHEMAS.values()} == {"run"}
