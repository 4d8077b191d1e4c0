"""``esa run``: score, rank, perturb, overlap, report, one after the other; the runs of a sweep in turn or on Ray."""

from pathlib import Path
from typing import Annotated

import typer

from esa.cli import options
from esa.cli.options import SPEC
from esa.cli.session import begin, handled, read_sweep
from esa.errors import EsaError

STEPS = ("score", "rank", "perturb", "overlap", "report")
SEVERAL = "Several processes"


@handled
def command(
    spec: options.SpecFile = None,
    only: options.Only = None,
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
    on: Annotated[
        str | None,
        typer.Option(
            "--on",
            help="ray: the runs side by side on this machine's CPUs and GPUs, or on a cluster's with --address. Each gets"
            " one GPU where there are any, and --threads CPUs, 1 by default. Needs the extra ray.",
            metavar="ray",
            rich_help_panel=SEVERAL,
        ),
    ] = None,
    address: Annotated[
        str | None,
        typer.Option(
            "--address",
            help="Ray cluster to use: auto for the one that this machine is a node of, or HOST:PORT. Its nodes share this"
            " folder and the outputs.",
            metavar="ADDRESS",
            rich_help_panel=SEVERAL,
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
    runs each of its runs, --only some of them, --on ray side by side; --dry-run shows their numbers.

    Examples:
    `esa run --spec specs/quickstart.toml`

    `esa run --spec sweep.toml --only $SLURM_ARRAY_TASK_ID`

    `esa run --spec sweep.toml --on ray --address auto`
    """
    from esa.artifact.steps import OUTPUTS
    from esa.cli.members import choose, described

    if on not in (None, "ray"):
        raise EsaError(f"'{on}' schedules no runs; allowed: ray", where="--on")
    if address is not None and on is None:
        raise EsaError(
            f"'{address}' is a Ray cluster's, and nothing runs on Ray", where="--address", hint="add --on ray"
        )
    progress = begin(quiet=quiet, verbose=verbose, threads=threads)
    runs = read_sweep(spec, overrides, {"model.id": model, "model.device": device})
    numbers = choose(only, runs, spec)
    root = out or OUTPUTS
    if dry_run:
        from esa.cli.dry_run import print_members, print_plan

        if len(runs) > 1:
            print_members(runs, numbers)
        print_plan([runs[number] for number in numbers], list(STEPS), out)
        return
    if on == "ray":
        from esa.cli.cluster import run_on_ray

        run_on_ray(runs, numbers, spec, root, address, force=force, threads=threads or 1, quiet=quiet, verbose=verbose)
        return
    from esa.cli.claims import print_claims
    from esa.cli.member import run_member, run_patiently
    from esa.cli.summary import print_summary

    # Who is at the terminal is told that a step is being written; a job of a queue, which says --only, waits for it.
    run = run_patiently if only else run_member
    with progress.closing():
        for done, number in enumerate(numbers):
            if len(runs) > 1:
                progress.note(f"run {done + 1} of {len(numbers)}: {described(runs, number)}")
            finished = run(runs[number], spec, root, force=force, progress=progress)
            if not quiet:
                print_summary(finished.scored, finished.ranking, finished.damage, finished.stability)
                if finished.perturbed is not None:
                    print_claims(finished.perturbed)
            typer.echo(str(finished.report))
