"""Commands meet through pipes as through files: the same bytes; a closed pipe ends quietly; half a table is refused."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest
from typer.testing import CliRunner

from esa.cli.main import app, main
from tests.cli.conftest import Invoke

Shell = Callable[[str], "subprocess.CompletedProcess[bytes]"]


def piped(data: bytes, *words: str) -> tuple[int, bytes, str]:
    """Run a command in this process with ``data`` on its standard input; return exit code, stdout and stderr."""
    done = CliRunner().invoke(app, [*words, "-q"], input=data)
    return done.exit_code, done.stdout_bytes, done.stderr


def fed(data: bytes, *words: str) -> bytes:
    """Return what a command makes of ``data``."""
    code, out, error = piped(data, *words)
    assert (code, error) == (0, "")
    return out


def through_files(esa: Invoke, suffix: str) -> dict[str, bytes]:
    """Go from score to damage and on to overlap by files of one format; return the bytes of each."""
    names = {name: f"{name}.{suffix}" for name in ("scores", "top", "damage", "overlap", "eval")}
    lines = [
        f"score -s s.toml -o {names['scores']}",
        f"rank {names['scores']} -k 5 -o {names['top']}",
        f"perturb -s s.toml --targets {names['top']} -o {names['damage']}",
        f"overlap {names['top']} -k 5 --by weight --by layer -o {names['overlap']}",
        f"eval -s s.toml -o {names['eval']}",
    ]
    for line in lines:
        done = esa(*line.split(), "-q")
        assert done.exit_code == 0, done.output
    return {name: Path(path).read_bytes() for name, path in names.items()}


def through_pipes(suffix: str) -> dict[str, bytes]:
    """Go the same way with - for every file."""
    out = ("-o", "-", "-f", suffix)
    scores = fed(b"", "score", "-s", "s.toml", *out)
    top = fed(scores, "rank", "-", "-k", "5", *out)
    return {
        "scores": scores,
        "top": top,
        "damage": fed(top, "perturb", "-s", "s.toml", "--targets", "-", *out),
        "overlap": fed(top, "overlap", "-", "-k", "5", "--by", "weight", "--by", "layer", *out),
        "eval": fed(b"", "eval", "-s", "s.toml", *out),
    }


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_pipes_give_the_bytes_of_files(suffix: str, folder: Path, esa: Invoke) -> None:
    """From score to damage, and on to overlap, every table is the same to the byte through files, pipes, and pipes again.

    An overlap alone names its lists by where they came from.
    """
    files = through_files(esa, suffix)
    shutil.rmtree("outputs")
    pipes, again = through_pipes(suffix), through_pipes(suffix)  # computed, then reused
    for name, data in pipes.items():
        if name == "overlap":
            columns = [column for column in rows(data, suffix).columns if not column.startswith("label")]
            assert rows(data, suffix)[columns].equals(rows(files[name], suffix)[columns])
        else:
            assert data == files[name], name
        assert data == again[name], name
    draws = {"csv": 19, "parquet": 2}[suffix]  # a CSV of scores carries no spec: the default number of draws
    # metrics x groups x K jointly, the draws x K, and metrics x 2 single weights
    assert rows(pipes["damage"], suffix).height == 3 * 2 * 2 + 2 * draws + 3 * 2


def rows(data: bytes, suffix: str) -> pl.DataFrame:
    """Return a table's rows."""
    return pl.read_csv(data) if suffix == "csv" else pl.read_parquet(data)


def test_the_documented_line(folder: Path, esa: Invoke, shell: Shell) -> None:
    """The line that the README shows, in a real shell, gives what files give, to the byte: scores are Parquet in a pipe."""
    for line in ("score -o scores.parquet -s s.toml", "rank scores.parquet -k 5 -o top.csv"):
        assert esa(*line.split(), "-q").exit_code == 0
    assert esa("perturb", "-s", "s.toml", "--targets", "top.csv", "-o", "files.csv", "-q").exit_code == 0
    shutil.rmtree("outputs")
    done = shell("esa score -s s.toml -o - | esa rank - -k 5 | esa perturb -s s.toml --targets - -o damage.csv")
    assert (done.returncode, done.stdout) == (0, b""), done.stderr.decode()
    assert b"Traceback" not in done.stderr
    assert Path("damage.csv").read_bytes() == Path("files.csv").read_bytes()


def test_folders_give_the_same_rows(folder: Path, esa: Invoke) -> None:
    """By folders, each named by the command before, the damage is the same but for the id: a step's id names the step."""
    scored = esa("score", "-s", "s.toml", "-q").stdout.strip()
    ranked = esa("rank", scored, "-k", "5", "-q").stdout.strip()
    damage = esa("perturb", "-s", "s.toml", "--targets", ranked, "-o", "-", "-q").stdout_bytes
    top = fed(fed(b"", "score", "-s", "s.toml", "-o", "-"), "rank", "-", "-k", "5")
    other = fed(top, "perturb", "-s", "s.toml", "--targets", "-", "-o", "-")
    assert pl.read_csv(damage).drop("run").equals(pl.read_csv(other).drop("run"))


@pytest.fixture
def tables(folder: Path, esa: Invoke) -> dict[str, bytes]:
    """Return a score table and a ranking of it in both formats; the ranking's CSV has quoted fields."""
    found = {}
    for suffix in ("csv", "parquet"):
        assert esa("score", "-s", "s.toml", "-q", "-o", f"scores.{suffix}").exit_code == 0
    for suffix in ("csv", "parquet"):
        words = ("rank", "scores.parquet", "-k", "60", "--mode", "per_layer", "-q", "-o", f"top.{suffix}")
        assert esa(*words).exit_code == 0
    for name in ("scores.csv", "scores.parquet", "top.csv", "top.parquet"):
        found[name] = (folder / name).read_bytes()
    assert b'"(' in found["top.csv"]
    return found


