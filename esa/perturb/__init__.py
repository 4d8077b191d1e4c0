"""Prove by intervention: change weights, measure the damage, bring the exact bits back."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from esa.artifact import Step, Table, find_table, read_manifest, read_ranking, to_json
from esa.artifact.steps import JOURNAL, OUTPUTS, marking_failures
from esa.artifact.tables import encode
from esa.data import TokenWindows, calibration_windows, eval_windows, source_hash
from esa.errors import EsaError, SpecError
from esa.eval import Evaluator, budgeted
from esa.eval.harness import find_tasks, harness_inputs
from esa.eval.tasks import task_inputs
from esa.model import (
    LoadedModel,
    check_context,
    eligible,
    load_model,
    model_inputs,
    require_same_model,
)
from esa.perturb.campaign import Campaign, TakeGradients, floor_targets
from esa.perturb.case_tasks import require_items
from esa.perturb.checks import require_scales
from esa.perturb.evidence.confirmation import confirmed_table, plan_campaign
from esa.perturb.evidence.tables import evidence_tables
from esa.perturb.gradients import touched_gradients
from esa.perturb.groups import group_from_addresses, groups_from_ranking
from esa.perturb.heads import heads_of
from esa.perturb.integrity import opened_journal, require_restored, watched
from esa.perturb.tables import damage_table, further_tables, windows_table
from esa.perturb.targets import names_of
from esa.progress import Progress, Recording
from esa.spec import Spec
from esa.spec.methods import Gradient
from esa.spec.sections import Confirm

__all__ = ["PerturbResult", "perturb_step", "require_scales", "run"]


@dataclass(frozen=True)
class PerturbResult:
    """A finished campaign: its damage table, its folder, and whether it was there before."""

    damage: Table
    folder: Path
    id: str
    reused: bool


def perturb_step(
    spec: Spec,
    inputs: dict[str, str],
    root: Path = OUTPUTS,
    folder: Path | None = None,
    loaded: LoadedModel | None = None,
) -> Step:
    """Return the perturb step that ``spec`` describes on a ranking or targets; nothing is loaded.

    ``loaded``: the model at hand, if there is one.
    """
    fixed = {**model_inputs(spec.model, loaded), "eval": source_hash(spec.eval.source, "eval.source")}
    if _needs_gradients(spec):
        fixed["calibration"] = source_hash(spec.calibration.source, "calibration.source")
        fixed["calibration_windows"] = to_json(spec.calibration.model_dump(mode="json"))
    return Step("perturb", spec, {**fixed, **task_inputs(spec), **inputs}, root=root, folder=folder)


@marking_failures()
def run(
    spec: Spec,
    targets: str | Path | Table | Sequence[str],
    *,
    loaded: LoadedModel | None = None,
    calibration: Sequence[str] = (),
    harness: Sequence[str] = (),
    out: Path | None = None,
    root: Path = OUTPUTS,
    force: bool = False,
    progress: Progress | None = None,
) -> PerturbResult:
    """Perturb the targets by every ``[[perturb]]`` table of ``spec`` and write ``damage.csv`` and ``windows.csv``.

    ``targets``: a ranking (step folder, file, ``-`` or table), or a list of addresses (``esa.perturb.targets``), which are one
    group. ``esa.perturb.tables`` adds what the spec asks for beside: ``bit_flip`` also writes ``faults.csv``. The intact
    model is evaluated once; a complete step is reused; a killed one goes on at the next case. ``calibration``: sha256 of
    token windows the ranking was computed on, for a warning where they equal the evaluation's. ``harness``: names or files of
    tasks of lm-evaluation-harness that every case is measured on, as on ``eval.tasks``.
    Raises EsaError for content; CheckError at once if a restored value differs, and after everything is written if the
    model's checksum changed.
    Cost: one evaluation of the windows per case, from the first block that changed on, one for the intact model, and
    ``eval.rewrites`` for the noise floor; for ``gradient`` one backward pass over the calibration windows of the first seed.
    """
    progress = Recording(progress)
    if not spec.perturb:
        raise SpecError(
            ["perturb: names no method"], hint='add [[perturb]] with method = "zero", or give --method zero'
        )
    require_scales(spec)
    ranking, inputs, where = _resolve(targets)
    spec = _testable(spec, ranking, progress)
    step = perturb_step(spec, {**inputs, **harness_inputs(harness)}, root, out, loaded)
    if step.reusable(force=force):
        require_same_model(step, loaded)
        progress.note(f"perturb: {step.folder} is complete")
        return _finished(step)
    loaded = loaded or load_model(spec.model, progress)
    if isinstance(ranking, Table):
        groups = groups_from_ranking(ranking.frame, loaded.table, where, spec.rank.seeds, heads_of(loaded))
        ks = spec.rank.k
    else:
        groups = group_from_addresses(ranking, loaded.table, heads_of(loaded))
        ks = (groups[0].size,)
    plan = plan_campaign(spec, groups, ks, loaded, progress)
    windows = eval_windows(spec.eval, loaded.tokenizer, progress=progress)
    check_context(loaded.model, windows.longest, "eval.length", progress)
    scored = _gradient_windows(spec, loaded, progress)
    if windows.sha256 in [*calibration, *([scored.sha256] if scored else [])]:
        progress.warn(
            "the calibration windows are the evaluation windows: damage is measured on the text that was scored"
        )
    require_items(spec, loaded)
    tasks = find_tasks(harness) if harness else []
    room = budgeted(spec, loaded, progress, remembers=True)
    if not step.begin(force=force):  # another process finished it while the model was loaded
        return _finished(step)
    evaluator = Evaluator(loaded, windows, spec.eval.batch_tokens, room)
    seed = spec.score.seeds[0]
    journal = opened_journal(step, loaded)
    num_reused = sum(key in plan.cases for key in journal.done)
    if num_reused:
        progress.note(f"{num_reused} of {len(plan.cases)} cases are taken over from {JOURNAL}")
    taken = _gradients_of(spec, loaded, scored, progress)
    campaign = Campaign(step.id, loaded, evaluator, journal, seed, progress, taken, tasks)
    touched = set(names_of(target for case in plan.cases.values() for target in case.targets))
    floors = floor_targets(groups, loaded, list(eligible(loaded.table)), seed, spec.eval.rewrites)
    touched |= {name for name, _ in floors}
    with watched(loaded, touched) as checksum:
        campaign.evaluate(plan, floors)
        further = further_tables(campaign, plan, spec)  # some evaluate, too
    damage = damage_table(campaign, plan, spec, step.meta())
    tables = {"damage.csv": damage, "windows.csv": windows_table(campaign, plan), **further}
    tables |= evidence_tables(campaign, plan, spec)
    for name, table in tables.items():
        step.write(table, name)
    step.finish(
        tables={name: table.kind for name, table in tables.items()},
        warnings=progress.warnings,
        model=loaded.facts,
        data=windows.facts(),
        **({"gradient_data": scored.facts(seed)} if scored else {}),
        seeds=[seed],
        checksum=checksum.record(),
        noise_floor=campaign.noise_floor(),
        num_cases=len(plan.cases),
        num_reused=num_reused,
    )
    require_restored(checksum.record(), step.folder)
    return PerturbResult(damage, step.folder, step.id, reused=False)


def _testable(spec: Spec, ranking: Table | list[str], progress: Progress) -> Spec:
    """Return the spec without a confirmatory test of addresses; raise SpecError for one whose method there is not."""
    if isinstance(ranking, Table):
        confirmed_table(spec)  # refused before a model is loaded
        return spec
    if spec.confirm.metric is not None:
        progress.note("confirm: compares a ranking's top_k with random_k; of addresses there is no such test")
    return spec.model_copy(update={"confirm": Confirm()})


def _needs_gradients(spec: Spec) -> bool:
    return any(isinstance(section, Gradient) for section in spec.perturb)


def _gradient_windows(spec: Spec, loaded: LoadedModel, progress: Progress) -> TokenWindows | None:
    """Return the windows whose gradient is taken: the calibration's of the first seed, as scores are computed on."""
    if not _needs_gradients(spec):
        return None
    seed = spec.score.seeds[0]
    windows = calibration_windows(spec.calibration, loaded.tokenizer, spec.score.seeds, progress)[seed]
    check_context(loaded.model, windows.longest, "calibration.length", progress)
    return windows


