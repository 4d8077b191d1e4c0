"""``esa report``: write a run up from its artifacts."""

from pathlib import Path
from typing import Annotated

import typer

from esa.cli import options
from esa.cli.session import begin, handled


@handled
def command(
    sources: Annotated[
        list[Path], typer.Argument(help="A run's folder, or its step folders.", metavar="RUN", show_default=False)
    ],
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Folder of the report.", rich_help_panel=options.OUTPUT)
    ] = None,
    force: options.Force = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
    threads: options.Threads = None,
) -> None:
    """Write a Markdown report with its charts (PNG and SVG) and their data, from artifacts alone.

    Prints the path of report.md on stdout.

    Example: [bold]esa report outputs/smollm2_quickstart[/]
    """
    from esa import report

    progress = begin(quiet=quiet, verbose=verbose, threads=threads)
    with progress.closing():
        result = report.run(sources, out=out, force=force, progress=progress)
    typer.echo(str(result.path))
