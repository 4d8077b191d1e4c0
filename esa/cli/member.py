"""One run from its scores to its report, in this process or in a worker's."""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from esa.errors import BusyError
from esa.progress import Progress

if TYPE_CHECKING:
    import polars as pl

    from esa.spec import Spec

_PAUSE = 1.0  # seconds between two looks at a step that another process writes


@dataclass(frozen=True)
class Finished:
    """A finished run: its report, and what its closing tables are made from."""

    report: Path
    scored: dict[str, Any]
    ranking: "pl.DataFrame"
    damage: "pl.DataFrame | None"
    stability: dict[str, Any] | None
    perturbed: Path | None = None


def run_member(spec: "Spec", path: Path | None, root: Path, *, force: bool, progress: Progress) -> Finished:
    """Score, rank, perturb, compare and report one run, and name its steps in ``root/<name>/run.json``.

    The model is loaded once, and not at all where every step that needs it is complete. ``path`` is the spec's file.
    Raises EsaError for content; BusyError if another process is writing one of the steps.
    """
    from esa import overlap, perturb, rank, report, score
    from esa.artifact import read_manifest, write_json
    from esa.artifact.manifest import now
    from esa.model import eligible, load_model

    score.require_derivatives(spec)
    perturb.require_scales(spec)
    home = root / spec.name
    shared: dict[str, Any] = {"root": root, "force": force, "progress": progress}
    loaded = None if score.score_step(spec, root).complete and not force else load_model(spec.model, progress)
    if loaded is not None:
        rank.require_keep(
            spec,
            {name: info.numel for name, info in eligible(loaded.table, spec.score.include, spec.score.exclude).items()},
        )
    scored = score.run(spec, loaded=loaded, **shared)
    ranked = rank.run(scored.folder, spec=spec, **shared)
    assert ranked.folder is not None
    steps = {"score": scored.folder.name, "rank": ranked.folder.name}
    damage = perturbed = None
    if spec.perturb:
        step = perturb.perturb_step(spec, {"ranking": read_manifest(ranked.folder)["run"]}, root)
        if loaded is None and (force or not step.complete):
            loaded = load_model(spec.model, progress)
        calibration = [data["sha256"] for data in read_manifest(scored.folder)["data"]]
        done = perturb.run(spec, ranked.folder, loaded=loaded, calibration=calibration, **shared)
        steps["perturb"], damage, perturbed = done.folder.name, done.damage.frame, done.folder
    compared = overlap.run([ranked.folder], spec=spec, universe=spec.overlap.universe, **shared)
    assert compared.folder is not None
    steps["overlap"] = compared.folder.name
    content = {"name": spec.name, "spec": str(path) if path else None, "created": now(), "steps": steps}
    write_json(home / "run.json", content)
    written = report.run([home], force=force, progress=progress)
    return Finished(written.path, read_manifest(scored.folder), ranked.table.frame, damage, compared.summary, perturbed)


def run_patiently(spec: "Spec", path: Path | None, root: Path, *, force: bool, progress: Progress) -> Finished:
    """Do as ``run_member``; where another process is writing a step, wait until it ends, then reuse or resume the step.

    For runs that nobody watches: a job of a queue that was started twice, or again before its lost worker was buried.
    Raises EsaError as ``run_member``.
    """
    from esa.artifact.lock import holder

    while True:
        try:
            return run_member(spec, path, root, force=force, progress=progress)
        except BusyError as error:
            progress.note(f"waiting: {error.where} {error.what}")
            folder = Path(error.where or "")
        while holder(folder) is not None:
            time.sleep(_PAUSE)
