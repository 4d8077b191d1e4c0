"""The intervals cover as often as the README says, on 2,000 simulated evaluations of every kind."""

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

RUNS = 2000  # a share of 95 % then has a standard error of half a point
# (differences, windows) -> least and most share, in percent, of the studentized and of the BCa intervals that hold the truth.
# What falls short of 95 is known to: a skewness that 20 windows do not show, an outlier that was not drawn.
BANDS = {
    ("normal", 20): ((94, 98), (91, 95)),
    ("normal", 64): ((93.5, 96.5), (92.5, 96)),
    ("lognormal", 20): ((90, 94.5), (85, 90)),
    ("lognormal", 64): ((91.5, 95), (89.5, 93.5)),
    ("outlier", 20): ((99, 100), (99, 100)),
    ("outlier", 64): ((98.5, 100), (98, 100)),
    ("contaminated", 20): ((77, 83), (72, 78)),
    ("contaminated", 64): ((87, 91.5), (85, 89.5)),
}


@pytest.fixture(scope="module")
def script() -> ModuleType:
    """Return scripts/coverage.py."""
    path = Path(__file__).parents[2] / "scripts" / "coverage.py"
    found = importlib.util.spec_from_file_location("coverage_script", path)
    assert found is not None
    assert found.loader is not None
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module


@pytest.mark.slow
@pytest.mark.parametrize(("differences", "windows"), list(BANDS))
def test_intervals_cover_as_often_as_stated(script: ModuleType, differences: str, windows: int) -> None:
    """Both kinds of interval lie in their bands, and under skewed or contaminated differences the studentized holds more."""
    found = script.coverage(differences, windows, RUNS)
    for kind, (least, most) in zip(("studentized", "bca"), BANDS[differences, windows], strict=True):
        assert least <= 100 * found[kind] <= most, (kind, found)
    assert found["studentized"] >= found["bca"] - 0.005


def test_a_wrong_interval_is_out_of_band(script: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """Intervals shrunk to 80 % fall out of the normal band in 200 runs already; right ones hold more than they."""
    right = script.paired_interval
    monkeypatch.setitem(script.INTERVALS, "bca", lambda *given: right(*given[:5], 0.8, given[6]))
    found = script.coverage("normal", 20, 200, resamples=199)
    assert 100 * found["bca"] < BANDS["normal", 20][0][0] - 5
    assert found["studentized"] > found["bca"] + 0.05


@pytest.mark.parametrize("name", ["normal", "lognormal", "outlier", "contaminated"])
def test_the_truth_is_the_mean(script: ModuleType, name: str) -> None:
    """The mean that each simulation is held against is that of its differences."""
    draw, truth = script.DISTRIBUTIONS[name]
    rng = np.random.default_rng(0)
    assert np.mean([draw(rng, 25).mean() for _ in range(4000)]) == pytest.approx(truth(25), abs=0.03)


def test_the_table_and_the_json_hold_the_same(
    script: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """A row per distribution and interval, a column per number of windows, the shares those of the JSON."""
    words = [
        "coverage.py",
        "--runs",
        "5",
        "--windows",
        "8",
        "4",
        "--resamples",
        "99",
        "--json",
        str(tmp_path / "c.json"),
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", words)
        script.main()
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "| differences | interval | 4 windows | 8 windows |"
    found = json.loads((tmp_path / "c.json").read_text())
    assert len(lines) == 2 + 2 * len(found) == 10
    assert f"| normal | bca | {100 * found['normal']['4']['bca']:.1f} % |" in lines[3]
