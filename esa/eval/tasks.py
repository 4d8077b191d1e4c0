"""The tasks of a spec beside language modelling, read and tokenised before anything is measured."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from esa.data import TokenWindows
from esa.errors import SpecError
from esa.eval import calibration, generation
from esa.eval.item_rows import read_rows, rows_hash
from esa.eval.item_task import ItemTask
from esa.eval.loglikelihood import encode_pair, loglikelihoods, num_cut, require_room
from esa.eval.task_result import TaskResult
from esa.eval.variants import Variant
from esa.model import LoadedModel, check_context
from esa.progress import Progress
from esa.registry import TASKS, load
from esa.spec import Spec

LANGUAGE_MODELING = "language_modeling"
ON_WINDOWS = ("calibration_error", "generation")  # measured on eval's windows; the others have items of their own
Measure = Callable[[Sequence[Variant], TaskResult | None, Progress | None], list[TaskResult]]


@dataclass(frozen=True)
class PreparedTask:
    """A task ready to be measured on any variants of a model, ``measure(variants, intact, progress)``.

    ``intact``: the intact model's result, None while it is measured itself. ``num_units``: how far it advances progress.
    ``source``, ``length``, ``bos``, ``seed``: what its rows say of its items or windows; ``facts``: what a manifest says;
    ``prompts``: the tokens that are continued, of generation.
    """

    name: str
    source: str
    measure: Measure
    num_units: int
    length: int | None = None
    bos: bool | None = None
    seed: int | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)
    prompts: Sequence[tuple[int, ...]] = ()


def reads_windows(spec: Spec) -> bool:
    """Tell whether a task of the spec is measured on eval's windows."""
    return any(name == LANGUAGE_MODELING or name in ON_WINDOWS for name in spec.eval.tasks)


def has_tasks(spec: Spec) -> bool:
    """Tell whether the spec names a task beside language modelling."""
    return any(name != LANGUAGE_MODELING for name in spec.eval.tasks)


def item_tasks(spec: Spec) -> dict[str, ItemTask]:
    """Return the spec's tasks that have items of their own, by name. Raises SpecError for a source of one that has none."""
    for name in spec.eval.task_sources or {}:
        if name == LANGUAGE_MODELING or name in ON_WINDOWS:
            having = ", ".join(task for task in TASKS if task != LANGUAGE_MODELING and task not in ON_WINDOWS)
            raise SpecError(
                [f"eval.task_sources.{name}: {name} is measured on eval.source; tasks with items: {having}"],
                hint="set eval.source or eval.texts",
            )
    return {
        name: load("task", name) for name in spec.eval.tasks if name != LANGUAGE_MODELING and name not in ON_WINDOWS
    }


def sources(spec: Spec) -> dict[str, tuple[str, str]]:
    """Return, by task with items, where they come from, and the spec key that errors name."""
    given = spec.eval.task_sources or {}
    return {
        name: (given[name], f"eval.task_sources.{name}") if name in given else (task.source, "eval.tasks")
        for name, task in item_tasks(spec).items()
    }


def task_inputs(spec: Spec) -> dict[str, str]:
    """Return what identifies the tasks' items in a step's id: by source the sha256 of its rows. Raises DataError."""
    return {source: rows_hash(source, key) for source, key in sources(spec).values()}


def prepare_item_tasks(spec: Spec, loaded: LoadedModel, progress: Progress) -> list[PreparedTask]:
    """Return the tasks with items of their own, read and tokenised.

    Raises DataError for sources, rows and items that cannot be; a note says how many inputs are cut at their left end.
    """
    return [_item_task(task, *sources(spec)[name], spec, loaded, progress) for name, task in item_tasks(spec).items()]


def prepare_window_tasks(
    spec: Spec, loaded: LoadedModel, windows: TokenWindows, progress: Progress, *, seed: int | None = None,
    generates: bool = True,
) -> list[PreparedTask]:  # fmt: skip
    """Return the tasks that are measured on windows: calibration error, and where it ``generates`` the continuations."""
    found = [name for name in spec.eval.tasks if name in ON_WINDOWS and (generates or name != "generation")]
    makers = {"calibration_error": _calibration, "generation": _generation}
    return [makers[name](spec, loaded, windows, seed, progress) for name in found]


