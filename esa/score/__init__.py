"""Score every weight: metrics, the passes that feed them, and the artifact they leave."""

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl
import torch
from torch import Tensor

from esa.artifact import Step, replacing, to_json, write_json
from esa.artifact.schemas import SCHEMAS
from esa.artifact.steps import OUTPUTS
from esa.artifact.tables import Table, write_table
from esa.data import calibration_windows, source_hash
from esa.errors import EsaError, ModelError
from esa.model import LoadedModel, ParameterInfo, eligible, load_model, require_same_model, source_hashes
from esa.progress import Progress, Recording
from esa.score.collect import KINDS, Collector
from esa.score.engine import Engine, load_metrics
from esa.score.metric import Metric, Needs, Scores
from esa.score.reduce import Indices, reduce_scores
from esa.spec import Spec

TABLES = {f"{kind.partition('/')[0]}.parquet": kind for kind in KINDS}
_PARTS = ".parts-"  # of one step: a folder given by name may hold what another killed step left

__all__ = ["TABLES", "ScoreResult", "run", "score_step"]


@dataclass(frozen=True)
class ScoreResult:
    """A finished score step: its folder, id, and whether it was there before."""

    folder: Path
    id: str
    reused: bool


def score_step(spec: Spec, root: Path = OUTPUTS, folder: Path | None = None) -> Step:
    """Return the score step that ``spec`` describes; nothing is loaded."""
    inputs = {**source_hashes(spec.model.id), "calibration": source_hash(spec.calibration.source)}
    return Step("score", spec, inputs, root=root, folder=folder)


def run(
    spec: Spec,
    *,
    loaded: LoadedModel | None = None,
    out: Path | None = None,
    root: Path = OUTPUTS,
    force: bool = False,
    progress: Progress | None = None,
) -> ScoreResult:
    """Score the model of ``spec`` and write ``scores``, ``tensors``, ``histogram`` and ``margins`` as Parquet.

    A complete step is reused; a broken one goes on at the next seed. ``loaded`` saves loading the model again.
    Raises EsaError for content: spec, text, model, NaN scores. Cost: per seed one shared pass over its windows.
    """
    progress = Recording(progress)
    step = score_step(spec, root, out)
    if step.complete and not force:
        require_same_model(step, loaded)
        progress.note(f"score: {step.folder} is complete")
        return ScoreResult(step.folder, step.id, reused=True)
    loaded = loaded or load_model(spec.model, progress)
    chosen = eligible(loaded.table, spec.score.include, spec.score.exclude)
    metrics = load_metrics(spec.score.metrics)
    _require_range(metrics, loaded)
    windows = calibration_windows(spec.calibration, loaded.tokenizer, spec.score.seeds, progress)
    step.begin(force=force)
    scratch = step.folder / f"{_PARTS}{step.id}-{loaded.facts['fingerprint'][:12]}"
    if force:
        shutil.rmtree(scratch, ignore_errors=True)
    large: dict[str, Indices] = {}
    without_data = [metric for metric in metrics if metric.needs == Needs.WEIGHTS]
    with_data = [metric for metric in metrics if metric.needs != Needs.WEIGHTS]
    passes: list[tuple[int | None, list[Metric]]] = [
        (None, without_data),
        *((seed, with_data) for seed in spec.score.seeds),
    ]
    for seed, group in passes:
        if not group:
            continue
        done = scratch / f"{_stem(seed)}.done"
        if done.exists():
            progress.warnings += json.loads(done.read_text(encoding="utf-8"))["warnings"]
            continue
        known = len(progress.warnings)
        collectors = {m.name: Collector(step.id, m.name, seed, {n: i for i, n in enumerate(chosen)}) for m in group}
        emit = _emitter(collectors, large, spec.score.keep, seed if seed is not None else 0)
        engine = Engine(loaded, chosen, group, emit, progress, spec.score.probes)
        try:
            engine.run(windows.get(seed) if seed is not None else None, seed or 0)
        except EsaError:
            step.abandon(unless=scratch)
            raise
        _write_parts(scratch, seed, collectors, progress.warnings[known:])
    _join_parts(step, scratch, metrics, spec.score.seeds, chosen)
    step.finish(
        tables=TABLES,
        warnings=progress.warnings,
        model={**loaded.facts, "num_eligible": sum(info.numel for info in chosen.values()), "num_tensors": len(chosen)},
        data=[windows[seed].facts(seed) for seed in spec.score.seeds],
        seeds=list(spec.score.seeds),
    )
    for parts in step.folder.glob(f"{_PARTS}*"):
        shutil.rmtree(parts, ignore_errors=True)
    return ScoreResult(step.folder, step.id, reused=False)


def _emitter(collectors: Mapping[str, Collector], large: dict[str, Indices], keep: int, seed: int) -> Any:
    def emit(metric: Metric, info: ParameterInfo, weight: Tensor, scores: Scores, usage: Tensor | None) -> None:
        reduced = reduce_scores(metric.name, info, scores, weight, keep, seed, usage, large.get(info.name))
        if "large" in reduced.strata:
            large[info.name] = reduced.strata["large"]
        collectors[metric.name].add(info, reduced)

    return emit


def _stem(seed: int | None) -> str:
    return "none" if seed is None else str(seed)


def _require_range(metrics: Sequence[Metric], loaded: LoadedModel) -> None:
    """Raise ModelError for gradients in float16: most of them would vanish below its smallest number, 6e-8."""
    half = any(parameter.dtype == torch.float16 for parameter in loaded.model.parameters())
    names = [metric.name for metric in metrics if metric.needs >= Needs.BACKWARD]
    if half and names:
        raise ModelError(
            f"'float16' cannot hold the gradients that {', '.join(names)} need: those under 6e-8 become zero",
            where="model.compute",
            hint='set model.compute = "float32", which holds every float16 weight exactly, or dtype = "bfloat16"',
        )


def _write_parts(scratch: Path, seed: int | None, collectors: Mapping[str, Collector], warnings: Sequence[str]) -> None:
    """Write one pass's frames, one file per metric and table, and last the sign that they are all there."""
    for name, collector in collectors.items():
        for kind, frame in collector.frames().items():
            with replacing(scratch / f"{_stem(seed)}.{name}.{kind.partition('/')[0]}.parquet") as temporary:
                frame.write_parquet(temporary, compression="lz4")
    write_json(scratch / f"{_stem(seed)}.done", {"warnings": list(warnings)})


def _join_parts(
    step: Step, scratch: Path, metrics: list[Metric], seeds: tuple[int, ...], chosen: Mapping[str, ParameterInfo]
) -> None:
    """Write each table from its parts: by metric, seed, tensor."""
    meta = {"anatomy": to_json([info.record() for info in chosen.values()])}
    for kind in reversed(KINDS):  # tensors/1 before scores/1, which carries its zeros
        stem = kind.partition("/")[0]
        parts = [
            scratch / f"{_stem(seed)}.{metric.name}.{stem}.parquet"
            for metric in metrics
            for seed in ((None,) if metric.needs == Needs.WEIGHTS else seeds)
        ]
        frame = pl.concat([pl.read_parquet(part, schema=SCHEMAS[kind]) for part in parts])
        if kind == "tensors/1":
            zeros = frame.filter(pl.col("expert").is_null() & (pl.col("num_zero") > 0))
            rows = zeros.select("metric", "seed", "parameter", "num_zero").iter_rows()
            meta["zeros"] = to_json([list(row) for row in rows])
        write_table(Table(kind, frame, step.meta(**meta)), step.folder / f"{stem}.parquet")
