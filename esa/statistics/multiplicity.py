"""Adjusted p values of many tests: false discovery rate (Benjamini-Hochberg) and family-wise error (Holm)."""

import math
from collections.abc import Sequence


def benjamini_hochberg(p_values: Sequence[float | None]) -> list[float | None]:
    """Return the adjusted p values ``q_(i) = min over j >= i of min(1, p_(j) m / j)``, in the order given.

    Rejecting where ``q <= fdr`` keeps the expected share of false rejections at most fdr, for tests that are
    independent or positively dependent. None and NaN stay None, and m does not count them.
    Source: Benjamini and Hochberg, "Controlling the false discovery rate", JRSS B 57, 1995; statsmodels' ``fdr_bh``.
    """
    return _adjusted(p_values, "fdr_bh")


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Return the adjusted p values ``max over j <= i of min(1, (m - j + 1) p_(j))``, in the order given.

    Rejecting where they are at most alpha keeps the probability of any false rejection at most alpha, whatever the
    dependence. None and NaN stay None, and m does not count them.
    Source: Holm, "A simple sequentially rejective multiple test procedure", Scand. J. Statistics 6, 1979; statsmodels.
    """
    return _adjusted(p_values, "holm")


def _adjusted(p_values: Sequence[float | None], method: str) -> list[float | None]:
    from statsmodels.stats.multitest import multipletests

    known = [p for p in p_values if p is not None and not math.isnan(p)]
    if not known:
        return [None] * len(p_values)
    adjusted = iter(multipletests(known, method=method)[1].tolist())
    return [None if p is None or math.isnan(p) else next(adjusted) for p in p_values]