def _item_task(
    task: ItemTask, source: str, key: str, spec: Spec, loaded: LoadedModel, progress: Progress
) -> PreparedTask:
    found = read_rows(source, key, progress)
    limit = spec.eval.task_items
    rows = found.rows[:limit]
    if limit is not None and len(found.rows) < limit:
        progress.warn(
            f"{source} holds {len(found.rows):,} items, fewer than eval.task_items = {limit:,}: all are taken"
        )
    items = [task.item(row, f"{key}: {source}: item {number}") for number, row in enumerate(rows)]
    requests = [
        encode_pair(loaded.tokenizer, item.context, f" {choice}", spec.eval.bos, f"{key}: {source}: item {number}")
        for number, item in enumerate(items)
        for choice in item.choices
    ]
    require_room(requests, loaded, f"{key}: {source}")
    if cut := num_cut(requests, loaded):
        progress.warn(f"{source}: {cut:,} of {len(requests):,} inputs are longer than the model reads: cut at the left")
    num_tokens = sum(len(request.continuation) for request in requests)
    opened = {request.context[:1] == (loaded.tokenizer.bos_token_id,) for request in requests}

    def measure(
        variants: Sequence[Variant], intact: TaskResult | None, progress: Progress | None = None
    ) -> list[TaskResult]:
        results = []
        for answers in loglikelihoods(loaded, requests, variants, spec.eval.batch_tokens, progress):
            left = iter(answers)
            grouped = [[next(left) for _ in item.choices] for item in items]
            results.append(task.result(items, grouped, num_tokens))
        return results

    facts = {"task": task.name, "source": source, "items": len(items), "requests": len(requests), **found.facts}
    bos = opened.pop() if len(opened) == 1 else None
    return PreparedTask(task.name, source, measure, len(requests), bos=bos, facts=facts)


def _calibration(
    spec: Spec, loaded: LoadedModel, windows: TokenWindows, seed: int | None, progress: Progress
) -> PreparedTask:
    def measure(
        variants: Sequence[Variant], intact: TaskResult | None, progress: Progress | None = None
    ) -> list[TaskResult]:
        found = calibration.measure(loaded, windows, variants, spec.eval.batch_tokens)
        if progress is not None:
            progress.advance(len(windows.ids))
        return found

    return _on_windows("calibration_error", measure, windows, windows.ids, seed)


def _generation(
    spec: Spec, loaded: LoadedModel, windows: TokenWindows, seed: int | None, progress: Progress
) -> PreparedTask:
    prompts = windows.ids[: spec.eval.prompts]
    if len(prompts) < spec.eval.prompts:
        progress.warn(
            f"eval.prompts = {spec.eval.prompts:,} continuations are asked for, and there are {len(prompts):,} windows"
        )
    check_context(loaded.model, max(map(len, prompts)) + spec.eval.new_tokens, "eval.new_tokens", progress)

    def measure(
        variants: Sequence[Variant], intact: TaskResult | None, progress: Progress | None = None
    ) -> list[TaskResult]:
        if intact is not None and intact.nonfinite:
            return [intact for _ in variants]
        base = None if intact is None else intact.tokens
        found = generation.measure(loaded, prompts, spec.eval.new_tokens, variants, spec.eval.batch_tokens, base)
        if progress is not None:
            progress.advance(len(prompts))
        return found

    return _on_windows("generation", measure, windows, prompts, seed)


def _on_windows(
    name: str, measure: Measure, windows: TokenWindows, used: Sequence[tuple[int, ...]], seed: int | None
) -> PreparedTask:
    facts = {"task": name, **windows.facts(seed), "used": len(used)}
    prompts = used if name == "generation" else ()
    return PreparedTask(name, windows.source, measure, len(used), windows.length, windows.bos, seed, facts, prompts)
