"""Which tables a paper gets of a run, column by column, in the order of the report, from the frames that it computes."""

from collections.abc import Callable

import polars as pl

from esa.artifact.gather import Gathered
from esa.report.frames import shares, single_weights
from esa.report.paper.across_layouts import ACROSS
from esa.report.paper.columns import Key, Layout, Value, estimate, number, text
from esa.report.tables import collapse, label, worst_single

WORST = 10  # single weights per method
NOUNS = {"top_k": "top", "random_k": "random", "bottom_k": "bottom", "matched_k": "matched"}
_METRIC = Key("metric", "metric", ("all",))
_SEED = Key("seed", "seed")
_GROUP = Key("group", "weights", ("top",))
_METHOD = Key("method", "method")
_UNIT = Key("unit", "unit", ("joint",))
_K = Key("k", "k")


def _named(rows: pl.DataFrame) -> pl.DataFrame:
    """Return rows with methods and their options, groups, and metrics as a reader calls them."""
    options = rows["options"].to_list() if "options" in rows.columns else [None] * rows.height
    methods = [None if one is None else label(one, found) for one, found in zip(rows["method"], options, strict=True)]
    named = rows.with_columns(pl.Series("method", methods, dtype=pl.String))
    if "group" in rows.columns:
        named = named.with_columns(pl.col("group").replace(NOUNS))
    if "metric" in rows.columns and "target" not in rows.columns:
        named = named.with_columns(pl.col("metric").fill_null("all"))  # groups that all metrics share
    return named


def _damage(run: Gathered) -> pl.DataFrame | None:
    return None if run.plain_damage is None else _named(collapse(run.plain_damage))


def _worst(run: Gathered) -> pl.DataFrame | None:
    if run.plain_damage is None:
        return None
    worst = worst_single(run.plain_damage, run.ranking)
    labels = dict(single_weights(run.plain_damage, run.ranking).select("target", "label").iter_rows())
    worst = worst.with_columns(pl.col("target").replace_strict(labels).alias("label"))
    place = pl.int_range(1, pl.len() + 1).over("method", "options").alias("place")
    return _named(worst.with_columns(place).filter(pl.col("place") <= WORST))


def _claims(phase: str) -> Callable[[Gathered], pl.DataFrame | None]:
    def rows(run: Gathered) -> pl.DataFrame | None:
        found = run.table("perturb", "tests/1")
        if found is None:
            return None
        own = found.filter(pl.col("phase") == phase)
        joint = own.filter(pl.col("unit") == "joint")
        words = pl.col("claim").str.replace_all("_", " "), pl.col("flags").str.replace_all("_", " ")
        return _named(joint if joint.height else own).with_columns(*words)

    return rows


def _with_method(step: str, kind: str) -> Callable[[Gathered], pl.DataFrame | None]:
    def rows(run: Gathered) -> pl.DataFrame | None:
        found = run.table(step, kind)
        return None if found is None else _named(found)

    return rows


def _tasks(run: Gathered) -> pl.DataFrame | None:
    """Return the damage to tasks beside the case that did it."""
    found, damage = run.table("perturb", "task_damage/1"), run.damage
    if found is None or damage is None:
        return None
    cases = damage.unique("case", keep="first", maintain_order=True).select(
        "case", pl.col("metric").alias("by"), "seed", "group", "draw", "method", "options", "repeat", "unit", "k"
    )
    return _named(found.join(cases, on="case", how="left", maintain_order="left"))


def _intact(run: Gathered) -> pl.DataFrame | None:
    found = run.table("eval", "eval/1")
    return None if found is None else found.filter(pl.col("case") == "intact")


def _stability(run: Gathered) -> pl.DataFrame | None:
    """Return the summary of the seeds as a row per metric and k."""
    rows = [
        {
            "metric": metric, "k": int(k), "num_seeds": entry.get("num_seeds"), "mean": entry.get("jaccard_mean"),
            "sd": entry.get("jaccard_std"), "shared": entry.get("topk_overlap_size"),
        }
        for metric, found in (run.stability or {}).get("metrics", {}).items()
        for k, entry in found.items()
    ]  # fmt: skip
    schema = {"metric": pl.String, "k": pl.Int64, "num_seeds": pl.Int64, "mean": pl.Float64, "sd": pl.Float64}
    return pl.DataFrame(rows, {**schema, "shared": pl.Int64}) if rows else None


