"""One run's scores by one metric as comparisons between models read them: tensors, histogram and the top K of its first seed."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import polars as pl

from esa.arch.comparison.findings import Options
from esa.arch.comparison.sources import Labelled
from esa.artifact import to_json


@dataclass(frozen=True)
class Scored:
    """The scores of one run by one metric and its first seed.

    ``tensors``: the rows of tensors/1 of whole tensors; ``histogram``: those of histogram/1, None where there is none; ``top``:
    the K weights of the highest score with ``place`` from 1 on, None where no list holds K. ``model``: equal for runs of one
    architecture and shape, whose training seeds are its replicates; ``family``: the model type, None where no manifest says it.
    """

    label: str
    metric: str
    tensors: pl.DataFrame
    histogram: pl.DataFrame | None
    top: pl.DataFrame | None
    num_blocks: int
    model: str
    family: str | None = None


def scored(one: Labelled, metric: str, k: int | None) -> Scored | None:
    """Return a run's scores by ``metric``; None where it has none, or nothing inside a block."""
    seeds = one.seeds(metric)
    tensors = one.tensors(metric, seeds[0]) if seeds else None
    if tensors is None or not one.num_blocks:
        return None
    histogram = one.run.histogram
    if histogram is not None:
        same_seed = pl.col("seed").eq_missing(pl.lit(seeds[0], pl.Int64))
        histogram = histogram.filter((pl.col("metric") == metric) & same_seed)
    family = one.shape.get("model_type")
    return Scored(
        one.label,
        metric,
        tensors,
        histogram,
        None if k is None else one.top(metric, k),
        one.num_blocks,
        model_of(one),
        None if family is None else str(family),
    )


def all_scored(runs: Sequence[Labelled], metric: str, options: Options) -> list[Scored]:
    """Return the scores by ``metric`` of the runs that have any, in their order."""
    found = (scored(one, metric, options.k) for one in runs)
    return [one for one in found if one is not None]


def model_of(one: Labelled) -> str:
    """Return what tells a model from another: architecture, shape and number of weights; else its fingerprint or label."""
    facts: dict[str, Any] = one.model
    if one.shape:
        return to_json([facts.get("architecture"), one.shape, facts.get("num_parameters")])
    return one.fingerprint or one.label
