"""Measure a model on text: NLL, perplexity, bits per byte, token accuracy."""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from esa.artifact import Step, Table, find_table, make_table, marking_failures, to_json
from esa.artifact.space import size_text
from esa.artifact.steps import OUTPUTS
from esa.data import Tokens, TokenWindows, eval_windows, source_hash, tokenised
from esa.eval.combinations import combinations
from esa.eval.evaluator import Edit, Evaluator
from esa.eval.language_modeling import Measured, evaluate
from esa.eval.memory import predicted_peak, states_room
from esa.model import LoadedModel, check_context, load_model, model_inputs, require_same_model
from esa.model.footprint import footprint_of
from esa.model.room import memory_room
from esa.progress import Progress, Recording
from esa.spec import Spec

__all__ = ["Edit", "EvalResult", "Evaluator", "Measured", "budgeted", "case_id", "eval_step", "run"]

TASK = "language_modeling"


@dataclass(frozen=True)
class EvalResult:
    """A finished evaluation: its table, its folder, and whether it was there before."""

    table: Table
    folder: Path
    reused: bool

    @property
    def nonfinite(self) -> list[tuple[str, int]]:
        """Return the source and length of every text on which the model gave NaN or infinite logits."""
        rows = self.table.frame.filter(pl.col("metric") == "nll", pl.col("value").is_null())
        return list(rows.select("source", "length").iter_rows())


def case_id(method: str, options: dict[str, Any], targets: list[str], repeat: int) -> str:
    """Return the first 12 hex of sha256 over method, options, sorted targets and repeat."""
    text = to_json([method, options, sorted(targets), repeat])
    return hashlib.sha256(text.encode()).hexdigest()[:12]


INTACT = case_id("intact", {}, [], 0)


def eval_step(spec: Spec, root: Path = OUTPUTS, folder: Path | None = None, loaded: LoadedModel | None = None) -> Step:
    """Return the eval step that ``spec`` describes, on the model at hand if there is one; nothing is loaded.

    Raises SpecError, DataError and ModelError for lengths, texts and files that cannot be.
    """
    keys = {each.section.source: each.key for each in combinations(spec)}
    texts = {source: source_hash(source, key) for source, key in keys.items()}
    inputs = {**model_inputs(spec.model, loaded), **texts}
    return Step("eval", spec, inputs, root=root, folder=folder)


@marking_failures()
def run(
    spec: Spec,
    *,
    loaded: LoadedModel | None = None,
    out: Path | None = None,
    root: Path = OUTPUTS,
    force: bool = False,
    progress: Progress | None = None,
) -> EvalResult:
    """Evaluate the model of ``spec`` on each text at each length and write ``eval.csv`` and ``windows.csv``.

    What is measured: ``esa.eval.combinations``. Rows: text as listed, length ascending, then nll, perplexity,
    bits_per_byte, accuracy; ``case`` names the text and length also in ``windows.csv``. A complete step is reused.
    NaN or infinite logits make the metrics of their text and length null, with a warning; ``EvalResult.nonfinite`` names
    them. Raises EsaError for content: spec, text, model, all of it before anything is measured.
    Cost: one forward pass over the windows of every text and length; the model is loaded, and a text tokenised, once.
    """
    progress = Recording(progress)
    step = eval_step(spec, root, out, loaded)
    if step.reusable(force=force):
        require_same_model(step, loaded)
        progress.note(f"eval: {step.folder} is complete")
        return _finished(step)
    loaded = loaded or load_model(spec.model, progress)
    found = measure(spec, loaded, progress)
    table = make_table("eval/1", [row for each in found for row in eval_rows(step.id, each)], step.meta())
    parts = [row for each in found for row in window_rows(step.id, each.case, each.measured)]
    if not step.begin(force=force):  # another process finished it while this one measured
        return _finished(step)
    step.write(table, "eval.csv")
    step.write(make_table("windows/1", parts), "windows.csv")
    step.finish(
        tables={"eval.csv": "eval/1", "windows.csv": "windows/1"},
        warnings=progress.warnings,
        model=loaded.facts,
        data=[{**each.windows.facts(), "bytes": each.windows.num_bytes, "outcome": each.outcome} for each in found],
    )
    return EvalResult(table, step.folder, reused=False)


