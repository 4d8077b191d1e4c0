"""Read rankings as the ordered lists that are compared, each under a label that no other has."""

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from esa.artifact import STDIO, Table, read_ranking
from esa.errors import ArtifactError, SelectionError
from esa.overlap.anatomy import Anatomy, anatomy_of

_SPLIT = ("metric", "seed", "draw")


@dataclass(frozen=True)
class RankedList:
    """One list: a metric's weights from one seed, best first.

    ``frame`` has the columns of ``ranking/1``, in order of rank. ``mode`` is None for an older list, which does not say
    whether it was drawn per layer: it takes the mode of the lists that it is compared with.
    """

    label: str
    source: str
    run: str | None
    metric: str | None
    seed: int | None
    mode: str | None
    frame: pl.DataFrame
    anatomy: Anatomy | None = None

    @property
    def aggregate(self) -> bool:
        """Tell whether whole outputs, inputs or tensors are ranked: their indices have a colon, ``(507, :)``."""
        return bool(self.frame["indices"].str.contains(":", literal=True).any())


def read_lists(sources: Sequence[str | Path], metrics: Sequence[str] = ()) -> list[RankedList]:
    """Return every list that the sources hold: in the sources' order, then by metric (``metrics`` first) and seed.

    A source is a rank step's folder, a ranking as CSV or Parquet, an older list, or ``-``. Raises ArtifactError or
    SelectionError, naming the source, for one that holds no list.
    """
    return lists_of([(source, read_ranking(source)) for source in sources], metrics)


def lists_of(rankings: Sequence[tuple[str | Path, Table]], metrics: Sequence[str] = ()) -> list[RankedList]:
    """Return the lists of rankings that were already read, each given with its source (see ``read_lists``).

    Only rows of the group ``top_k`` are taken, or all where there is no such row; one list per metric and seed (and
    draw, of a random group), in order of rank.
    """
    found: list[RankedList] = []
    shared: dict[Anatomy, Anatomy] = {}  # equal anatomies become one object
    for label, (source, table) in zip(source_labels([source for source, _ in rankings]), rankings, strict=True):
        anatomy = anatomy_of(table, source)
        if anatomy is not None:
            anatomy = shared.setdefault(anatomy, anatomy)
        found.extend(_split(label, source, table, anatomy, list(metrics)))
    return _unique(found)


def _split(
    label: str, source: str | Path, table: Table, anatomy: Anatomy | None, metrics: list[str]
) -> list[RankedList]:
    frame = _one_group(table.frame, str(source))
    parts = frame.partition_by(_SPLIT, maintain_order=True)

    def place(part: pl.DataFrame) -> tuple[int, str, int, int]:
        metric, seed, draw = part.select(_SPLIT).row(0)
        known = metrics.index(metric) if metric in metrics else len(metrics)
        return known, metric or "", -1 if seed is None else seed, -1 if draw is None else draw

    lists = []
    for part in sorted(parts, key=place):
        metric, seed, draw = part.select(_SPLIT).row(0)
        name = label
        if len(parts) > 1:
            described = [metric, None if seed is None else f"seed {seed}", None if draw is None else f"draw {draw}"]
            name = ":".join([label, *(text for text in described if text is not None)])
        older = _is_older(part)
        mode = _only(part, "mode", name)
        lists.append(
            RankedList(
                label=name,
                source=str(source),
                run=_only(part, "run", name) or table.meta.get("run"),
                metric=metric,
                seed=seed,
                mode=None if older and mode in (None, "global") else mode or "global",
                frame=_ordered(part, older),
                anatomy=anatomy,
            )
        )
        _refuse_repeats(lists[-1])
    return lists


def _one_group(frame: pl.DataFrame, source: str) -> pl.DataFrame:
    """Return the rows of ``top_k``, or all rows of the one other group."""
    if frame.is_empty():
        raise SelectionError("holds no rows; a list to compare needs at least one", where=source)
    top = frame.filter(pl.col("group") == "top_k")
    if not top.is_empty():
        return top
    groups = sorted(str(group) for group in frame["group"].unique())
    if len(groups) > 1:
        raise SelectionError(
            f"holds the groups {', '.join(groups)} and no top_k; a comparison takes top_k, or a file of one group",
            where=source,
            hint="leave one group's rows in the file, or rank with rank.groups = ['top_k']",
        )
    return frame


def _is_older(frame: pl.DataFrame) -> bool:
    """Tell whether these rows say nothing beyond addresses, scores and ranks, as older lists do."""
    silent = ("run", "metric", "unit_name", "layer", "block", "component")
    return bool(frame.select(pl.col(silent).is_null().all()).transpose().to_series().all())


def _ordered(frame: pl.DataFrame, older: bool) -> pl.DataFrame:
    """Return the rows best first: by rank; an older list by score, since only its lines order its ties."""
    address = ["parameter", "index", "indices"]
    by_score = older and frame["score"].is_not_null().all() and (frame["group"].fill_null("top_k") == "top_k").all()
    keys = ["score", *address] if by_score else ["rank", "score", *address]
    return frame.sort(keys, descending=[key == "score" for key in keys], nulls_last=True)


def _only(frame: pl.DataFrame, column: str, label: str) -> str | None:
    values = sorted(frame[column].drop_nulls().unique())
    if len(values) > 1:
        raise ArtifactError(f"holds rows of several: {', '.join(values)}", where=f"{label}: {column}")
    return values[0] if values else None


def _refuse_repeats(ranked: RankedList) -> None:
    addresses = ranked.frame.select("parameter", "index", "indices").filter(
        pl.col("index").is_not_null() | pl.col("indices").is_not_null()
    )
    if addresses.is_duplicated().any():
        parameter, index, indices = addresses.filter(addresses.is_duplicated()).row(0)
        address = index if indices is None else indices.strip("() ")
        raise ArtifactError(f"names the weight {parameter}:{address} twice", where=ranked.label)


def source_labels(sources: Sequence[str | Path]) -> list[str]:
    """Return for each path its shortest ending, in whole components, that ends no other path; ``-`` stays."""
    paths = [(STDIO,) if str(source) == STDIO else Path(os.path.abspath(source)).parts for source in sources]
    labels = []
    for path in paths:
        others = [other for other in paths if other != path]
        length = 1
        while length < len(path) and any(other[-length:] == path[-length:] for other in others):
            length += 1
        labels.append(str(Path(*path[-length:])))
    return labels


def _unique(lists: list[RankedList]) -> list[RankedList]:
    """Return the lists with `` (2)``, `` (3)`` behind a label that was taken: the same file, given again."""
    counts: Counter[str] = Counter()
    renamed = []
    for ranked in lists:
        counts[ranked.label] += 1
        label = ranked.label if counts[ranked.label] == 1 else f"{ranked.label} ({counts[ranked.label]})"
        renamed.append(RankedList(**{**ranked.__dict__, "label": label}))
    return renamed
