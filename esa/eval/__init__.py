"""Measure a model on text: NLL, perplexity, bits per byte, token accuracy."""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from esa.artifact import Step, Table, find_table, make_table, to_json
from esa.artifact.steps import OUTPUTS
from esa.data import eval_windows, source_hash
from esa.eval.evaluator import Evaluator
from esa.eval.language_modeling import Measured, evaluate
from esa.model import LoadedModel, load_model, require_same_model, source_hashes
from esa.progress import Progress, Recording
from esa.spec import Spec

__all__ = ["EvalResult", "Evaluator", "Measured", "case_id", "eval_step", "run"]

TASK = "language_modeling"


@dataclass(frozen=True)
class EvalResult:
    """A finished evaluation: its table, its folder, and whether it was there before."""

    table: Table
    folder: Path
    reused: bool


def case_id(method: str, options: dict[str, Any], targets: list[str], repeat: int) -> str:
    """Return the first 12 hex of sha256 over method, options, sorted targets and repeat."""
    text = to_json([method, options, sorted(targets), repeat])
    return hashlib.sha256(text.encode()).hexdigest()[:12]


INTACT = case_id("intact", {}, [], 0)


def eval_step(spec: Spec, root: Path = OUTPUTS, folder: Path | None = None) -> Step:
    """Return the eval step that ``spec`` describes; nothing is loaded."""
    inputs = {**source_hashes(spec.model.id), "eval": source_hash(spec.eval.source)}
    return Step("eval", spec, inputs, root=root, folder=folder)


def run(
    spec: Spec,
    *,
    loaded: LoadedModel | None = None,
    out: Path | None = None,
    root: Path = OUTPUTS,
    force: bool = False,
    progress: Progress | None = None,
) -> EvalResult:
    """Evaluate the model of ``spec`` on its evaluation text and write ``eval.csv`` and ``windows.csv``.

    A complete step is reused. Raises EsaError for content: spec, text, model. Cost: one forward pass over the windows.
    """
    progress = Recording(progress)
    step = eval_step(spec, root, out)
    if step.complete and not force:
        require_same_model(step, loaded)
        progress.note(f"eval: {step.folder} is complete")
        return EvalResult(find_table(step.folder, "eval/1"), step.folder, reused=True)
    loaded = loaded or load_model(spec.model, progress)
    windows = eval_windows(spec.eval, loaded.tokenizer)
    evaluator = Evaluator(loaded, windows, spec.eval.batch_tokens)
    measured = evaluator.measure()
    if measured.nonfinite:
        progress.warn("the model gives NaN or infinite logits on this text: its metrics are null")
    table = make_table("eval/1", eval_rows(step.id, measured, windows.num_bytes), step.meta())
    step.begin(force=force)
    step.write(table, "eval.csv")
    step.write(make_table("windows/1", window_rows(step.id, INTACT, measured)), "windows.csv")
    step.finish(
        tables={"eval.csv": "eval/1", "windows.csv": "windows/1"},
        warnings=progress.warnings,
        model=loaded.facts,
        data=windows.facts(),
        outcome=measured.outcome(evaluator.vocabulary),
    )
    return EvalResult(table, step.folder, reused=False)


def eval_rows(run: str, measured: Measured, num_bytes: int) -> list[dict[str, object]]:
    """Return the rows of ``eval/1`` for an intact model."""
    return [
        {
            "run": run, "case": INTACT, "task": TASK, "metric": name, "value": value, "intact": value, "stderr": error,
            "num_items": len(measured.num_tokens), "num_tokens": measured.total_tokens,
        }
        for name, value, error in evaluate(measured, num_bytes)
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
