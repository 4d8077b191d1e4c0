"""Robustness on the page: the models in order of what losing their top weights costs, and what their task scores say of it."""

from collections.abc import Iterator

import polars as pl

from esa.artifact.gather import Gathered
from esa.report.across.charts_forest import forest_chart
from esa.report.across.charts_models import pareto_chart
from esa.report.across.families import no_pooled
from esa.report.across.questions import answer_parts, asked
from esa.report.compare_frames import short_names
from esa.report.evidence.claims import ends
from esa.report.figures import Figure, slug
from esa.report.markdown import MISSING, bullets, code, escape, join, number, table

FIGURES = 3  # rankings, and Pareto fronts, that are drawn
_OF = ["metric", "method", "k"]
QUESTIONS = ("robustness",)
LESS = ("perplexity", "bits_per_byte", "word_perplexity", "byte_perplexity", "nll")  # less is better
_YES = {True: "yes", False: "no", None: MISSING}
_NOTE = (
    "Damage: of each model's own top weights, nats per token. Rank 1: the least damaged; its interval is that of the rank. Front:"
    " no other model has both a better task score and less damage."
)


def robustness_parts(run: Gathered) -> list[str]:
    """Return the section: the most and the least robust model and whether they can be told apart, then the ranking."""
    found, answers = run.table("arch", "robustness/1"), asked(run, *QUESTIONS)
    if found is None and answers.is_empty():
        return []
    if found is None:
        return ["No model's robustness is known.", *answer_parts(answers)]
    lines = [_order(part) for _, part in found.group_by(_OF, maintain_order=True)]
    return [bullets([line for line in lines if line]), _table(found), _NOTE, *answer_parts(answers)]


def _order(rows: pl.DataFrame) -> str:
    """Return the ends of a ranking in a sentence, and whether their intervals lie apart."""
    known = once(rows).drop_nulls(["damage", "rank"]).sort("rank", maintain_order=True)
    if known.height < 2:
        return ""
    first, last = known.row(0, named=True), known.row(-1, named=True)
    what = f"the top {number(first['k'])} by {code(first['metric'], cell=False)} under {escape(first['method'])}"
    least, most = (
        f"{code(row['label'], cell=False)} ({number(row['damage'])} nats per token)" for row in (first, last)
    )
    if first["rank_high"] is None or last["rank_low"] is None:
        return f"Losing {what} costs {least} least and {most} most; no interval of their ranks is known."
    if first["rank_high"] >= last["rank_low"]:
        text = f"**Which model loses least with {what} is not settled: the intervals of the ranks overlap**"
        return f"{text}, from {least} to {most}."
    sure = known.filter(pl.col("rank_low") == pl.col("rank_high"))
    text = f"**Losing {what} costs {least} least and {most} most.**"
    return (
        text + f" The interval of the rank is a single rank for {number(sure.height)} of {number(known.height)} models."
    )


def once(rows: pl.DataFrame) -> pl.DataFrame:
    """Return a row per model of one ranking: a model with several tasks has several."""
    return rows.unique(["label", *_OF], keep="first", maintain_order=True)


def _table(found: pl.DataFrame) -> str:
    rows = []
    for row in found.sort([*_OF, "rank"], maintain_order=True, nulls_last=True).iter_rows(named=True):
        known = row["rank_low"] is not None and row["rank_high"] is not None
        span = f" [{number(row['rank_low'])}, {number(row['rank_high'])}]" if known else ""
        task = " ".join(word for word in (row["task"], row["task_metric"]) if word)
        rows.append([
            number(row["rank"]) + span, code(row["label"]), escape(row["metric"]), escape(row["method"]), number(row["k"]),
            ends(row["damage"], row["low"], row["high"]), escape(task) if task else MISSING,
            ends(row["task_score"], row["task_low"], row["task_high"]), _YES[row["on_front"]],
        ])  # fmt: skip
    header = ["rank", "run", "metric", "method", "k", "damage (nats per token)", "task", "task score", "on the front"]
    return table(header, rows, "rlllrrlrl")


def figures(run: Gathered) -> Iterator[Figure]:
    """Yield each ranking with its intervals, and each task's score against robustness with its Pareto front."""
    found = run.table("arch", "robustness/1")
    if found is None:
        return
    names = short_names(found["label"].unique(maintain_order=True).to_list())
    named = found.with_columns(pl.col("label").replace_strict(names, return_dtype=pl.String).alias("name"))
    for count, ((metric, method, k), part) in enumerate(named.group_by(_OF, maintain_order=True)):
        if count >= FIGURES:
            break
        yield from _ranking(once(part), f"{metric}, {method}, k = {number(k)}")
    scored = named.drop_nulls(["task_score", "damage"])
    fronts = list(scored.group_by([*_OF, "task", "task_metric"], maintain_order=True))
    for (metric, method, k, task, measure), part in fronts[:FIGURES]:
        if part.height < 2:
            continue
        data = part.with_columns(pl.col("on_front").fill_null(False))
        front = data.filter(pl.col("on_front"))["name"].to_list()
        what = " ".join(str(word) for word in (task, measure) if word)
        title = f"{what} against robustness: {metric}, {method}, k = {number(k)}"
        caption = f"Damage of the top {number(k)} by {code(metric, cell=False)} under {escape(method)}."
        less = less_is_better(str(measure))
        caption += " The axis of the task is turned round: less is better." if less else ""
        caption += f" On the front: {join([code(name, cell=False) for name in front])}." if front else ""
        chart = pareto_chart(data, str(measure or task), title, less=less)
        yield Figure(
            f"pareto_{slug(f'{metric}_{method}_{k}_{what}')}",
            "robustness",
            chart,
            part,
            f"Pareto front: {title}",
            caption,
        )


def less_is_better(measure: str) -> bool:
    """Tell whether a smaller value of a task's figure is the better one: ``arc: acc,none`` is of the figure ``acc``."""
    return measure.rpartition(": ")[2].partition(",")[0] in LESS


def _ranking(rows: pl.DataFrame, title: str) -> Iterator[Figure]:
    known = rows.drop_nulls("damage").sort("rank", nulls_last=True, maintain_order=True)
    if known.height < 2:
        return
    rank = [
        f"rank {number(a)}" + (f", {number(b)} to {number(c)}" if b is not None and c is not None else "")
        for a, b, c in known.select("rank", "rank_low", "rank_high").iter_rows()
    ]
    data = known.select(
        "name",
        pl.col("damage").alias("value"),
        "low",
        "high",
        pl.lit(None, pl.Float64).alias("weight"),
        pl.Series("note", rank),
    )
    values = [*data["value"].to_list(), *data["low"].drop_nulls().to_list()]
    log = min(values) > 0 and max(values) > 10 * min(values)
    subtitle = ["the least damaged first", "bar: 95 % interval"]
    chart = forest_chart(data, no_pooled(), "damage (nats per token)", title, subtitle, zero=not log, log=log)
    yield Figure(
        f"robustness_{slug(title)}",
        "robustness",
        chart,
        data,
        f"Robustness: {title}",
        "Damage of each model's own top weights.",
    )
