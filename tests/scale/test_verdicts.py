"""What is said of the fits: a law, another law, none, or too little to say anything."""

import pytest

from esa.scale.verdicts import Evidence, verdict
from esa.statistics.bootstrap import UNKNOWN, Interval
from esa.statistics.laws import LawFit

SIX = tuple("abcdef")


def power(r2: float = 0.97, weight: float | None = 0.88) -> LawFit:
    """Return a fitted power law of exponent -0.31."""
    return LawFit("power", 6, 6, None, (2.0, -0.31), r2, -20.0, weight)


def other(r2: float, weight: float = 0.7) -> LawFit:
    """Return a fitted saturating law."""
    return LawFit("saturating", 6, 6, None, (1.0, 2.0, -0.5), r2, -25.0, weight)


def line(r2: float) -> LawFit:
    """Return a fitted line."""
    return LawFit("linear", 6, 6, None, (1.0, -0.2), r2, -25.0, 0.6)


CLEAR, UNCLEAR = Interval(-0.4, -0.22), Interval(-0.4, 0.1)


@pytest.mark.parametrize(
    ("evidence", "text", "law"),
    [
        (
            Evidence(SIX, best=power(), power=power(), exponent=CLEAR),
            "Power law x^-0.31 [-0.40, -0.22] (R2 0.97, weight 0.88)", "power",
        ),
        (Evidence(SIX, best=power(0.12), power=power(0.12), exponent=CLEAR), "No power law (R2 0.12)", None),
        (Evidence(SIX, best=power(0.499), power=power(0.499), exponent=CLEAR), "No power law (R2 0.49)", None),
        (
            Evidence(SIX, best=power(0.6), power=power(0.6), exponent=UNCLEAR),
            "No power law (x^-0.31 [-0.40, 0.10], whose interval holds 0; R2 0.60)", None,
        ),
        (
            Evidence(SIX, best=other(0.99), power=power(0.12), exponent=CLEAR),
            "No power law (R2 0.12); saturating (R2 0.99, weight 0.70) instead", "saturating",
        ),
        (Evidence(SIX, best=other(0.4), power=power(0.12), exponent=CLEAR), "No power law (R2 0.12)", None),
        (
            Evidence(SIX, best=line(0.9), slope=UNCLEAR, power=power(0.9), exponent=UNCLEAR),
            "No power law (x^-0.31 [-0.40, 0.10], whose interval holds 0; R2 0.90)", None,
        ),
        (
            Evidence(SIX, best=line(0.9), slope=CLEAR, power=power(0.4), exponent=CLEAR),
            "No power law (R2 0.40); linear (R2 0.90, weight 0.60) instead", "linear",
        ),
        (
            Evidence(SIX, best=other(0.99), power=power(0.9), exponent=CLEAR),
            "Saturating (R2 0.99, weight 0.70); as a power law x^-0.31 [-0.40, -0.22] (R2 0.90)", "saturating",
        ),
        (
            Evidence(SIX[:4], best=power(), power=power(), exponent=UNKNOWN, few=True),
            "Power law x^-0.31 (R2 0.97, weight 0.88); indicative: 4 models", "power",
        ),
        (
            Evidence(SIX, power=LawFit("power", 6, 6, "it does not vary")),
            "No law: it does not vary", None,
        ),
        (
            Evidence(("a", "b"), reasons=("collapsed", "collapsed", "nonfinite")),
            "Refused: 2 models with a value (a, b), 3 are needed; of 3 runs, of one of them: collapsed", None,
        ),
        (
            Evidence(SIX, best=power(), power=power(), exponent=CLEAR, reasons=("collapsed: x", "nonfinite: y", "no K")),
            "Power law x^-0.31 [-0.40, -0.22] (R2 0.97, weight 0.88); of what survived: 2 runs collapsed or nonfinite", "power",
        ),
        (
            Evidence(SIX, best=power(), power=power(), exponent=CLEAR, num_values=12, unclear=9),
            "Power law x^-0.31 [-0.40, -0.22] (R2 0.97, weight 0.88); 9 of 12 values are not told from 0 by their own windows",
            "power",
        ),
        (Evidence(("a",)), "Refused: 1 model with a value (a), 3 are needed", None),
        (Evidence((), "checkpoints"), "Refused: 0 checkpoints with a value, 3 are needed", None),
    ],
)  # fmt: skip
def test_a_verdict_says_what_the_rule_says(evidence: Evidence, text: str, law: str | None) -> None:
    """Each branch of the rule has its words, and tells which law stands."""
    found = verdict(evidence, 3)
    assert found.text == text
    assert (found.law.law if found.law else None) == law
