"""``esa report``: write a run up from its artifacts, or several side by side."""

from pathlib import Path
from typing import Annotated

import typer

from esa.cli import options
from esa.cli.session import begin, handled
from esa.errors import EsaError


@handled
def command(
    sources: Annotated[
        list[Path],
        typer.Argument(
            help="A run's folder, or its step folders; several runs: side by side.", metavar="RUN", show_default=False
        ),
    ],
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Folder of the report.", rich_help_panel=options.OUTPUT)
    ] = None,
    criteria: Annotated[
        Path | None,
        typer.Option(
            "--criteria",
            help="TOML file of criteria to judge by; those that ship with esa by default.",
            metavar="FILE",
        ),
    ] = None,
    force: options.Force = False,
    dry_run: options.DryRun = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
    list_names: options.ListNames = False,
    version: options.Version = False,
    threads: options.Threads = None,
) -> None:
    """Write runs up from artifacts alone: one HTML page, Markdown, charts (PNG and SVG) and their data.

    Prints the path of report.html on stdout: a single file with live charts that asks for no network. report.md,
    criteria.csv, figures/ and data/ lie beside it. Each run folder is a run; step folders belong to the run that they were made
    from. Several runs stand side by side on one page, in the order given: what differs between them, what compares,
    and every verdict, table and chart by run.

    Examples:
    `esa report outputs/smollm2_quickstart`

    `esa report outputs/a outputs/b --criteria strict.toml`

    `esa report outputs/a outputs/a/truth-3f0a outputs/a/detector-71c2`
    """
    from esa import report

    if str(out) == "-":
        raise EsaError("a report is a folder; - is no folder", where="--out")
    if dry_run:
        lines, folder = report.plan(sources, out=out, criteria=criteria)
        typer.echo("\n".join([*(f"# reads {line}" for line in lines), f"# loads no model; writes {folder}/"]))
        return
    progress = begin(quiet=quiet, verbose=verbose, threads=threads)
    with progress.closing():
        result = report.run(sources, out=out, criteria=criteria, force=force, progress=progress)
    typer.echo(str(result.path))
