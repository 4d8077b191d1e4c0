"""``esa run``: score, rank, perturb, overlap, report, one after the other."""

from pathlib import Path
from typing import Annotated, Any

import typer

from esa.cli import options
from esa.cli.options import SPEC
from esa.cli.session import begin, handled, read_sweep

STEPS = ("score", "rank", "perturb", "overlap", "report")


@handled
def command(
    spec: options.SpecFile = None,
    model: Annotated[str | None, typer.Option("--model", help="Short for model.id.", rich_help_panel=SPEC)] = None,
    device: Annotated[
        str | None, typer.Option("--device", help="Short for model.device.", rich_help_panel=SPEC)
    ] = None,
    overrides: options.Overrides = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            help="Folder that the run's own folder goes into; outputs by default. The report goes to reports/.",
            metavar="FOLDER",
            rich_help_panel=options.OUTPUT,
        ),
    ] = None,
    force: options.Force = False,
    dry_run: options.DryRun = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
    threads: options.Threads = None,
    list_names: options.ListNames = False,
    version: options.Version = False,
) -> None:
    """Score, rank, perturb, compare and report; finished steps are reused, broken ones resumed.

    Prints the damage table, the worst single weights, and on stdout the path of the report. A spec with a sweep table
    runs each of its members.

    Example: `esa run --spec specs/quickstart.toml`
    """
    from esa.artifact.steps import OUTPUTS

    progress = begin(quiet=quiet, verbose=verbose, threads=threads)
    runs = read_sweep(spec, overrides, {"model.id": model, "model.device": device})
    if dry_run:
        from esa.cli.dry_run import print_plan

        print_plan(runs, list(STEPS), out)
        return
    with progress.closing():
        for number, one in enumerate(runs):
            if len(runs) > 1:
                progress.note(f"run {number + 1} of {len(runs)}: {one.name}")
            _run_one(one, spec, out or OUTPUTS, force, quiet, progress)


def _run_one(spec: Any, path: Path | None, root: Path, force: bool, quiet: bool, progress: Any) -> None:
    """Run one member; the model is loaded once, and not at all where every step that needs it is complete."""
    from esa import overlap, perturb, rank, report, score
    from esa.artifact import read_manifest, write_json
    from esa.artifact.manifest import now
    from esa.cli.summary import print_summary
    from esa.model import eligible, load_model

    home = root / spec.name
    shared = {"root": root, "force": force, "progress": progress}
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
    damage = None
    if spec.perturb:
        step = perturb.perturb_step(spec, {"ranking": read_manifest(ranked.folder)["run"]}, root)
        if loaded is None and (force or not step.complete):
            loaded = load_model(spec.model, progress)
        calibration = [data["sha256"] for data in read_manifest(scored.folder)["data"]]
        done = perturb.run(spec, ranked.folder, loaded=loaded, calibration=calibration, **shared)
        steps["perturb"], damage = done.folder.name, done.damage.frame
    compared = overlap.run([ranked.folder], spec=spec, universe=spec.overlap.universe, **shared)
    assert compared.folder is not None
    steps["overlap"] = compared.folder.name
    content = {"name": spec.name, "spec": str(path) if path else None, "created": now(), "steps": steps}
    write_json(home / "run.json", content)
    written = report.run([home], force=force, progress=progress)
    if not quiet:
        print_summary(read_manifest(scored.folder), ranked.table.frame, damage, compared.summary)
    typer.echo(str(written.path))
