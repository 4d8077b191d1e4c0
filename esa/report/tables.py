"""What the damage table says, in fewer rows: pure functions from frames to frames, for the report and the console."""

import json

import polars as pl

_KEYS = ["method", "options", "unit", "metric", "group", "k"]
_SUMMARY = [*_KEYS, "cases", "ppl_mean", "ppl_min", "ppl_max", "ratio", "outcome"]
_ORDER = ("ok", "uniform", "collapsed", "nonfinite")
_OVERFLOW = pl.col("ppl").is_null() & pl.col("nll").is_not_null()


def collapse(damage: pl.DataFrame) -> pl.DataFrame:
    """Return one row per method, options, unit, metric, group and k of ``damage/1``; draws, repeats and seeds fall together.

    ``cases`` counts them, ``measured`` those with a perplexity, ``draws`` the distinct draws. Means, ``ppl_min`` and
    ``ppl_max`` are over the measured ones; both ``ppl_mean`` and ``ppl_max`` are null where the perplexity of a case
    overflows (``overflow`` counts those). ``ratio`` is ``ppl_mean`` over the intact perplexity. ``delta_low`` and
    ``delta_high`` stay where there is one case. ``below_floor``: in every case. ``outcome`` counts the outcomes where they
    differ: ``3 ok, 2 nonfinite``. The order is that of the table.
    """
    single = pl.len() == 1
    rows = damage.group_by(_KEYS, maintain_order=True).agg(
        pl.len().alias("cases"),
        pl.col("ppl").count().alias("measured"),
        pl.col("draw").n_unique().alias("draws"),
        pl.col("ppl").mean().alias("ppl_mean"),
        pl.col("ppl").min().alias("ppl_min"),
        pl.col("ppl").max().alias("ppl_max"),
        pl.col("ppl_base").first(),
        pl.col("delta_nll").mean(),
        pl.col("delta_nll").max().alias("delta_max"),
        pl.when(single).then(pl.col("delta_low").first()).alias("delta_low"),
        pl.when(single).then(pl.col("delta_high").first()).alias("delta_high"),
        pl.col("noise_floor").first(),
        pl.col("below_floor").fill_null(False).all(),
        pl.col("accuracy").mean(),
        pl.col("agreement").mean(),
        pl.col("kl").mean(),
        _OVERFLOW.sum().alias("overflow"),
        pl.col("outcome").alias("outcomes"),
    )
    shown = pl.when(pl.col("overflow") == 0)
    return rows.with_columns(
        shown.then(pl.col("ppl_mean")).alias("ppl_mean"),
        shown.then(pl.col("ppl_max")).alias("ppl_max"),
        shown.then(pl.col("ppl_mean") / pl.col("ppl_base")).alias("ratio"),
        pl.Series("outcome", [tally(found) for found in rows["outcomes"].to_list()], dtype=pl.String),
    ).drop("outcomes")


def damage_summary(damage: pl.DataFrame) -> pl.DataFrame:
    """Return the damage table that a person reads first: see :func:`collapse`, of which it keeps the perplexities.

    Columns: method, options, unit, metric, group, k, cases, ppl_mean, ppl_min, ppl_max, ratio (to intact), outcome.
    """
    return collapse(damage).select(_SUMMARY)


def tally(outcomes: list[str | None]) -> str:
    """Return ``ok`` where all agree, else how many of each: ``3 ok, 2 nonfinite``."""
    found = [outcome or "unknown" for outcome in outcomes]
    names = sorted(set(found), key=lambda name: (_ORDER.index(name) if name in _ORDER else len(_ORDER), name))
    return names[0] if len(names) == 1 else ", ".join(f"{found.count(name)} {name}" for name in names)