def test_a_reader_that_leaves_ends_the_writer(tables: dict[str, bytes], shell: Shell) -> None:
    """`| head -n 1` on a ranking of megabytes ends the writer without a word, and with exit code 0."""
    assert len(tables["top.csv"]) > 1 << 17  # more than a pipe holds
    done = shell("esa rank scores.parquet -k 60 --mode per_layer -q -o - | head -n 1; echo ${PIPESTATUS[0]}")
    assert done.stdout.startswith(b"run,metric,seed,mode,unit_name,group,draw,rank,parameter,index,indices")
    assert done.stdout.splitlines()[1] == b"0"
    assert done.stderr == b""


WRITERS = {
    "score": "score -s s.toml -o - -f csv",
    "rank": "rank scores.parquet -k 5 -o -",
    "perturb": "perturb -s s.toml --targets top.csv -k 1 -o -",
    "overlap": "overlap top.csv -k 5 -o -",
    "eval": "eval -s s.toml -o -",
    "a folder's name": "score -s s.toml",
    "a plan": "run -s s.toml --dry-run",
}


def test_a_reader_that_is_gone_ends_every_command(
    tables: dict[str, bytes], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """With nobody at the other end of the pipe, every command that writes to it ends quietly, with 0."""
    for line in WRITERS.values():
        reader, writer = os.pipe()
        os.close(reader)
        capfd.readouterr()
        with monkeypatch.context() as patch, os.fdopen(writer, "w") as stdout:
            patch.setattr(sys, "stdout", stdout)
            patch.setattr(sys, "argv", ["esa", *line.split(), "-q"])
            with pytest.raises(SystemExit) as ended:
                main()
        assert (line, ended.value.code or 0, capfd.readouterr().err) == (line, 0, "")


FOOTER = "is a truncated Parquet file: its footer is missing"
LINE = "is truncated: its last line does not end"
BROKEN: dict[str, tuple[str, Callable[[bytes], bytes], str]] = {
    "Parquet, cut in the middle": ("parquet", lambda data: data[: len(data) // 2], FOOTER),
    "Parquet, cut by a byte": ("parquet", lambda data: data[:-1], FOOTER),
    "Parquet, its first bytes alone": ("parquet", lambda data: data[:4], "cannot be read as Parquet: "),
    "Parquet, its middle gone": ("parquet", lambda data: data[:100] + data[-4:], "cannot be read as Parquet: "),
    "CSV, cut in a row": ("csv", lambda data: data[:-9], LINE),
    "CSV, cut in a quoted field": ("csv", lambda data: data[: data.index(b'"(') + 3], LINE),
    "CSV, cut between CR and LF": ("csv", lambda data: data[:-1], LINE),
    "CSV, an open quote at a line's end": ("csv", lambda data: data[: data.index(b'"(') + 3] + b"\n", "cannot be read as CSV: "),
    "CSV, cut in the header": ("csv", lambda data: data[:25], ""),
    "CSV, the header alone": ("csv", lambda data: data[: data.index(b"\n") + 1], "holds no row"),
    "nothing": ("csv", lambda data: b"", "is empty; a table of "),
}  # fmt: skip
READERS = {
    "rank": ("scores", ("rank", "-", "-k", "5", "-o", "-")),
    "perturb": ("top", ("perturb", "-s", "s.toml", "--targets", "-", "-o", "-")),
    "overlap": ("top", ("overlap", "-", "-k", "5", "-o", "-")),
}


def test_half_a_table_is_refused(tables: dict[str, bytes]) -> None:
    """A table cut anywhere but between two rows is one clear error on stdin, with 3: by its footer, its last line, its quotes.

    A CSV says nowhere how many rows it has: one that is cut at the end of a row cannot be told from a shorter one.
    """
    for reader, (kind, words) in READERS.items():
        for case, (suffix, cut, what) in BROKEN.items():
            whole = tables[f"{kind}.{suffix}"]
            if "quote" in case and kind == "scores":
                continue  # none of its fields is quoted
            code, out, error = piped(cut(whole), *words)
            assert (reader, case, code, out) == (reader, case, 3, b"")
            assert error.startswith(("esa: error: standard input: ", "esa: error: -: ")), (reader, case, error)
            assert what in error or case == "CSV, the header alone", (reader, case, error)
            assert "Traceback" not in error
    whole = tables["top.csv"]
    at_a_border = whole[: whole.index(b"\n", len(whole) // 2) + 1]
    code, out, error = piped(at_a_border, *READERS["overlap"][1])
    assert (code, error) == (0, ""), error


def test_a_writer_that_dies_is_not_taken_for_a_short_table(folder: Path, shell: Shell) -> None:
    """In a real pipe: a writer that failed leaves nothing on it, and the reader says so."""
    done = shell("esa score -s nowhere.toml -o - -q | esa rank - -k 5 -q; echo ${PIPESTATUS[@]}")
    assert done.stdout == b"3 3\n"
    assert b"esa: error: standard input: is empty; a table of scores/1 was expected" in done.stderr


def test_help_is_quick_and_light(esa: Invoke) -> None:
    """`esa --help` names every command."""
    done = esa("--help")
    for command in ("run", "score", "rank", "perturb", "overlap", "eval", "report", "check"):
        assert command in done.stdout
