"""Turn kept scores into ordered groups of weights: ``esa rank``."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from esa.artifact import STDIO, Step, Table, make_table, read_manifest, read_table, table_path, write_json, write_table
from esa.artifact.steps import OUTPUTS, marking_failures
from esa.errors import SelectionError
from esa.progress import Progress, Silent
from esa.rank.aggregate import aggregate, aggregated_groups, name_positions
from esa.rank.scores import STRATA, Pair, Pool, Scores, open_scores
from esa.rank.selectors import READS, Selection
from esa.rank.units import make_units, name_rows
from esa.registry import canonical, load
from esa.spec import Spec, apply_overrides, spec_from_dict
from esa.spec.sections import Rank

MOST_CSV_ROWS = 200_000
ANATOMY = "anatomy.json"
ENSEMBLE = "ensemble"  # the one metric that no registry has: each score step says of what it is made

__all__ = ["RankResult", "require_keep", "run"]


@dataclass(frozen=True)
class RankResult:
    """A ranking: its table (``ranking/1``; meta holds run, name, and anatomy where known), notes, and folder if any."""

    table: Table
    notes: tuple[str, ...]
    folder: Path | None


@marking_failures()
def run(
    source: str | Path,
    *,
    spec: Spec | None = None,
    rank: Rank | None = None,
    name: str | None = None,
    metrics: Sequence[str] | None = None,
    overrides: Sequence[str] = (),
    out: Path | None = None,
    root: Path = OUTPUTS,
    write: bool = True,
    force: bool = False,
    progress: Progress | None = None,
) -> RankResult:
    """Rank the scores of a step folder, a file or ``-``, and write the ranking as a step of its own.

    The spec is ``spec``, or the one the source carries; ``rank`` takes the place of its section and ``name`` of its
    name, and ``overrides`` (``rank.k=[5]``) change single keys; ``metrics`` keeps only some of the scored ones. With
    ``write`` the step goes to ``out`` (a folder; a ``.csv`` or ``.parquet`` path gets the table alone), by default
    ``root/<name>/rank-<id>``; a finished one is reused unless ``force``. Standard input is ranked without a folder.
    Rows: metric (as scored; random groups, which have none, last), seed, group as asked, draw, unit in named_parameters
    order, rank.
    Raises SelectionError for a K that the scores cannot give, ArtifactError for a source that cannot be read.
    """
    progress = progress or Silent()
    scores = open_scores(source)
    if spec is None and scores.spec is None:
        progress.warn(
            f"{scores.where} carries no spec, no tensors and no counts of zero scores, as Parquet and folders do:"
            " the defaults apply where nothing is given"
        )
    spec = _resolve(scores, source, spec, rank, name)
    spec = apply_overrides(spec, overrides) if overrides else spec
    pairs = _filter(scores, metrics)
    inputs = scores.inputs if metrics is None else {**scores.inputs, "metrics": ",".join(_names(pairs))}
    alone = out is not None and out.suffix.lower() in (".csv", ".parquet")
    step = Step("rank", spec, inputs, root=root, folder=None if alone else out)
    into_folder = write and not alone and str(source) != STDIO
    meta = step.meta(name=spec.name, **({} if scores.anatomy is None else {"anatomy": scores.anatomy}))
    reused = into_folder and not force and step.complete
    if reused:
        notes = tuple(read_manifest(step.folder).get("notes", ()))
        table = Table("ranking/1", read_table(table_path(step.folder, "ranking/1"), "ranking/1").frame, meta)
    else:
        frame, notes = _rank(scores, pairs, spec, progress)
        table = make_table("ranking/1", frame.with_columns(pl.lit(step.id).alias("run")), meta)
        if into_folder:
            _write(step, table, scores, notes, force)
        elif alone and write and out is not None:
            write_table(table, out)
    if reused:
        progress.note(f"rank: {step.folder} is complete")
    else:
        for note in notes[:2]:
            progress.note(note)
        if len(notes) > 2:
            progress.note(
                f"... and {len(notes) - 2} more notes of this kind{', in manifest.json' if into_folder else ''}"
            )
    return RankResult(table, notes, step.folder if into_folder else None)


def require_keep(spec: Spec, sizes: Mapping[str, int]) -> None:
    """Raise SelectionError before anything is scored, if the K of a spec needs more rows than it keeps.

    ``sizes``: the weights of each tensor to score; one of at most 4 keep weights is kept whole.
    """
    most, keep = max(spec.rank.k), spec.score.keep
    cut = [name for name, size in sizes.items() if size > 4 * keep]
    if cut and most > keep:
        raise SelectionError(
            f"K = {most:,} is more than the {keep:,} scores that will be kept of {cut[0]}",
            where="rank.k", hint=f"set score.keep = {most}",
        )  # fmt: skip


def _resolve(scores: Scores, source: str | Path, spec: Spec | None, rank: Rank | None, name: str | None) -> Spec:
    """Return the spec of the ranking; a bare CSV carries none, so its model is ``unknown``."""
    spec = spec or scores.spec
    if spec is None:
        stem = re.sub(r"[^A-Za-z0-9_.-]", "_", Path(source).stem).lstrip("_.-") if str(source) != STDIO else ""
        spec = spec_from_dict({"name": stem or "ranking", "model": {"id": "unknown"}})
    if name is not None:
        spec = spec_from_dict({**spec.model_dump(mode="json", exclude_none=True), "name": name}, "--name")
    return spec if rank is None else spec.model_copy(update={"rank": rank})


def _filter(scores: Scores, metrics: Sequence[str] | None) -> list[Pair]:
    known = _names(scores.pairs)
    given = known if metrics is None else metrics
    wanted = [metric if metric in (*known, ENSEMBLE) else canonical("metric", metric) for metric in given]
    missing = [metric for metric in wanted if metric not in known]
    if missing:
        raise SelectionError(
            f"'{missing[0]}' is not among the scored metrics: {', '.join(known)}", where=scores.where,
            hint=f"score it too: {'score.ensemble.metrics' if missing[0] == ENSEMBLE else 'score.metrics'}",
        )  # fmt: skip
    return [pair for pair in scores.pairs if pair[0] in wanted]


def _names(pairs: Sequence[Pair]) -> list[str]:
    return list(dict.fromkeys(str(metric) for metric, _ in pairs))


def _rank(scores: Scores, pairs: list[Pair], spec: Spec, progress: Progress) -> tuple[pl.DataFrame, tuple[str, ...]]:
    """Return the rows of the ranking in their order, without ``run``, and the notes of its groups."""
    rank = spec.rank
    _require_confirmable(spec, pairs)
    groups, notes = (rank.groups, ()) if rank.aggregate == "weight" else aggregated_groups(rank)
    scored = [group for group in groups if group != "random_k"]
    strata = {stratum for group in scored for stratum in READS[group]}
    parts: list[pl.DataFrame] = []
    progress.start("rank", len(pairs))
    for pair in pairs if scored else []:
        if rank.aggregate == "weight":
            pool = scores.pool(*pair, strata)
            selections: dict[str, Selection] = {group: load("group", group)(pool, rank) for group in scored}
        else:
            selections = aggregate(scores, pair, rank)
        for group, selection in selections.items():
            parts.append(_named(scores, pair, group, rank, selection))
            notes = (*notes, *selection.notes)
        progress.advance()
    for seed in scores.seeds if "random_k" in groups else ():
        selection = load("group", "random_k")(_universe(scores, seed), rank)
        parts.append(_named(scores, (None, seed), "random_k", rank, selection))
        if seed == scores.seeds[0] and spec.confirm.metric is not None:
            parts.append(_named(scores, (None, seed), "random_k", rank, _further_draws(scores, seed, spec)))
    progress.finish()
    return pl.concat(parts), notes


def _require_confirmable(spec: Spec, pairs: list[Pair]) -> None:
    """Raise SelectionError where the ranking could not hold what the confirmatory test compares."""
    rank, confirm = spec.rank, spec.confirm
    if confirm.metric is None:
        return
    if rank.aggregate != "weight" or not {"top_k", "random_k"} <= set(rank.groups):
        what = f"aggregate = '{rank.aggregate}', groups = {list(rank.groups)}"
        raise SelectionError(
            f"compares top_k with random_k of single weights; the ranking has {what}", where="confirm.metric"
        )
    if confirm.k not in rank.k:
        raise SelectionError(f"{confirm.k} is not among rank.k: {list(rank.k)}", where="confirm.k")
    if confirm.metric not in _names(pairs):
        raise SelectionError(
            f"'{confirm.metric}' is not among the ranked metrics: {', '.join(_names(pairs))}", where="confirm.metric"
        )


def _further_draws(scores: Scores, seed: int, spec: Spec) -> Selection:
    """Return the draws of random_k that the confirmatory test needs beyond ``rank.draws``, at its K alone."""
    wanted = spec.rank.model_copy(update={"k": (spec.confirm.k,), "draws": spec.confirm.draws})
    selection: Selection = load("group", "random_k")(_universe(scores, seed), wanted)
    return Selection(selection.frame.filter(pl.col("draw") >= spec.rank.draws))


def _universe(scores: Scores, seed: int) -> Pool:
    """Return a pool without scores: the tensors alone."""
    return Pool(None, seed, scores.tensors, pl.DataFrame(schema={"tensor": pl.Int64, "stratum": pl.Enum(STRATA)}))


def _named(scores: Scores, pair: Pair, group: str, rank: Rank, selection: Selection) -> pl.DataFrame:
    frame, tensors = selection.frame, scores.tensors
    if rank.aggregate == "weight":
        frame = name_rows(frame, tensors)
    else:
        frame = name_rows(frame, tensors, name_positions(frame, tensors, rank.aggregate))
        frame = frame.with_columns(pl.lit(None, pl.Int64).alias("index"), pl.lit(None, pl.Int64).alias("expert"))
    names = pl.Series("unit_name", make_units(tensors, rank.mode).names, dtype=pl.String)
    return frame.with_columns(
        pl.lit(pair[0], pl.String).alias("metric"),
        pl.lit(pair[1], pl.Int64).alias("seed"),
        pl.lit(rank.mode).alias("mode"),
        names[frame["unit"]],
        pl.lit(group).alias("group"),
    )


def _write(step: Step, table: Table, scores: Scores, notes: tuple[str, ...], force: bool) -> None:
    """Write the step: its table, CSV up to 200,000 rows, then what the tensors are, then the manifest."""
    if not step.begin(force=force):  # another process finished it just now: it wrote the same
        return
    file = "ranking.csv" if len(table.frame) <= MOST_CSV_ROWS else "ranking.parquet"
    step.write(table, file)
    if scores.anatomy is not None:
        write_json(step.folder / ANATOMY, json.loads(scores.anatomy))
    step.finish(tables={file: table.kind}, notes=list(notes))
