"""The Python twin of ``esa overlap``: read, compare, summarise, write."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from esa.artifact import STDIO, Step, Table, find_table, read_manifest, read_ranking, sha256_of, write_json, write_table
from esa.artifact.steps import OUTPUTS, marking_failures
from esa.errors import SelectionError
from esa.overlap.chance import shared_anatomy
from esa.overlap.compare import common_ks, compare, list_sizes
from esa.overlap.confidence import confidence
from esa.overlap.lists import RankedList, lists_of, source_labels
from esa.overlap.members import common_mode
from esa.overlap.seed_scores import groups_of
from esa.overlap.stability import outlier_warnings, stability_summary
from esa.progress import Progress, Silent
from esa.spec import Spec

TABLE, SUMMARY, CONFIDENCE = "overlap.csv", "stability_summary.json", "confidence.csv"
Source = str | Path


@dataclass(frozen=True)
class OverlapResult:
    """The comparison: its ``overlap/1`` table, the summary across seeds if a metric has several, the step's folder.

    ``confidence``: ``confidence/1`` of a step, where a metric has several seeds.
    """

    table: Table
    summary: dict[str, Any] | None
    folder: Path | None
    confidence: Table | None = None


@marking_failures()
def run(
    sources: Sequence[Source],
    *,
    spec: Spec | None = None,
    by: Sequence[str] = ("weight",),
    k: int | Sequence[int] | None = None,
    p: float | None = None,
    universe: int | None = None,
    seed: int = 0,
    out: Source | None = None,
    root: Path = OUTPUTS,
    force: bool = False,
    progress: Progress | None = None,
) -> OverlapResult:
    """Compare every two of the lists that the sources hold, and each metric with itself across seeds.

    Without ``spec`` the table is returned, and written to ``out`` if that is given. With one, ``spec.overlap`` says
    ``by``, ``k`` and ``p`` (k: else those of ``spec.rank.k`` that every list holds), and the step is written to its
    folder (``out``, else ``root/<name>/overlap-<id>``), or read from there if it is complete, with ``confidence.csv``
    where a metric has several seeds; one list alone gives an empty table and a warning. A seed whose list is an outlier
    (``stability.outliers``) is a warning. ``universe``, and ``seed`` of the permutations, enter the step's id as inputs.
    Raises ArtifactError or SelectionError for sources that cannot be read or compared.
    """
    progress = progress or Silent()
    if spec is not None:
        by, p = spec.overlap.by, spec.overlap.p
    rankings = [(source, read_ranking(source)) for source in sources]
    lists = lists_of(rankings, spec.score.metrics if spec is not None else ())
    if not lists or (len(lists) == 1 and spec is None):
        raise SelectionError(
            f"{len(lists)} lists to compare; at least 2 are needed",
            where=str(sources[0]) if sources else None,
            hint="name two rankings, or one that holds several metrics or seeds",
        )
    ks = _ks(lists, spec, k)
    warnings = _warnings(lists, universe)
    for text in warnings:
        progress.warn(text)
    summary_by = "weight" if "weight" in by else by[0]
    if spec is None:
        table, summary = compare(lists, by, ks, p, universe, seed=seed), stability_summary(lists, ks, summary_by)
        for text in outlier_warnings(summary) if summary is not None else ():
            progress.warn(text)
        if out is not None:
            write_table(table, out)
        return OverlapResult(table, summary, None)
    folder = Path(out) if out is not None else None
    step = Step("overlap", spec, step_inputs(rankings, universe, seed), root=root, folder=folder)
    if not force and step.complete:
        return _finished(step.folder)
    table = compare(lists, by, ks, p, universe, seed=seed, run=step.id)
    table = Table(table.kind, table.frame, step.meta())
    summary = stability_summary(lists, ks, summary_by)
    sure = None
    if summary is not None:
        for text in outlier_warnings(summary):
            progress.warn(text)
            warnings.append(text)
        scored = [ranked for ranked in lists if not ranked.frame["score"].null_count()]
        groups = groups_of([ranked for ranked in scored if ranked.metric in summary["metrics"]])
        if len(scored) < len(lists):
            warnings.append(f"{CONFIDENCE}: lists without scores are left out, such as {_unscored(lists)}")
            progress.warn(warnings[-1])
        sure = confidence(groups, ks, seed=seed, run=step.id)
        sure = Table(sure.kind, sure.frame, step.meta())
    if not step.begin(force=force):  # another process finished it just now
        return _finished(step.folder)
    step.write(table, TABLE)
    if summary is not None:
        write_json(step.folder / SUMMARY, summary)
    else:
        (step.folder / SUMMARY).unlink(missing_ok=True)
    if sure is not None:
        step.write(sure, CONFIDENCE)
    seeds = sorted({ranked.seed for ranked in lists if ranked.seed is not None})
    labels = [ranked.label for ranked in lists]
    tables = {TABLE: "overlap/1"}
    if summary is not None:
        tables |= {SUMMARY: "stability/1", CONFIDENCE: "confidence/1"}
    step.finish(tables=tables, warnings=warnings, seeds=seeds, lists=labels)
    return OverlapResult(table, summary, step.folder, sure)


def _unscored(lists: Sequence[RankedList]) -> str:
    return next(ranked.label for ranked in lists if ranked.frame["score"].null_count())


def _finished(folder: Path) -> OverlapResult:
    path = folder / SUMMARY
    summary = json.loads(path.read_text(encoding="utf-8")) if path.exists() else None
    sure = find_table(folder, "confidence/1") if summary is not None else None
    return OverlapResult(find_table(folder, "overlap/1"), summary, folder, sure)


def _ks(lists: Sequence[RankedList], spec: Spec | None, k: int | Sequence[int] | None) -> tuple[int, ...]:
    """Return the k to compare at: those asked for, else those of rank.k that every list holds, else whole lists."""
    if spec is None:
        return common_ks(lists, (k,) if isinstance(k, int) else k)
    if spec.overlap.k is not None:
        return common_ks(lists, spec.overlap.k)
    smallest = min(list_sizes(lists))
    return tuple(one for one in spec.rank.k if one <= smallest) or (smallest,)


def step_inputs(rankings: Sequence[tuple[Source, Table]], universe: int | None, seed: int) -> dict[str, str]:
    """Return what enters the step's id: every source's step id or sha256, in order, and numbers given by flags."""
    inputs: dict[str, str] = {}
    labels = source_labels([source for source, _ in rankings])
    for number, (label, (source, table)) in enumerate(zip(labels, rankings, strict=True)):
        name = f"{number}:{label}" if len(rankings) > 1 else label
        if str(source) == STDIO:
            inputs[name] = hashlib.sha256(table.frame.write_csv().encode()).hexdigest()
        elif Path(source).is_dir():
            inputs[name] = str(read_manifest(Path(source))["run"])
        else:
            inputs[name] = sha256_of(Path(source))
    if universe is not None:
        inputs["universe"] = str(universe)
    if seed:
        inputs["seed"] = str(seed)
    return inputs


def _warnings(lists: Sequence[RankedList], universe: int | None) -> list[str]:
    """Return what a reader of the table must know."""
    if len(lists) == 1:
        return [f"{lists[0].label}: one list alone has nothing to be compared with; the table is empty"]
    mode = common_mode(lists)
    known = all(shared_anatomy(lists[0], other) is not None for other in lists[1:])
    if mode != "global":
        if universe is None or known:
            return []
        return [f"a universe of {universe} weights gives no null {mode}: the size of every unit is needed"]
    if universe is None and not known:
        return []
    return [
        f"{ranked.label}: holds {counts[0]} weights of each of its {len(counts)} tensors, as if ranked per layer; the"
        " null supposes draws from all weights, and understates what chance would share"
        for ranked in lists
        for counts in [ranked.frame["parameter"].value_counts()["count"]]
        if ranked.mode is None and len(counts) > 1 and counts[0] > 1 and counts.n_unique() == 1
    ]
