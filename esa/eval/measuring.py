"""What ``esa eval`` measures: language modelling on each text, at each length, on each seed's windows, and the tasks."""

from collections.abc import Sequence
from dataclasses import dataclass

from esa.data import Tokens, TokenWindows, seeded_eval_windows, tokenised
from esa.eval.combinations import combinations
from esa.eval.evaluator import Evaluator
from esa.eval.identity import case_id
from esa.eval.language_modeling import Measured
from esa.eval.task_result import TaskResult
from esa.eval.tasks import (
    LANGUAGE_MODELING,
    PreparedTask,
    prepare_item_tasks,
    prepare_window_tasks,
    reads_windows,
)
from esa.eval.variants import unchanged
from esa.model import LoadedModel, check_context
from esa.progress import Progress
from esa.spec import Spec


@dataclass(frozen=True)
class Windows:
    """The windows of one text at one length, of one seed where they are drawn, and the case that names them."""

    cut: TokenWindows
    seed: int | None
    case: str


@dataclass(frozen=True)
class Evaluation:
    """Language modelling on windows."""

    windows: Windows
    measured: Measured
    outcome: str


@dataclass(frozen=True)
class TaskEvaluation:
    """A task on the intact model, and the case that names it."""

    task: PreparedTask
    case: str
    result: TaskResult


def read_windows(spec: Spec, loaded: LoadedModel, progress: Progress) -> list[Windows]:
    """Return the windows of every text, length and seed, in that order; none where no task of the spec reads them.

    Raises DataError and ModelError for texts and lengths that cannot be; all are cut before anything is measured.
    """
    if not reads_windows(spec):
        return []
    found: list[Windows] = []
    tokens: dict[str, Tokens] = {}
    for each in combinations(spec):
        section = each.section
        if section.source not in tokens:
            tokens = {section.source: tokenised(section, loaded.tokenizer, each.key)}  # the one before is done with
        drawn = seeded_eval_windows(
            section, loaded.tokenizer, spec.eval.seeds, each.key, tokens[section.source], progress
        )
        for number, cut in drawn.items():
            seed = number if section.sample == "random" else None
            found.append(Windows(cut, seed, _case(cut, seed)))
        longest = max(cut.longest for cut in drawn.values())
        check_context(loaded.model, longest, "eval.lengths" if spec.eval.lengths else "eval.length", progress)
    return found


def measure_text(
    windows: Sequence[Windows], spec: Spec, loaded: LoadedModel, room: int, progress: Progress
) -> list[Evaluation]:
    """Return language modelling on each, where it is among the spec's tasks. Cost: a forward pass over all windows."""
    if LANGUAGE_MODELING not in spec.eval.tasks:
        return []
    if any(each.cut.num_bytes == 0 for each in windows):
        progress.warn("the tokenizer does not tell where its tokens start: bits per byte is null")
    found = []
    progress.start("eval", len(windows))
    for each in windows:
        evaluator = Evaluator(loaded, each.cut, spec.eval.batch_tokens, room)
        measured = evaluator.measure()
        found.append(Evaluation(each, measured, measured.outcome(evaluator.vocabulary)))
        if measured.nonfinite:
            where = f"{each.cut.source} at length {each.cut.length:,}"
            progress.warn(f"the model gives NaN or infinite logits on {where}: its metrics are null")
        progress.advance()
    progress.finish()
    return found


def prepare_tasks(
    windows: Sequence[Windows], spec: Spec, loaded: LoadedModel, progress: Progress
) -> list[tuple[str, PreparedTask]]:
    """Return every task but language modelling with the case that names it: those on windows first, then those with items.

    Calibration error is measured on every text, length and seed; continuations are made of each text's shortest windows, of
    the first seed. Raises DataError for items that cannot be read.
    """
    prepared: list[tuple[str, PreparedTask]] = []
    continued: set[str] = set()
    for each in windows:
        first = each.cut.source not in continued  # lengths ascend, seeds stand in their order
        continued.add(each.cut.source)
        tasks = prepare_window_tasks(spec, loaded, each.cut, progress, seed=each.seed, generates=first)
        prepared += [(each.case, task) for task in tasks]
    for task in prepare_item_tasks(spec, loaded, progress):
        prepared.append((case_id("intact", {"source": task.source}, [], 0), task))
    return prepared


def measure_tasks(
    prepared: Sequence[tuple[str, PreparedTask]], loaded: LoadedModel, progress: Progress
) -> list[TaskEvaluation]:
    """Return each task's result on the model as it is."""
    found = []
    for case, task in prepared:
        progress.start(task.name, task.num_units)
        (result,) = task.measure([unchanged(loaded)], None, progress)
        progress.finish()
        if result.nonfinite:
            progress.warn(f"the model gives NaN or infinite logits on {task.name}, {task.source}: its metrics are null")
        found.append(TaskEvaluation(task, case, result))
    return found


def _case(cut: TokenWindows, seed: int | None) -> str:
    """Return what the tables call a text, a length and a seed by."""
    drawn = {} if seed is None else {"seed": seed}
    return case_id("intact", {"source": cut.source, "length": cut.length, **drawn}, [], 0)
