"""`esa init` starts a spec that runs, and never writes over another unasked."""

from pathlib import Path

import pytest

from esa.spec import load_spec
from tests.cli.conftest import Invoke


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Work in an empty folder."""
    monkeypatch.chdir(tmp_path)


def test_a_spec_is_written_and_valid(esa: Invoke) -> None:
    """The file takes its name and model from the command, holds a valid spec, and its path is all there is on stdout."""
    done = esa("init", "specs/llama_8b.toml", "--model", "meta-llama/Llama-3.1-8B")
    assert (done.exit_code, done.stdout) == (0, "specs/llama_8b.toml\n")
    assert done.stderr == "esa: esa run --spec specs/llama_8b.toml --dry-run shows what it would do\n"
    made = load_spec("specs/llama_8b.toml")
    assert (made.name, made.model.id) == ("llama_8b", "meta-llama/Llama-3.1-8B")
    assert esa("check", "specs/llama_8b.toml", "-q").exit_code == 0


def test_stdout_is_the_default(esa: Invoke) -> None:
    """Without a file, as with -, the spec goes to stdout and nothing is written."""
    done = esa("init", "--name", "a-1")
    assert (done.exit_code, done.stderr) == (0, "")
    assert '\nname = "a-1" ' in done.stdout
    assert esa("init", "-", "--name", "a-1").stdout == done.stdout
    assert list(Path().iterdir()) == []


def test_what_is_there_stays(esa: Invoke) -> None:
    """A file is not written over without --force, nor is a folder taken for one."""
    Path("s.toml").write_text("mine")
    done = esa("init", "s.toml")
    assert (done.exit_code, done.stderr) == (
        3, "esa: error: s.toml: is there already\n  hint: give another FILE, or --force to write over it\n"
    )  # fmt: skip
    assert Path("s.toml").read_text() == "mine"
    assert esa("init", "s.toml", "--force", "-q").stderr == ""
    assert load_spec("s.toml").name == "s"
    done = esa("init", ".")
    assert (done.exit_code, done.stderr) == (
        3, "esa: error: FILE: '.' is a folder\n  hint: esa init spec.toml\n"
    )  # fmt: skip


@pytest.mark.parametrize("options", [("--name", "a b"), ("--name", ""), ("--model", "")])
def test_values_are_checked(esa: Invoke, options: tuple[str, str]) -> None:
    """A name or a model that no spec takes is refused under its option, before anything is written."""
    done = esa("init", "s.toml", *options)
    assert done.exit_code == 3
    assert done.stderr.startswith(f"esa: error: {options[0]}: ")
    assert not Path("s.toml").exists()


@pytest.mark.parametrize(("file", "name"), [("my spec.toml", "my_run"), (".toml", "my_run"), ("x.y.toml", "x.y")])
def test_a_file_that_names_no_run(esa: Invoke, file: str, name: str) -> None:
    """Where the file's name cannot be a run's, the usual one stands in its place."""
    assert esa("init", file).exit_code == 0
    assert load_spec(file).name == name


def test_quotes_and_backslashes_survive(esa: Invoke) -> None:
    """A model's path with quotes and backslashes reads back as it was given."""
    model = './a "b"\\c'
    assert esa("init", "s.toml", "--model", model).exit_code == 0
    assert load_spec("s.toml").model.id == model
