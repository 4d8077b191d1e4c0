"""What two unrelated rankings would share by output, input, layer, block or component: seeded random weights."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from esa.overlap.anatomy import Anatomy, Entry, without_axis
from esa.spec import generator

Ints = NDArray[np.int64]
Quotas = tuple[tuple[str, int], ...]  # (unit, number of weights), of one list

MOST, LEAST = 999, 99
_DRAWS = 4_500_000  # weights drawn in all before fewer permutations are taken: a quarter of a second


@lru_cache(maxsize=16)
def permuted_jaccards(
    anatomy: Anatomy, mode: str, by: str, quotas: tuple[Quotas, Quotas], seed: int
) -> NDArray[np.float64]:
    """Return the Jaccard index by ``by`` of pairs of unrelated lists: random weights with the same quota per unit.

    Every pair permutes the addresses within each unit of ``mode`` (draws the unit's quota without replacement,
    uniformly over its weights), for either list independently, and maps the weights to their outputs, inputs, layers,
    blocks or components. The draws come from ``generator(seed, "overlap", "permutation", by)``. There are 999 pairs,
    fewer for lists so long that they would need over 4.5 million draws, but at least 99.
    Returns: float64, ``(num_permutations,)``.
    """
    rng = generator(seed, "overlap", "permutation", by)
    total = sum(count for one in quotas for _, count in one)
    repeats = max(LEAST, min(MOST, _DRAWS // max(1, total)))
    units: dict[str, list[Entry]] = {}
    for entry in anatomy:
        units.setdefault(entry.unit(mode) or "", []).append(entry)
    members = _Members(by)
    maps = {unit: _Map(entries, members) for unit, entries in units.items()}
    first, second = (_draw(rng, maps, dict(one), repeats) for one in quotas)
    in_a, in_b = np.zeros(members.count, dtype=bool), np.zeros(members.count, dtype=bool)
    result = np.empty(repeats)
    for row, (a, b) in enumerate(zip(first, second, strict=True)):
        in_a[a], in_b[b] = True, True
        shared = np.count_nonzero(in_a & in_b)
        result[row] = shared / (np.count_nonzero(in_a) + np.count_nonzero(in_b) - shared)
        in_a[a], in_b[b] = False, False
    return result


def permutation_p_value(jaccards: NDArray[np.float64], observed: float) -> float:
    """Return ``(1 + #{J >= observed}) / (1 + #J)``: one-sided, never 0.

    Source: Phipson and Smyth, "Permutation P-values should never be zero", SAGMB 9, 2010.
    """
    reached = int(np.count_nonzero(jaccards >= observed - 1e-12))
    return (1 + reached) / (1 + len(jaccards))


class _Members:
    """Number the members of tensors: consecutively the outputs or inputs of each, or by the group that it is in."""

    def __init__(self, by: str) -> None:
        self.by = by
        self.count = 0
        self._groups: dict[str, int] = {}

    @property
    def grouped(self) -> bool:
        return self.by not in ("output", "input")

    def first(self, entry: Entry) -> int:
        """Return the number of the tensor's first member."""
        number = self.count
        if self.grouped:
            number = self._groups.setdefault(entry.group(self.by), self.count)
            self.count = len(self._groups)
        else:
            self.count += entry.numel // entry.dropped(self.by)[0]
        return number


@dataclass(frozen=True, init=False)
class _Map:
    """Turn the offsets within a unit, its tensors laid end to end, into member numbers."""

    numel: int
    grouped: bool
    starts: Ints
    sizes: Ints  # of the axis that vanishes
    strides: Ints
    members: Ints  # the number of each tensor's first member

    def __init__(self, entries: list[Entry], members: _Members) -> None:
        numels = np.asarray([entry.numel for entry in entries], dtype=np.int64)
        dropped = np.asarray([entry.dropped(members.by) for entry in entries], dtype=np.int64)
        fields = {
            "numel": int(numels.sum()),
            "grouped": members.grouped,
            "starts": np.cumsum(numels) - numels,
            "sizes": dropped[:, 0],
            "strides": dropped[:, 1],
            "members": np.asarray([members.first(entry) for entry in entries], dtype=np.int64),
        }
        for name, value in fields.items():
            object.__setattr__(self, name, value)

    def __call__(self, offsets: Ints) -> Ints:
        tensor = np.searchsorted(self.starts, offsets, side="right") - 1
        if self.grouped:
            return self.members[tensor]
        local = offsets - self.starts[tensor]
        return self.members[tensor] + without_axis(local, self.sizes[tensor], self.strides[tensor])


def _draw(rng: np.random.Generator, maps: Mapping[str, _Map], quotas: Mapping[str, int], repeats: int) -> Ints:
    """Return the members of random lists, ``(repeats, weights)``; units in the anatomy's order."""
    parts = [one(distinct(rng, one.numel, quotas[unit], repeats)) for unit, one in maps.items() if quotas.get(unit)]
    return np.concatenate(parts, axis=1)


def distinct(rng: np.random.Generator, population: int, count: int, repeats: int) -> Ints:
    """Return ``(repeats, count)`` numbers below ``population``, every row a uniform draw without replacement.

    Repeated numbers are drawn again until none is left, which treats all numbers alike and so is uniform over sets;
    above half the population, the beginnings of shuffled rows are taken instead.
    """
    if 2 * count > population:
        order = np.tile(np.arange(population, dtype=np.int64), (repeats, 1))
        return rng.permuted(order, axis=1)[:, :count]
    rows = np.sort(rng.integers(population, size=(repeats, count), dtype=np.int64), axis=1)
    while True:
        row, column = np.nonzero(rows[:, 1:] == rows[:, :-1])
        if not len(row):
            return rows
        rows[row, column + 1] = rng.integers(population, size=len(row), dtype=np.int64)
        touched = np.unique(row)
        rows[touched] = np.sort(rows[touched], axis=1)
