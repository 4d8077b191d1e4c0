"""``esa overlap``: compare rankings."""

from typing import TYPE_CHECKING, Annotated

import typer

from esa.cli import options
from esa.cli.options import SPEC
from esa.cli.session import begin, check_format, deliver, folder_target, handled, is_file_target, read_spec

if TYPE_CHECKING:
    from esa.cli.console import ConsoleProgress
    from esa.spec import Spec


@handled
def command(
    sources: Annotated[
        list[str],
        typer.Argument(
            help="Rank folders, rankings, older lists, or - for stdin.", metavar="RANKING...", show_default=False
        ),
    ],
    spec: options.SpecFile = None,
    only: options.Only = None,
    by: Annotated[
        list[str] | None,
        typer.Option(
            "--by",
            help="weight, output, input, layer, block, component; repeatable. Short for overlap.by.",
            rich_help_panel=SPEC,
        ),
    ] = None,
    k: Annotated[
        list[int] | None, typer.Option("-k", help="At these K; repeatable. Short for overlap.k.", rich_help_panel=SPEC)
    ] = None,
    p: Annotated[
        float | None,
        typer.Option("-p", help="Persistence of rank-biased overlap. Short for overlap.p.", rich_help_panel=SPEC),
    ] = None,
    universe: Annotated[
        int | None,
        typer.Option(
            "--universe",
            min=1,
            help="How many weights the lists were drawn from. Short for overlap.universe.",
            rich_help_panel=SPEC,
        ),
    ] = None,
    curve: Annotated[
        str | None,
        typer.Option(
            "--curve",
            help="How agreement between seeds grows with k, with calibration windows (rank folders of runs that differ in"
            " them), or with the seeds averaged: k, windows or seeds.",
            metavar="KIND",
        ),
    ] = None,
    overrides: options.Overrides = None,
    out: options.Out = None,
    format: options.Format = None,
    force: options.Force = False,
    dry_run: options.DryRun = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
    threads: options.Threads = None,
    list_names: options.ListNames = False,
    version: options.Version = False,
) -> None:
    """Compare every two of the lists: Jaccard beside what chance gives, rank-biased overlap, rank correlations.

    With --spec the comparison becomes a step of that run, with stability_summary.json where a metric has several seeds;
    without, the table goes to stdout or -o. --curve draws instead how far the lists of different seeds agree, corrected
    for chance, and says from where on they stay above curve.level, and whether global or per_layer lists are the steadier.

    Examples:
    `esa overlap a/top_weights.csv b/top_weights.csv -k 100 --by weight --by component`

    `esa overlap --curve k outputs/x/rank-3f0a outputs/x/rank-77b2`
    """
    from esa import overlap
    from esa.spec import dump_spec, spec_from_dict
    from esa.spec.loading import apply_overrides

    progress = begin(quiet=quiet, verbose=verbose, threads=threads)
    format = check_format(format)
    shorthand = {"overlap.by": by, "overlap.k": k, "overlap.p": p, "overlap.universe": universe}
    if spec is not None or only:
        chosen = read_spec(spec, overrides, shorthand, only)
    else:
        from esa.cli.session import toml_value

        changes = [*(overrides or []), *(f"{key}={toml_value(value)}" for key, value in shorthand.items() if value)]
        chosen = apply_overrides(spec_from_dict({"name": "overlap", "model": {"id": "unknown"}}), changes)
    if dry_run:
        typer.echo(dump_spec(chosen), nl=False)
        typer.echo(f"compares {', '.join(sources)}; loads no model", err=True)
        return
    if curve is not None:
        _draw(sources, curve, chosen, spec is not None, out, format, progress, force=force, quiet=quiet)
        return
    section = chosen.overlap
    with progress.closing():
        if spec is not None and not is_file_target(out):
            result = overlap.run(
                sources, spec=chosen, universe=section.universe, out=folder_target(out), force=force, progress=progress
            )
        else:
            result = overlap.run(
                sources, by=section.by, k=section.k, p=section.p, universe=section.universe, progress=progress
            )
    if result.summary is not None and not quiet:
        from esa.cli.summary import print_stability

        print_stability(result.summary)
    deliver(result.table, out if result.folder or out else "-", format, result.folder)


def _draw(
    sources: list[str],
    kind: str,
    spec: "Spec",
    as_step: bool,
    out: str | None,
    format: str | None,
    progress: "ConsoleProgress",
    *,
    force: bool,
    quiet: bool,
) -> None:
    """Draw a curve: as a step of the spec's run, or as a table."""
    from esa import overlap

    step = as_step and not is_file_target(out)
    with progress.closing():
        drawn = overlap.curve(
            sources,
            kind,
            spec=spec if step else None,
            overlap=spec.overlap,
            section=spec.curve,
            out=folder_target(out) if step else None,
            force=force,
            progress=progress,
        )
    if not quiet:
        from esa.cli.summary import print_curve

        print_curve(drawn.table.frame, drawn.summary)
    deliver(drawn.table, out if step or out else "-", format, drawn.folder)
