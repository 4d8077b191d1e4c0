"""The script of false alarms counts what stands out in null models, and finds what was planted in the model itself."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from scripts import false_alarms
from tests.conftest import make_tokenizer
from tests.perturb.super_weights import LENGTH, WINDOWS, WRITER, planted, write_text

ROOT = Path(__file__).parents[1]


def test_a_planted_weight_is_no_false_alarm(tmp_path: Path) -> None:
    """In the model itself the planted weight is found and critical; shuffled and random models are looked at as often as asked."""
    loaded = planted()
    loaded.model.save_pretrained(tmp_path / "model")
    make_tokenizer().save_pretrained(tmp_path / "model")
    text = write_text(loaded, tmp_path / "own.txt")
    words = [
        sys.executable, "scripts/false_alarms.py", "--model", str(tmp_path / "model"), "--runs", "2", "--kinds", "none",
        "shuffled", "random", "--thresholds", "20", "1e6", "--windows", "6", "--length", "12", "--eval", f"file:{text}",
        "--eval-windows", str(WINDOWS // 2), "--eval-length", str(LENGTH), "--json", str(tmp_path / "alarms.json"),
    ]  # fmt: skip
    done = subprocess.run(words, capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "alarms.json").read_text())
    assert {kind: len(models) for kind, models in found.items()} == {"none": 1, "shuffled": 2, "random": 2}
    [own] = found["none"]
    assert [(one["target"], one["verdict"]) for one in own["candidates"]] == [(WRITER, "critical")]
    assert all(model["candidates"] == [] for model in found["random"])
    prints = [model["fingerprint"] for models in found.values() for model in models]
    assert len(set(prints)) == len(prints)
    assert "| none | 20 | 1 of 1 (0.21 to 1.00) | 1 of 3 (" in done.stdout
    assert "| random | 20 | 0 of 2 (0.00 to 0.66) | 0 of 6 (" in done.stdout


def model(*ratios: float | None, harm: float | None = None) -> dict[str, object]:
    """Return what is known of a model of some blocks, one of which holds a critical writer."""
    critical = {"peak_ratio": harm, "role": "writer", "verdict": "critical_together"}
    eraser = {"peak_ratio": 60.0, "role": "eraser", "verdict": "harmless"}
    return {"blocks": list(ratios), "candidates": [eraser] + ([critical] if harm is not None else [])}


COUNTED = {
    5.0: ["2 of 3", "3 of 6", "1 of 3", "1 of 3"],
    20.0: ["2 of 3", "3 of 6", "1 of 3", "1 of 3"],
    50.0: ["2 of 3", "2 of 6", "0 of 3", "0 of 3"],
}


@pytest.mark.parametrize("threshold", COUNTED)
def test_rates_count_models_and_blocks(threshold: float) -> None:
    """Models with a block that stands out, blocks, models with a writer and with harm are counted apart, per threshold."""
    models = [model(3.0, 60.0), model(1.0, 2.0), model(30.0, None, harm=30.0)]
    cells = false_alarms.row("shuffled", threshold, models)
    assert [cell.partition(" (")[0] for cell in cells[2:]] == COUNTED[threshold]
