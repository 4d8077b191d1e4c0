"""How far two sets agree, and how far two orders do."""

from collections.abc import Hashable, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats


def jaccard(shared: int, size_a: int, size_b: int) -> float:
    """Return ``|A n B| / |A u B| = shared / (size_a + size_b - shared)``; 1 for two empty sets.

    Source: Jaccard, Bulletin de la Societe vaudoise des sciences naturelles 37, 1901.
    """
    union = size_a + size_b - shared
    return shared / union if union else 1.0


def overlap_coefficient(shared: int, size_a: int, size_b: int) -> float:
    """Return ``|A n B| / min(|A|, |B|)``: 1 where one set holds the other; 1 for two empty sets, 0 for one.

    Source: Szymkiewicz, Acta Societatis Botanicorum Poloniae 2, 1934, after Simpson.
    """
    smaller = min(size_a, size_b)
    return shared / smaller if smaller else float(size_a == size_b)


def rank_biased_overlap(first: Sequence[Hashable], second: Sequence[Hashable], p: float | None = None) -> float:
    """Return the extrapolated rank-biased overlap RBO_ext of two ordered lists without repeats, in [0, 1].

    Args: the lists, best first, of any two lengths; ``p`` in [0, 1) is the persistence, ``1 - 1/K`` with K the longer
    length unless given. With s and l the shorter and longer length and X_d the number shared by both prefixes of
    depth d (the shorter list ends at s), equation 32 of the source::

        (1 - p) [ sum_{d=1..l} X_d/d p^(d-1) + sum_{d=s+1..l} X_s (d - s)/(s d) p^(d-1) ]
        + ((X_l - X_s)/l + X_s/s) p^l

    The source writes ``(1 - p)/p`` before powers ``p^d``: the same, but for p = 0 (K = 1), where this is the agreement
    at depth 1. Two empty lists give 1, one empty list gives 0.
    Source: Webber, Moffat, Zobel, "A similarity measure for indefinite rankings", ACM TOIS 28(4), 2010.
    """
    places = {member: place for place, member in enumerate(first, start=1)}
    depths = [max(place, places[member]) for place, member in enumerate(second, start=1) if member in places]
    return overlap_at_depths(np.asarray(depths, dtype=np.int64), len(first), len(second), p)


def overlap_at_depths(depths: NDArray[np.int64], size_a: int, size_b: int, p: float | None = None) -> float:
    """Return RBO_ext (see ``rank_biased_overlap``); a shared member's depth is the larger of its two ranks."""
    short, long = sorted((size_a, size_b))
    if short == 0:
        return float(long == 0)
    if p is None:
        p = 1 - 1 / long
    depth = np.arange(1, long + 1)
    shared = np.cumsum(np.bincount(depths, minlength=long + 1)[1:])  # X_d
    at_short = shared[short - 1]
    beyond = np.clip(depth - short, 0, None)
    agreement = shared / depth + at_short * beyond / (short * depth)
    last = (shared[-1] - at_short) / long + at_short / short
    total = (1 - p) * float(agreement @ np.power(float(p), depth - 1)) + float(last) * p**long
    return min(1.0, max(0.0, total))  # the sum of a whole list of ones may end an ulp above 1


def spearman(ranks_a: ArrayLike, ranks_b: ArrayLike) -> float | None:
    """Return Spearman's rho of the shared members' ranks; None under 3 members or where one side is constant.

    Source: Spearman, American Journal of Psychology 15, 1904; ``scipy.stats.rankdata``, ties averaged.
    """
    a, b = np.asarray(ranks_a), np.asarray(ranks_b)
    if not _has_order(a, b):
        return None
    # Pearson of the ranks: what scipy.stats.spearmanr returns, without its p value, which costs ten times as much.
    return float(np.clip(np.corrcoef(stats.rankdata(a), stats.rankdata(b))[0, 1], -1, 1))


def kendall(ranks_a: ArrayLike, ranks_b: ArrayLike) -> float | None:
    """Return Kendall's tau-b of the shared members' ranks; None under 3 members or where one side is constant.

    Source: Kendall, Biometrika 30, 1938; ``scipy.stats.kendalltau``.
    """
    a, b = np.asarray(ranks_a), np.asarray(ranks_b)
    if not _has_order(a, b):
        return None
    return float(stats.kendalltau(a, b, method="asymptotic").statistic)  # the method concerns the unused p value alone


def _has_order(a: NDArray[np.int64], b: NDArray[np.int64]) -> bool:
    return len(a) >= 3 and bool((a != a[0]).any()) and bool((b != b[0]).any())
