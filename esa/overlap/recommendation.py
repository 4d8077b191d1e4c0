"""Global against per_layer: what their top lists share, and which of the two gives the same list again."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import polars as pl

from esa.overlap.agreement import jaccard
from esa.overlap.compare import list_sizes
from esa.overlap.curves import Agreement, Chance, Pair, agreements, jackknife, log_grid
from esa.overlap.lists import RankedList
from esa.overlap.seed_scores import Group

MODES = ("global", "per_layer")
Size = tuple[int, int]  # K of the global list, and of each tensor's


def compare_modes(groups: Sequence[Group], chance: Chance) -> dict[str, Any]:
    """Return, per metric ranked in both modes from the same seeds, what the modes share and which one is to be preferred.

    Sizes are equal numbers of weights: K = 1, 2, 5, ... per tensor, and the global K that takes as many in all; where no size
    is in both lists (``equal_sizes`` false), each list whole. ``sizes``: per size ``k`` and ``num_weights`` by mode; ``shared``,
    the weights in both modes' lists of one seed, ``share`` (of the smaller list) and ``jaccard``, means over seeds;
    ``corrected``, each mode's chance-corrected Jaccard between seeds. ``difference``: per_layer minus global, mean over the
    sizes, with the jackknife interval over seeds (``low``, ``high``; None under 3 seeds). ``recommended``: the mode that
    agrees better across seeds, None where chance is not known; ``decided``: whether sizes are equal and the interval excludes 0;
    ``reason``: both in words. Empty without such a metric.
    """
    found = {}
    by_mode = {(group.mode, group.metric): group for group in groups}
    for metric in dict.fromkeys(group.metric for group in groups):
        whole, layered = (by_mode.get((mode, metric)) for mode in MODES)
        if whole is not None and layered is not None and whole.seeds == layered.seeds and len(whole.seeds) > 1:
            found[metric] = _compare(whole, layered, chance)
    return found


def _compare(whole: Group, layered: Group, chance: Chance) -> dict[str, Any]:
    sizes, equal = _sizes(whole, layered)
    pairs = [(i, j) for j in range(len(whole.seeds)) for i in range(j)]
    top = agreements(whole.lists, pairs, "weight", [k for k, _ in sizes], chance)
    per = agreements(layered.lists, pairs, "weight", [each for _, each in sizes], chance)
    measured = [(top[k], per[each]) for k, each in sizes]
    rows = [_row(size, whole, layered, both) for size, both in zip(sizes, measured, strict=True)]
    seeds = [(whole.seeds[i], whole.seeds[j]) for i, j in pairs]
    return {"equal_sizes": equal, "sizes": rows, **_recommend(rows, measured, seeds, equal=equal)}


def _sizes(whole: Group, layered: Group) -> tuple[list[Size], bool]:
    """Return the sizes at which both modes take the same number of weights; else the one of both lists whole."""
    longest, most = min(list_sizes(whole.lists)), min(list_sizes(layered.lists))
    equal = []
    for each in log_grid(most):
        numbers = {len(_top(ranked, each, "per_layer")) for ranked in layered.lists}
        if len(numbers) == 1 and max(numbers) <= longest:
            equal.append((max(numbers), each))
    return (equal, True) if equal else ([(longest, most)], False)


def _top(ranked: RankedList, k: int, mode: str) -> set[tuple[Any, ...]]:
    """Return the addresses of a list's first ``k``, of each tensor in mode per_layer."""
    frame = ranked.frame
    frame = frame.filter(pl.int_range(pl.len()).over("parameter") < k) if mode == "per_layer" else frame.head(k)
    return set(frame.select("parameter", "index", "indices").iter_rows())


def _row(size: Size, whole: Group, layered: Group, measured: tuple[Agreement, Agreement]) -> dict[str, Any]:
    lists = [
        [_top(ranked, k, mode) for ranked in group.lists]
        for group, k, mode in zip((whole, layered), size, MODES, strict=True)
    ]
    shared = [len(a & b) for a, b in zip(*lists, strict=True)]
    smaller = [min(len(a), len(b)) for a, b in zip(*lists, strict=True)]
    sizes = [(len(a), len(b)) for a, b in zip(*lists, strict=True)]
    return {
        "k": dict(zip(MODES, size, strict=True)),
        "num_weights": {mode: float(np.mean([len(one) for one in mine])) for mode, mine in zip(MODES, lists, strict=True)},
        "shared": float(np.mean(shared)),
        "share": float(np.mean(np.divide(shared, smaller))),
        "jaccard": float(np.mean([jaccard(one, *both) for one, both in zip(shared, sizes, strict=True)])),
        "corrected": {mode: _mean(one.corrected) for mode, one in zip(MODES, measured, strict=True)},
    }  # fmt: skip


def _recommend(
    rows: Sequence[dict[str, Any]],
    measured: Sequence[tuple[Agreement, Agreement]],
    seeds: Sequence[Pair],
    *,
    equal: bool,
) -> dict[str, Any]:
    """Return the recommended mode with its reason, both from the numbers alone."""
    corrected = [(top.corrected, per.corrected) for top, per in measured]
    known = [(top, per) for top, per in corrected if top is not None and per is not None]
    if len(known) < len(corrected):
        reason = "no recommendation: what chance gives these lists is not known"
        return {
            "difference": None, "low": None, "high": None, "recommended": None, "decided": False, "reason": reason,
        }  # fmt: skip
    values = np.mean([per - top for top, per in known], axis=0)  # per pair of seeds
    difference, interval = float(values.mean()), jackknife(values, seeds)
    means = [float(np.mean([row["corrected"][mode] for row in rows])) for mode in MODES]
    better = int(difference > 0)
    decided = equal and interval is not None and not interval[0] <= 0 <= interval[1]
    num_seeds = len({seed for pair in seeds for seed in pair})
    if difference == 0:
        reason = f"both modes agree equally well across seeds, {means[0]:.3f}: global, the simpler one"
    else:
        reason = (
            f"{MODES[better]} agrees better across seeds: chance-corrected Jaccard {means[better]:.3f} against"
            f" {means[1 - better]:.3f} {MODES[1 - better]}, {_where(rows, equal=equal)}; difference {abs(difference):.3f},"
        )
        if interval is None:
            reason += f" and {num_seeds} seeds give it no interval"
        else:
            near, far = interval if better else (-interval[1], -interval[0])
            verdict = "" if decided else f": {num_seeds} seeds do not tell the modes apart"
            reason += f" 95 % interval {near:.3f} to {far:.3f}{verdict}"
    low, high = interval if interval is not None else (None, None)
    return {
        "difference": difference, "low": low, "high": high, "recommended": MODES[better], "decided": decided,
        "reason": reason,
    }  # fmt: skip


def _where(rows: Sequence[dict[str, Any]], *, equal: bool) -> str:
    numbers = [row["num_weights"] for row in rows]
    if not equal:
        whole, layered = (numbers[0][mode] for mode in MODES)
        return f"at {whole:,.0f} weights globally and {layered:,.0f} per layer, for no equal number is in both lists"
    if len(rows) == 1:
        return f"at {numbers[0]['global']:,.0f} weights"
    return f"mean over {len(rows)} equal sizes, {numbers[0]['global']:,.0f} to {numbers[-1]['global']:,.0f} weights"


def _mean(values: "np.ndarray[Any, Any] | None") -> float | None:
    return None if values is None else float(values.mean())
