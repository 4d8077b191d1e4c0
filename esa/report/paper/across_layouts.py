"""The tables of what is made from several runs: laws and pooled effects of ``esa scale``, comparisons of ``esa arch``."""

from collections.abc import Callable

import polars as pl

from esa.artifact.gather import Gathered
from esa.report.paper.columns import Key, Layout, Value, estimate, number, text

_OVER = Key("over", "over", ("parameters",))
_MODEL = Key("model", "model")
_LABEL = Key("label", "model")
_METRIC = Key("metric", "metric")
_SEED = Key("seed", "seed")


def _compared(*, known: bool) -> Callable[[Gathered], pl.DataFrame | None]:
    """Return what gives the comparisons with a value, or those without one, which say why."""

    def rows(run: Gathered) -> pl.DataFrame | None:
        found = run.table("arch", "comparison/1")
        return None if found is None else found.filter(pl.col("value").is_not_null() == known)

    return rows


def _preferred(run: Gathered) -> pl.DataFrame | None:
    """Return the parameters of the law that was preferred for each quantity; of a quantity without one all that there are."""
    fits, laws = run.table("scale", "fits/1"), run.table("scale", "laws/1")
    if fits is None or laws is None:
        return fits
    of = pl.concat_str("quantity", "subject", separator=": ", ignore_nulls=True).alias("quantity")
    best = laws.drop_nulls("law").select(of, pl.col("law").alias("model")).unique(maintain_order=True)
    known = pl.col("quantity").is_in(best["quantity"].to_list())
    chosen = fits.join(best, on=["quantity", "model"], how="semi", maintain_order="left")
    return pl.concat([chosen, fits.filter(~known)])


def _within_reach(run: Gathered) -> pl.DataFrame | None:
    """Return the laws without the predictions that their quantities cannot take."""
    laws = run.table("scale", "laws/1")
    if laws is None:
        return None
    beyond = pl.col("flags").fill_null("").str.split(",").list.contains("out_of_range")
    return laws.with_columns(pl.when(~beyond).then(pl.col("^predicted.*$")).name.keep())


