"""The Python twin of ``esa scale``: read finished runs, measure, fit, write."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from esa.artifact import Step, Table, find_table, make_table, read_manifest, sha256_of
from esa.artifact.gather import BETWEEN, Gathered, is_run
from esa.artifact.grouping import group, joined
from esa.artifact.manifest import MANIFEST
from esa.artifact.steps import OUTPUTS, marking_failures
from esa.errors import EsaError
from esa.progress import Progress, Recording
from esa.scale.checkpoints import trajectories
from esa.scale.laws_table import Settings
from esa.scale.models import Member, labelled, members, require_models
from esa.scale.models_file import read_models
from esa.scale.offered import require_offered, values
from esa.scale.over_checkpoints import checkpoint_tables
from esa.scale.points import OVER, points_of, series_of, x_of
from esa.scale.quantities import Wanted
from esa.scale.tables import FILES, Rows, meta_tables, size_tables, unlike
from esa.spec import Spec, spec_from_dict

CHECKPOINTS = "checkpoints"


@dataclass(frozen=True)
class Asked:
    """What is asked of the runs: every option that changes a number."""

    over: str = "parameters"
    wanted: Wanted = field(default_factory=Wanted)
    settings: Settings = field(default_factory=Settings)
    models: Path | None = None
    exclude: tuple[str, ...] = ()
    meta: bool = False

    @property
    def inputs(self) -> dict[str, str]:
        """Return the options as they enter the step's id."""
        one, two = self.wanted, self.settings
        found = {
            "over": self.over, "metrics": " ".join(one.metrics), "methods": " ".join(one.methods),
            "k": " ".join(map(str, one.ks)), "fractions": " ".join(map(repr, one.fractions)),
            "to": " ".join(map(repr, two.targets)), "seed": str(two.seed), "resamples": str(two.resamples),
            "permutations": str(two.permutations), "exclude": " ".join(sorted(self.exclude)), "meta": str(self.meta).lower(),
        }  # fmt: skip
        return found | ({} if self.models is None else {"models": sha256_of(self.models)})


@dataclass(frozen=True)
class ScaleResult:
    """The finished step: its folder, its tables by kind, sentences on what came out, and whether it was there already."""

    folder: Path
    tables: Mapping[str, Table]
    summary: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    reused: bool = False


@marking_failures()
def run(
    sources: Sequence[str | Path],
    asked: Asked | None = None,
    *,
    out: str | Path | None = None,
    root: Path = OUTPUTS,
    force: bool = False,
    progress: Progress | None = None,
) -> ScaleResult:
    """Follow quantities of finished runs over the size of their models, and write the step ``scale``.

    ``sources``: run folders and step folders, as :func:`esa.artifact.grouping.group` reads them. Written to ``out``, else
    ``root/<names>/scale-<id>``: ``points.csv`` (every value of every run, with the reason where it stands in no fit),
    ``laws.csv`` (a verdict per quantity and subject), ``fits.csv`` (every law's parameters), ``bands.csv`` (curves with
    intervals), ``covariates.csv``; over checkpoints ``trajectory.csv`` and ``emergence.csv``, with ``meta``
    ``effects.csv`` and ``meta.csv``. A complete step is reused unless ``force``. No model is loaded.
    Raises ArtifactError for sources that are no finished steps, and where fewer than three models are left.
    Cost: reads every table once; then about 0.3 s per series of values.
    """
    started, listener = time.perf_counter(), Recording(progress)
    asked = asked or Asked()
    runs, strays, step = _opened(sources, asked, out, root)
    if step.reusable(force=force):
        listener.note(f"scale: {step.folder} is complete")
        return _finished(step)
    for text in strays:
        listener.warn(text)
    rows = _measured(runs, asked, listener)
    if not step.begin(force=force, since=started):  # another process finished it just now
        return _finished(step)
    written = {kind: name for kind, name in FILES.items() if rows.tables.get(kind)}
    for kind, name in written.items():
        found = [{**row, "run": step.id} for row in rows.tables[kind]]
        step.write(make_table(kind, found, step.meta()), name)
    step.finish(
        tables={name: kind for kind, name in written.items()},
        warnings=listener.warnings,
        runs=[label for label, _ in labelled(runs)],
        options={"over": asked.over, "metrics": _metrics(runs, asked)},
        summary=rows.summary,
    )
    return _finished(step, reused=False)


def _metrics(runs: Sequence[Gathered], asked: Asked) -> list[str]:
    """Return the metrics that were followed, in the order of the alphabet."""
    known = {name for run in runs for name in values(run, "metric")}
    return sorted(known & set(asked.wanted.metrics) if asked.wanted.metrics else known)


