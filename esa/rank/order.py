"""Order numbers exactly and reproducibly: the highest, the lowest, a draw, the nearest."""

from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

_SMALL = 1 << 16  # up to here a draw shuffles all there is; above, it never lists it


def split(code: Array, num_codes: int) -> Iterator[tuple[int, Array]]:
    """Yield every code that occurs, ascending, with the positions it occurs at, ascending."""
    if num_codes == 1:
        if len(code):
            yield 0, np.arange(len(code))
        return
    order = np.argsort(code, kind="stable")  # near-linear: the rows of a score table are runs of one tensor
    edges = np.searchsorted(code[order], np.arange(num_codes + 1))
    for number in range(num_codes):
        if edges[number] < edges[number + 1]:
            yield number, order[edges[number] : edges[number + 1]]


def highest(score: Array, tensor: Array, index: Array, k: int) -> Array:
    """Return the positions of the ``k`` highest scores, descending; equal ones by (``tensor``, ``index``)."""
    near = np.arange(len(score))
    if k < len(score):
        near = np.flatnonzero(score >= np.partition(score, len(score) - k)[len(score) - k])
    return near[np.lexsort((index[near], tensor[near], -score[near]))[:k]]


def lowest(
    score: Array,
    tensor: Array,
    index: Array,
    k: int,
    *,
    rng: np.random.Generator,
    num_zero: Mapping[int, int] = MappingProxyType({}),
) -> tuple[Array, float, int, int]:
    """Return the positions of the ``k`` lowest scores, ascending, equal ones in a uniformly random order.

    Of the tensors in ``num_zero`` only some of the zero scores are at hand: a uniform sample, in random order, of that
    many. Tied weights are ordered by independent standard exponentials, whose order is a uniform permutation. Of ``m``
    of them the j-th smallest is the sum of ``e_i / (m - i + 1)`` over ``i <= j`` (Renyi's representation; Renyi, Acta
    Math. Hung. 1953), so the kept zeros of a tensor get the smallest of its ``m`` without the rest being listed: how
    many each tensor gives follows the multivariate hypergeometric law. The order of ties does not depend on ``k``.
    Returns the positions, the value at the cut, how many scores are known to tie there, and how many of those were
    taken.
    """
    near = np.arange(len(score))
    if k < len(score):
        near = np.flatnonzero(score <= np.partition(score, k - 1)[k - 1])
    near = near[np.lexsort((index[near], tensor[near], score[near]))]
    key = rng.standard_exponential(len(near))
    zeros = np.flatnonzero(score[near] == 0)  # by tensor, as ``near`` is
    hidden = 0
    for number in np.unique(tensor[near[zeros]]).tolist():
        tied = zeros[slice(*np.searchsorted(tensor[near[zeros]], [number, number + 1]))]
        total = num_zero.get(number, 0)
        if total > len(tied):
            tied = tied[np.argsort(near[tied])]  # as the reservoir gives them
            key[tied] = np.cumsum(key[tied] / (total - np.arange(len(tied))))
            hidden += total - len(tied)
    chosen = near[np.lexsort((key, score[near]))[:k]]
    cut = float(score[chosen[-1]])
    num_tied = int(np.count_nonzero(score[near] == cut)) + (hidden if cut == 0 else 0)
    return chosen, cut, num_tied, int(np.count_nonzero(score[chosen] == cut))


def draw(total: int, k: int, rng: np.random.Generator) -> Array:
    """Return ``k`` distinct numbers below ``total``, uniformly and in random order; fewer are a prefix of more.

    By rejection: the first ``k`` distinct numbers of one stream. Memory grows with ``k``, not with ``total``.
    """
    if total <= _SMALL:
        return rng.permutation(total)[:k]
    drawn = np.empty(0, dtype=np.int64)
    while len(drawn) < k:
        more = rng.integers(0, total, size=max(16, k), dtype=np.int64)
        drawn = np.concatenate([drawn, more])
        _, first = np.unique(drawn, return_index=True)
        drawn = drawn[np.sort(first)]
    return drawn[:k]


def nearest_unused(targets: Array, candidates: Array) -> Array:
    """Give each target in turn the position of the nearest of the ascending ``candidates`` that none before it took.

    Of two equally near the smaller is taken; -1 where none is left. Cost: near-linear, by path compression.
    """
    num = len(candidates)
    right = list(range(num + 1))  # right[i]: where to look for the first free position >= i; num is none
    left = list(range(num + 1))  # left[i + 1]: the same for the last free position <= i; 0 is none
    taken = np.full(len(targets), -1, dtype=np.int64)
    start = np.searchsorted(candidates, targets)
    for number, target in enumerate(targets):
        after = _find(right, int(start[number]))
        before = _find(left, int(start[number])) - 1
        if after == num and before < 0:
            break
        use_before = after == num or (before >= 0 and target - candidates[before] <= candidates[after] - target)
        chosen = before if use_before else after
        taken[number] = chosen
        right[chosen] = chosen + 1
        left[chosen + 1] = chosen
    return taken


def _find(parent: list[int], item: int) -> int:
    root = item
    while parent[root] != root:
        root = parent[root]
    while parent[item] != root:
        parent[item], item = root, parent[item]
    return root
