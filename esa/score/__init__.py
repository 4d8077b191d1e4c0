"""Score every weight: metrics, the passes that feed them, and the artifact they leave."""

import json
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from esa.artifact import Step, marking_failures
from esa.artifact.space import size_text
from esa.artifact.steps import OUTPUTS
from esa.data import calibration_windows, source_hash
from esa.errors import SpecError
from esa.model import (
    LoadedModel,
    check_context,
    eligible,
    load_model,
    model_inputs,
    require_same_model,
)
from esa.model.footprint import footprint_of
from esa.model.room import memory_room
from esa.progress import Progress, Recording
from esa.registry import METRIC_KEYS, unread_keys
from esa.score.collect import KINDS
from esa.score.engine import load_metrics
from esa.score.ensemble import NAME as ENSEMBLE
from esa.score.memory import effort_of, strategy_of
from esa.score.metric import Metric, Needs
from esa.score.parts import Parts, seeds_of
from esa.score.passes import Passes
from esa.score.ranks import ALONE, Ranks, joined
from esa.score.refusals import require_derivatives, require_range
from esa.score.strategy import Strategy
from esa.spec import Spec
from esa.spec.sections import Ensemble

TABLES = {f"{kind.partition('/')[0]}.parquet": kind for kind in KINDS}
_PARTS = ".parts-"  # of one step: a folder given by name may hold what another killed step left

__all__ = ["TABLES", "ScoreResult", "joined", "require_derivatives", "run", "score_step"]


@dataclass(frozen=True)
class ScoreResult:
    """A finished score step: its folder, id, and whether it was there before."""

    folder: Path
    id: str
    reused: bool


def score_step(spec: Spec, root: Path = OUTPUTS, folder: Path | None = None, loaded: LoadedModel | None = None) -> Step:
    """Return the score step that ``spec`` describes, on the model at hand if there is one; nothing is loaded."""
    text = source_hash(spec.calibration.source, "calibration.source")
    inputs = {**model_inputs(spec.model, loaded), "calibration": text}
    return Step("score", spec, inputs, root=root, folder=folder)


@marking_failures()
def run(
    spec: Spec,
    *,
    loaded: LoadedModel | None = None,
    out: Path | None = None,
    root: Path = OUTPUTS,
    force: bool = False,
    progress: Progress | None = None,
    ranks: Ranks = ALONE,
) -> ScoreResult:
    """Score the model of ``spec`` and write ``scores``, ``tensors``, ``histogram`` and ``margins`` as Parquet.

    ``score.dense`` adds every score: ``dense/<metric>[.<seed>].safetensors``, float32 under the parameters' names.
    ``score.ensemble.metrics`` adds a metric ``ensemble`` of every seed; its members' dense scores lie in the folder meanwhile.

    A complete step is reused; a broken one goes on at the next seed. ``loaded`` saves loading the model again.
    ``ranks``: the processes that share the windows, from :func:`joined`; each calls this function, the first one writes.
    Raises EsaError for content: spec, text, model, NaN scores; LostError where another process is gone. Cost: per seed one
    shared pass over its windows.
    """
    progress = Recording(progress)
    _require_windows(spec, ranks)
    step = score_step(spec, root, out, loaded)
    if ranks.decide(lambda: step.reusable(force=force)):
        require_same_model(step, loaded)
        progress.note(f"score: {step.folder} is complete")
        return ScoreResult(step.folder, step.id, reused=True)
    require_derivatives(spec)
    _tell_of_processes(spec, ranks, progress)
    loaded = loaded or load_model(ranks.place(spec.model), progress)
    chosen = eligible(loaded.table, spec.score.include, spec.score.exclude)
    metrics = load_metrics(spec.score.metrics, spec.score.reduction)
    _require_range(metrics, loaded)
    model = footprint_of(loaded.model, spec.model, loaded.table)
    effort = effort_of(spec, model)
    _warn_of_keys(spec, progress)
    room = memory_room(spec.model, loaded.device)
    if loaded.device.type == "cpu" and spec.model.memory_budget is None:
        room //= ranks.local_size
    strategy, stages = strategy_of(spec, model, effort, room, step.folder)
    strategy = replace(strategy, **json.loads(ranks.tell(lambda: _in_words(strategy))))
    stage = max(stages, key=lambda name: stages[name])
    if (budget := spec.model.memory_budget) is not None and stages[stage] > budget:
        progress.warn(
            f"model.memory_budget: {size_text(budget)}; {stage} is predicted to hold {size_text(stages[stage])}"
        )
    windows = calibration_windows(spec.calibration, loaded.tokenizer, spec.score.seeds, progress)
    longest = max(windows[seed].longest for seed in spec.score.seeds)
    check_context(loaded.model, longest, "calibration.length", progress)
    ranks.require_same(step.id, loaded.facts["fingerprint"], *(windows[seed].sha256 for seed in spec.score.seeds))
    if not ranks.decide(lambda: step.begin(force=force)):  # another run finished it while the model was loaded
        return ScoreResult(step.folder, step.id, reused=True)
    parts = Parts(step.folder / f"{_PARTS}{step.id}-{loaded.facts['fingerprint'][:12]}")
    if force and ranks.first:
        shutil.rmtree(parts.folder, ignore_errors=True)
    passes = Passes(step, loaded, chosen, windows, effort, strategy, parts, progress, ranks)
    by_seed: dict[int | None, list[Metric]] = {}
    for metric in metrics:
        for seed in seeds_of(metric, spec.score.seeds):
            by_seed.setdefault(seed, []).append(metric)
    said: list[dict[str, Any]] = []
    candidates: list[dict[str, Any]] = []
    for seed in [seed for seed in (None, *spec.score.seeds) if seed in by_seed]:
        known = json.loads(ranks.tell(partial(_done, parts, seed)))
        if known is not None:
            progress.warnings += known["warnings"]
        else:
            known = passes.score(seed, by_seed[seed])
        said += [{"seed": seed, **one} for one in known["super_weights"]]
        candidates += [{"seed": seed, **one} for one in known["candidates"]]
    if not ranks.first:
        return ScoreResult(step.folder, step.id, reused=False)
    ordered = [(metric.name, seed) for metric in metrics for seed in seeds_of(metric, spec.score.seeds)]
    combined = _combine(passes, spec, metrics) if spec.score.ensemble.metrics else {}
    ordered += [(ENSEMBLE, seed) for seed in combined]
    parts.join(step, ordered, chosen)
    dense = parts.move_dense(step.folder, ordered) if spec.score.dense else {}
    step.finish(
        tables={**TABLES, **dense},
        warnings=progress.warnings,
        model={**loaded.facts, "num_eligible": sum(info.numel for info in chosen.values()), "num_tensors": len(chosen)},
        data=[windows[seed].facts(seed) for seed in spec.score.seeds],
        seeds=list(spec.score.seeds),
        effort=asdict(effort),
        **({"processes": ranks.size} if ranks.size > 1 else {}),
        **({"super_weights": said, "candidates": candidates} if "super_activation" in spec.score.metrics else {}),
        **({"ensemble": _facts(spec, combined)} if combined else {}),
    )
    for leftover in step.folder.glob(f"{_PARTS}*"):
        shutil.rmtree(leftover, ignore_errors=True)
    return ScoreResult(step.folder, step.id, reused=False)


