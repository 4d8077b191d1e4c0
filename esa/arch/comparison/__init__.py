"""The Python twin of ``esa arch RUN...``: compare the models of finished runs, without loading one."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

from esa.arch.comparison.findings import Found, Options, Row, adjusted, out_of_reach
from esa.arch.comparison.sources import Labelled, common_k, labelled
from esa.artifact import Step, Table, find_table, make_table, read_manifest, to_json
from esa.artifact.grouping import group, joined
from esa.artifact.steps import OUTPUTS, marking_failures
from esa.errors import SelectionError
from esa.progress import Progress, Silent
from esa.registry import suggest
from esa.spec import Spec, spec_from_dict

__all__ = ["FILES", "PARTS", "ArchResult", "Found", "Labelled", "Options", "Prepared", "Row", "prepare", "run"]

# What is asked, in this order: name -> "module:function", called with the runs and the options, which returns a Found.
PARTS: dict[str, str] = {
    "shares": "esa.arch.comparison.shares:compare",
    "attention": "esa.arch.comparison.attention:compare",
    "depth": "esa.arch.comparison.depth:compare",
    "experts": "esa.arch.comparison.experts:compare",
    "specialisation": "esa.arch.comparison.specialisation:compare",
    "clustering": "esa.arch.comparison.clustering:compare",
    "variants": "esa.arch.comparison.variants:compare",
    "transfer": "esa.arch.comparison.transfer:compare",
    "between": "esa.arch.comparison.between:compare",
    "profiles": "esa.arch.comparison.profiles:compare",
    "tree": "esa.arch.comparison.tree:compare",
    "classifier": "esa.arch.comparison.classifier:compare",
    "robustness": "esa.arch.comparison.robustness:compare",
}

# The tables of the step in their order: kind -> file. Those without a row are not written, the comparison aside.
FILES = {
    "comparison/1": "comparison.csv",
    "shares/1": "shares.csv",
    "experts/1": "experts.csv",
    "positions/1": "positions.csv",
    "profiles/1": "profiles.csv",
    "tree/1": "tree.csv",
    "features/1": "features.csv",
    "robustness/1": "robustness.csv",
}


@dataclass(frozen=True)
class ArchResult:
    """The finished step: its folder, its tables by kind, the labels of the runs, its warnings, and each label's model.

    ``models``: ``label``, ``id``, ``family``, ``num_parameters``, ``num_blocks``; None for what the manifests do not say.
    """

    folder: Path
    tables: Mapping[str, Table]
    labels: tuple[str, ...]
    warnings: tuple[str, ...] = field(default=())
    models: tuple[Mapping[str, Any], ...] = ()


@dataclass(frozen=True)
class Prepared:
    """What is compared and where to: the runs under their labels, the resolved options, and the step."""

    runs: tuple[Labelled, ...]
    options: Options
    step: Step


def prepare(
    sources: Sequence[str | Path],
    *,
    metric: str | Sequence[str] | None = None,
    k: int | None = None,
    seed: int = 0,
    permutations: int = 9999,
    out: str | Path | None = None,
    root: Path = OUTPUTS,
) -> Prepared:
    """Read which runs the sources are and resolve the options, touching nothing. Arguments and errors: those of :func:`run`."""
    grouped = group(sources)
    runs = tuple(labelled(grouped.runs, grouped.crossed))
    refuse_twice(runs)
    options = resolve(runs, metric, k, seed, permutations)
    folder = None if out is None else Path(out)
    return Prepared(runs, options, Step("arch", spec_of(runs), step_inputs(runs, options), root=root, folder=folder))


@marking_failures()
def run(
    sources: Sequence[str | Path],
    *,
    metric: str | Sequence[str] | None = None,
    k: int | None = None,
    seed: int = 0,
    permutations: int = 9999,
    out: str | Path | None = None,
    root: Path = OUTPUTS,
    force: bool = False,
    progress: Progress | None = None,
) -> ArchResult:
    """Compare finished runs, folders with ``run.json`` or step folders, as an ``arch`` step; no model is loaded.

    Args: metric: one or several (all that a run scored); k: weights at the top of each list (the most that every list
    holds); seed: of resamples and permutations; permutations: of each test. They and the steps that are read enter the
    step's id. The step lies in ``out``, else ``root/<names>/arch-<id>``, and is read from there if it is complete.
    Every part of :data:`PARTS` gives rows of the tables in :data:`FILES`; what it cannot answer is a row of
    ``comparison/1`` whose ``why`` says so. ``p_adjusted`` is Holm's over one question, all runs and metrics together.
    Raises: ArtifactError for sources that cannot be read, SelectionError for a metric or K that the runs do not hold, or a run
    that is given twice.
    """
    progress = progress or Silent()
    prepared = prepare(sources, metric=metric, k=k, seed=seed, permutations=permutations, out=out, root=root)
    runs, options, step = prepared.runs, prepared.options, prepared.step
    labels = tuple(one.label for one in runs)
    if step.reusable(force=force) or not step.begin(force=force):  # or another process finished it just now
        return _finished(step.folder, labels)
    rows: dict[str, list[Row]] = {kind: [] for kind in FILES}
    adjust: set[str] = set()
    warnings = [f"{one.label}: {text}" for one in runs for text in one.run.warnings] + _unknown(runs)
    progress.start("compare", len(PARTS))
    for place in PARTS.values():
        found = _part(place, runs, options)
        for kind, more in found.tables.items():
            rows[kind] += more
        adjust |= found.adjust
        warnings += found.warnings
        progress.advance()
    progress.finish()
    rows["comparison/1"] = adjusted(rows["comparison/1"], frozenset(adjust))
    warnings += out_of_reach(rows["comparison/1"])
    for text in (warnings := list(dict.fromkeys(warnings))):
        progress.warn(text)
    tables = {
        kind: make_table(kind, [{"run": step.id, **row} for row in found], step.meta())
        for kind, found in rows.items()
        if found or kind == "comparison/1"
    }
    for kind, table in tables.items():
        step.write(table, FILES[kind])
    step.finish(
        tables={FILES[kind]: kind for kind in tables},
        warnings=warnings,
        labels=list(labels),
        models=[_facts(one) for one in runs],
        options={"metrics": list(options.metrics), "k": options.k, "seed": seed, "permutations": permutations},
    )
    return _finished(step.folder, labels)


def _facts(one: Labelled) -> dict[str, Any]:
    """Return by which model a run's label is known."""
    return {
        "label": one.label,
        "id": one.model.get("id"),
        "family": one.shape.get("model_type"),
        "num_parameters": one.run.num_parameters,
        "num_blocks": one.num_blocks,
    }


