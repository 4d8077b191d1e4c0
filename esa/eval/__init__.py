"""Measure a model: NLL, perplexity, bits per byte and token accuracy on text, and tasks."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import polars as pl

from esa.artifact import Step, Table, find_table, make_table, marking_failures, read_manifest
from esa.artifact.space import size_text
from esa.artifact.steps import OUTPUTS
from esa.data import source_hash
from esa.eval.combinations import combinations
from esa.eval.evaluator import Edit, Evaluator
from esa.eval.harness import find_tasks, harness_inputs, run_harness
from esa.eval.identity import INTACT, case_id
from esa.eval.language_modeling import Measured
from esa.eval.measuring import TaskEvaluation, measure_tasks, measure_text, prepare_tasks, read_windows
from esa.eval.memory import predicted_peak, states_room
from esa.eval.tables import (
    Row,
    continuation_rows,
    harness_rows,
    item_rows,
    spread_rows,
    task_rows,
    text_rows,
    window_rows,
)
from esa.eval.tasks import LANGUAGE_MODELING, reads_windows, task_inputs
from esa.model import LoadedModel, load_model, model_inputs, require_same_model
from esa.model.footprint import footprint_of
from esa.model.room import memory_room
from esa.progress import Progress, Recording
from esa.spec import Spec

__all__ = [
    "INTACT",
    "Edit",
    "EvalResult",
    "Evaluator",
    "Measured",
    "budgeted",
    "case_id",
    "eval_step",
    "run",
    "window_rows",
]


@dataclass(frozen=True)
class EvalResult:
    """A finished evaluation: its table, its folder, whether it was there before; the spread across seeds, of several."""

    table: Table
    folder: Path
    reused: bool
    spread: pl.DataFrame = field(default_factory=pl.DataFrame)

    @property
    def nonfinite(self) -> list[tuple[str, int]]:
        """Return the source and length of every text on which the model gave NaN or infinite logits."""
        rows = self.table.frame.filter(pl.col("metric") == "nll", pl.col("value").is_null())
        return list(rows.select("source", "length").unique(maintain_order=True).iter_rows())

    @property
    def nonfinite_tasks(self) -> list[str]:
        """Return the tasks, beside language modelling, on which the model gave NaN or infinite logits.

        Every figure of such a task is null. A single one may be null of finite logits too: a perplexity that overflows,
        rep_4 of texts of three tokens.
        """
        tasks = self.table.frame.filter(pl.col("task") != LANGUAGE_MODELING)
        known = pl.col("value").is_not_null().any()
        rows = tasks.group_by("task", "case", maintain_order=True).agg(known.alias("known"))
        return rows.filter(~pl.col("known"))["task"].unique(maintain_order=True).to_list()


def eval_step(
    spec: Spec,
    root: Path = OUTPUTS,
    folder: Path | None = None,
    loaded: LoadedModel | None = None,
    harness: Sequence[str] = (),
) -> Step:
    """Return the eval step that ``spec`` describes, on the model at hand if there is one; nothing is loaded.

    Raises SpecError, DataError and ModelError for lengths, texts, items and files that cannot be; EsaError for ``harness``
    without lm_eval.
    """
    keys = {each.section.source: each.key for each in combinations(spec)} if reads_windows(spec) else {}
    texts = {source: source_hash(source, key) for source, key in keys.items()}
    inputs = {**model_inputs(spec.model, loaded), **texts, **task_inputs(spec), **harness_inputs(harness)}
    return Step("eval", spec, inputs, root=root, folder=folder)


@marking_failures()
def run(
    spec: Spec,
    *,
    harness: Sequence[str] = (),
    loaded: LoadedModel | None = None,
    out: Path | None = None,
    root: Path = OUTPUTS,
    force: bool = False,
    progress: Progress | None = None,
) -> EvalResult:
    """Evaluate the model of ``spec`` on each text at each length, and on its tasks, and write ``eval.csv``.

    Rows: language modelling first (nll, perplexity, bits_per_byte, accuracy), text as listed, length ascending, seed as
    listed; then the tasks on those windows, then those with items, then ``harness``, names or files of lm-evaluation-harness.
    ``case`` also joins ``windows.csv`` (per window), ``items.csv`` (per item, for paired differences) and
    ``continuations.csv``; ``spread.csv`` says how far the figures of several seeds lie apart. A complete step is reused.
    NaN or infinite logits make the metrics of their text or task null, with a warning; ``EvalResult.nonfinite`` names
    them. Raises EsaError for content: spec, text, items, model, harness task, all of it before anything is measured.
    Cost: a forward pass over the windows of every text, length and seed, another for calibration error, one over the
    requests of each task with items; the model is loaded, and a text tokenised, once.
    """
    progress = Recording(progress)
    step = eval_step(spec, root, out, loaded, harness)
    if step.reusable(force=force):
        require_same_model(step, loaded)
        progress.note(f"eval: {step.folder} is complete")
        return _finished(step)
    loaded = loaded or load_model(spec.model, progress)
    windows = read_windows(spec, loaded, progress)
    prepared = prepare_tasks(windows, spec, loaded, progress)
    found = find_tasks(harness) if harness else []
    texts = measure_text(windows, spec, loaded, budgeted(spec, loaded, progress, remembers=False), progress)
    tasks = measure_tasks(prepared, loaded, progress)
    figures = run_harness(loaded, found, spec) if found else []
    rows = [row for each in texts for row in text_rows(step.id, each)]
    rows += [row for one in tasks for row in task_rows(step.id, one.case, one.task, one.result, one.result)]
    rows += harness_rows(step.id, figures)
    table = make_table("eval/1", rows, step.meta())
    more = _tables(step.id, rows, tasks, loaded)
    if texts:
        parts = [row for each in texts for row in window_rows(step.id, each.windows.case, each.measured)]
        more = {"windows.csv": make_table("windows/1", parts), **more}
    if not step.begin(force=force):  # another process finished it while this one measured
        return _finished(step)
    for name, one in {"eval.csv": table, **more}.items():
        step.write(one, name)
    described = [
        {**each.windows.cut.facts(each.windows.seed), "bytes": each.windows.cut.num_bytes, "outcome": each.outcome}
        for each in texts
    ]
    step.finish(
        tables={"eval.csv": "eval/1", **{name: one.kind for name, one in more.items()}},
        warnings=progress.warnings,
        model=loaded.facts,
        data=[*described, *(dict(task.facts) for _, task in prepared)],
    )
    return _result(step, table, reused=False)


def _tables(run: str, rows: Sequence[Row], tasks: Sequence[TaskEvaluation], loaded: LoadedModel) -> dict[str, Table]:
    """Return by file name what lies beside the figures and the windows."""
    continued = [one for one in tasks if one.task.prompts and one.result.tokens]
    found: dict[str, tuple[str, list[Row]]] = {
        "items.csv": ("items/1", [row for one in tasks for row in item_rows(run, one.case, one.task.name, one.result)]),
        "continuations.csv": (
            "continuations/1",
            [
                row
                for one in continued
                for row in continuation_rows(run, one.case, one.task, one.result, loaded.tokenizer)
            ],
        ),
        "spread.csv": ("spread/1", spread_rows(run, rows)),
    }
    return {name: make_table(kind, part) for name, (kind, part) in found.items() if part}


def _finished(step: Step) -> EvalResult:
    table = find_table(step.folder, "eval/1")
    return _result(step, Table(table.kind, table.frame, step.meta()), reused=True)  # a CSV carries no meta


def _result(step: Step, table: Table, *, reused: bool) -> EvalResult:
    kinds = read_manifest(step.folder)["kinds"].values()
    across = find_table(step.folder, "spread/1").frame if "spread/1" in kinds else pl.DataFrame()
    return EvalResult(table, step.folder, reused=reused, spread=across)


def budgeted(spec: Spec, loaded: LoadedModel, progress: Progress, *, remembers: bool) -> int:
    """Return the bytes that hidden states may take; warn where ``model.memory_budget`` leaves too few."""
    model, memory = footprint_of(loaded.model, spec.model, loaded.table), memory_room(spec.model, loaded.device)
    peak = predicted_peak(spec, model, memory, remembers=remembers)
    if spec.model.memory_budget is not None and peak > memory:
        step = "perturb" if remembers else "eval"
        progress.warn(f"model.memory_budget: {size_text(memory)}; {step} is predicted to hold {size_text(peak)}")
    return states_room(spec, model, memory, remembers=remembers)
