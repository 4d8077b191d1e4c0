"""Where score and damage lie: shares and densities by component, by part of the model and by block."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import polars as pl

from esa.arch.comparison.findings import Found, Options, Row
from esa.arch.comparison.regions import Harm, harms
from esa.arch.comparison.sources import PART_ORDER, Labelled, part_of

NOT_SCORED = "not scored"


def compare(runs: Sequence[Labelled], options: Options) -> Found:
    """Return ``shares/1``: a row per run, metric, score seed, and component, part of the model, or block.

    With n the scored weights of a group, N those of the run, S the sum of the scores::

        weight_share = n / N        score_share = S_group / S        density = score_share / weight_share

    so that a density of 1 is the model's mean. Scored are the eligible weights, by default tensors of two dimensions
    and more; the others are the part ``not scored``, whose score is unknown and not nothing. ``by`` depth has a row per
    block, at ``relative_depth`` (block + 0.5) / blocks. ``num_top`` of the ``k`` highest lie there. Damage in nats of
    the method ``zero``: of weights set to zero one by one (``num_tested``, the metric's own top list and targets given
    by hand), and of all of the group together where a case of the campaign changed just that. What is unknown is null.
    A tied embedding is one tensor, counted as the embedding.
    """
    rows: list[Row] = []
    warnings: list[str] = []
    of_tied: dict[str, list[str]] = {}  # the tied tensor -> the runs of its models
    for run in runs:
        tied: list[str] = []
        for metric in (name for name in options.metrics if name in run.metrics):
            for seed in run.seeds(metric):
                frame = run.tensors(metric, seed)
                if frame is None:
                    continue
                found = harms(run, metric, seed, frame)
                warnings += [f"{run.label}: {text}" for text in found.warnings]
                rows += _rows(run, metric, seed, frame, found.of, options.k)
                tied = frame.filter(pl.col("tied"))["parameter"].to_list()
        if run.run.tensors is None:
            warnings.append(f"{run.label}: holds no scores; its shares are not known")
        if tied:
            of_tied.setdefault(tied[0], []).append(run.label)
    warnings += [
        f"{', '.join(labels)}: embedding and head are one tied tensor, {name}, counted as the embedding"
        for name, labels in of_tied.items()
    ]
    return Found({"shares/1": rows}, warnings=tuple(dict.fromkeys(warnings)))


def _rows(
    run: Labelled,
    metric: str,
    seed: int | None,
    frame: pl.DataFrame,
    harm_of: Callable[[frozenset[str]], Harm],
    k: int | None,
) -> Iterator[Row]:
    top = run.top(metric, k, seed) if k is not None else None
    weights, score = int(frame["numel"].sum()), float(frame["sum"].fill_null(0.0).sum())
    known = not frame["sum"].null_count() and score > 0
    about: dict[str, Any] = {"label": run.label, "metric": metric, "seed": seed, "k": k if top is not None else None}
    for by, value, depth, part in groups(run, frame):
        names = frozenset(part["parameter"])
        numel = int(part["numel"].sum())
        share = float(part["sum"].sum()) / score if known else None
        yield {
            **about, "by": by, "value": value, "relative_depth": depth, "numel": numel, "weight_share": numel / weights,
            "score_share": share, "density": None if share is None else share / (numel / weights),
            "num_top": None if top is None else top.filter(pl.col("parameter").is_in(list(names))).height,
            **harm_of(names)._asdict(),
        }  # fmt: skip
    rest = None if run.run.num_parameters is None else run.run.num_parameters - weights
    if rest:
        yield {**about, "k": None, "by": "part", "value": NOT_SCORED, "numel": rest}


def groups(run: Labelled, frame: pl.DataFrame) -> Iterator[tuple[str, str, float | None, pl.DataFrame]]:
    """Yield ``by``, value, relative depth and tensors of every group: components, parts, then blocks."""
    for (component,), part in frame.group_by(["component"], maintain_order=True):
        yield "component", str(component), None, part
    of = pl.col("component").map_elements(part_of, return_dtype=pl.String)
    by_part = frame.with_columns(of.alias("part")).partition_by("part", as_dict=True)
    for name in PART_ORDER:
        if (name,) in by_part:
            yield "part", name, None, by_part[name,]
    inside = frame.filter(pl.col("block").is_not_null()).sort("block", maintain_order=True)
    for (block,), part in inside.group_by(["block"], maintain_order=True):
        assert isinstance(block, int)
        yield "depth", str(block), run.relative_depth(block), part