def plan(
    sources: Sequence[str | Path], asked: Asked | None = None, *, out: str | Path | None = None, root: Path = OUTPUTS
) -> tuple[list[str], Path]:
    """Return what :func:`run` would do, and touch nothing: a line per run, per model and per quantity, and the folder.

    Raises what :func:`run` raises for its sources.
    """
    asked = asked or Asked()
    runs, strays, step = _opened(sources, asked, out, root)
    lines = [
        f"reads {label}: {', '.join(str(folder) for folder in run.folders.values())}" for label, run in labelled(runs)
    ]
    lines += strays
    if asked.over != CHECKPOINTS:
        found = _members(runs, asked)
        lines += [f"leaves out {one.label}: {one.excluded}" for one in found if one.excluded]
        kept = [one for one in found if one.excluded is None]
        for model in dict.fromkeys(one.model for one in kept):
            of = [one for one in kept if one.model == model]
            about = ", ".join(str(value) for value in (of[0].family, of[0].kind, of[0].variant) if value is not None)
            counted = f"{len(of)} {'run' if len(of) == 1 else 'runs'}, {of[0].num_parameters:,} weights"
            lines.append(f"model {model}: {counted}{', ' + about if about else ''}")
        counts: dict[str, int] = {}
        for series in series_of(points_of(found, asked.over, asked.wanted)):
            counts[series.quantity] = counts.get(series.quantity, 0) + 1
        lines += [
            f"fits {quantity}: {count} {'subject' if count == 1 else 'subjects'}" for quantity, count in counts.items()
        ]
    else:
        lines += [one.words for one in trajectories(_members(runs, asked))]
    return lines, step.folder


def expanded(sources: Sequence[str | Path]) -> list[Path]:
    """Return the sources, a folder that is no run and no step replaced by the runs in it, in the order of their names."""
    found = []
    for source in map(Path, sources):
        inside = (
            [] if is_run(source) or (source / MANIFEST).exists() or not source.is_dir() else sorted(source.iterdir())
        )
        found += [one for one in inside if is_run(one)] or [source]
    return found


def _opened(
    sources: Sequence[str | Path], asked: Asked, out: str | Path | None, root: Path
) -> tuple[list[Gathered], list[str], Step]:
    """Return the runs, a sentence per step that belongs to none of them, and the step that the runs make."""
    if asked.over not in (*OVER, CHECKPOINTS):
        raise EsaError(f"'{asked.over}'; allowed: {', '.join((*OVER, CHECKPOINTS))}", where="--over")
    if asked.models is not None:
        read_models(asked.models)  # before its bytes enter the id: a fault in it is named with its line
    grouped = group(expanded(sources))
    runs, strays = _distinct([one for one in grouped.runs if set(one.folders) - set(BETWEEN)])
    for one in grouped.crossed:
        folders = ", ".join(map(str, one.folders.values()))
        strays.append(
            f"{folders}: changed one model by the ranking of another: of neither run, left out (esa arch compares)"
        )
    inputs = {f"{n}:{step}": id for n, run in enumerate(runs) for step, id in run.inputs.items()}
    folder = Path(out) if out is not None else None
    return runs, strays, Step("scale", _spec_of(runs), inputs | asked.inputs, root=root, folder=folder)


def _distinct(runs: Sequence[Gathered]) -> tuple[list[Gathered], list[str]]:
    """Return every run once, and a sentence on each that was given twice: it is no second witness."""
    kept: dict[tuple[tuple[str, str], ...], Gathered] = {}
    again = []
    for run in runs:
        key = tuple(sorted(run.inputs.items()))
        if key in kept:
            again.append(f"{run.name} is given twice (the same steps); it counts once")
        kept.setdefault(key, run)
    return list(kept.values()), again


def _spec_of(runs: Sequence[Gathered]) -> Spec:
    """Return a spec that names the step's folder for its runs: ``a_b``, ``a_b_2_more`` where they are too long together."""
    return spec_from_dict({"name": joined([run.name for run in runs] or ["scale"], "_"), "model": {"id": "several"}})


def _members(runs: Sequence[Gathered], asked: Asked) -> list[Member]:
    """Return the runs as members; over sizes at least three models of them are left."""
    overrides = read_models(asked.models) if asked.models is not None else {}
    if asked.over == CHECKPOINTS:
        found = members(runs, overrides, asked.exclude, checkpoints=True)
    else:
        found = members(runs, overrides, asked.exclude)
        require_models(found, {one.label: x_of(one, asked.over) for one in found})
    require_offered(found, asked.wanted)
    return found


def _measured(runs: Sequence[Gathered], asked: Asked, progress: Recording) -> Rows:
    """Return the rows of every table."""
    found = _members(runs, asked)
    for member in found:
        for text in member.run.warnings:
            progress.warn(f"{member.label}: {text}")
        if member.excluded:
            progress.warn(f"{member.label} stands in no fit: {member.excluded}")
    for text in unlike(found):
        progress.warn(text)
    if asked.over == CHECKPOINTS:
        rows = checkpoint_tables(found, asked.wanted, asked.settings, progress)
    else:
        rows = size_tables(found, asked.over, asked.wanted, asked.settings, progress)
    if asked.meta:
        last = members(runs, read_models(asked.models) if asked.models is not None else {}, asked.exclude)
        more = meta_tables(last, asked.wanted, asked.settings.level)
        rows = Rows({**rows.tables, **more.tables}, rows.summary)
    return rows


def _finished(step: Step, reused: bool = True) -> ScaleResult:
    """Return what the step's folder holds."""
    manifest = read_manifest(step.folder)
    tables = {kind: find_table(step.folder, kind) for kind in manifest["kinds"].values()}
    return ScaleResult(step.folder, tables, tuple(manifest.get("summary", ())), tuple(manifest["warnings"]), reused)