def _part(place: str, runs: Sequence[Labelled], options: Options) -> Found:
    module, _, name = place.partition(":")
    found = getattr(import_module(module), name)(runs, options)
    assert isinstance(found, Found)
    return found


def _finished(folder: Path, labels: tuple[str, ...]) -> ArchResult:
    manifest = read_manifest(folder)
    tables = {kind: find_table(folder, kind) for kind in manifest["kinds"].values()}
    return ArchResult(folder, tables, labels, tuple(manifest["warnings"]), tuple(manifest.get("models", ())))


def refuse_twice(runs: Sequence[Labelled]) -> None:
    """Raise SelectionError where a run is there twice: counted as two models it would make every test look surer than it is."""
    seen: dict[str, Labelled] = {}
    for one in runs:
        mark = to_json(one.run.inputs)
        if mark in seen:
            folders = [str(next(iter(run.run.folders.values())).parent) for run in (seen[mark], one)]
            where = folders[0] if folders[0] == folders[1] else " and ".join(folders)
            raise SelectionError(
                f"'{one.run.name}' is given twice, with the same steps; allowed: each run once", where=where
            )
        seen[mark] = one


def resolve(
    runs: Sequence[Labelled], metric: str | Sequence[str] | None, k: int | None, seed: int, permutations: int
) -> Options:
    """Return the options with the metrics and K that the runs hold. Raises SelectionError for others."""
    known = list(dict.fromkeys(name for one in runs for name in one.metrics))
    if not known:
        raise SelectionError("no run holds scores or a ranking by a metric", where="RUN")
    asked = [metric] if isinstance(metric, str) else list(metric or [])
    for name in asked:
        if name not in known:
            near = suggest(name, known)
            raise SelectionError(f"no run scored '{name}'{near}; scored: {', '.join(known)}", where="--metric")
    metrics = tuple(dict.fromkeys(asked)) or tuple(known)
    largest = common_k(runs, metrics)
    if k is not None and (largest is None or k > largest):
        held = "no run holds a ranking" if largest is None else f"a list holds {largest:,} weights"
        raise SelectionError(
            f"{k:,} weights are asked for, and {held}", where="-k", hint="esa rank with a larger rank.k"
        )
    return Options(metrics, k if k is not None else largest, seed, permutations)


def spec_of(runs: Sequence[Labelled]) -> Spec:
    """Return a spec whose name is those of the runs: what names the step's folder."""
    return spec_from_dict({"name": joined([one.run.name for one in runs], "_"), "model": {"id": "several"}})


def step_inputs(runs: Sequence[Labelled], options: Options) -> dict[str, str]:
    """Return what enters the step's id: the id of every step of every run, in order, and the options."""
    found = {f"{n}:{step}": id for n, one in enumerate(runs) for step, id in one.run.inputs.items()}
    for n, one in enumerate(runs):
        found |= {f"{n}:crossed {m}": other.inputs["perturb"] for m, other in enumerate(one.crossed)}
    asked = {"metrics": " ".join(options.metrics), "k": str(options.k)}
    return found | asked | {"seed": str(options.seed), "permutations": str(options.permutations)}


def _unknown(runs: Sequence[Labelled]) -> list[str]:
    """Return a warning for every run whose manifests lack a fact that the comparison goes by."""
    return [
        f"{one.label}: its manifests do not say how many blocks the model has; counted up to the highest scored, {one.num_blocks}"
        for one in runs
        if one.num_blocks is not None and not isinstance(one.shape.get("num_blocks"), int)
    ]
