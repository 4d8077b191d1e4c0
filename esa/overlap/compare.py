"""Compare every two lists, by every kind of member, at every k."""

from collections.abc import Sequence

import numpy as np

from esa.artifact import Table, make_table
from esa.errors import SelectionError
from esa.overlap import agreement
from esa.overlap.chance import Universe, by_chance, shared_anatomy
from esa.overlap.lists import RankedList
from esa.overlap.members import Members, common_mode, encode


def compare(
    rankings: Sequence[RankedList],
    by: Sequence[str] = ("weight",),
    ks: Sequence[int] | None = None,
    p: float | None = None,
    universe: int | None = None,
    *,
    seed: int = 0,
    run: str | None = None,
) -> Table:
    """Return ``overlap/1``: a row per pair (i < j, in the order given), kind of member, and k.

    The members at k are those of the first k weights by rank: k in all in mode global, k per unit in the other modes.
    shared, jaccard and overlap_coefficient are over the union of the units, sizes in distinct members. rbo (of
    persistence ``1 - 1/k`` unless ``p`` is given), spearman and kendall (of the shared members' ranks) compare orders,
    which exist within a unit: in per-unit modes each is the mean over the units, a correlation's over those where it
    is defined. ``ks`` None compares whole lists: k is the size of the shortest.

    The null is independent draws with the same quota per unit. By weight it is ``hypergeometric.expected_jaccard`` and
    ``hypergeometric.p_value``, from the tensors of the anatomy, or from ``universe`` (a number of weights) in mode global. By
    anything else it is ``permutation.permuted_jaccards``, which needs the tensors, with P(J >= jaccard), since the
    sizes vary from draw to draw. Where what is needed is not known, or two lists come from different tensors, or one
    ranks whole outputs, inputs or tensors, the null's columns are null; ``universe``, the number of weights, is given
    where it is known.

    Raises SelectionError for a k larger than a list, lists of different modes, or members that a list does not name.
    """
    mode = common_mode(rankings)
    ks = common_ks(rankings, ks)
    encoded = {kind: encode(rankings, kind, mode) for kind in by}
    rows: list[dict[str, object]] = []
    for i, first in enumerate(rankings):
        for j, second in enumerate(rankings[i + 1 :], start=i + 1):
            if {"weight", "output", "input"} & set(by):
                refuse_other_shapes(first, second)
            drawn_from = Universe(mode, shared_anatomy(first, second), universe)
            if first.aggregate or second.aggregate:
                drawn_from = Universe(mode, None)  # of outputs, inputs or tensors, not of weights
            names = {
                "run": run,
                **{"run_a": first.run, "metric_a": first.metric, "seed_a": first.seed, "label_a": first.label},
                **{"run_b": second.run, "metric_b": second.metric, "seed_b": second.seed, "label_b": second.label},
                "universe": drawn_from.size,
            }
            for kind in by:
                a, b = encoded[kind][i], encoded[kind][j]
                for k in ks:
                    found = agree(a, b, k, p)
                    chance = by_chance(kind, found, (a.quotas(k), b.quotas(k)), drawn_from, seed)
                    rows.append({**names, "by": kind, "k": k, **found, **chance})
    return make_table("overlap/1", rows)


def common_ks(rankings: Sequence[RankedList], ks: Sequence[int] | None = None) -> tuple[int, ...]:
    """Return ``ks``, or the size of the shortest list; a list's size is that of its longest unit.

    Raises SelectionError, naming list and size, for a k larger than a list.
    """
    sizes = list_sizes(rankings)
    if ks is None:
        return (min(sizes),)
    unit = "" if common_mode(rankings) == "global" else " per unit"
    for k in ks:
        for ranked, size in zip(rankings, sizes, strict=True):
            if not 1 <= k <= size:
                raise SelectionError(
                    f"k = {k}: the list holds {size} weights{unit}; allowed for these lists: 1 to {min(sizes)}",
                    where=ranked.label,
                    hint=f"compare at k up to {min(sizes)}, or rank again with rank.k = {k}",
                )
    return tuple(ks)


def list_sizes(rankings: Sequence[RankedList]) -> list[int]:
    """Return the largest k that each list can give: the weights of its longest unit."""
    mode = common_mode(rankings)
    if mode == "global":
        return [ranked.frame.height for ranked in rankings]
    return [members.size for members in encode(rankings, "layer", mode)]


def agree(a: Members, b: Members, k: int, p: float | None = None) -> dict[str, int | float | None]:
    """Return the sizes, the set measures and the order measures of two lists at k (see ``compare``)."""
    in_a, in_b = a.position < k, b.position < k
    codes_a, codes_b = np.unique(a.code[in_a]), np.unique(b.code[in_b])
    shared = len(np.intersect1d(codes_a, codes_b, assume_unique=True))
    sizes = len(codes_a), len(codes_b)

    # A key is a member within its unit; intersect1d returns them sorted, hence unit by unit.
    width = 1 + max(int(a.code.max()), int(b.code.max()))
    keys = [one.unit[inside] * width + one.code[inside] for one, inside in ((a, in_a), (b, in_b))]
    _, at_a, at_b = np.intersect1d(keys[0], keys[1], assume_unique=True, return_indices=True)
    units, ranks_a, ranks_b = a.unit[in_a][at_a], a.rank[in_a][at_a], b.rank[in_b][at_b]
    num_units = 1 + max(int(a.unit.max()), int(b.unit.max()))
    listed_a = np.bincount(a.unit[in_a], minlength=num_units)
    listed_b = np.bincount(b.unit[in_b], minlength=num_units)
    persistence = 1 - 1 / k if p is None else p
    rbos, rhos, taus = [], [], []
    for unit in np.flatnonzero(listed_a + listed_b):
        low, high = np.searchsorted(units, [unit, unit + 1])
        mine, other = ranks_a[low:high], ranks_b[low:high]
        depths = np.maximum(mine, other)
        rbos.append(agreement.overlap_at_depths(depths, int(listed_a[unit]), int(listed_b[unit]), persistence))
        rhos.append(agreement.spearman(mine, other))
        taus.append(agreement.kendall(mine, other))
    return {
        "size_a": sizes[0],
        "size_b": sizes[1],
        "shared": shared,
        "jaccard": agreement.jaccard(shared, *sizes),
        "overlap_coefficient": agreement.overlap_coefficient(shared, *sizes),
        "rbo": _mean(rbos),
        "spearman": _mean(rhos),
        "kendall": _mean(taus),
    }


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None


def refuse_other_shapes(first: RankedList, second: RankedList) -> None:
    """Raise SelectionError where a parameter has two shapes: the same address would be two different weights."""
    if first.anatomy is None or second.anatomy is None or first.anatomy is second.anatomy:
        return
    shapes = {entry.parameter: entry.shape for entry in first.anatomy}
    for entry in second.anatomy:
        if shapes.get(entry.parameter, entry.shape) != entry.shape:
            raise SelectionError(
                f"{entry.parameter} has shape {entry.shape}, and {shapes[entry.parameter]} in {first.label}: weights of"
                " different models have no address in common",
                where=second.label,
                hint="compare by layer, block or component",
            )
