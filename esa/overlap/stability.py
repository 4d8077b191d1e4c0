"""How much a metric's ranking depends on the seed of its calibration windows."""

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np

from esa.overlap.agreement import jaccard
from esa.overlap.compare import common_ks
from esa.overlap.lists import RankedList
from esa.overlap.members import common_mode, encode


def stability_summary(
    rankings: Sequence[RankedList], ks: Sequence[int] | None = None, by: str = "weight"
) -> dict[str, Any] | None:
    """Return the agreement of every metric's lists across its seeds, or None where no metric has two.

    Per metric and k: ``jaccard_all``, the Jaccard index of every pair of seeds (i < j, in order of seed);
    ``jaccard_mean``; ``jaccard_std`` (the sample's, ddof = 1; None for the one pair of two seeds); ``num_seeds``; and
    ``topk_overlap_size``, the number of members that all seeds have in their first k. Pairs share seeds: jaccard_std
    describes their spread and is no standard error. The form is ``{"by", "metrics": {metric: {"k": {...}}}}``, and flat
    beside it, with ``metric`` and ``k``, the first metric at the largest k. A metric that holds a seed twice (of two
    models, say) is left out: those lists are not its seeds.
    """
    groups: dict[str, list[int]] = {}
    for number, ranked in enumerate(rankings):
        if ranked.metric is not None and ranked.seed is not None:
            groups.setdefault(ranked.metric, []).append(number)
    seeds = {metric: [rankings[n].seed for n in numbers] for metric, numbers in groups.items()}
    groups = {
        metric: sorted(numbers, key=lambda n: rankings[n].seed or 0)
        for metric, numbers in groups.items()
        if len(numbers) > 1 and len(set(seeds[metric])) == len(numbers)
    }
    if not groups:
        return None
    ks = common_ks(rankings, ks)
    members = encode(rankings, by, common_mode(rankings))
    metrics: dict[str, dict[str, dict[str, Any]]] = {}
    for metric, numbers in groups.items():
        metrics[metric] = {}
        for k in sorted(ks):
            sets = [set(members[n].code[members[n].position < k].tolist()) for n in numbers]
            metrics[metric][str(k)] = _summary(sets)
    first, largest = next(iter(metrics)), str(max(ks))
    return {"by": by, "metric": first, "k": int(largest), **metrics[first][largest], "metrics": metrics}


def _summary(sets: list[set[int]]) -> dict[str, Any]:
    pairs = [jaccard(len(a & b), len(a), len(b)) for a, b in itertools.combinations(sets, 2)]
    return {
        "jaccard_mean": float(np.mean(pairs)),
        "jaccard_std": float(np.std(pairs, ddof=1)) if len(pairs) > 1 else None,
        "jaccard_all": pairs,
        "num_seeds": len(sets),
        "topk_overlap_size": len(set.intersection(*sets)),
    }
