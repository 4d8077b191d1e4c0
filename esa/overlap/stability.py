"""How much a metric's ranking depends on the seed of its calibration windows."""

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np

from esa.overlap.agreement import jaccard
from esa.overlap.compare import common_ks
from esa.overlap.lists import RankedList
from esa.overlap.members import common_mode, encode

_FEWEST = 4  # seeds among which one can be told from the others


def stability_summary(
    rankings: Sequence[RankedList], ks: Sequence[int] | None = None, by: str = "weight"
) -> dict[str, Any] | None:
    """Return the agreement of every metric's lists across its seeds, or None where no metric has two.

    Per metric and k: ``jaccard_all``, the Jaccard index of every pair of seeds (i < j, in order of seed);
    ``jaccard_mean``; ``jaccard_std`` (the sample's, ddof = 1; None for the one pair of two seeds); ``num_seeds``;
    ``topk_overlap_size``, the number of members that all seeds have in their first k; ``jaccard_by_seed``, each seed's mean
    Jaccard index with the others; and ``outlier_seeds`` (see ``outliers``). Pairs share seeds: jaccard_std
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
            metrics[metric][str(k)] = _summary(sets, [rankings[n].seed or 0 for n in numbers])
    first, largest = next(iter(metrics)), str(max(ks))
    return {"by": by, "metric": first, "k": int(largest), **metrics[first][largest], "metrics": metrics}


def outliers(means: Sequence[float], step: float) -> list[int]:
    """Return the places of the seeds whose list is an outlier: far below the others in its mean agreement with them.

    That is, of at least 4 seeds, a mean Jaccard index more than 3 scaled deviations below the median one, where the scaled
    deviation is 1.4826 times the median absolute deviation, or ``step`` if that is more: what one exchanged member changes.
    Source: Leys et al., Detecting outliers, Journal of Experimental Social Psychology 49, 2013 (its conservative 3).
    """
    if len(means) < _FEWEST:
        return []
    values = np.asarray(means)
    centre = np.median(values)
    scale = max(1.4826 * float(np.median(np.abs(values - centre))), step)
    return np.flatnonzero(values < centre - 3 * scale).tolist()


def outlier_warnings(summary: dict[str, Any]) -> list[str]:
    """Return a sentence for every metric and k with an outlier."""
    return [
        f"{metric}, k = {k}: the list of seed {seed} is an outlier: mean Jaccard {one['jaccard_by_seed'][str(seed)]:.3f} with the"
        f" others, median of the seeds {np.median(list(one['jaccard_by_seed'].values())):.3f}"
        for metric, found in summary["metrics"].items()
        for k, one in found.items()
        for seed in one["outlier_seeds"]
    ]


def _summary(sets: list[set[int]], seeds: Sequence[int]) -> dict[str, Any]:
    pairs = [jaccard(len(a & b), len(a), len(b)) for a, b in itertools.combinations(sets, 2)]
    means = [
        float(np.mean([jaccard(len(mine & other), len(mine), len(other)) for n, other in enumerate(sets) if n != i]))
        for i, mine in enumerate(sets)
    ]
    size = max(len(one) for one in sets)
    return {
        "jaccard_mean": float(np.mean(pairs)),
        "jaccard_std": float(np.std(pairs, ddof=1)) if len(pairs) > 1 else None,
        "jaccard_all": pairs,
        "num_seeds": len(sets),
        "topk_overlap_size": len(set.intersection(*sets)),
        "jaccard_by_seed": {str(seed): mean for seed, mean in zip(seeds, means, strict=True)},
        "outlier_seeds": [seeds[place] for place in outliers(means, 1 - jaccard(size - 1, size, size))],
    }
