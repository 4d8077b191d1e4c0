"""The Python twin of ``esa overlap --curve``: read the rankings, draw the curve, say from where it stays above the level."""

import itertools
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from esa.artifact import (
    STDIO,
    Step,
    Table,
    find_table,
    make_table,
    read_manifest,
    read_ranking,
    write_json,
    write_table,
)
from esa.artifact.manifest import MANIFEST
from esa.artifact.steps import OUTPUTS, marking_failures
from esa.errors import ArtifactError, SelectionError
from esa.overlap.compare import common_ks, list_sizes
from esa.overlap.curves import CURVES, Chance, Row, curve_k, curve_seeds, curve_windows, onset
from esa.overlap.lists import RankedList, lists_of
from esa.overlap.recommendation import compare_modes
from esa.overlap.running import step_inputs
from esa.overlap.seed_scores import Group, groups_of
from esa.progress import Progress, Silent
from esa.spec import Spec
from esa.spec.sections import Curve, Overlap

TABLE, SUMMARY = "curve.csv", "curve_summary.json"
Source = str | Path


@dataclass(frozen=True)
class CurveResult:
    """A curve: its ``curve/1`` table, the summary of it, the step's folder if there is one."""

    table: Table
    summary: dict[str, Any]
    folder: Path | None


@marking_failures()
def curve(
    sources: Sequence[Source],
    kind: str,
    *,
    spec: Spec | None = None,
    overlap: Overlap | None = None,
    section: Curve | None = None,
    seed: int = 0,
    out: Source | None = None,
    root: Path = OUTPUTS,
    force: bool = False,
    progress: Progress | None = None,
) -> CurveResult:
    """Draw how the agreement of rankings grows with ``kind``: ``k``, ``windows`` or ``seeds``.

    Without ``spec`` the table is returned, and written to ``out`` if that is given; ``overlap`` (``by``, ``k``,
    ``universe``) and ``section`` (``level``, ``splits``) are its sections. With one, its own are, and the step is written to
    its folder (``out``, else ``root/<name>/curve-<id>``), or read from there if it is complete.
    The K of windows and seeds are those of ``overlap.k``, else of ``rank.k`` that every list holds, else the shortest
    list's length. The summary has, per line of the curve, ``from``: the smallest x from which the corrected Jaccard stays at
    or above ``level`` up to the end of the range (None: never within it); and, where metrics are ranked both globally and per
    layer, ``modes`` (see ``recommendation.compare_modes``).
    Rows: in the order of the sources' metrics and modes, by, pair kind, x, k as computed.
    Raises SelectionError where the sources give no such curve, ArtifactError where they cannot be read.
    """
    progress = progress or Silent()
    if kind not in CURVES:
        raise SelectionError(f"'{kind}' is not a curve; allowed: {', '.join(CURVES)}", where="--curve")
    overlap = spec.overlap if spec is not None else overlap or Overlap()
    section = spec.curve if spec is not None else section or Curve()
    rankings = [(source, read_ranking(source)) for source in sources]
    lists = lists_of(rankings)
    chance = Chance(overlap.universe, seed)
    step = None
    if spec is not None:
        inputs = {**step_inputs(rankings, overlap.universe, seed), "curve": kind}
        step = Step("curve", spec, inputs, root=root, folder=Path(out) if out is not None else None)
        if not force and step.complete:
            return _finished(step.folder)
    rows, groups = _rows(kind, lists, spec, overlap, section, chance, progress)
    table = make_table(
        "curve/1", [{"run": step.id if step else None, **row} for row in rows], step.meta() if step else {}
    )
    summary = summarise(rows, section.level)
    if modes := compare_modes(groups, chance):
        summary["modes"] = modes
    if step is None:
        if out is not None:
            write_table(table, out)
        return CurveResult(table, summary, None)
    if not step.begin(force=force):  # another process finished it just now
        return _finished(step.folder)
    step.write(table, TABLE)
    write_json(step.folder / SUMMARY, summary)
    step.finish(tables={TABLE: "curve/1", SUMMARY: "curve_summary/1"}, curve=kind)
    return CurveResult(table, summary, step.folder)