ACROSS: tuple[Layout, ...] = (
    Layout(
        "laws", "Laws across models", "scale", "laws/1",
        (_OVER, _MODEL, Key("quantity", "quantity"), Key("subject", "of")),
        (
            number("num_models", "models"), number("num_points", "points", hidden=True), Value("law", "law", "", kind="text"),
            number("weight", "weight"), number("r2", "R2"), number("power_r2", "R2 of the power law", "PowerR2", hidden=True),
            number("prediction_error", "error"), number("target", "at", "Target", hidden=True),
            estimate("predicted", "predicted", "predicted", "predicted_low", "predicted_high"),
            Value("changepoint", "changepoint", "changepoint", "changepoint_low", "changepoint_high", hidden=True),
            number("changepoint_p", "p of a bend", "changepoint p"),
        ),
        "Law: the best by AICc, with its weight; error: root mean square, each model left out in turn. No prediction"
        " stands where the law says what the quantity cannot be.", rows=_within_reach,
    ),
    Layout(
        "verdicts", "What the laws come to", "scale", "laws/1",
        (_OVER, _MODEL, Key("quantity", "quantity"), Key("subject", "of")),
        (text("verdict", "verdict"),),
    ),
    Layout(
        "fits", "Parameters of the laws", "scale", "fits/1",
        (Key("quantity", "quantity"), Key("model", "law"), Key("parameter", "parameter")),
        (
            estimate("value", "value", "", "low", "high"), number("r2", "R2"), number("aicc", "AICc"),
            number("weight", "weight"), number("num_points", "points"),
        ),
        "Of the law that was preferred for each quantity; fits.csv has every one that was tried.", rows=_preferred,
    ),
    Layout(
        "covariates", "What else the damage depends on", "scale", "covariates/1",
        (Key("quantity", "quantity"), Key("subject", "of"), Key("term", "term"), Key("level", "level"),
         Key("against", "against")),
        (
            estimate("estimate", "estimate", "", "low", "high"), number("p_value", "p"),
            number("p_adjusted", "adjusted p"), number("num_models", "models"), text("why", "why"),
        ),
    ),
    Layout(
        "effects", "Effects of the top weights against random ones, by model", "scale", "effects/1",
        (Key("subject", "of"), _LABEL),
        (
            number("num_parameters", "weights", "Parameters"), estimate("effect", "effect", "", "low", "high"),
            number("stderr", "standard error"), number("weight", "weight in the mean", "weight"),
            text("excluded", "excluded"),
        ),
    ),
    Layout(
        "meta", "Random-effects meta-analysis of the effects", "scale", "meta/1",
        (Key("subject", "of"),),
        (
            number("num_models", "models"), estimate("mean", "mean effect", "", "low", "high"),
            estimate("mean", "prediction interval", "prediction", "prediction_low", "prediction_high"),
            number("p_value", "p"), number("tau2", "tau2"), number("i2", "I2"), number("q", "Q"), number("q_p", "p of Q"),
        ),
        "Tau2: variance between models; I2: its share of the whole; Q: the test of heterogeneity.",
    ),
    Layout("pooling", "What the pooled effects rest on", "scale", "meta/1", (Key("subject", "of"),), (text("why", "note"),)),
    Layout(
        "emergence", "When critical weights appear in training", "scale", "emergence/1",
        (_MODEL, _METRIC, _SEED, Key("k", "k"), Key("final_rank", "final rank")),
        (
            Value("target", "weight", "Target", kind="code"), number("num_checkpoints", "checkpoints"),
            number("num_in_top", "in the top"), number("first_in_top", "first"), number("stays_from", "stays from"),
            number("num_exits", "exits"),
        ),
    ),
    Layout(
        "regions", "Where the score lies, and how densely", "arch", "shares/1",
        (_LABEL, _METRIC, _SEED, Key("by", "by"), Key("value", "part"), Key("k", "k")),
        (
            Value("weight_share", "share of weights", "weight share", kind="percent"),
            Value("score_share", "share of score", "", kind="percent"), number("density", "density"),
            number("num_top", "in the top"), number("num_tested", "tested"), number("mean_damage", "mean damage"),
            estimate("joint_damage", "joint damage", "joint damage", "joint_low", "joint_high"),
        ),
        "Density: share of score over share of weights. Damage: nats per token.",
        split=("by",),
    ),
    Layout(
        "experts", "Score by expert", "arch", "experts/1",
        (_LABEL, _METRIC, _SEED, Key("block", "block"), Key("expert", "expert")),
        (
            number("usage", "usage"), Value("score_share", "share of score", "", kind="percent"),
            number("density", "density"), number("num_top", "in the top"),
        ),
    ),
    Layout(
        "comparison", "Models compared", "arch", "comparison/1",
        (Key("question", "question"), Key("a", "a"), Key("b", "b"), _METRIC, Key("subject", "of"),
         Key("quantity", "quantity")),
        (
            estimate("value", "value", "", "low", "high"), number("expected", "by chance", "expected"),
            number("p_value", "p"), number("p_adjusted", "adjusted p"), number("num", "n", "Number"),
        ),
        split=("question",), rows=_compared(known=True),
    ),
    Layout(
        "refused", "What could not be compared", "arch", "comparison/1",
        (Key("question", "question"), Key("a", "a"), Key("b", "b"), _METRIC, Key("subject", "of"),
         Key("quantity", "quantity")),
        (text("why", "why"),),
        rows=_compared(known=False),
    ),
    Layout(
        "features", "What tells families apart", "arch", "features/1",
        (Key("feature", "feature"),),
        (estimate("importance", "importance", "", "low", "high"), text("families", "families")),
    ),
    Layout(
        "tree", "Which models are alike: the merges of a hierarchical clustering", "arch", "tree/1",
        (_METRIC, Key("merge", "merge")),
        (text("left", "left"), text("right", "right"), number("distance", "distance", ""), number("size", "models")),
    ),
    Layout(
        "robustness", "Models by robustness", "arch", "robustness/1",
        (_LABEL, _METRIC, Key("method", "method"), Key("k", "k")),
        (
            number("num_parameters", "weights", "Parameters"), estimate("damage", "damage", "", "low", "high"),
            Value("rank", "rank", "rank", "rank_low", "rank_high", extremes=True), text("task", "task"),
            estimate("task_score", "score", "task score", "task_low", "task_high"),
            Value("on_front", "on the front", "", kind="flag"),
        ),
        "Damage: nats per token. On the front: no other model has both a smaller damage and a better score.",
    ),
)  # fmt: skip
