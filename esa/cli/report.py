"""``esa report``: write a run up from its artifacts, or several side by side."""

from pathlib import Path
from typing import Annotated

import typer

from esa.cli import options
from esa.cli.session import begin, handled
from esa.errors import EXIT_USAGE, EsaError


@handled
def command(
    sources: Annotated[
        list[Path] | None,
        typer.Argument(
            help="A run's folder, or its step folders; several runs: side by side. With --week a DATE in it, if any.",
            metavar="RUN",
            show_default=False,
        ),
    ] = None,
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
    paper: Annotated[
        Path | None,
        typer.Option(
            "--paper",
            help="Write no page, but what a LaTeX document inputs: figures, tables, macros, methods, references.",
            metavar="DIR",
            rich_help_panel=options.OUTPUT,
        ),
    ] = None,
    log: Annotated[
        bool,
        typer.Option(
            "--log", help="Write no page, but append an entry to reports/LOG.md.", rich_help_panel=options.OUTPUT
        ),
    ] = False,
    commands: Annotated[
        list[str] | None,
        typer.Option(
            "--command", help="With --log: a command to name beside those of the manifests; repeatable.", metavar="TEXT"
        ),
    ] = None,
    week: Annotated[
        bool,
        typer.Option(
            "--week",
            help="Print the summary of this ISO week, or of the DATE's; with --log append it to reports/LOG.md.",
        ),
    ] = False,
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

    --paper writes a folder for LaTeX instead and prints its path; DIR/example.tex inputs all of it and compiles. --log
    appends a dated entry to reports/LOG.md and prints its path; a run is entered once, unless --force. Both may be given.

    Examples:
    `esa report outputs/smollm2_quickstart`

    `esa report outputs/a outputs/b --criteria strict.toml`

    `esa report outputs/a outputs/a/truth-3f0a outputs/a/detector-71c2`

    `esa report outputs/a --paper paper && cd paper && pdflatex example`

    `esa report outputs/a --log --command "make quickstart"`

    `esa report --week 2026-11-16`
    """
    from esa import report

    if str(out) == "-":
        raise EsaError("a report is a folder; - is no folder", where="--out")
    _require_sense(out=out, criteria=criteria, paper=paper, log=log, commands=commands, week=week, force=force)
    if week:
        _week(sources or [], add=log, dry_run=dry_run)
        return
    if not sources:
        typer.echo("esa: error: Missing argument 'RUN...'.", err=True)
        raise typer.Exit(EXIT_USAGE)
    if paper is not None or log:
        _further(sources, criteria, paper, log, commands or [], force, dry_run, quiet, verbose, threads)
        return
    if dry_run:
        lines, folder = report.plan(sources, out=out, criteria=criteria)
        typer.echo("\n".join([*(f"# reads {line}" for line in lines), f"# loads no model; writes {folder}/"]))
        return
    progress = begin(quiet=quiet, verbose=verbose, threads=threads)
    with progress.closing():
        result = report.run(sources, out=out, criteria=criteria, force=force, progress=progress)
    typer.echo(str(result.path))


def _require_sense(
    *, out: Path | None, criteria: Path | None, paper: Path | None, log: bool, commands: list[str] | None, week: bool,
    force: bool,
) -> None:  # fmt: skip
    """Refuse options of one way of writing that another does not read."""
    if out is not None and (paper is not None or log or week):
        other = "--paper" if paper is not None else "--log" if log else "--week"
        raise EsaError(
            f"is the folder of the page, and {other} writes none", where="--out", hint=f"leave -o or {other} out"
        )
    if commands and (not log or week):
        raise EsaError("belongs to an entry of the log", where="--command", hint="give it with --log and the runs")
    if week and (paper is not None or criteria is not None or force):
        other = "--paper" if paper is not None else "--criteria" if criteria is not None else "--force"
        raise EsaError("has nothing to do with a week", where=other, hint="leave it or --week out")
    if paper is not None and force and not log:
        raise EsaError("--paper always writes its files anew", where="--force", hint="leave it out")


def _further(
    sources: list[Path], criteria: Path | None, paper: Path | None, log: bool, commands: list[str], force: bool,
    dry_run: bool, quiet: bool, verbose: bool, threads: int | None,
) -> None:  # fmt: skip
    """Write the folder for LaTeX, the entry of the log, or both; print their paths."""
    progress = begin(quiet=quiet, verbose=verbose, threads=threads)
    with progress.closing():
        if paper is not None:
            from esa.report import paper as papers

            if dry_run:
                lines = papers.plan(sources, paper, criteria=criteria)
                typer.echo("\n".join([*(f"# reads {line}" for line in lines), f"# loads no model; writes {paper}/"]))
            else:
                written = papers.write(sources, paper, criteria=criteria, progress=progress)
                typer.echo(str(written.folder))
        if log:
            from esa.report.log import append

            entered = append(sources, commands=commands, criteria=criteria, force=force, dry_run=dry_run)
            if not entered.added:
                progress.note(f"log: {entered.path} has this run already ({entered.id}); --force enters it again")
            if dry_run:
                typer.echo(entered.text if entered.added else "", nl=False)
                typer.echo(f"# {'appends this' if entered.added else 'appends nothing'} to {entered.path}")
            else:
                typer.echo(str(entered.path))


def _week(days: list[Path], *, add: bool, dry_run: bool) -> None:
    """Print the summary of a week, and append it to the log where it is asked for."""
    from datetime import date

    from esa.report.log import LOG
    from esa.report.log import week as weekly

    if len(days) > 1:
        raise EsaError(f"takes one DATE, not {len(days)} words", where="--week", hint="esa report --week 2026-11-16")
    try:
        day = date.fromisoformat(str(days[0])) if days else None
    except ValueError:
        what = f"'{days[0]}' is no date; allowed: a day such as 2026-11-16, or a week such as 2026-W47"
        raise EsaError(what, where="--week", hint="leave it out for this week") from None
    text = weekly(day, add=add and not dry_run)
    typer.echo(text, nl=False)
    if add and dry_run:
        typer.echo(f"# appends this to {LOG}")
