"""Which models are alike? Hierarchical clustering of runs by where their score lies."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import polars as pl

from esa.arch.comparison.findings import Found, Options, Row, compared
from esa.arch.comparison.roles import with_role
from esa.arch.comparison.scored import Scored, all_scored
from esa.arch.comparison.sources import Labelled

Array = npt.NDArray[np.float64]
QUESTION = "tree"
NUM_DEPTHS = 5
FEWEST = 3  # models: two have one way to be joined


def compare(runs: Sequence[Labelled], options: Options) -> Found:
    """Join the runs into a tree by the Jensen-Shannon distance of their profiles, metric by metric: ``tree/1``.

    Average linkage (UPGMA). comparison/1, question ``tree``: ``cophenetic_correlation``, Pearson's r between the distances and
    the heights at which two runs are joined: how much of the distances the tree keeps. Under 3 runs with weights of
    their own (by fingerprint) refused.
    tree/1: a row per merge, from the closest on; ``left`` and ``right`` name a run, or an earlier merge as ``merge 1``.
    Source: Sokal and Michener, "A statistical method for evaluating systematic relationships", Univ. Kansas Sci. Bull. 38,
    1958; Lin, "Divergence measures based on the Shannon entropy", IEEE Trans. Inf. Theory 37, 1991.
    """
    marks = {one.label: one.fingerprint or one.label for one in runs}
    tables: dict[str, list[Row]] = {"tree/1": [], "comparison/1": []}
    for metric in options.metrics:
        subjects = all_scored(runs, metric, options)
        models = len({marks[one.label] for one in subjects})
        if models < FEWEST:
            why = f"{models} models were scored by it; at least {FEWEST} are needed"
            row = compared(QUESTION, "all runs", metric, None, "cophenetic_correlation", why=why)
            tables["comparison/1"].append(row)
            continue
        merges, correlation = joined(subjects)
        tables["tree/1"] += merges
        row = compared(
            QUESTION, "all runs", metric, None, "cophenetic_correlation", value=correlation, num=len(subjects)
        )
        tables["comparison/1"].append(row if correlation is not None else row | {"why": "all distances are equal"})
    return Found(tables)


def profile(one: Scored) -> dict[tuple[str, int | None], float]:
    """Return the share of the run's score by role and fifth of the relative depth; the shares add up to one.

    A block reaches from ``b / B`` to ``(b + 1) / B``, and its share is spread over the fifths that it reaches into, so that
    shallow and deep models compare. Roles (:mod:`esa.arch.comparison.roles`) are the same where one family stores fused what
    another stores apart; what lies outside the blocks has no depth (None).
    """
    sums = with_role(one.tensors).group_by("role", "block", maintain_order=True).agg(pl.col("sum").sum())
    total = float(sums["sum"].sum())
    found: dict[tuple[str, int | None], float] = {}
    for role, block, score in sums.iter_rows():
        parts = [(None, 1.0)] if block is None else _fifths(block, one.num_blocks)
        for depth, share in parts:
            found[role, depth] = found.get((role, depth), 0.0) + (score / total * share if total > 0 else 0.0)
    return found


def _fifths(block: int, num_blocks: int) -> list[tuple[int | None, float]]:
    """Return which fifths of the depth a block reaches into, and with which share of it."""
    start, end = block / num_blocks, (block + 1) / num_blocks
    reach = [max(0.0, min(end, (d + 1) / NUM_DEPTHS) - max(start, d / NUM_DEPTHS)) for d in range(NUM_DEPTHS)]
    return [(depth, part * num_blocks) for depth, part in enumerate(reach) if part > 0]


def distance(p: Array, q: Array) -> float:
    """Return the Jensen-Shannon distance of two distributions: the root of their divergence in bits, from 0 to 1.

    ``sqrt((KL(p || m) + KL(q || m)) / 2)`` with ``m = (p + q) / 2`` and logarithms to base 2.
    """
    middle = (p + q) / 2
    parts = [float((one[one > 0] * np.log2(one[one > 0] / middle[one > 0])).sum()) for one in (p, q)]
    return float(np.sqrt(max(0.0, sum(parts) / 2)))


def joined(subjects: Sequence[Scored]) -> tuple[list[Row], float | None]:
    """Return the rows of tree/1 and the cophenetic correlation; None where all distances are equal."""
    from scipy.cluster.hierarchy import cophenet, linkage

    profiles = [profile(one) for one in subjects]
    cells = sorted(
        {cell for one in profiles for cell in one}, key=lambda cell: (cell[0], -1 if cell[1] is None else cell[1])
    )
    shares = np.array([[one.get(cell, 0.0) for cell in cells] for one in profiles])  # (runs, cells)
    number = len(subjects)
    distances = np.array([distance(shares[i], shares[j]) for i in range(number) for j in range(i + 1, number)])
    merges = linkage(distances, method="average")
    names = [one.label for one in subjects] + [f"merge {n + 1}" for n in range(len(merges))]
    rows = [
        {
            "metric": subjects[0].metric, "merge": n + 1, "left": names[int(left)], "right": names[int(right)],
            "distance": float(height), "size": int(size),
        }
        for n, (left, right, height, size) in enumerate(merges)
    ]  # fmt: skip
    heights = cophenet(merges)
    spread = 1e-12 * float(np.abs(distances).max())
    if distances.std() <= spread or heights.std() <= spread:
        return rows, None
    return rows, float(np.corrcoef(distances, heights)[0, 1])
