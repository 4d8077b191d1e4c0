"""What chance alone would give the rows of a comparison: the null that fits, where the universe is known."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from esa.errors import ArtifactError
from esa.overlap import permutation
from esa.overlap.anatomy import Anatomy
from esa.overlap.lists import RankedList
from esa.statistics import hypergeometric


@dataclass(frozen=True)
class Universe:
    """The weights that two lists were drawn from: their tensors where known, or only their number, given by a person.

    A given number stands above the tensors' in mode global; it says nothing of the units of the other modes.
    """

    mode: str
    anatomy: Anatomy | None
    given: int | None = None

    @property
    def size(self) -> int | None:
        """Return the number of weights, if it is known."""
        if self.given is not None or self.anatomy is None:
            return self.given
        return sum(entry.numel for entry in self.anatomy)

    def unit_sizes(self) -> dict[str, int]:
        """Return the number of weights of every unit that is known."""
        if self.given is not None and self.mode == "global":
            return {"": self.given}
        sizes: dict[str, int] = {}
        for entry in self.anatomy or ():
            unit = entry.unit(self.mode)
            if unit is not None:
                sizes[unit] = sizes.get(unit, 0) + entry.numel
        return sizes


def by_chance(
    by: str,
    found: Mapping[str, Any],
    quotas: tuple[permutation.Quotas, permutation.Quotas],
    universe: Universe,
    seed: int,
) -> dict[str, object]:
    """Return the columns null, expected_jaccard and p_value of a row of what was ``found``; nothing if not known."""
    if by == "weight":
        units = _units(quotas, universe)
        if units is None:
            return {}
        return {
            "null": "hypergeometric",
            "expected_jaccard": hypergeometric.expected_jaccard(units),
            "p_value": hypergeometric.p_value(units, found["shared"]),
        }
    jaccards = _permuted(by, quotas, universe, seed)
    if jaccards is None:
        return {}
    return {
        "null": "permutation",
        "expected_jaccard": float(jaccards.mean()),
        "p_value": permutation.permutation_p_value(jaccards, found["jaccard"]),
    }


def expected_jaccard(
    by: str, quotas: tuple[permutation.Quotas, permutation.Quotas], universe: Universe, seed: int
) -> float | None:
    """Return the mean Jaccard index of unrelated lists with these quotas, as ``by_chance``; None where it is not known."""
    if by == "weight":
        units = _units(quotas, universe)
        return None if units is None else hypergeometric.expected_jaccard(units)
    jaccards = _permuted(by, quotas, universe, seed)
    return None if jaccards is None else float(jaccards.mean())


def _permuted(
    by: str, quotas: tuple[permutation.Quotas, permutation.Quotas], universe: Universe, seed: int
) -> NDArray[np.float64] | None:
    """Return the Jaccard indices of random lists, None where the tensors do not say what is needed."""
    anatomy = universe.anatomy
    if anatomy is None or any(entry.unit(universe.mode) is None for entry in anatomy):
        return None
    if by in ("output", "input") and not all(entry.has_axes for entry in anatomy):
        return None
    _units(quotas, universe)
    return permutation.permuted_jaccards(anatomy, universe.mode, by, quotas, seed)


def _units(quotas: tuple[permutation.Quotas, permutation.Quotas], universe: Universe) -> hypergeometric.Units | None:
    """Return (a_u, b_u, N_u) of every unit, or None where an N_u is not known."""
    sizes = universe.unit_sizes()
    first, second = (dict(one) for one in quotas)
    names = sorted({*first, *second})
    if not all(name in sizes for name in names):
        return None
    units = tuple((first.get(name, 0), second.get(name, 0), sizes[name]) for name in names)
    for name, (a, b, size) in zip(names, units, strict=True):
        if max(a, b) > size:
            raise ArtifactError(
                f"{max(a, b)} weights cannot be drawn from {size}",
                where=name or "universe",
                hint="the universe is the number of weights that the lists were drawn from (--universe)",
            )
    return units


def shared_anatomy(first: RankedList, second: RankedList) -> Anatomy | None:
    """Return the tensors that both lists were drawn from: the same ones, or the one known anatomy if it holds both."""
    if first.anatomy == second.anatomy:
        return first.anatomy
    if first.anatomy is not None and second.anatomy is not None:
        return None
    anatomy, other = (second.anatomy, first) if first.anatomy is None else (first.anatomy, second)
    assert anatomy is not None
    names = {entry.parameter for entry in anatomy}
    return anatomy if set(other.frame["parameter"].unique()) <= names else None