def _combine(passes: Passes, spec: Spec, metrics: Sequence[Metric]) -> dict[int, dict[str, Any]]:
    """Score by the ensemble, seed by seed, from the members' dense maps; return what is to be said of each."""
    found = {}
    for seed in spec.score.seeds:
        known = passes.parts.done(seed, ENSEMBLE)
        if known is not None:
            passes.progress.warnings += known["warnings"]
        else:
            known = passes.combine(
                seed,
                {
                    metric.name: passes.parts.dense_path(metric.name, one)
                    for metric in metrics
                    for one in seeds_of(metric, spec.score.seeds)
                    if metric.name in spec.score.ensemble.metrics and one in (None, seed)
                },
            )
        found[seed] = known
    return found


def _facts(spec: Spec, combined: dict[int, dict[str, Any]]) -> dict[str, Any]:
    """Return what the manifest says of the ensemble: its keys, and how many weights it ranks."""
    [number] = {one["num_weights"] for one in combined.values()}
    return {**spec.score.ensemble.model_dump(mode="json"), "num_weights": number}


def _done(parts: Parts, seed: int | None) -> str:
    """Return what a finished pass left to say, as JSON; null if it is not finished."""
    return json.dumps(parts.done(seed))


def _in_words(strategy: Strategy) -> str:
    """Return how a pass runs, as JSON: every process goes about it as the first does."""
    return json.dumps({"keep_graphs": strategy.keep_graphs, "waves": strategy.waves, "in_files": strategy.in_files})


def _require_windows(spec: Spec, ranks: Ranks) -> None:
    """Raise SpecError where a process would have no window."""
    if ranks.size > spec.calibration.windows:
        raise SpecError(
            [f"calibration.windows: {spec.calibration.windows} cannot be split over {ranks.size} processes"],
            hint=f"--nproc-per-node {spec.calibration.windows} at most, or more windows",
        )


def _tell_of_processes(spec: Spec, ranks: Ranks, progress: Recording) -> None:
    """Note how several processes go about the step, and what the first one does alone."""
    if ranks.size == 1:
        return
    threads = torch.get_num_threads()
    progress.note(f"{ranks.size} processes share the windows; CPU threads of each: {threads} (--threads)")
    if "super_activation" in spec.score.metrics:
        progress.note("super_activation: the first process alone looks at all windows, for its peaks have no parts")
    if spec.score.dense or spec.score.ensemble.metrics:
        key = "score.dense" if spec.score.dense else "score.ensemble"
        progress.note(f"{key}: the first process alone scores, for it writes the maps")


def _warn_of_keys(spec: Spec, progress: Progress) -> None:
    """Warn of keys of [score] that are set and that no chosen metric reads, and of an ensemble of nothing."""
    if not spec.score.ensemble.metrics and spec.score.ensemble != Ensemble():
        progress.warn("score.ensemble has keys that are set and no metrics: there is no ensemble")
    for key in unread_keys(spec.score.metrics):
        value = getattr(spec.score, key)
        if value != type(spec.score).model_fields[key].default:
            readers = ", ".join(METRIC_KEYS[key])
            progress.warn(f"score.{key} = {value!r} is read by {readers} alone, and none of them is scored")


def _require_range(metrics: Sequence[Metric], loaded: LoadedModel) -> None:
    """Raise ModelError for gradients of a model in memory that computes in float16, whatever the spec says."""
    if any(parameter.dtype == torch.float16 for parameter in loaded.model.parameters()):
        require_range([metric.name for metric in metrics if metric.needs >= Needs.BACKWARD])
