"""The tables of ``esa eval``: a row per figure, per window, per item, per continuation, and the spread across seeds."""

from collections.abc import Iterable, Sequence
from typing import Any

from esa.eval.harness import HarnessFigure
from esa.eval.identity import INTACT
from esa.eval.language_modeling import Measured, evaluate
from esa.eval.measuring import Evaluation
from esa.eval.task_result import TaskResult
from esa.eval.tasks import LANGUAGE_MODELING, PreparedTask
from esa.statistics.reliability import spread

Row = dict[str, object]


def text_rows(run: str, found: Evaluation) -> list[Row]:
    """Return the rows of ``eval/1`` of language modelling on one text, length and seed, for an intact model."""
    windows, measured = found.windows.cut, found.measured
    return [
        {
            "run": run, "case": found.windows.case, "task": LANGUAGE_MODELING, "metric": name, "value": value,
            "intact": value, "stderr": error, "num_items": len(measured.num_tokens),
            "num_tokens": measured.total_tokens, "source": windows.source, "length": windows.length,
            "bos": windows.bos, "seed": found.windows.seed,
        }
        for name, value, error in evaluate(measured, windows.num_bytes)
    ]  # fmt: skip


def task_rows(run: str, case: str, task: PreparedTask, result: TaskResult, intact: TaskResult) -> list[Row]:
    """Return the rows of ``eval/1`` of one task on one case."""
    return [
        {
            "run": run, "case": case, "task": task.name, "metric": metric, "value": value,
            "intact": intact.figure(metric), "stderr": error, "num_items": result.num_items,
            "num_tokens": result.num_tokens, "source": task.source, "length": task.length, "bos": task.bos,
            "seed": task.seed,
        }
        for metric, value, error in result.figures
    ]  # fmt: skip


def harness_rows(run: str, figures: Iterable[HarnessFigure]) -> list[Row]:
    """Return the rows of ``eval/1`` of lm-evaluation-harness's figures: ``task`` is ``lm_eval:`` and its name."""
    return [
        {
            "run": run, "case": INTACT, "task": f"lm_eval:{one.task}", "metric": one.metric, "value": one.value,
            "intact": one.value, "stderr": one.stderr, "num_items": one.num_items,
        }
        for one in figures
    ]  # fmt: skip


def window_rows(run: str, case: str, measured: Measured) -> list[Row]:
    """Return the rows of ``windows/1`` of one case; nonfinite ones have no NLL."""
    return [
        {
            "run": run, "case": case, "window": n, "num_tokens": tokens,
            "nll": None if measured.nonfinite else measured.nll[n],
            "num_correct": None if measured.nonfinite else measured.num_correct[n],
        }
        for n, tokens in enumerate(measured.num_tokens)
    ]  # fmt: skip


def item_rows(run: str, case: str, task: str, result: TaskResult) -> list[Row]:
    """Return the rows of ``items/1`` of one task on one case."""
    return [
        {"run": run, "case": case, "task": task, "item": item, "choice": choice, "metric": metric, "value": value}
        for item, choice, metric, value in result.items
    ]


def continuation_rows(run: str, case: str, task: PreparedTask, result: TaskResult, tokenizer: Any) -> list[Row]:
    """Return the rows of ``continuations/1``: prompt and continuation as text, special tokens spelt out."""
    return [
        {
            "run": run, "case": case, "item": item, "prompt": tokenizer.decode(list(prompt)),
            "continuation": tokenizer.decode(tokens), "num_tokens": len(tokens),
        }
        for item, (prompt, tokens) in enumerate(zip(task.prompts, result.tokens, strict=True))
    ]  # fmt: skip


def spread_rows(run: str, rows: Sequence[Row]) -> list[Row]:
    """Return the rows of ``spread/1``: of each figure that several seeds have, mean, sd, cv, min and max across them.

    ``sd`` has R - 1 below the line, ``cv = sd / |mean|``. A figure that is null for any seed has none.
    """
    groups: dict[tuple[object, ...], list[Row]] = {}
    for row in rows:
        if row.get("seed") is not None:
            groups.setdefault((row["task"], row["metric"], row["source"], row["length"]), []).append(row)
    found: list[Row] = []
    for (task, metric, source, length), part in groups.items():
        values = [row["value"] for row in part]
        known = [value for value in values if isinstance(value, float)]
        across = spread(known) if len(known) == len(values) > 1 else None
        if len(values) > 1:
            found.append(
                {
                    "run": run, "task": task, "metric": metric, "source": source, "length": length,
                    "num_seeds": len(values), "mean": across and across.mean, "sd": across and across.sd,
                    "cv": across and across.cv, "min": min(known) if across else None,
                    "max": max(known) if across else None,
                }
            )  # fmt: skip
    return found
