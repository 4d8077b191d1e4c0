"""The runs of a comparison as its parts read them: facts of the model, scores per tensor, top lists, shapes and axes."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import polars as pl

from esa.artifact.gather import Gathered
from esa.artifact.grouping import labels
from esa.artifact.places import fingerprint, models
from esa.errors import ArtifactError

_ANATOMY = "anatomy.json"

PARTS = {
    "attn": "attention", "mlp": "mlp", "expert": "expert", "router": "router", "embed": "embedding", "lm_head": "head",
    "norm": "norm",
}  # fmt: skip
PART_ORDER = (*PARTS.values(), "other")


def part_of(component: str) -> str:
    """Return the part of a model that a component belongs to: ``attn.q`` to attention, ``mlp.down`` to mlp, and so on."""
    return PARTS.get(component.partition(".")[0], "other")


@dataclass(frozen=True)
class Stored:
    """The shape of a stored tensor, and which of its axes are outputs, inputs and experts; None: it has none, or unknown."""

    shape: tuple[int, ...]
    output_axis: int | None
    input_axis: int | None
    expert_axis: int | None


@dataclass(frozen=True)
class Labelled:
    """A run and what it is called among the others; ``crossed``: campaigns in its model by the rankings of other runs."""

    label: str
    run: Gathered
    crossed: tuple[Gathered, ...] = ()

    @property
    def model(self) -> dict[str, Any]:
        """Return the facts of the model."""
        return self.run.model

    @property
    def shape(self) -> dict[str, Any]:
        """Return the facts of the architecture; empty for runs made before manifests held them."""
        return dict(self.model.get("shape") or {})

    @property
    def fingerprint(self) -> str | None:
        """Return the fingerprint of the model; None where no step says it, or they disagree."""
        return fingerprint(self.run)

    @cached_property
    def num_blocks(self) -> int | None:
        """Return how many blocks the model has: as its manifest says, else the highest scored one and one; None without any."""
        stated = self.shape.get("num_blocks")
        if isinstance(stated, int):
            return stated
        tensors = self.run.tensors
        highest = tensors["block"].max() if tensors is not None else None
        return int(highest) + 1 if isinstance(highest, int) else None

    def relative_depth(self, block: int | None) -> float | None:
        """Return ``(block + 0.5) / num_blocks``: 0 the input's end, 1 the output's; None outside the blocks."""
        return None if block is None or not self.num_blocks else (block + 0.5) / self.num_blocks

    @cached_property
    def metrics(self) -> tuple[str, ...]:
        """Return the metrics that were scored, in order; without a score step, those that were ranked."""
        for frame in (self.run.tensors, self.run.ranking):
            if frame is not None:
                return tuple(frame["metric"].drop_nulls().unique(maintain_order=True))
        return ()

    def seeds(self, metric: str) -> list[int | None]:
        """Return the score seeds of a metric, in order; [None] for one that draws nothing."""
        for frame in (self.run.tensors, self.run.ranking):
            if frame is not None and (found := frame.filter(pl.col("metric") == metric)).height:
                return found["seed"].unique(maintain_order=True).to_list()
        return []

    def tensors(self, metric: str, seed: int | None) -> pl.DataFrame | None:
        """Return the ``tensors/1`` rows of whole tensors (``expert`` null) of a metric and seed; None where there are none."""
        return self._rows(metric, seed, pl.col("expert").is_null())

    def experts(self, metric: str, seed: int | None) -> pl.DataFrame | None:
        """Return the ``tensors/1`` rows of single experts of a metric and seed; None where there are none."""
        return self._rows(metric, seed, pl.col("expert").is_not_null())

    def _rows(self, metric: str, seed: int | None, which: pl.Expr) -> pl.DataFrame | None:
        if self.run.tensors is None:
            return None
        chosen = (pl.col("metric") == metric) & pl.col("seed").eq_missing(pl.lit(seed, pl.Int64)) & which
        found = self.run.tensors.filter(chosen)
        return found if found.height else None

    def components(self, metric: str) -> dict[str, str]:
        """Return the component of every scored tensor by its name."""
        seeds = self.seeds(metric)
        frame = self.tensors(metric, seeds[0]) if seeds else None
        return {} if frame is None else dict(frame.select("parameter", "component").iter_rows())

    def top(self, metric: str, k: int | None = None, seed: int | str | None = "first") -> pl.DataFrame | None:
        """Return the K weights of the highest score, best first, with ``place`` from 1 on.

        ``seed``: a score seed, or "first". A list ranked per unit (per_layer, per_block, ...) holds the K highest of the
        whole as long as it holds K of each unit: it is put in the order of the score. ``k`` None: all that is known of.
        Returns None where the run holds no such list of single weights, or one of fewer than K.
        """
        if self.run.ranking is None:
            return None
        chosen = seed if seed != "first" else next(iter(self.seeds(metric)), None)
        frame = self.run.ranking.filter(
            (pl.col("group") == "top_k") & (pl.col("metric") == metric) & pl.col("index").is_not_null(),
            pl.col("seed").eq_missing(pl.lit(chosen, pl.Int64)),
        )
        if not frame.height:
            return None
        if frame["mode"].drop_nulls().unique().to_list() not in ([], ["global"]):
            known = int(frame.group_by("unit_name").len()["len"].max())  # type: ignore[arg-type]
            frame = frame.sort("score", descending=True, maintain_order=True).head(known)
        if k is not None and frame.height < k:
            return None
        return frame.head(k if k is not None else frame.height).with_row_index("place", 1)

    @property
    def damage(self) -> pl.DataFrame | None:
        """Return ``damage/1``; None where nothing was perturbed."""
        return self.run.damage

    @cached_property
    def anatomy(self) -> dict[str, Stored]:
        """Return shape and axes of each tensor as the rank step recorded them; empty where it recorded none.

        Raises ArtifactError for a record that cannot be read.
        """
        path = self.run.folders["rank"] / _ANATOMY if "rank" in self.run.folders else None
        if path is None or not path.is_file():
            return {}
        try:
            entries = json.loads(path.read_text(encoding="utf-8"))
            return {entry["parameter"]: _stored(entry) for entry in entries}
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise ArtifactError(f"cannot be read: {type(error).__name__}: {error}", where=str(path)) from None

    def text(self, seed: int | None) -> str | None:
        """Return the source of the calibration text that a score seed saw; None where the manifest does not say."""
        data = self.run.manifests.get("score", {}).get("data") or []
        entries = data if isinstance(data, list) else [data]
        sources = {entry.get("source") for entry in entries if seed is None or entry.get("seed", seed) == seed}
        return str(sources.pop()) if len(sources) == 1 and None not in sources else None


def _stored(entry: dict[str, Any]) -> Stored:
    shape = tuple(int(size) for size in entry["shape"])
    given = (entry.get(key) for key in ("output_axis", "input_axis", "expert_axis"))
    axes = [None if axis is None else int(axis) % len(shape) for axis in given]
    return Stored(shape, *axes)


def labelled(runs: Sequence[Gathered], crossed: Sequence[Gathered] = ()) -> list[Labelled]:
    """Return the runs under labels of their own.

    Each campaign of ``crossed`` goes to the runs of its model, by fingerprint. Raises ArtifactError for one that has none.
    """
    marks = {fingerprint(run) for run in runs} - {None}
    for one in crossed:
        if fingerprint(one) not in marks:
            raise ArtifactError(
                f"changed {models(one)[0].get('id')} by the ranking of another model, and no run of it is given",
                where=str(one.folders["perturb"]),
                hint="name that model's run, too: its own list's damage is what this one is set beside",
            )
    found = []
    for label, run in zip(labels(runs), runs, strict=True):
        mark = fingerprint(run)
        campaigns = tuple(one for one in crossed if mark is not None and fingerprint(one) == mark)
        found.append(Labelled(label, run, campaigns))
    return found


def common_k(runs: Sequence[Labelled], metrics: Sequence[str]) -> int | None:
    """Return the largest K that every top list of the first seeds holds, those of runs without any aside; None without lists."""
    sizes = [frame.height for run in runs for metric in metrics if (frame := run.top(metric)) is not None]
    return min(sizes, default=None)
