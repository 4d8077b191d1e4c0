"""A folder with a tiny model and a spec, and ways to run commands in it."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from esa.artifact import Step, marking_failures
from esa.cli.main import app
from esa.data import source_hash
from esa.errors import EsaError
from tests.artifact.house import House
from tests.conftest import build, make_tokenizer

SPEC = """\
name = "tiny"
question = "Does it run?"

[model]
id = "model"

[calibration]
source = "builtin:dev_small"
windows = 3
length = 16

[eval]
source = "builtin:sentences"
windows = 6
length = 16

[score]
metrics = ["magnitude", "act_mag", "grad_x_weight"]
seeds = [0, 1]
keep = 64

[rank]
k = [1, 5]
draws = 2

[[perturb]]
method = "zero"

[[perturb]]
method = "zero"
unit = "single"
groups = ["top_k"]
k = [2]
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Work in a folder with ``model/`` (a tiny Llama, as the hub lays it out) and ``s.toml``."""
    build("llama").save_pretrained(tmp_path / "model")
    make_tokenizer().save_pretrained(tmp_path / "model")
    (tmp_path / "s.toml").write_text(SPEC)
    monkeypatch.chdir(tmp_path)
    return tmp_path


Invoke = Callable[..., Result]


@pytest.fixture
def esa() -> Invoke:
    """Run a command in this process."""
    return lambda *words: CliRunner().invoke(app, [str(word) for word in words])


@pytest.fixture
def shell(folder: Path) -> Callable[[str], "subprocess.CompletedProcess[bytes]"]:
    """Run a line of shell in which ``esa`` is the command, a pipe failing if any part of it fails."""

    def run(line: str) -> "subprocess.CompletedProcess[bytes]":
        script = f'set -o pipefail; esa() {{ "{sys.executable}" -m esa "$@"; }}; {line}'
        environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"}
        return subprocess.run(["bash", "-c", script], cwd=folder, capture_output=True, env=environment, check=False)

    return run


@pytest.fixture
def house(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> House:
    """Work beside an outputs folder with two runs, their texts as they are now."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "120")
    return House(Path("outputs"), source_hash("builtin:prose"), source_hash("builtin:prose_eval"))


def fail(step: Step, words: str) -> None:
    """Let a step fail."""

    @marking_failures()
    def run() -> None:
        step.begin(force=True)
        raise EsaError(words)

    with pytest.raises(EsaError):
        run()
