"""How unevenly shares are spread: Gini, normalised entropy, effective number."""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]


def gini(shares: Array) -> float:
    """Return Gini's coefficient ``sum_i (2 i - n - 1) s_(i) / n`` of shares ``(n,)`` that sum to one, ascending.

    0: all equal; ``1 - 1 / n``: one has all. Source: Gini, Variabilità e mutabilità, 1912.
    """
    n = len(shares)
    return float((2 * np.arange(1, n + 1) - n - 1) @ np.sort(shares) / n)


def effective_number(shares: Array) -> float:
    """Return ``exp(H)``, H the entropy ``-sum s ln s`` in nats of shares ``(n,)``: how many equal ones would be as even.

    n: all equal; 1: one has all. Source: Hill, "Diversity and evenness", Ecology 54, 1973 (order one).
    """
    held = shares[shares > 0]
    return float(np.exp(-(held * np.log(held)).sum()))


def normalised_entropy(shares: Array) -> float:
    """Return ``H / ln n`` of shares ``(n,)``, n at least two: 1 where all are equal, 0 where one has all.

    Source: Pielou, "The measurement of diversity in different types of biological collections", J. Theor. Biol. 13, 1966.
    """
    return float(np.log(effective_number(shares)) / np.log(len(shares)))


def jensen_shannon(p: Array, q: Array) -> float:
    """Return the Jensen-Shannon divergence of two distributions ``(n,)`` in bits: 0 where equal, 1 where disjoint.

    ``H((p + q) / 2) - (H(p) + H(q)) / 2``. Source: Lin, "Divergence measures based on the Shannon entropy", IEEE Trans.
    Information Theory 37, 1991.
    """
    entropies = [np.log2(effective_number(one)) for one in ((p + q) / 2, p, q)]
    return max(0.0, float(entropies[0] - (entropies[1] + entropies[2]) / 2))


# Name -> the measure, and what it is of n equal shares.
MEASURES: dict[str, tuple[Callable[[Array], float], Callable[[int], float]]] = {
    "gini": (gini, lambda n: 0.0),
    "normalised_entropy": (normalised_entropy, lambda n: 1.0),
    "effective_number": (effective_number, float),
}