def _gradients_of(
    spec: Spec, loaded: LoadedModel, windows: TokenWindows | None, progress: Progress
) -> TakeGradients | None:
    """Return what takes the windows' gradient, none where there are no windows."""
    if windows is None:
        return None
    return lambda touched: touched_gradients(loaded, windows, touched, spec.eval.batch_tokens, progress)


def _finished(step: Step) -> PerturbResult:
    require_restored(read_manifest(step.folder)["checksum"], step.folder)
    table = find_table(step.folder, "damage/1")
    damage = Table(table.kind, table.frame, step.meta())  # a CSV carries none
    return PerturbResult(damage, step.folder, step.id, reused=True)


def _resolve(targets: str | Path | Table | Sequence[str]) -> tuple[Table | list[str], dict[str, str], str]:
    """Return the ranking or addresses, what identifies them as a step's input, and the name errors call them by."""
    if isinstance(targets, str | Path):
        path = Path(targets)
        if str(targets) != "-" and path.is_dir():
            return read_ranking(path), {"ranking": str(read_manifest(path)["run"])}, str(path)
        table = read_ranking(targets)  # known by its rows: a file and a pipe of them, CSV and Parquet, are one step
        return table, {"ranking": _content_hash(table)}, "standard input" if str(targets) == "-" else str(path)
    if isinstance(targets, Table):
        return targets, {"ranking": _content_hash(targets)}, "targets"
    if not targets:
        raise EsaError("no target is given", where="--target")
    return list(targets), {"targets": to_json(list(targets))}, "--target"


def _content_hash(table: Table) -> str:
    return hashlib.sha256(encode(table, "csv")).hexdigest()
