"""The tasks of a campaign: every case and the intact model on the same items, and the paired differences."""

from collections.abc import Mapping, Sequence
from functools import partial

from esa.artifact import Table, make_table
from esa.eval import INTACT
from esa.eval.harness_tasks import prepare_harness
from esa.eval.tables import continuation_rows, item_rows, task_rows
from esa.eval.task_result import TaskResult
from esa.eval.tasks import PreparedTask, has_tasks, prepare_item_tasks, prepare_window_tasks
from esa.eval.variants import Variant, unchanged
from esa.model import LoadedModel
from esa.perturb.campaign import Campaign
from esa.perturb.cases import Plan
from esa.perturb.hooks import HOOKS
from esa.perturb.targets import names_of
from esa.progress import Silent
from esa.spec import Spec
from esa.statistics.bootstrap import paired_interval
from esa.statistics.permutation import sign_flip_p

Row = dict[str, object]
Results = Mapping[str, Sequence[TaskResult]]  # by case, in the order of the tasks


def task_tables(campaign: Campaign, plan: Plan, spec: Spec) -> dict[str, Table]:
    """Return by file name what the tasks beside language modelling found; nothing where there are none.

    ``eval.csv``: figures of the intact model and of every case. ``items.csv``: values per item. ``task_damage.csv``: paired
    differences. ``continuations.csv``: of generation, the texts. Rows: the intact model, then the cases in the plan's order,
    without those that the confirmatory test alone needs (``confirm.draws`` of them), which reads no task.
    Raises DataError for items that cannot be read.
    """
    if not has_tasks(spec) and not campaign.harness:
        return {}
    plan = Plan({key: case for key, case in plan.cases.items() if key not in plan.tested}, plan.uses)
    windows = campaign.evaluator.windows
    tasks = prepare_window_tasks(spec, campaign.loaded, windows, campaign.progress)
    tasks += prepare_item_tasks(spec, campaign.loaded, campaign.progress)
    tasks += prepare_harness(campaign.loaded, campaign.harness, spec)
    results = measure(campaign, plan, tasks)
    run, intact = campaign.run, results[INTACT]
    of_cases = [
        (case, task, result, base)
        for case in [INTACT, *plan.cases]
        for task, result, base in zip(tasks, results[case], intact, strict=True)
    ]
    figures = [row for case, task, result, base in of_cases for row in task_rows(run, case, task, result, base)]
    items = [row for case, task, result, _ in of_cases for row in item_rows(run, case, task.name, result)]
    damage = [
        row
        for case, task, result, base in of_cases
        if case != INTACT
        for row in damage_rows(run, case, task.name, result, base, spec, campaign.seed)
    ]
    texts = [
        row
        for case, task, result, _ in of_cases
        if task.prompts and result.tokens
        for row in continuation_rows(run, case, task, result, campaign.loaded.tokenizer)
    ]
    tables = {
        "eval.csv": make_table("eval/1", figures),
        "items.csv": make_table("items/1", items),
        "task_damage.csv": make_table("task_damage/1", damage),
    }
    return {**tables, **({"continuations.csv": make_table("continuations/1", texts)} if texts else {})}


def require_items(spec: Spec, loaded: LoadedModel) -> None:
    """Raise DataError for items that cannot be read or tokenised, before a campaign begins."""
    prepare_item_tasks(spec, loaded, Silent())


def measure(campaign: Campaign, plan: Plan, tasks: Sequence[PreparedTask]) -> Results:
    """Return every task's result on the intact model and on every case; what the journal holds is taken over.

    Cases run a few together, in the order of the first block that they change; each finished one is a flushed line
    ``tasks-<case>``, and a kill loses those at work alone. Cost per case: of each task with items the blocks from the first
    changed one on, over all requests; of generation a prompt and a step per new token.
    """
    journal, progress = campaign.journal, campaign.progress
    evaluator = campaign.evaluator
    waiting = [case for case in plan.cases.values() if _key(case.id) not in journal.done]
    starts = {case.id: evaluator.first_block(names_of(case.targets)) for case in waiting}
    waiting.sort(key=lambda case: starts[case.id])
    progress.start("tasks", (len(waiting) + (_key(INTACT) not in journal.done)) * len(tasks))
    if _key(INTACT) not in journal.done:
        results = []
        for task in tasks:
            results += task.measure([unchanged(campaign.loaded)], None, None)
            progress.advance()
        _note(campaign, INTACT, results)
    intact = _noted(campaign, INTACT)
    for first in range(0, len(waiting), evaluator.together):
        cases = waiting[first : first + evaluator.together]
        edits = list(campaign.edits(cases))
        variants = [
            Variant(starts[case.id], partial(edit.make, edit.names), hooked=case.method in HOOKS)
            for case, edit in zip(cases, edits, strict=True)
        ]
        found: list[list[TaskResult]] = [[] for _ in cases]
        for task, base in zip(tasks, intact, strict=True):
            for mine, result in zip(found, task.measure(variants, base, None), strict=True):
                mine.append(result)
            progress.advance(len(cases))
        for case, mine in zip(cases, found, strict=True):
            _note(campaign, case.id, mine)
    progress.finish()
    return {key: _noted(campaign, key) for key in [INTACT, *plan.cases]}


def damage_rows(
    run: str, case: str, task: str, result: TaskResult, intact: TaskResult, spec: Spec, seed: int
) -> list[Row]:
    """Return the rows of ``task_damage/1`` of one task on one case: perturbed minus intact, figure by figure.

    ``delta = value - intact``. Where items have the metric, ``delta_low`` and ``delta_high`` are the studentized bootstrap
    interval of the mean of their paired differences, ``p_value`` the two-sided sign-flip test's, over the ``num_items`` that
    have it under both; ``num_changed`` of them differ. For calibration_error items are jackknife pseudo-values. A figure that
    is no mean over items (perplexity, distinct_n) has a delta alone: loglik is the mean behind the perplexity.
    """
    rules = spec.statistics
    rows: list[Row] = []
    for metric, value, _ in result.figures:
        base, name = intact.figure(metric), f"{case} {task} {metric}"
        ours, theirs = result.per_item(metric), intact.per_item(metric)
        pairs = [(a, b) for item, a in ours.items() if a is not None and (b := theirs.get(item)) is not None]
        row: Row = {
            "run": run, "case": case, "task": task, "metric": metric, "value": value, "intact": base,
            "delta": None if value is None or base is None else value - base, "num_items": result.num_items,
        }  # fmt: skip
        if pairs and row["delta"] is not None:
            changed, before = [a for a, _ in pairs], [b for _, b in pairs]
            ends = paired_interval(changed, before, [1] * len(pairs), seed, name, rules.level, rules.resamples)
            differences = [a - b for a, b in pairs]
            row |= {
                "delta_low": ends.low, "delta_high": ends.high, "num_items": len(pairs),
                "p_value": sign_flip_p(differences, seed, name, rules.permutations),
                "num_changed": sum(difference != 0 for difference in differences),
            }  # fmt: skip
        rows.append(row)
    return rows


def _key(case: str) -> str:
    return f"tasks-{case}"


def _note(campaign: Campaign, case: str, results: Sequence[TaskResult]) -> None:
    campaign.journal.append(_key(case), {"results": [result.record() for result in results]})


def _noted(campaign: Campaign, case: str) -> list[TaskResult]:
    return [TaskResult.from_record(record) for record in campaign.journal.done[_key(case)]["results"]]