def _finished(step: Step) -> EvalResult:
    table = find_table(step.folder, "eval/1")
    return EvalResult(Table(table.kind, table.frame, step.meta()), step.folder, reused=True)  # a CSV carries no meta


@dataclass(frozen=True)
class Evaluation:
    """What was measured on one text at one length."""

    windows: TokenWindows
    measured: Measured
    outcome: str

    @property
    def case(self) -> str:
        """Return what ``eval/1`` and ``windows/1`` call it by."""
        return case_id("intact", {"source": self.windows.source, "length": self.windows.length}, [], 0)


def measure(spec: Spec, loaded: LoadedModel, progress: Progress) -> list[Evaluation]:
    """Return the measurements of every text and length; every text is read and cut before the first is measured."""
    cut: list[TokenWindows] = []
    tokens: dict[str, Tokens] = {}
    for each in combinations(spec):
        section = each.section
        if section.source not in tokens:
            tokens = {section.source: tokenised(section, loaded.tokenizer, each.key)}  # the one before is done with
        cut.append(eval_windows(section, loaded.tokenizer, each.key, tokens[section.source], progress))
        check_context(loaded.model, cut[-1].longest, "eval.lengths" if spec.eval.lengths else "eval.length", progress)
    if any(windows.num_bytes == 0 for windows in cut):
        progress.warn("the tokenizer does not tell where its tokens start: bits per byte is null")
    found = []
    room = budgeted(spec, loaded, progress, remembers=False)
    progress.start("eval", len(cut))
    for windows in cut:
        evaluator = Evaluator(loaded, windows, spec.eval.batch_tokens, room)
        measured = evaluator.measure()
        found.append(Evaluation(windows, measured, measured.outcome(evaluator.vocabulary)))
        if measured.nonfinite:
            where = f"{windows.source} at length {windows.length:,}"
            progress.warn(f"the model gives NaN or infinite logits on {where}: its metrics are null")
        progress.advance()
    progress.finish()
    return found


def budgeted(spec: Spec, loaded: LoadedModel, progress: Progress, *, remembers: bool) -> int:
    """Return the bytes that hidden states may take; warn where ``model.memory_budget`` leaves too few."""
    model, memory = footprint_of(loaded.model, spec.model, loaded.table), memory_room(spec.model, loaded.device)
    peak = predicted_peak(spec, model, memory, remembers=remembers)
    if spec.model.memory_budget is not None and peak > memory:
        step = "perturb" if remembers else "eval"
        progress.warn(f"model.memory_budget: {size_text(memory)}; {step} is predicted to hold {size_text(peak)}")
    return states_room(spec, model, memory, remembers=remembers)


def eval_rows(run: str, found: Evaluation) -> list[dict[str, object]]:
    """Return the rows of ``eval/1`` of one text and length, for an intact model."""
    windows, measured = found.windows, found.measured
    return [
        {
            "run": run, "case": found.case, "task": TASK, "metric": name, "value": value, "intact": value, "stderr": error,
            "num_items": len(measured.num_tokens), "num_tokens": measured.total_tokens, "source": windows.source,
            "length": windows.length, "bos": windows.bos,
        }
        for name, value, error in evaluate(measured, windows.num_bytes)
    ]  # fmt: skip


def window_rows(run: str, case: str, measured: Measured) -> list[dict[str, object]]:
    """Return the rows of ``windows/1`` of one case; nonfinite ones have no NLL."""
    return [
        {
            "run": run, "case": case, "window": n, "num_tokens": tokens,
            "nll": None if measured.nonfinite else measured.nll[n],
            "num_correct": None if measured.nonfinite else measured.num_correct[n],
        }
        for n, tokens in enumerate(measured.num_tokens)
    ]  # fmt: skip
