"""Tasks of lm-evaluation-harness on variants of a model, item by item, so that differences are paired."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from esa.artifact import finite
from esa.eval.harness import HarnessFigure, HarnessTask, harness_results
from esa.eval.task_result import ItemValue, TaskResult
from esa.eval.tasks import PreparedTask
from esa.eval.variants import Variant
from esa.model import LoadedModel
from esa.progress import Progress
from esa.spec import Spec


def prepare_harness(loaded: LoadedModel, found: Sequence[HarnessTask], spec: Spec) -> list[PreparedTask]:
    """Return the harness's tasks as tasks that can be measured on any variants of the model: ``lm_eval:`` and the name.

    A group's members are one task; their figures are then called ``member: metric``. Items have what the harness logs of
    them as numbers. Cost: the harness's own passes over all items, once per variant.
    """
    return [
        PreparedTask(f"lm_eval:{one[0]}", f"lm_eval:{one[0]}", partial(_measure, loaded, one, spec), 1, facts={"task": one[0]})
        for one in found
    ]  # fmt: skip


def _measure(
    loaded: LoadedModel,
    task: HarnessTask,
    spec: Spec,
    variants: Sequence[Variant],
    intact: TaskResult | None,
    progress: Progress | None = None,
) -> list[TaskResult]:
    results = []
    for variant in variants:
        with variant.make():
            figures, samples = harness_results(loaded, [task], spec)[0]
        results.append(as_result(figures, samples))
        if progress is not None:
            progress.advance()
    return results


def as_result(figures: Sequence[HarnessFigure], samples: Mapping[str, Sequence[Mapping[str, Any]]]) -> TaskResult:
    """Return the harness's figures and logged samples of one name as a task's result; nonfinite where no figure is known."""
    several = len({one.task for one in figures}) > 1
    items: list[ItemValue] = []
    for one in figures if all(figure.value is not None for figure in figures) else ():
        metric, _, wanted = one.metric.partition(",")
        for number, sample in enumerate(
            s for s in samples.get(one.task, ()) if s.get("filter", "none") == (wanted or "none")
        ):
            value = sample.get(metric)
            if isinstance(value, int | float):
                items.append((number, None, _called(one, several=several), finite(float(value))))
    sizes = [one.num_items for one in figures if one.num_items is not None]
    return TaskResult(
        [(_called(one, several=several), one.value, one.stderr) for one in figures], items, max(sizes, default=0), 0,
        nonfinite=all(one.value is None for one in figures),
    )  # fmt: skip


def _called(one: HarnessFigure, *, several: bool) -> str:
    return f"{one.task}: {one.metric}" if several else one.metric
