"""Quantities of scores and rankings: their tail, their stability across seeds, metrics and modes, the roles of the top."""

import math

import polars as pl

from esa.artifact.gather import Gathered
from esa.report.markdown import join, number, percent
from esa.report.quantities.measures import Answer, Found, Needs, Options, Subject
from esa.report.tables import first_seed

PAIR = ("grad_x_weight", "grad_squared")


def seed_jaccard(run: Gathered, subject: Subject) -> Answer:
    """Return the mean Jaccard index of a metric's top k across seeds.

    ``jaccard_mean`` of ``stability_summary.json`` at the subject's k, else at its largest: the mean over pairs of seeds.
    The pairs share seeds, so that their spread gives no interval.
    """
    found = (run.stability or {}).get("metrics", {}).get(subject.metric)
    if not found:
        return Needs(f"rankings of two seeds or more of {subject.metric}")
    k = str(subject.k) if str(subject.k) in found else max(found, key=int)
    one = found[k]
    every = one.get("jaccard_all") or [one["jaccard_mean"]]
    why = f"{number(one['num_seeds'])} seeds at k = {int(k):,}, {number(min(every))} to {number(max(every))} by pair"
    return Found(one["jaccard_mean"], why)


def metric_overlap(run: Gathered, wanted: Options) -> Answer:
    """Return the share of their top weights that two metrics have in common, the mean over seeds.

    ``overlap_coefficient`` of ``overlap/1`` by weight, lists of the same seed, at the k of the options, of ``[confirm]``, or the
    largest: shared over the shorter list. ``metrics``: grad_x_weight and grad_squared by default.
    """
    one, two = wanted.metrics or PAIR
    pairs = set() if run.overlap is None else {frozenset((one, two))}
    rows = [] if run.overlap is None else [
        row for row in run.overlap.filter(pl.col("by") == "weight").iter_rows(named=True)
        if frozenset((row["metric_a"], row["metric_b"])) in pairs
        and (row["seed_a"] == row["seed_b"] or None in (row["seed_a"], row["seed_b"]))
    ]  # fmt: skip
    if not rows:
        return Needs(f"rankings of {one} and {two} from the same seeds, compared (esa overlap)")
    k = wanted.k or run.spec.confirm.k
    ks = {row["k"] for row in rows}
    k = k if k in ks else max(ks)
    shares = [row["shared"] / max(1, min(row["size_a"], row["size_b"])) for row in rows if row["k"] == k]
    why = f"top {k:,} of {one} and {two}, {number(len(shares))} pairs of lists, {number(min(shares))} to {number(max(shares))}"
    return Found(sum(shares) / len(shares), why)


def mode_overlap(run: Gathered, subject: Subject) -> Answer:
    """Return the share of its hotspots that a metric names both globally and per layer.

    ``share`` of ``modes`` in ``curve_summary.json`` at the largest size: the weights in both modes' lists, over the
    shorter list, the mean over seeds. The modes are compared at equal numbers of weights.
    """
    found = [
        curve["modes"][subject.metric] for curve in run.curves.values() if subject.metric in curve.get("modes", {})
    ]
    if not found:
        return Needs(
            f"rankings of {subject.metric} in the modes global and per_layer from two seeds or more (esa overlap --curve)"
        )
    size = found[0]["sizes"][-1]
    numbers = " and ".join(f"{number(round(size['num_weights'][mode]))} {mode}" for mode in size["num_weights"])
    return Found(size["share"], f"{number(size['shared'])} in common of {numbers}")


def top_percent_over_median(run: Gathered, subject: Subject) -> Answer:
    """Return how far the top 1 % of a metric's scores lie above the median one, on the conservative ends.

    Of ``histogram/1``, all tensors together, first seed: the lower edge of the bin that holds the 99th percentile over the
    upper edge of the bin that holds the median. Infinite where half of the scores are zero.
    """
    if run.histogram is None:
        return Needs("scores (esa score)")
    bins = (
        first_seed(run.histogram.filter(pl.col("metric") == subject.metric))
        .group_by("bin_low", "bin_high")
        .agg(pl.col("count").sum())
        .sort("bin_low", "bin_high")
    )
    if bins.is_empty():
        return Needs(f"scores of {subject.metric}")
    upto, total = bins["count"].cum_sum(), int(bins["count"].sum())
    middle, high = (int((upto < share * total).sum()) for share in (0.5, 0.99))
    median, top = float(bins["bin_high"][middle]), float(bins["bin_low"][high])
    if median <= 0:
        return Found(math.inf, f"half of {number(total)} scores are zero, the top 1 % begins at {number(top)}")
    return Found(
        top / median, f"the top 1 % of {number(total)} scores begins at {number(top)}, the median is {number(median)}"
    )


def share_with_role(run: Gathered, subject: Subject) -> Answer:
    """Return the share of a metric's top k whose role the detector names and tested.

    A weight of ``ranking/1`` (first seed) has a role where ``detector/1`` lists it as writer or eraser with a verdict other
    than unclear.
    """
    table = run.table("detector", "detector/1")
    if run.ranking is None or "detector" not in run.folders:
        return Needs("a ranking and the detector's table (esa perturb --detect)")
    top = first_seed(run.ranking.filter((pl.col("metric") == subject.metric) & (pl.col("group") == "top_k")))
    top = top.filter(pl.col("rank") <= subject.k)
    if top.is_empty():
        return Needs(f"a ranking of {subject.metric}")
    rows = [] if table is None else table.to_dicts()  # none: no candidate stood out
    roles = {
        (row["parameter"], row["index"]): row["role"] for row in rows if row["role"] and row["verdict"] != "unclear"
    }
    found = [roles[key] for key in top.select("parameter", "index").iter_rows() if key in roles]
    counts = {role: found.count(role) for role in dict.fromkeys(found)}
    parts = [f"{number(count)} {role}{'s' if count > 1 else ''}" for role, count in counts.items()]
    share = len(found) / top.height
    return Found(share, f"{join(parts) or 'none'} among the top {number(top.height)}: {percent(share)}")
