"""Which model withstands the loss of its own top weights best, and does it pay for that at its tasks?"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from esa.arch.comparison.damages import Damaged, Key, damages_of
from esa.arch.comparison.findings import Found, Options, Row, compared
from esa.arch.comparison.ranks import spearman_test
from esa.arch.comparison.scored import model_of
from esa.arch.comparison.sources import Labelled
from esa.arch.comparison.task_scores import TaskScore, task_scores
from esa.spec import generator

Array = npt.NDArray[np.float64]
QUESTION = "robustness"
_UNEQUAL = 2  # times as large a share of the weights is told
FEWEST = 5  # models of a rank correlation: of four, the smallest two-sided p is 1 / 12


def compare(runs: Sequence[Labelled], options: Options) -> Found:
    """Rank the runs by the damage of their own top K, and set that against their tasks, metric by metric: ``robustness/1``.

    Compared is a case that all runs with damage share: the first method of the first run, at the K of the options, else the
    largest K in common; a list ranked and zeroed jointly, first score seed, repeats averaged. ``rank`` 1: the least damage
    (nats per token). Interval of the damage: that of damage/1. Interval of the rank: 2.5 % and 97.5 % of the ranks under
    ``options.resamples`` draws of all damages, independent from model to model: of the windows (``interval`` windows), else of a
    normal with the reported interval (``normal``). A nonfinite model counts as damaged without bound and ranks last.

    A row per run and task; the runs' tasks are the intact figures of eval/1 (accuracies; perplexity and bits per byte of texts,
    lower is better) and the perplexity on the campaign's own text. ``on_front``: no other run is at least as good in both
    and better in one. comparison/1, question ``robustness``: ``spearman`` of task score against robustness over models
    (runs of one model averaged), signs such that above 0 the better models are the more robust, with a permutation p; under 5
    models refused.

    Warned of: texts that are not the same, tokens that are not (nats per token of other tokenizers do not compare: a token is
    another piece of text), and how far the share of the weights that K is differs (the larger model loses the smaller part).
    """
    tables: dict[str, list[Row]] = {"robustness/1": [], "comparison/1": []}
    scores = {one.label: task_scores(one) for one in runs}
    warnings: list[str] = []
    for metric in options.metrics:
        held = {one.label: damages_of(one, metric) for one in runs}
        measured = [one for one in runs if held[one.label]]
        if not measured:
            continue
        if len(measured) < 2:
            why = f"{measured[0].label} alone has damage of its top weights by it; a ranking needs two"
            tables["comparison/1"].append(compared(QUESTION, "all runs", metric, None, "spearman", why=why))
            continue
        key = common_key([held[one.label] for one in measured], options.k)
        if key is None:
            why = "the runs share no method, options and K"
            tables["comparison/1"].append(compared(QUESTION, "all runs", metric, None, "spearman", why=why))
            continue
        chosen = [held[one.label][key] for one in measured]
        warnings += [
            f"{one.label}: has no damage of its top weights by {metric}: not in the robustness ranking"
            for one in runs
            if not held[one.label]
        ]
        warnings += incomparable(measured, key.k)
        placed = ranked(chosen, options, metric)
        for one, damage, ranks in zip(measured, chosen, placed, strict=True):
            about = {
                "label": one.label, "family": one.shape.get("model_type"), "num_parameters": one.run.num_parameters,
                "metric": metric, "method": key.shown, "k": key.k, "damage": damage.value, "low": damage.low,
                "high": damage.high, "interval": damage.interval, "outcome": damage.outcome, **ranks,
            }  # fmt: skip
            tables["robustness/1"] += [about | row for row in _tasks(one.label, measured, chosen, scores)]
        tables["comparison/1"] += _correlations(measured, chosen, scores, metric, key, options)
    return Found(tables, adjust=frozenset({QUESTION}), warnings=tuple(dict.fromkeys(warnings)))


def incomparable(measured: Sequence[Labelled], k: int) -> list[str]:
    """Return what makes the damages of runs less than comparable: other texts, other tokens, other shares of the weights."""
    found = []
    data = [one.run.manifests["perturb"].get("data") or {} for one in measured]
    texts = list(dict.fromkeys(_told(one) for one in data))
    if len(texts) > 1:
        found.append(f"robustness ranks damages on different texts, which do not compare: {'; '.join(texts)}")
    elif len({one.get("sha256") for one in data}) > 1:
        found.append(
            "robustness ranks damages in nats per token, and the runs cut the same text into other tokens (other tokenizers, or"
            " BOS): a token is not the same piece of text in each, and neither is a nat per token"
        )
    shares = {one.label: 100 * k / one.run.num_parameters for one in measured if one.run.num_parameters}
    if shares and max(shares.values()) >= _UNEQUAL * min(shares.values()):
        most, least = max(shares, key=shares.__getitem__), min(shares, key=shares.__getitem__)
        found.append(
            f"robustness zeroes the same number of weights in models of other sizes: {k:,} are {shares[most]:.2g} % of {most}"
            f" and {shares[least]:.2g} % of {least}"
        )
    return found


def _told(data: Mapping[str, Any]) -> str:
    windows = (
        f"{data.get('windows')} windows of {data.get('length')} tokens" if data.get("windows") else "windows unknown"
    )
    return f"{data.get('source') or 'unknown'} ({windows})"


def common_key(held: Sequence[dict[Key, Damaged]], k: int | None) -> Key | None:
    """Return the case to compare: the first run's first method that all share, at ``k`` if all have it, else the largest K."""
    shared = [key for key in held[0] if all(key in other for other in held[1:])]
    if not shared:
        return None
    first = [key for key in shared if (key.method, key.options) == (shared[0].method, shared[0].options)]
    return next((key for key in first if key.k == k), max(first, key=lambda key: key.k))