def summarise(rows: Sequence[Row], level: float) -> dict[str, Any]:
    """Return, per line of a curve, from which x on it stays at or above ``level``, and the range that was looked at."""
    lines: dict[tuple[Any, ...], dict[int, float | None]] = {}
    for row in rows:
        k = None if row["curve"] == "k" else row["k"]
        name = row["metric"], row["mode"], row["by"], k, row["pair"]
        lines.setdefault(name, {})[row["x"]] = row["corrected"]
    return {
        "curve": rows[0]["curve"],
        "level": level,
        "lines": [
            {
                "metric": metric, "mode": mode, "by": by, "k": k, "pair": pair, "from": onset(points, level),
                "smallest": min(points), "largest": max(points),
                "chance_known": all(value is not None for value in points.values()),
            }
            for (metric, mode, by, k, pair), points in lines.items()
        ],
    }  # fmt: skip


def _rows(
    kind: str,
    lists: Sequence[RankedList],
    spec: Spec | None,
    overlap: Overlap,
    section: Curve,
    chance: Chance,
    progress: Progress,
) -> tuple[list[Row], list[Group]]:
    """Return the rows of a curve, and the groups of lists in which two modes may be compared."""
    runs = _by_windows(lists) if kind == "windows" else {0: groups_of(lists)}
    several = [group for groups in runs.values() for group in groups if len(group.lists) > 1]
    if not several:
        raise SelectionError(
            "no metric is ranked from two seeds, whose lists could be compared",
            where=lists[0].source if lists else None,
            hint="score with score.seeds = [0, 1, 2] or more; a metric that reads no data has no seeds",
        )
    rows: list[Row] = []
    names = dict.fromkeys((group.metric, group.mode) for group in several)
    progress.start(f"curve {kind}", len(names))
    for metric, mode in names:
        mine = {
            number: group
            for number, groups in runs.items()
            for group in groups
            if (group.metric, group.mode) == (metric, mode)
        }
        ks = _ks([ranked for group in mine.values() for ranked in group.lists], spec, overlap)
        for by in overlap.by:
            if kind == "k":
                rows += curve_k(mine[0], by, overlap.k and ks, chance)
            elif kind == "seeds":
                rows += curve_seeds(mine[0], by, ks, section.splits, chance)
            elif len(mine) > 1:
                rows += curve_windows(mine, by, ks, chance)
        progress.advance()
    progress.finish()
    if not rows:
        raise SelectionError(
            f"all lists are of {next(iter(runs))} calibration windows; a curve needs two numbers of them",
            where=lists[0].source,
            hint="score again with another calibration.windows, rank, and give both rank folders",
        )
    return rows, runs[max(runs)]


def _ks(lists: Sequence[RankedList], spec: Spec | None, overlap: Overlap) -> tuple[int, ...]:
    if overlap.k is not None:
        return common_ks(lists, overlap.k)
    smallest = min(list_sizes(lists))
    return tuple(one for one in spec.rank.k if one <= smallest) or (smallest,) if spec is not None else (smallest,)


def _by_windows(lists: Sequence[RankedList]) -> dict[int, list[Group]]:
    """Return the groups of lists by the number of calibration windows that their scores were computed on."""
    sources = {ranked.source: num_windows(ranked.source) for ranked in lists}
    numbered = sorted(lists, key=lambda one: sources[one.source])
    return {
        number: groups_of(list(same)) for number, same in itertools.groupby(numbered, lambda one: sources[one.source])
    }


def num_windows(source: Source) -> int:
    """Return the number of calibration windows behind a ranking, as its score step says.

    Raises ArtifactError for anything but the folder of a rank step, and where that step's scores are not beside it: a table
    alone does not say it, and the spec it was ranked under need not be the one that was scored.
    """
    path = Path(source)
    if str(source) == STDIO or not (path / MANIFEST).is_file():
        raise ArtifactError(
            "does not say how many calibration windows its scores come from",
            where=str(source),
            hint="give the folders of rank steps, such as outputs/x/rank-3f0a...",
        )
    manifest = read_manifest(path)
    upstream = str(manifest.get("inputs", {}).get("score", ""))
    homes = (path.absolute().parent, OUTPUTS / str(manifest["spec"]["name"]))
    folders = [found for home in homes for found in home.glob(f"*-{upstream}") if (found / MANIFEST).is_file()]
    if not upstream or not folders:
        raise ArtifactError(
            f"comes from the score step {upstream or 'of no name'}, which lies neither beside it nor in"
            f" {OUTPUTS}/{manifest['spec']['name']}: its number of calibration windows is not known",
            where=str(source),
            hint="bring the score step's folder there; its manifest is enough",
        )
    return int(read_manifest(folders[0])["spec"]["calibration"]["windows"])


def _finished(folder: Path) -> CurveResult:
    summary = json.loads((folder / SUMMARY).read_text(encoding="utf-8"))
    return CurveResult(find_table(folder, "curve/1"), summary, folder)
