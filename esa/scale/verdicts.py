"""Say in words what the fits of a quantity come to: a power law, another law, or none."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from esa.statistics.bootstrap import UNKNOWN, Interval
from esa.statistics.laws import LawFit

NO_LAW_R2 = 0.5  # a law that explains less of the variance between models than this is none
BROKEN = ("collapsed", "nonfinite")  # how the reasons of broken models begin
WORDS = {
    "power": "power law", "linear": "linear", "logarithmic": "logarithmic", "exponential": "exponential",
    "saturating": "saturating", "broken_power": "broken power law",
}  # fmt: skip


@dataclass(frozen=True)
class Evidence:
    """What a verdict is read from.

    ``models``: those that have a value; ``noun`` what they are called; ``reasons`` why others have none, one per run;
    ``best`` the law that AICc prefers, ``slope`` the interval of its b where it is a line in some axes (unknown of a law with
    a bend), ``power`` the power law, ``exponent`` the interval of its exponent; ``few``: so few models that all is indicative;
    ``unclear``: how many of the ``num_values`` are damages that their own windows do not tell from none.
    """

    models: Sequence[str]
    noun: str = "models"
    reasons: Sequence[str] = ()
    best: LawFit | None = None
    slope: Interval = UNKNOWN
    power: LawFit | None = None
    exponent: Interval = UNKNOWN
    few: bool = False
    num_values: int = 0
    unclear: int = 0


class Verdict(NamedTuple):
    """The words, and the law that stands; None where there is no law."""

    text: str
    law: LawFit | None


def verdict(found: Evidence, fewest: int) -> Verdict:
    """Return the verdict on a series, by this rule, in this order.

    Fewer than ``fewest`` models: refused, with the commonest reason. The values do not vary: no law. There is no power law
    where its R2 (of the model means, in the response) is under 0.5 or where the interval of its exponent holds 0: another
    law stands instead if AICc prefers it, its R2 is at least 0.5 and the interval of its slope does not hold 0 either, else
    none does. Otherwise the law that AICc prefers
    stands, with its Akaike weight; where that is not the power law, the power law's exponent is named behind it. Where
    runs were left out because their models broke, the words end on it: the law is then one of the survivors. So they do
    where values are damages whose own intervals hold 0: a law through them may be one of noise.

    In families of mere noise a law stands in 9 % of those of 4 and of 6 models, 6 % of 8, 3 % of 12 (300 simulated ones of
    2 seeds each): the best of several laws is judged by an interval made for one.
    """
    if len(found.models) < fewest:
        names = f" ({', '.join(found.models)})" if found.models else ""
        return Verdict(
            f"Refused: {_counted(found)} with a value{names}, {fewest} are needed{_why(found.reasons)}",
            None,
        )
    power = found.power
    if power is None or power.r2 is None:
        return Verdict(f"No law: {power.reason if power is not None else 'nothing could be fitted'}", None)
    indicative = f"; indicative: {len(found.models)} {found.noun}" if found.few else ""
    broken = sum(reason.startswith(BROKEN) for reason in found.reasons)
    if found.unclear:
        indicative += f"; {found.unclear} of {found.num_values} values are not told from 0 by their own windows"
    if broken:
        indicative += f"; of what survived: {broken} {'run' if broken == 1 else 'runs'} collapsed or nonfinite"
    exponent = power_words(power, found.exponent)
    other = found.best if found.best is not None and found.best.law != "power" else None
    if power.r2 < NO_LAW_R2 or _holds_zero(found.exponent):
        why = f"R2 {_r2(power)}" if power.r2 < NO_LAW_R2 else f"{exponent}, whose interval holds 0; R2 {_r2(power)}"
        clear = other is not None and (other.r2 or 0.0) >= NO_LAW_R2 and not _holds_zero(found.slope)
        stands = other if clear else None
        rest = f"; {law_words(stands)} instead" if stands is not None else ""
        return Verdict(f"No power law ({why}){rest}{indicative}", stands)
    if other is None:
        return Verdict(f"Power law {exponent} ({_fit_words(power)}){indicative}", power)
    words = law_words(other)
    return Verdict(f"{words[0].upper()}{words[1:]}; as a power law {exponent} (R2 {_r2(power)}){indicative}", other)


def power_words(power: LawFit, interval: Interval) -> str:
    """Return a power law as ``x^-0.31 [-0.40, -0.22]``."""
    low, high = interval
    ends = "" if low is None or high is None else f" [{low:.2f}, {high:.2f}]"
    return f"x^{power.values[1]:.2f}{ends}"


def law_words(fit: LawFit) -> str:
    """Return a law with how well it fits: ``saturating (R2 0.98, weight 0.71)``."""
    return f"{WORDS[fit.law]} ({_fit_words(fit)})"


def _counted(found: Evidence) -> str:
    number = len(found.models)
    return f"{number} {found.noun.removesuffix('s') if number == 1 else found.noun}"


def _holds_zero(interval: Interval) -> bool:
    low, high = interval
    return low is not None and high is not None and low <= 0 <= high


def _fit_words(fit: LawFit) -> str:
    return f"R2 {_r2(fit)}" + ("" if fit.weight is None else f", weight {fit.weight:.2f}")


def _r2(fit: LawFit) -> str:
    """Return R2 in two digits, cut and not rounded, so that 0.499 does not read as the 0.50 that it is judged against."""
    return f"{int(100 * max(0.0, fit.r2 or 0.0)) / 100:.2f}"


def _why(reasons: Sequence[str]) -> str:
    """Return the commonest reason for a missing value."""
    if not reasons:
        return ""
    (reason, count), runs = Counter(reasons).most_common(1)[0], "run" if len(reasons) == 1 else "runs"
    return f"; of {len(reasons)} {runs}{'' if count == len(reasons) else ', of one of them'}: {reason}"
