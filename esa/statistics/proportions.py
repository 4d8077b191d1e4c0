"""Intervals of a proportion."""

from esa.statistics.bootstrap import UNKNOWN, Interval


def wilson_interval(successes: int, trials: int, level: float = 0.95) -> Interval:
    """Return the Wilson score interval of a proportion: the p for which ``|s / n - p| <= z sqrt(p (1 - p) / n)``.

    It stays inside [0, 1] and has width at 0 and n successes, where the textbook interval has none.
    Returns: Interval; both ends None without trials.
    Source: Wilson, "Probable inference, the law of succession, and statistical inference", JASA 22, 1927; statsmodels.
    """
    from statsmodels.stats.proportion import proportion_confint

    if not trials:
        return UNKNOWN
    low, high = proportion_confint(successes, trials, alpha=1 - level, method="wilson")
    return Interval(float(low), float(high))