def worst_single(damage: pl.DataFrame, ranking: pl.DataFrame | None = None) -> pl.DataFrame:
    """Return every single weight that was perturbed alone, the most harmful first, per method and options.

    Columns: target, weight, ppl, ratio, delta_nll, metrics, then method, options, repeats, ppl_base, delta_low, delta_high,
    below_floor, outcome, group. ``weight`` is the value in the model, from the ranking, which has none for random weights;
    ``metrics`` names those whose ``top_k`` (of their first seed) lists the weight, with its rank: ``act_mag 1, obd 3``. A
    nonfinite case comes before every finite one; of a method's ``repeats`` the most harmful one stands.
    """
    alone = damage.filter(pl.col("target").is_not_null()).unique("case", keep="first", maintain_order=True)
    rows = (
        alone.with_columns(
            (pl.col("outcome") == "nonfinite").fill_null(False).alias("broken"),
            pl.len().over("target", "method", "options").alias("repeats"),
        )
        .sort(["broken", "delta_nll", "target"], descending=[True, True, False], nulls_last=True, maintain_order=True)
        .unique(["target", "method", "options"], keep="first", maintain_order=True)
        .with_columns((pl.col("ppl") / pl.col("ppl_base")).alias("ratio"))
    )
    weights, metrics = listed(ranking)
    targets = rows["target"].to_list()
    return rows.with_columns(
        pl.Series("weight", [weights.get(target) for target in targets], dtype=pl.Float64),
        pl.Series("metrics", [", ".join(metrics.get(target, [])) for target in targets], dtype=pl.String),
    ).select(
        "target", "weight", "ppl", "ratio", "delta_nll", "metrics", "method", "options", "repeats", "ppl_base",
        "delta_low", "delta_high", "below_floor", "outcome", "group",
    )  # fmt: skip


def listed(ranking: pl.DataFrame | None) -> tuple[dict[str, float], dict[str, list[str]]]:
    """Map each address of a ranking to its value, and to the metrics whose ``top_k`` lists it with their rank."""
    if ranking is None:
        return {}, {}
    rows = ranking.with_columns(
        (pl.col("parameter") + ":" + pl.col("indices").str.replace_all(r"[()\s]", "").str.strip_suffix(",")).alias(
            "target"
        )
    ).filter(pl.col("target").is_not_null())
    known = rows.filter(pl.col("weight").is_not_null()).select("target", "weight").unique("target", keep="first")
    metrics: dict[str, list[str]] = {}
    for row in (
        first_seed(rows).filter((pl.col("group") == "top_k") & pl.col("metric").is_not_null()).iter_rows(named=True)
    ):
        within = "" if row["mode"] in (None, "global") else f" in {row['unit_name']}"
        metrics.setdefault(row["target"], []).append(f"{row['metric']} {row['rank']}{within}")
    return dict(known.iter_rows()), metrics


def first_seed(frame: pl.DataFrame) -> pl.DataFrame:
    """Keep each metric's lowest seed; a metric without data has none and stays."""
    return frame.filter(pl.col("seed").is_null() | (pl.col("seed") == pl.col("seed").min().over("metric")))


def fault_summary(faults: pl.DataFrame, damage: pl.DataFrame) -> pl.DataFrame:
    """Return, per field of the stored number, the bits that were flipped and what the cases with such a flip cost.

    Columns: field, bits (positions, 0 least significant), flips, cases, ppl_mean, ppl_max, ppl_base, overflow, outcome. A case
    with flips in two fields counts under both.
    """
    cases = damage.select("case", "nll", "ppl", "ppl_base", "outcome").unique("case", keep="first", maintain_order=True)
    flips = faults.group_by("field", maintain_order=True).agg(
        pl.len().alias("flips"), pl.col("bit").unique().sort(descending=True).alias("bits")
    )
    cost = (
        faults.select("field", "case")
        .unique(maintain_order=True)
        .join(cases, on="case", how="inner", maintain_order="left")
        .group_by("field", maintain_order=True)
        .agg(
            pl.len().alias("cases"),
            pl.col("ppl").mean().alias("ppl_mean"),
            pl.col("ppl").max().alias("ppl_max"),
            pl.col("ppl_base").first(),
            _OVERFLOW.sum().alias("overflow"),
            pl.col("outcome"),
        )
    )
    joined = flips.join(cost, on="field", how="left", maintain_order="left").sort(
        pl.col("bits").list.max(), descending=True, maintain_order=True
    )
    outcomes = [tally(found) if found else None for found in joined["outcome"].to_list()]
    return joined.with_columns(pl.Series("outcome", outcomes, dtype=pl.String))


def options_of(text: str | None) -> dict[str, object]:
    """Return the options that a damage row holds as JSON; what is no JSON object is kept under an empty name."""
    try:
        found = json.loads(text) if text else {}
    except ValueError:
        return {"": text}
    return found if isinstance(found, dict) else {"": text}


def label(method: str, options: str | None) -> str:
    """Return a method with its options as one reads them: ``scale, factor 1.2``."""
    words = [f"{key} {value}".strip() for key, value in sorted(options_of(options).items())]
    return ", ".join([method, *words])
