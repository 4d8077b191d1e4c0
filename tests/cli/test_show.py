"""`esa show` says what a table, a step or a run holds and where it comes from, and never obeys what it shows."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from esa.artifact import Step, make_table, write_table
from esa.artifact.describe import Column, describe_columns, read_any
from esa.artifact.tables import encode
from esa.cli.main import app
from esa.cli.plain import aligned, cut, duration, printable
from esa.cli.provenance import inputs_text
from esa.data import source_hash
from tests.artifact.house import House
from tests.cli.conftest import Invoke, fail

LONG = "model.layers.11.self_attn.q_proj.weight"
ROWS: list[dict[str, object]] = [
    {"run": "r", "case": f"{n:012d}", "metric": None if n % 3 else "act_mag", "k": n, "ppl": 10.0**n, "below_floor": n > 4,
     "target": f"{LONG}:{n},{n}", "outcome": "ok"}
    for n in range(12)
]  # fmt: skip


@pytest.fixture
def damage(house: House) -> Path:
    """Return a damage table inside a finished step."""
    inputs = {"ranking": house.rank.id, "eval": source_hash("builtin:prose_eval")}
    step = Step("perturb", house.perturb.spec, inputs, root=house.root)
    step.begin(force=True)
    step.write(make_table("damage/1", ROWS, step.meta()), "damage.csv")
    step.write(make_table("damage/1", ROWS, step.meta(note="n")), "damage.parquet")
    model = {"id": "m", "num_parameters": 12345, "dtype": "float32", "fingerprint": "f" * 64, "device": "cpu"}
    data = {"source": "builtin:prose_eval", "windows": 3, "length": 16, "bos": False, "sha256": "9" * 64}
    checksum = {"restored": True, "num_tensors": 2}
    tables = {"damage.csv": "damage/1", "damage.parquet": "damage/1"}
    step.finish(tables=tables, model=model, data=data, seeds=[0], warnings=["mind the gap"], checksum=checksum)
    return step.folder / "damage.csv"


def test_a_table_is_described(damage: Path, esa: Invoke) -> None:
    """A table of a step shows kind and size, a line per column, the first rows, and the step that wrote it."""
    done = esa("show", damage)
    assert (done.exit_code, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert lines[0] == str(damage)
    assert re.fullmatch(r"damage/1, CSV: 12 rows, 27 columns, [\d,]+ B", lines[1])
    described = {line.split()[0]: line.split()[1:] for line in lines[4:31]}
    assert described["run"] == ["text", "0", "1", "r"]
    assert described["metric"] == ["text", "8", "1", "act_mag"]
    assert described["k"] == ["int64", "0", "12", "0", "..", "11"]
    assert described["ppl"] == ["float64", "0", "12", "1", "..", "1e+11"]
    assert described["below_floor"] == ["boolean", "0", "2", "false", "..", "true"]
    assert described["nll"] == ["float64", "12", "0"]
    assert "first 10 of 12 rows; columns of one value are left out" in lines
    assert f"target: {LONG}:9,9".split()[1] in done.stdout
    assert f"{LONG}:10,10" not in done.stdout.split("first 10")[1]
    said = done.stdout.replace("\n" + " " * 12, " ")
    for words in (
        f"written by  perturb-{damage.parent.name[-12:]} of x", "as its step wrote it", "12,345 weights", "mind the gap",
        "builtin:prose_eval, 3 windows of 16 tokens, no BOS, sha256 999999999999", "every weight was restored",
    ):  # fmt: skip
        assert words in said


@pytest.mark.parametrize("width", [80, 120])
def test_wide_tables_stay_within_the_window(
    damage: Path, esa: Invoke, monkeypatch: pytest.MonkeyPatch, width: int
) -> None:
    """No line is wider than the window, and every column that varies is shown in one of the bands."""
    monkeypatch.setenv("COLUMNS", str(width))
    lines = esa("show", damage).stdout.splitlines()
    assert max(map(len, lines)) <= width
    start = next(place for place, line in enumerate(lines) if line.startswith("first"))
    shown = {word for line in lines[start:] if not line[:1].isdigit() for word in line.split()}
    assert {"case", "metric", "k", "ppl", "below_floor", "target"} <= shown
    assert lines[start:].count("") == (3 if width == 80 else 3 - 1)


def test_rows_and_columns_are_chosen(damage: Path, esa: Invoke) -> None:
    """--rows and --columns say what is shown, constant columns too; 0 rows is none; an unknown column is refused."""
    done = esa("show", damage, "--columns", "k, outcome", "--rows", "2")
    assert done.stdout.split("first 2 of 12 rows\n")[1].split("\n\n")[0] == "\n   k  outcome\n1  0  ok\n2  1  ok"
    assert "ppl" not in done.stdout
    assert "rows;" not in esa("show", damage, "--rows", "0").stdout
    assert "\nall rows; columns of one value" in esa("show", damage, "--rows", "99").stdout
    done = esa("show", damage, "--columns", "k,outcom")
    assert done.exit_code == 3
    assert done.stderr.startswith(
        f"esa: error: --columns: 'outcom' is no column of {damage} (did you mean 'outcome'?); it has run, case, "
    )
    assert esa("show", damage, "--rows", "-1").exit_code == 2


@pytest.mark.parametrize("format", ["csv", "parquet"])
def test_a_pipe_shows_what_a_file_does(damage: Path, format: str) -> None:
    """Columns and rows are the same through a pipe; a Parquet pipe carries its step along, a CSV does not."""
    data = damage.with_suffix(f".{format}").read_bytes()
    piped = CliRunner().invoke(app, ["show", "-"], input=data).stdout
    filed = CliRunner().invoke(app, ["show", str(damage.with_suffix(f".{format}"))]).stdout
    cut_out = [text.split("columns, ")[1].split("written by")[0] for text in (piped, filed)]
    assert cut_out[0] == cut_out[1]
    assert piped.startswith("standard input\ndamage/1, ")
    tail = piped[piped.index("written by") :]
    if format == "csv":
        assert "not known: the file does not say" in tail
    else:
        assert f"step {damage.parent.name[-12:]} of x" in tail
        assert "also carries  note, spec" in tail


def test_a_changed_table_is_told(damage: Path, esa: Invoke) -> None:
    """A table whose bytes are no longer those of its step says so."""
    damage.write_bytes(damage.read_bytes().replace(b"act_mag", b"act_mug"))
    said = " ".join(esa("show", damage).stdout.split())
    assert "NOT as its step wrote it: it was changed since" in said


def test_older_and_foreign_tables_are_read(tmp_path: Path, esa: Invoke, monkeypatch: pytest.MonkeyPatch) -> None:
    """A table of no kind, of a kind with columns missing, or of an unknown kind is shown for what it is."""
    monkeypatch.chdir(tmp_path)
    Path("f.csv").write_text("a,b\n1,x\n2,\n")
    assert esa("show", "f.csv").stdout.splitlines()[1] == "no table of esa, CSV: 2 rows, 2 columns, 11 B"
    table = make_table("eval/1", [{"case": "c"}])
    old = table.frame.drop("run", "num_items")
    old.write_parquet("old.parquet", metadata={"esa.kind": "eval/1"})
    assert (
        esa("show", "old.parquet").stdout.splitlines()[1].startswith("eval/1, without run, num_items, Parquet: 1 rows")
    )
    old.write_parquet(
        "new.parquet", metadata={"esa.kind": "eval/9", "esa.run": "r", "esa.spec": "{", "esa.inputs": "[]"}
    )
    done = esa("show", "new.parquet")
    assert done.stdout.splitlines()[1].startswith("eval/9, which this esa does not know, Parquet")
    assert "step r" in done.stdout


REFUSED = {
    "empty.csv": (b"", "empty.csv: is empty; a table was expected"),
    "cut.parquet": (b"PAR1" + b"\0" * 50, "cut.parquet: is a truncated Parquet file: its footer is missing"),
    "bad.parquet": (b"PAR1" + b"\0" * 50 + b"PAR1", "bad.parquet: cannot be read as Parquet: "),
    "ragged.csv": (b"a,b\n1,2,3\n", "ragged.csv: cannot be read as CSV: "),
    "picture": (b"\x89PNG\r\n\xff\xfe", "picture: is neither Parquet nor CSV: "),
    "x.json": (
        b"{}",
        "x.json: '.json' is no table's suffix; allowed: .csv, .parquet, -, the folder of a step or a run",
    ),
}


@pytest.mark.parametrize("name", [*REFUSED, "absent.csv", "cut.csv"])
def test_what_is_no_table_is_refused(tmp_path: Path, esa: Invoke, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """What is missing, empty, truncated or no table at all is one clear error."""
    monkeypatch.chdir(tmp_path)
    data, words = REFUSED.get(name, (None, f"{name}: no such file"))
    if name == "cut.csv":
        data, words = encode(make_table("windows/1", [{"case": "c"}]), "csv")[:-2], "cut.csv: is truncated: "
    if data is not None:
        Path(name).write_bytes(data)
    done = esa("show", name)
    assert (done.exit_code, done.stdout) == (3, "")
    assert done.stderr.startswith(f"esa: error: {words}")


HOSTILE = "\x1b[2J\x07\u202eevil\u200b\r\x9b31m[bold]"


def test_no_terminal_obeys_a_table(tmp_path: Path, esa: Invoke, monkeypatch: pytest.MonkeyPatch) -> None:
    """Control, format and invisible characters of cells, headers, metadata and errors are shown as escapes."""
    monkeypatch.chdir(tmp_path)
    frame = make_table("eval/1", [{"case": HOSTILE, "task": "t"}, {"case": "b"}]).frame.rename({"task": f"h{HOSTILE}"})
    frame.write_parquet("t.parquet", metadata={"esa.kind": HOSTILE, "esa.run": HOSTILE})
    for done in (esa("show", "t.parquet"), esa("show", "t.parquet", "--columns", "nope")):
        for text in (done.stdout, done.stderr):
            assert all(one.isprintable() or one == "\n" for one in text)
    assert "\\x1b[2J\\x07\\u202eevil\\u200b\\r\\x9b31m[bold]" in esa("show", "t.parquet").stdout


def test_a_step_is_described(damage: Path, esa: Invoke, house: House) -> None:
    """The folder of a step shows its status, its manifest in words, and its tables."""
    done = esa("show", damage.parent)
    lines = done.stdout.splitlines()
    assert lines[:2] == [str(damage.parent), f"perturb-{damage.parent.name[-12:]} of x: complete"]
    assert [line.split()[:2] for line in lines[-2:]] == [["damage.csv", "damage/1"], ["damage.parquet", "damage/1"]]
    assert any(line.startswith("made from") and f"ranking {house.rank.id}" in line for line in lines)
    assert esa("show", damage.parent.relative_to("outputs")).stdout == done.stdout
    damage.unlink()
    found = esa("show", damage.parent).stdout
    assert ": stale, damage.csv is gone" in found
    assert re.search(r"damage\.csv +damage/1 +gone", found)


def test_a_step_without_manifest_says_why(house: House, esa: Invoke) -> None:
    """A failed step shows its error, and that it has no tables."""
    fail(house.rank, "no room")
    lines = esa("show", house.rank.folder).stdout.splitlines()
    assert lines == [
        str(house.rank.folder), f"rank-{house.rank.id}: failed, no room", "", "no tables: the step is not finished",
    ]  # fmt: skip


def test_a_run_is_described(house: House, esa: Invoke) -> None:
    """A run shows its question, its steps as `esa runs` lists them, and their tables; its name will do for its path."""
    done = esa("show", "outputs/x")
    assert esa("show", "x").stdout == done.stdout
    first, steps, tables = done.stdout.split("\n\n")
    assert first.splitlines()[:2] == ["outputs/x", "model     m"]
    assert steps.splitlines() == esa("runs", "x").stdout.splitlines()
    assert [line.split()[1] for line in tables.splitlines()[1:]] == ["scores/1", "ranking/1", "damage/1", "overlap/1"]


def test_other_folders_are_refused(house: House, esa: Invoke) -> None:
    """A folder of several runs, or of none, is no run."""
    done = esa("show", "outputs")
    assert (done.exit_code, done.stderr) == (
        3, "esa: error: outputs: holds several runs\n  hint: esa runs outputs lists them\n"
    )  # fmt: skip
    Path("empty").mkdir()
    done = esa("show", "empty")
    assert (done.exit_code, done.stderr) == (
        3, "esa: error: empty: holds no step of esa\n  hint: esa runs lists what there is\n"
    )  # fmt: skip


def test_a_closed_pipe_ends_quietly(damage: Path) -> None:
    """`esa show | head` says nothing more than head lets through."""
    script = f'set -o pipefail; "{sys.executable}" -m esa show {damage} --rows 12 | head -n 1'
    done = subprocess.run(
        ["bash", "-c", script],
        capture_output=True, text=True, check=False, env={"PYTHONPATH": str(Path(__file__).parents[2]), "PATH": "/usr/bin:/bin"},
    )  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{damage}\n", "")


def test_columns_are_counted(tmp_path: Path) -> None:
    """Nulls, distinct values, bounds and few texts are those of the column; a column of nulls has none."""
    rows = [{"case": text, "num_tokens": number} for text, number in (("a", 3), ("b", None), ("a", -1), (None, 3))]
    write_table(make_table("windows/1", rows), tmp_path / "t.parquet")
    found = {one.name: one for one in describe_columns(read_any(tmp_path / "t.parquet").frame)}
    assert found["case"] == Column("case", "text", 1, 2, "a", "b", ("a", "b"))
    assert found["num_tokens"] == Column("num_tokens", "int64", 1, 2, -1, 3)
    assert found["nll"] == Column("nll", "float64", 4, 0)


def test_text_is_laid_out_by_what_a_terminal_shows() -> None:
    """Wide characters count twice, cuts leave an ellipsis, and control characters are escaped before they are counted."""
    assert aligned([["a", "1"], ["語語", "22"], ["\x1b"]], right={1}) == ["a      1", "語語  22", "\\x1b"]
    assert cut("語語語", 5) == "語語…"
    assert cut("abc", 3) == "abc"
    assert printable("a\tb\u2028é") == "a\\tb\\u2028é"
    assert [duration(value) for value in (None, 0.04, 99.9, 100, 6000, 7560)] == [
        "", "0.0 s", "99.9 s", "1.7 min", "1.7 h", "2.1 h",
    ]  # fmt: skip
    assert aligned([]) == []


def test_what_a_step_was_made_from_is_told_by_short_hashes_and_whole_settings() -> None:
    """A hash is cut to its start, a setting never, and one that is empty goes without saying."""
    inputs = {
        "0:score": "7476ae932548" + "0" * 52,
        "metrics": "act_mag grad_x_weight",
        "methods": "",
        "to": "100000000.0",
    }
    assert inputs_text(inputs) == "0:score 7476ae932548, metrics act_mag grad_x_weight, to 100000000.0"
