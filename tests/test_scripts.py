"""The tools in scripts/ start, say what they do, and measure."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SCRIPTS = sorted(path.name for path in (ROOT / "scripts").glob("*.py"))


@pytest.mark.parametrize("name", [name for name in SCRIPTS if name != "small_configurations.py"])
def test_each_says_what_it_does(name: str) -> None:
    """--help opens with the script's own docstring."""
    done = subprocess.run(
        [sys.executable, f"scripts/{name}", "--help"], capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert done.returncode == 0, done.stderr
    assert (ROOT / "scripts" / name).read_text().splitlines()[1].strip('"')[:40] in done.stdout.replace("\n", " ")


def test_a_benchmark_writes_what_it_prints(tmp_path: Path) -> None:
    """The JSON holds the machine, and of every quantity median, spread and target."""
    words = [sys.executable, "scripts/bench.py", "help", "--repeats", "1", "--json", str(tmp_path / "b.json")]
    done = subprocess.run(words, capture_output=True, text=True, cwd=ROOT, check=True)
    found = json.loads((tmp_path / "b.json").read_text())
    assert found["machine"]["cores"] >= 1
    assert found["help"]["low"] <= found["help"]["median"] <= found["help"]["high"]
    assert f"{found['help']['median']:.3f}" in done.stdout
