"""The intervals of laws hold the truth in 90 to 99 % of simulated families, and an interval that is too narrow does not."""

from types import ModuleType

import numpy as np
import pytest

from esa.statistics.bootstrap import Interval
from tests.statistics import test_coverage
from tests.statistics.test_laws import family

CELLS = [(law, sizes, seeds, noise) for law in ("power", "broken_power") for sizes in (6, 8, 12) for seeds in (2, 3)
         for noise in ("small", "large")]  # fmt: skip


script = test_coverage.script  # the fixture


@pytest.mark.slow
@pytest.mark.parametrize(("law", "sizes", "seeds", "noise"), CELLS)
def test_the_truth_is_held(script: ModuleType, law: str, sizes: int, seeds: int, noise: str) -> None:
    """Exponents, break and the value at five times the largest size are held in 90 to 99 % of 200 families."""
    found = script.law_coverage(law, sizes, seeds, noise, 200)
    found.pop("open", None)
    assert all(0.9 <= share <= 0.99 for share in found.values()), found


@pytest.mark.parametrize(("law", "sizes"), [("power", 6), ("broken_power", 8)])
def test_the_truth_is_mostly_held(script: ModuleType, law: str, sizes: int) -> None:
    """Of 40 families at least 34 are held in every quantity (binomial 99.9 % at a true 95 %)."""
    found = script.law_coverage(law, sizes, 2, "small", 40, resamples=199)
    found.pop("open", None)
    assert all(share >= 34 / 40 for share in found.values()), found


def test_too_narrow_an_interval_is_seen(script: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """Intervals of half the level fall far below."""
    right = script.bootstrap_laws
    monkeypatch.setattr(script, "bootstrap_laws", lambda *given: right(*given, 0.5))
    assert script.law_coverage("power", 6, 2, "small", 40, resamples=199)["b"] < 34 / 40


def test_families_are_what_they_say(script: ModuleType) -> None:
    """Noise between models and between seeds has its standard deviation, and the parameters lie in their ranges."""
    rng = np.random.default_rng(0)
    points = script.family("power", 2000, 3, "large", (1.0, 0.0), rng)
    logs = np.log(points.y).reshape(2000, 3)
    assert logs.std(axis=1, ddof=1).mean() == pytest.approx(0.1 * 0.8862, rel=0.05)  # E of the sd of three
    assert logs.mean(axis=1).std() == pytest.approx(np.hypot(0.15, 0.1 / np.sqrt(3)), rel=0.05)
    for _ in range(50):
        _, below, above, place = script.law_values("broken_power", rng)
        assert 0.3 <= below - above <= 0.8
        assert 10**5.5 <= place <= 10**6.5


def test_an_open_end_bounds_nothing(script: ModuleType) -> None:
    """None holds on its side, and on the other the number decides."""
    assert script.holds_open(Interval(None, 2.0), 1.0)
    assert not script.holds_open(Interval(None, 2.0), 3.0)
    assert script.holds_open(Interval(None, None), 3.0)


def test_the_table_of_laws(script: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    """A row per law, noise and quantity, a column per size and number of seeds."""
    monkeypatch.setattr(script, "SIZES", (6,))
    monkeypatch.setattr(script, "SEEDS", (2,))
    monkeypatch.setattr("sys.argv", ["coverage.py", "--laws", "--runs", "2"])
    script.main()
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "| law | noise | quantity | 6 sizes, 2 seeds |"
    assert len(lines) == 2 + 2 * (2 + 5)
    assert lines[2].startswith("| power | small | b | ")
    assert family(sizes=6).response == "log"
