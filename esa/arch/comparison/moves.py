"""How many weights would move along a row or column if those that enter a list were random ones of their tensors."""

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from esa.arch.comparison.clustering import sample

Ints = npt.NDArray[np.int64]
Weight = tuple[str, int]  # parameter, index
Shapes = Mapping[str, tuple[int, ...]]


def random_moves(
    one: Sequence[Weight], two: Sequence[Weight], shapes: Shapes, times: int, draw: np.random.Generator
) -> list[int]:
    """Return how many weights move where those that enter are drawn anew, ``times`` times.

    Within each tensor as many as enter it, without replacement from the weights that list ``one`` does not hold, in random
    order; what moves is what :func:`esa.arch.comparison.variants.matched` calls so.
    Cost: times * the number of entering weights.
    """
    known, second = set(one), set(two)
    leaving: dict[str, list[int]] = {}
    for name, index in one:
        if (name, index) not in second:
            leaving.setdefault(name, []).append(index)
    entering: dict[str, int] = {}
    for weight in two:
        if weight not in known:
            entering[weight[0]] = entering.get(weight[0], 0) + 1
    found = np.zeros(times, dtype=np.int64)
    for name, number in entering.items():
        if name not in leaving or len(shapes[name]) < 2:
            continue
        held = np.sort(np.array([index for other, index in one if other == name], dtype=np.int64))
        size = int(np.prod(shapes[name], dtype=np.int64))
        drawn = draw.permuted(sample(size - len(held), number, times, draw), axis=1)
        drawn += np.searchsorted(held - np.arange(len(held)), drawn, "right")  # the places that are not held
        found += _matches(np.array(leaving[name], dtype=np.int64), drawn, shapes[name])
    return [int(count) for count in found]


def _matches(leaving: Ints, drawn: Ints, shape: tuple[int, ...]) -> Ints:
    """Return of each row of entering weights ``(R, n)`` how many find a leaving one on a line, each of these taken once."""
    lines = _lines(leaving, shape)
    names = np.unique(lines)
    holders: list[list[int]] = [[] for _ in names]
    for rank, places in enumerate(np.searchsorted(names, lines).tolist()):
        for place in places:
            holders[place].append(rank)
    mine = _lines(drawn, shape)  # (R, n, axes)
    places = np.minimum(np.searchsorted(names, mine), len(names) - 1)
    near = np.where(names[places] == mine, places, -1)
    return np.array([_greedy(row, holders) for row in near.tolist()], dtype=np.int64)


def _lines(index: Ints, shape: tuple[int, ...]) -> Ints:
    """Return a number for the line through each weight along every axis ``(..., axes)``: the axis and its first weight."""
    at = np.unravel_index(index, shape)
    strides = [int(np.prod(shape[axis + 1 :], dtype=np.int64)) for axis in range(len(shape))]
    size = int(np.prod(shape, dtype=np.int64))
    found: Ints = np.stack(
        [axis * size + index - place * stride for axis, (place, stride) in enumerate(zip(at, strides, strict=True))],
        axis=-1,
    )
    return found


def _greedy(entering: Sequence[Sequence[int]], holders: Sequence[Sequence[int]]) -> int:
    """Return how many weights find the best-ranked one that is left on a line of theirs, in their order."""
    taken: set[int] = set()
    heads = [0] * len(holders)
    for lines in entering:
        best: int | None = None
        for line in lines:
            if line < 0:
                continue
            held, head = holders[line], heads[line]
            while head < len(held) and held[head] in taken:
                head += 1
            heads[line] = head
            if head < len(held) and (best is None or held[head] < best):
                best = held[head]
        if best is not None:
            taken.add(best)
    return len(taken)
