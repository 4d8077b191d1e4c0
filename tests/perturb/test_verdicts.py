"""Verdicts on candidates: what intervals say of one alone and with its group."""

import pytest

from esa.eval import Measured
from esa.perturb.detector.verdicts import Damage, counts, damage_of, verdict
from esa.statistics.bootstrap import paired_interval

BAR = 0.01
HARM, NONE, WIDE = Damage(0.5, 0.4, 0.6), Damage(0.0, -0.001, 0.002), Damage(0.3, -0.2, 0.9)
GONE = Damage(nonfinite=True)
UNKNOWN = Damage()

CASES = {  # alone, added, rest, mild
    "alone": ((HARM, None, None, None), "critical"),
    "alone, whatever its group does": ((HARM, NONE, None, None), "critical"),
    "nothing finite is left": ((GONE, None, None, None), "critical"),
    "adds to the others": ((NONE, HARM, None, None), "critical_together"),
    "any two of three are enough: none adds to the other two": ((NONE, NONE, HARM, HARM), "critical_together"),
    "unclear alone, those that are not critical do harm": ((WIDE, NONE, HARM, None), "critical_together"),
    "the others were finite, all together are not": ((NONE, GONE, None, None), "critical_together"),
    "harm is excluded, no group": ((NONE, None, None, None), "harmless"),
    "harm is excluded, in its group too": ((NONE, NONE, NONE, NONE), "harmless"),
    "harm is excluded, another of its group is unclear": ((NONE, NONE, WIDE, NONE), "harmless"),
    "several without harm alone are unclear together": ((NONE, NONE, WIDE, WIDE), "unclear"),
    "wide": ((WIDE, None, None, None), "unclear"),
    "harmless alone, what it adds is wide": ((NONE, WIDE, None, None), "unclear"),
    "harmless alone, without it the group is nonfinite": ((NONE, UNKNOWN, None, None), "unclear"),
    "no interval: under three windows": ((Damage(0.5), None, None, None), "unclear"),
}


@pytest.mark.parametrize("case", CASES)
def test_verdicts(case: str) -> None:
    """Each constellation of damage alone, added and with others has its verdict."""
    given, expected = CASES[case]
    assert verdict(*given, bar=BAR) == expected


def test_the_bar_decides() -> None:
    """The same damage is critical above the bar, harmless below it, and unclear where the interval crosses it."""
    damage = Damage(0.05, 0.04, 0.06)
    assert [verdict(damage, None, None, None, bar) for bar in (0.03, 0.05, 0.07)] == ["critical", "unclear", "harmless"]


def measured(nll: list[float], *, nonfinite: bool = False) -> Measured:
    """Return a measurement of windows of 10 tokens."""
    return Measured(nll=nll, num_tokens=[10] * len(nll), num_correct=[0] * len(nll), nonfinite=nonfinite)


def test_damage_is_paired() -> None:
    """The damage is the difference of the mean NLLs with the paired interval; nothing is said against a nonfinite base."""
    base, changed = measured([10.0, 20.0, 30.0, 25.0]), measured([11.0, 22.0, 30.5, 26.5])
    found = damage_of(changed, base, 3, "name", 0.9, 999)
    ends = paired_interval(changed.nll, base.nll, base.num_tokens, 3, "name", 0.9, 999)
    assert found.delta == pytest.approx(5 / 40)
    assert (found.low, found.high) == (ends.low, ends.high)
    assert found.low is not None
    assert found.low < 5 / 40
    broken = measured([0.0] * 4, nonfinite=True)
    assert damage_of(broken, base, 0, "x") == GONE
    assert damage_of(changed, broken, 0, "x") == UNKNOWN


def test_verdicts_are_counted() -> None:
    """Every verdict has its count, also those that nobody got."""
    assert counts(["critical", "harmless", "critical"]) == {
        "critical": 2, "critical_together": 0, "harmless": 1, "unclear": 0,
    }  # fmt: skip
