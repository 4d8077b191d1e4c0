"""One pass's scores on disk while a step runs: a killed one goes on behind the passes that are there."""

import json
import os
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from esa.artifact import Step, replacing, to_json, write_json
from esa.artifact.dense import DenseWriter
from esa.artifact.schemas import SCHEMAS
from esa.artifact.space import require_space
from esa.artifact.tables import Table, write_table
from esa.model import ParameterInfo
from esa.score.collect import KINDS, Collector
from esa.score.metric import Metric, Needs
from esa.score.scored import ScoredTensor

DENSE = "dense"  # the folder of the dense score maps, and the kind of its files
_FLOAT = 4


@dataclass(frozen=True)
class Parts:
    """The files of a step's passes: ``<seed>.<metric>.<table>.parquet``, dense maps, and a sign per finished pass.

    A pass is the scores of one seed, or those that need no data (seed None); ``of`` names one that is made from others.
    """

    folder: Path

    def done(self, seed: int | None, of: str = "") -> dict[str, Any] | None:
        """Return what a finished pass left to say (``warnings``, ``super_weights``), None if it is not finished."""
        path = self.folder / f"{_stem(seed, of)}.done"
        return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None

    def write(self, seed: int | None, collectors: Mapping[str, Collector], of: str = "", **said: Any) -> None:
        """Write one pass's frames, one file per metric and table, and last the sign that they are all there."""
        for name, collector in collectors.items():
            for kind, frame in collector.frames().items():
                with replacing(self.folder / f"{_stem(seed)}.{name}.{kind.partition('/')[0]}.parquet") as temporary:
                    frame.write_parquet(temporary, compression="lz4")
        write_json(self.folder / f"{_stem(seed, of)}.done", said)

    def dense_path(self, metric: str, seed: int | None) -> Path:
        """Return where a pass's dense scores of one metric are."""
        return self.folder / dense_name(metric, seed)

    def join(self, step: Step, passes: Sequence[tuple[str, int | None]], chosen: Mapping[str, ParameterInfo]) -> None:
        """Write each table of the step from its parts: by metric, seed, tensor."""
        meta = {"anatomy": to_json([info.record() for info in chosen.values()])}
        for kind in reversed(KINDS):  # tensors/1 before scores/1, which carries its zeros
            stem = kind.partition("/")[0]
            parts = [self.folder / f"{_stem(seed)}.{metric}.{stem}.parquet" for metric, seed in passes]
            frame = pl.concat([pl.read_parquet(part, schema=SCHEMAS[kind]) for part in parts])
            if kind == "tensors/1":
                zeros = frame.filter(pl.col("expert").is_null() & (pl.col("num_zero") > 0))
                rows = zeros.select("metric", "seed", "parameter", "num_zero").iter_rows()
                meta["zeros"] = to_json([list(row) for row in rows])
            write_table(Table(kind, frame, step.meta(**meta)), step.folder / f"{stem}.parquet")

    def move_dense(self, folder: Path, passes: Sequence[tuple[str, int | None]]) -> dict[str, str]:
        """Put the dense maps into the step's folder; return their kinds by name."""
        kinds = {}
        (folder / DENSE).mkdir(exist_ok=True)
        for metric, seed in passes:
            name = f"{DENSE}/{dense_name(metric, seed)}"
            if self.dense_path(metric, seed).exists():  # else a run that was broken off behind this line moved it
                os.replace(self.dense_path(metric, seed), folder / name)
            kinds[name] = DENSE
        return kinds


class DenseMaps:
    """The dense score files of one pass, one per metric, open while its tensors come in."""

    def __init__(
        self, parts: Parts, step: Step, metrics: Sequence[Metric], seed: int | None, chosen: Mapping[str, ParameterInfo]
    ) -> None:
        require_space(
            parts.folder,
            len(metrics) * _FLOAT * sum(info.numel for info in chosen.values()),
            "dense scores of one pass",
        )
        shapes = [(name, info.shape) for name, info in chosen.items()]
        self._stack = ExitStack()
        meta = {"run": step.id, "seed": to_json(seed)}
        self._writers = {
            metric.name: self._stack.enter_context(
                DenseWriter(parts.dense_path(metric.name, seed), shapes, {**meta, "metric": metric.name})
            )
            for metric in metrics
        }

    def __enter__(self) -> "DenseMaps":
        return self

    def __exit__(self, *error: Any) -> None:
        self._stack.__exit__(*error)

    def write(self, metric: str, parameter: str, scores: ScoredTensor) -> None:
        """Write one tensor's scores, piece by piece."""
        parts = (part.scores.score.detach().float().cpu().numpy() for part in scores.pieces())
        self._writers[metric].write(parameter, scores.info.shape, parts)


def dense_name(metric: str, seed: int | None) -> str:
    """Return the name of the file that holds a metric's dense scores."""
    return f"{metric}.safetensors" if seed is None else f"{metric}.{seed}.safetensors"


def seeds_of(metric: Metric, seeds: Sequence[int]) -> tuple[int | None, ...]:
    """Return the seeds that a metric has scores of; None alone where it needs no data."""
    return (None,) if metric.needs == Needs.WEIGHTS else tuple(seeds)


def _stem(seed: int | None, of: str = "") -> str:
    return ("none" if seed is None else str(seed)) + (of and f".{of}")
