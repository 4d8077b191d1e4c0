"""What --dry-run says of memory is what a run takes, and a budget changes the way but no number."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from esa import score
from esa.model.footprint import footprint
from esa.model.room import memory_room
from esa.score.memory import effort_of, passes, strategy_of
from esa.spec import Spec, spec_from_dict
from tests.conftest import make_tokenizer

# Samples what the process holds a hundred times a second while esa runs in it.
SAMPLER = """
import sys, threading, time
from pathlib import Path
peak = 0
def sample():
    global peak
    while True:
        lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines() if ":" in line)
        peak = max(peak, sum(int(lines[kind].split()[0]) * 1024 for kind in ("RssAnon", "RssShmem")))
        time.sleep(0.01)
threading.Thread(target=sample, daemon=True).start()
from esa.cli.main import main
sys.argv = ["esa", *sys.argv[1:]]
try:
    main()
finally:
    print("peak", peak, file=sys.stderr)
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a Llama of 64 million random bfloat16 weights."""
    config = LlamaConfig(
        vocab_size=16000, hidden_size=768, intermediate_size=3072, num_hidden_layers=4, num_attention_heads=12,
        num_key_value_heads=4, tie_word_embeddings=False,
    )  # fmt: skip
    path = tmp_path_factory.mktemp("models") / "llama"
    AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(path)
    make_tokenizer().save_pretrained(path)
    return path


def spec_of(folder: Path, **sections: Any) -> Spec:
    """Return a spec that scores it, held as float32: so that nothing of it is only mapped from its file."""
    tree = {
        "name": "memory", "model": {"id": str(folder), "device": "cpu", **sections.pop("model", {})},
        "calibration": {"windows": 3, "length": 64},
        "score": {"metrics": ["act_mag", "grad_x_weight", "grad_squared"], **sections.pop("score", {})},
    }  # fmt: skip
    return spec_from_dict(tree)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="resident memory is read from /proc")
@pytest.mark.parametrize(
    ("settings", "stage"),
    [
        ([], "score: window"),
        (["model.memory_budget='900 MB'"], "score: embedding"),
        (["model.residency='disk'"], "score: embedding"),
    ],
)
def test_the_predicted_peak_is_the_measured_one(folder: Path, tmp_path: Path, settings: list[str], stage: str) -> None:
    """The peak that --dry-run names lies within 20 % of what the process holds, graphs kept, in a budget, and from disk."""
    file = tmp_path / "s.toml"
    file.write_text(
        f'name = "memory"\n[model]\nid = "{folder}"\ndevice = "cpu"\n[calibration]\nwindows = 3\nlength = 64\n'
        '[score]\nmetrics = ["act_mag", "grad_x_weight", "grad_squared"]\n',
        encoding="utf-8",
    )
    words = ["score", "-s", str(file), *(word for setting in settings for word in ("--set", setting)), "--threads", "1"]
    planned = subprocess.run(
        [sys.executable, "-m", "esa", *words, "-n"], capture_output=True, text=True, check=True, cwd=tmp_path
    ).stdout
    predicted = re.search(r"peak ([\d.]+) GB, bound by (.*)", planned)
    assert predicted is not None
    assert predicted[2] == stage
    done = subprocess.run(
        [sys.executable, "-c", SAMPLER, *words, "-o", f"{tmp_path}/out/"],
        capture_output=True, text=True, check=True, cwd=tmp_path,
    )  # fmt: skip
    held = int(done.stderr.rpartition("peak ")[2]) / 1e9
    assert float(predicted[1]) == pytest.approx(held, rel=0.2)


def test_a_budget_changes_the_way_and_no_number(folder: Path, tmp_path: Path) -> None:
    """From graphs kept to every window a wave of its own with all sums in files: the same tables under the same id."""
    found = {}
    for budget in (None, "900 MB", "1 MB"):
        spec = spec_of(folder, model={"memory_budget": budget} if budget else {}, score={"include": ["block=2"]})
        done = score.run(spec, root=tmp_path / str(budget))
        tables = {file.name: pl.read_parquet(file) for file in sorted(done.folder.glob("*.parquet"))}
        assert not list(done.folder.glob(".sums-*"))
        found[budget] = done.id, tables
    for other in ("900 MB", "1 MB"):
        assert found[other][0] == found[None][0]
        for name, table in found[None][1].items():
            assert table.equals(found[other][1][name]), name


def test_the_ways_are_tried_from_the_fastest_on(folder: Path) -> None:
    """The more room the fewer passes: each budget takes the first way that is predicted to fit, the last one where none is."""
    ways = []
    for budget in (10**12, 1_000_000_000, 860_000_000, 1_000_000):
        spec = spec_of(folder, model={"memory_budget": budget})
        model = footprint(spec.model)
        effort = effort_of(spec, model)
        strategy, stages = strategy_of(spec, model, effort, memory_room(spec.model, torch.device("cpu")))
        ways.append((strategy.keep_graphs, strategy.waves, strategy.in_files is not None))
        assert (max(stages.values()) <= budget) == (budget > 1_000_000)
        assert passes(spec, effort, strategy)
    assert ways == [(True, 1, False), (False, 1, False), (False, 1, True), (False, 3, True)]


def test_the_machine_is_the_budget_where_none_is_given() -> None:
    """Without a budget a step takes four fifths of the memory at most, and of a container's share."""
    spec = spec_of(Path("x"))
    room = memory_room(spec.model, torch.device("cpu"))
    physical = next(
        int(line.split()[1]) * 1024 for line in Path("/proc/meminfo").read_text().splitlines() if "MemTotal" in line
    )
    assert 0 < room <= 0.8 * physical + 1