def _agreement(run: Gathered) -> pl.DataFrame | None:
    """Return the mean agreement by weight of every two different lists, by metric and k."""
    if run.overlap is None:
        return None
    rows = run.overlap.filter(pl.col("by") == "weight").with_columns(
        pl.coalesce("metric_a", "label_a").alias("first"), pl.coalesce("metric_b", "label_b").alias("second")
    )
    return rows.group_by("first", "second", "k", maintain_order=True).agg(
        pl.len().alias("pairs"), pl.col("jaccard").mean(), pl.col("jaccard").min().alias("low"),
        pl.col("jaccard").max().alias("high"), pl.col("expected_jaccard").mean(), pl.col("p_value").max(),
    )  # fmt: skip


def _shares(run: Gathered) -> pl.DataFrame | None:
    return None if run.tensors is None else shares(run.tensors, "component")


LAYOUTS: tuple[Layout, ...] = (
    Layout(
        "confirmatory", "The confirmatory test", "perturb", "tests/1",
        (_METRIC, _GROUP, _METHOD, _UNIT, _K, Key("claim", "claim", ("more than random",))),
        (
            estimate("estimate", "estimate", "", "low", "high"), number("ratio", "ratio"), number("p_value", "p"),
            number("level", "level"), number("num_draws", "draws"), number("num_windows", "windows"),
            number("z", "z"), number("cliffs_delta", "Cliff's delta", "Cliffs delta"),
            Value("holds", "holds", "", kind="flag"),
        ),
        "Estimate: nats per token, with its interval over windows. Ratio: its low end over the largest of the controls.",
        rows=_claims("confirmatory"),
    ),
    Layout(
        "worst", "The most harmful single weights", "perturb", "damage/1",
        (_METHOD, Key("place", "place")),
        (
            Value("label", "weight", "Label", kind="code"), Value("target", "address", "Target", kind="code", hidden=True),
            number("weight", "value", "Weight"), text("metrics", "listed by"),
            number("ppl", "perplexity"), number("ratio", "ratio"),
            estimate("delta_nll", "delta NLL", "", "delta_low", "delta_high"), text("outcome", "outcome"),
        ),
        "Weight: block, component, row and column. Listed by: the metrics whose top list holds it, with its rank. Delta NLL:"
        " nats per token.",
        rows=_worst,
    ),
    Layout(
        "damage", "Damage", "perturb", "damage/1",
        (_METRIC, _GROUP, _METHOD, _UNIT, _K),
        (
            number("cases", "cases"),
            Value("ppl_mean", "perplexity", "perplexity", "ppl_min", "ppl_max", extremes=True), number("ratio", "ratio"),
            estimate("delta_nll", "delta NLL", "", "delta_low", "delta_high"), number("accuracy", "accuracy"),
            number("agreement", "agreement"), number("kl", "KL"), text("outcome", "outcome"),
        ),
        "Perplexity: mean, in brackets smallest and largest of the cases. Delta NLL and KL: nats per token.",
        split=("method", "unit"), rows=_damage,
    ),
    Layout(
        "claims", "Claims of the screen", "perturb", "tests/1",
        (Key("claim", "claim"), _METRIC, _GROUP, _METHOD, _UNIT, _K, Key("target", "weight", code=True), Key("dose", "dose")),
        (
            estimate("estimate", "estimate", "", "low", "high"), number("ratio", "ratio"),
            number("p_adjusted", "adjusted p"), number("p_value", "p"), number("num_draws", "draws"),
            Value("holds", "holds", "", kind="flag"), text("flags", "flags"),
        ),
        "Estimate: nats per token. The p values are adjusted within each claim.",
        split=("claim",), rows=_claims("screen"),
    ),
    Layout(
        "discrimination", "How well the damage of top weights is told from that of random ones", "perturb", "discrimination/1",
        (_METRIC, _METHOD, _K, Key("dose", "dose")),
        (
            number("damage", "damage", ""), number("num_draws", "draws"), number("z", "z"), number("auc", "AUC"),
            number("p_value", "p"), number("power", "power"), number("place", "place"),
        ),
        rows=_with_method("perturb", "discrimination/1"),
    ),
    Layout(
        "dose", "Dose-response", "perturb", "dose/1",
        (_METRIC, _GROUP, _METHOD, Key("option", "dose of"), _UNIT, _K, Key("target", "weight", code=True), Key("draw", "draw")),
        (
            number("num_doses", "doses"), number("spearman", "Spearman", ""), number("kendall", "Kendall"),
            number("p_value", "p"), number("isotonic_r2", "isotonic R2"), number("page_p", "Page's p", "Page p"),
            number("separates_at", "separates at"),
        ),
        rows=_with_method("perturb", "dose/1"),
    ),
    Layout(
        "reliability", "Reliability", "perturb", "reliability/1",
        (Key("over", "over"), _METRIC, _GROUP, _METHOD, _UNIT, _K, Key("target", "weight", code=True)),
        (
            number("num_cases", "cases"), number("mean", "mean"), number("sd", "standard deviation"), number("cv", "cv"),
            estimate("icc", "ICC", "", "low", "high"),
        ),
        rows=_with_method("perturb", "reliability/1"),
    ),
    Layout(
        "interactions", "Interactions of weights", "perturb", "interactions/1",
        (_METRIC, _SEED, _GROUP, Key("draw", "draw"), _METHOD, _UNIT, _K, Key("target_a", "weight", code=True),
         Key("target_b", "and", code=True)),
        (
            number("joint", "joint"), number("sum_of_singles", "sum of singles"),
            estimate("interaction", "interaction", "", "low", "high"),
        ),
        "Nats per token.", rows=_with_method("perturb", "interactions/1"),
    ),
    Layout(
        "tasks", "Damage to tasks", "perturb", "task_damage/1",
        (Key("task", "task"), Key("metric", "figure"), Key("by", "metric"), Key("seed", "seed", ("0",)), _GROUP,
         Key("draw", "draw"), _METHOD, Key("repeat", "repeat", ("0",)), _UNIT, _K),
        (
            number("intact", "before"), number("value", "after"),
            estimate("delta", "difference", "", "delta_low", "delta_high"), number("p_value", "p"), number("num_items", "items"),
        ),
        rows=_tasks,
    ),
    Layout(
        "truth", "Metrics against measured damage", "truth", "truth/1",
        (_METRIC, _SEED, Key("quantity", "quantity", ("spearman",))),
        (estimate("value", "value", "", "low", "high"), number("num_weights", "weights"), number("num_censored", "censored")),
    ),
    Layout(
        "detector", "Candidates of the detector", "detector", "detector/1",
        (Key("rank", "rank"),),
        (
            Value("target", "weight", "Target", kind="code"), text("verdict", "verdict"), text("role", "role"),
            number("weight", "value", "Weight"), estimate("delta_nll", "delta NLL", "", "delta_low", "delta_high"),
            number("ppl", "perplexity"),
            estimate("group_delta_nll", "with its group", "group", "group_delta_low", "group_delta_high"),
            number("growth", "growth"), number("peak_ratio", "peak ratio"),
        ),
    ),
    Layout(
        "faults", "Random bit errors", "faults", "fault_rates/1",
        (Key("rate", "rate"), Key("by", "by"), Key("value", "part"), Key("width", "bits"), Key("outcome", "outcome")),
        (number("count", "trials so"), number("trials", "of"), estimate("share", "share", "", "low", "high")),
    ),
    Layout(
        "intact", "The intact model", "eval", "eval/1",
        (Key("task", "task"), Key("metric", "figure"), Key("source", "text"), Key("length", "length"), _SEED),
        (number("value", "value", ""), number("stderr", "standard error"), number("num_items", "items")),
        rows=_intact,
    ),
    Layout(
        "seeds", "The intact model across seeds of the text", "eval", "spread/1",
        (Key("task", "task"), Key("metric", "figure"), Key("source", "text"), Key("length", "length")),
        (
            number("num_seeds", "seeds"), Value("mean", "mean", "", "min", "max", extremes=True),
            number("sd", "standard deviation"), number("cv", "cv"),
        ),
        "Mean: in brackets smallest and largest.",
    ),
    Layout(
        "stability", "Agreement of the top lists across seeds", "overlap", "overlap/1",
        (_METRIC, _K),
        (
            number("num_seeds", "seeds"), number("mean", "mean Jaccard", ""), number("sd", "standard deviation"),
            number("shared", "in every list"),
        ),
        rows=_stability,
    ),
    Layout(
        "overlap", "Agreement of lists by weight", "overlap", "overlap/1",
        (Key("first", "list"), Key("second", "and list"), _K),
        (
            number("pairs", "pairs"), Value("jaccard", "Jaccard", "", "low", "high", extremes=True),
            number("expected_jaccard", "by chance"), number("p_value", "largest p", "p"),
        ),
        "Jaccard: mean, in brackets smallest and largest of the pairs.", rows=_agreement,
    ),
    Layout(
        "components", "Where the score lies", "score", "tensors/1",
        (_METRIC, Key("component", "component")),
        (
            Value("weight_share", "share of weights", "weight share", kind="percent"),
            Value("score_share", "share of score", "", kind="percent"),
        ),
        rows=_shares,
    ),
    *ACROSS,
)  # fmt: skip
