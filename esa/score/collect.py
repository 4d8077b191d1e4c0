"""Turn reduced tensors into the frames of the score artifact."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import polars as pl

from esa.artifact.schemas import SCHEMAS
from esa.model import ParameterInfo, format_indices
from esa.score.reduce import Reduced, bin_edges

KINDS = ("scores/1", "tensors/1", "histogram/1", "margins/1")


@dataclass
class Collector:
    """Gather one metric's and seed's tensors in any order; ``frames`` gives them in ``named_parameters()`` order."""

    run: str
    metric: str
    seed: int | None
    order: dict[str, int]
    parts: dict[str, dict[int, pl.DataFrame]] = field(default_factory=lambda: {kind: {} for kind in KINDS})

    def add(self, info: ParameterInfo, reduced: Reduced) -> None:
        """Add one tensor."""
        place = self.order[info.name]
        rows = {
            "scores/1": self._scores(info, reduced),
            "tensors/1": pl.DataFrame(
                [self._statistics(info, row) for row in reduced.statistics], schema=SCHEMAS["tensors/1"]
            ),
            "histogram/1": self._histogram(info, reduced),
            "margins/1": self._margins(info, reduced),
        }
        for kind, frame in rows.items():
            self.parts[kind][place] = frame

    def frames(self) -> dict[str, pl.DataFrame]:
        """Return the four tables' frames."""
        joined = {}
        for kind, parts in self.parts.items():
            frames = [parts[place] for place in sorted(parts)]
            joined[kind] = pl.concat(frames) if frames else pl.DataFrame(schema=SCHEMAS[kind])
        return joined

    def _scores(self, info: ParameterInfo, reduced: Reduced) -> pl.DataFrame:
        index = np.concatenate(list(reduced.strata.values()))
        stratum = np.repeat(list(reduced.strata), [len(part) for part in reduced.strata.values()])
        expert = index // (info.numel // info.shape[0]) if info.expert_axis is not None else None
        return self._frame(
            "scores/1",
            info,
            {"stratum": stratum, "index": index, "numel": info.numel, "expert": expert, **reduced.columns},
        )

    def _statistics(self, info: ParameterInfo, row: dict[str, Any]) -> dict[str, Any]:
        shape = info.shape if row["expert"] is None else info.shape[1:]
        return {
            "run": self.run, "metric": self.metric, "seed": self.seed, "parameter": info.name, "layer": info.layer,
            "block": info.block, "component": info.component, "shape": format_indices(shape), "tied": info.tied,
            "uses": " ".join(info.uses), **row,
        }  # fmt: skip

    def _histogram(self, info: ParameterInfo, reduced: Reduced) -> pl.DataFrame:
        bins, counts = reduced.histogram
        low, high = bin_edges(bins)
        return self._frame("histogram/1", info, {"bin_low": low, "bin_high": high, "count": counts})

    def _margins(self, info: ParameterInfo, reduced: Reduced) -> pl.DataFrame:
        frames = [
            self._frame("margins/1", info, {"axis": axis, "position": np.arange(len(sums)), "sum": sums, "max": maxima})
            for axis, (sums, maxima) in reduced.margins.items()
        ]
        return pl.concat(frames) if frames else pl.DataFrame(schema=SCHEMAS["margins/1"])

    def _frame(self, kind: str, info: ParameterInfo, columns: dict[str, Any]) -> pl.DataFrame:
        """Return columns (arrays, or one value for all rows) as a frame of ``kind``."""
        arrays = {name: value for name, value in columns.items() if isinstance(value, np.ndarray)}
        shared = {"run": self.run, "metric": self.metric, "seed": self.seed, "parameter": info.name, **columns}
        frame = pl.DataFrame(arrays)
        return frame.select(
            (pl.col(name) if name in arrays else pl.lit(shared.get(name))).cast(dtype).alias(name)
            for name, dtype in SCHEMAS[kind].items()
        )