def ranked(damages: Sequence[Damaged], options: Options, metric: str) -> list[dict[str, int | None]]:
    """Return ``rank``, ``rank_low`` and ``rank_high`` of every run: ``1 +`` the number of runs that are damaged less.

    The ends are None for a run whose damage has neither windows nor an interval.
    """
    values = np.array([np.inf if one.value is None else one.value for one in damages])
    draws = np.stack(
        [
            one.draws(generator(options.seed, QUESTION, metric, str(number)), options.resamples)
            for number, one in enumerate(damages)
        ]
    )  # (runs, R)
    ranks = _ranks(values[:, None])[:, 0]
    drawn = _ranks(draws)
    tails = [(1 - options.level) / 2, (1 + options.level) / 2]
    ends = np.quantile(drawn, tails, axis=1, method="inverted_cdf").T
    return [
        {
            "rank": int(rank),
            "rank_low": int(low) if one.known else None,
            "rank_high": int(high) if one.known else None,
        }
        for one, rank, (low, high) in zip(damages, ranks, ends, strict=True)
    ]


def _ranks(values: Array) -> npt.NDArray[np.int64]:
    """Return 1 + how many other runs have less, column by column ``(runs, R)``."""
    return np.stack([1 + (values < row).sum(axis=0) for row in values])


def on_front(damages: Sequence[float], goodness: Sequence[float]) -> list[bool]:
    """Tell of every run whether none is at least as good in both, less damage and more goodness, and better in one."""
    points = list(zip(damages, goodness, strict=True))
    return [not any(d <= x and g >= y and (d < x or g > y) for d, g in points) for x, y in points]


def _tasks(
    label: str, measured: Sequence[Labelled], damages: Sequence[Damaged], scores: dict[str, list[TaskScore]]
) -> list[dict[str, Any]]:
    """Return the task columns of a run's rows of robustness/1; one without a task where it has none."""
    rows: list[dict[str, Any]] = []
    for score in scores[label]:
        fellows = [(one.label, damage, other) for one, damage, other in _with_task(measured, damages, scores, score)]
        front = on_front([damage.bound for _, damage, _ in fellows], [other.goodness for _, _, other in fellows])
        place = [name for name, _, _ in fellows].index(label)
        rows.append({
            "task": score.task, "task_metric": score.metric, "task_score": score.value, "task_low": score.low,
            "task_high": score.high, "on_front": front[place],
        })  # fmt: skip
    return rows or [{}]


def _with_task(
    measured: Sequence[Labelled], damages: Sequence[Damaged], scores: dict[str, list[TaskScore]], wanted: TaskScore
) -> list[tuple[Labelled, Damaged, TaskScore]]:
    """Return the runs that have a figure of the same task and metric, with their damage and figure."""
    found = []
    for one, damage in zip(measured, damages, strict=True):
        same = [score for score in scores[one.label] if (score.task, score.metric) == (wanted.task, wanted.metric)]
        found += [(one, damage, score) for score in same[:1]]
    return found


def _correlations(
    measured: Sequence[Labelled], damages: Sequence[Damaged], scores: dict[str, list[TaskScore]], metric: str, key: Key,
    options: Options,
) -> list[Row]:  # fmt: skip
    """Return a row of comparison/1 per task: Spearman's correlation of goodness and robustness over models."""
    rows: list[Row] = []
    wanted = {(score.task, score.metric): score for one in measured for score in scores[one.label]}
    for (task, figure), score in wanted.items():
        by_model: dict[str, list[tuple[float, float]]] = {}
        for one, damage, other in _with_task(measured, damages, scores, score):
            by_model.setdefault(_variant_of(one), []).append((-damage.bound, other.goodness))
        subject = f"{task}: {figure} against the top {key.k:,} by {key.shown}"
        if len(by_model) < FEWEST:
            why = f"{len(by_model)} models have both; at least {FEWEST} are needed"
            rows.append(compared(QUESTION, "all runs", metric, subject, "spearman", num=len(by_model), why=why))
            continue
        means = np.array([np.mean(pairs, axis=0) for pairs in by_model.values()])  # (models, 2)
        draw = generator(options.seed, QUESTION, metric, subject)
        found = spearman_test(means[:, 0], means[:, 1], options.permutations, draw)
        rows.append(
            compared(QUESTION, "all runs", metric, subject, "spearman", expected=0.0, num=len(by_model), **found)
        )
    return rows


def _variant_of(one: Labelled) -> str:
    """Return what tells a model from another, base from instruct too: training seeds are replicates, an instruct model is not."""
    return f"{model_of(one)} {one.model.get('chat_template')}"
