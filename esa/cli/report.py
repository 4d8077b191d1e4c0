"""``esa report``: write a run up from its artifacts."""

from pathlib import Path
from typing import Annotated

import typer

from esa.cli import options
from esa.cli.session import begin, handled
from esa.errors import EsaError


@handled
def command(
    sources: Annotated[
        list[Path], typer.Argument(help="A run's folder, or its step folders.", metavar="RUN", show_default=False)
    ],
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Folder of the report.", rich_help_panel=options.OUTPUT)
    ] = None,
    force: options.Force = False,
    dry_run: options.DryRun = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
    list_names: options.ListNames = False,
    version: options.Version = False,
    threads: options.Threads = None,
) -> None:
    """Write a Markdown report with its charts (PNG and SVG) and their data, from artifacts alone.

    Prints the path of report.md on stdout.

    Example: `esa report outputs/smollm2_quickstart`
    """
    from esa import report

    if str(out) == "-":
        raise EsaError("a report is a folder; - is no folder", where="--out")
    if dry_run:
        typer.echo(f"# reads {', '.join(map(str, sources))}; loads no model; writes {out or 'reports/<name>-<id>'}/")
        return
    progress = begin(quiet=quiet, verbose=verbose, threads=threads)
    with progress.closing():
        result = report.run(sources, out=out, force=force, progress=progress)
    typer.echo(str(result.path))
