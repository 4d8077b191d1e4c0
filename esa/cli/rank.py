"""``esa rank``: order scores into groups of weights."""

from typing import Annotated

import typer

from esa.cli import options
from esa.cli.options import SPEC
from esa.cli.session import begin, check_format, deliver, folder_target, handled, is_file_target, read_spec, toml_value


@handled
def command(
    source: Annotated[
        str, typer.Argument(help="Score folder, score table, or - for stdin.", metavar="SCORES", show_default=False)
    ],
    spec: options.SpecFile = None,
    only: options.Only = None,
    k: options.Ks = None,
    mode: Annotated[
        str | None,
        typer.Option(
            "--mode", help="global, per_layer, per_block or per_component. Short for rank.mode.", rich_help_panel=SPEC
        ),
    ] = None,
    group: Annotated[
        list[str] | None,
        typer.Option(
            "--group",
            help="top_k, bottom_k, random_k, matched_k; repeatable. Short for rank.groups.",
            rich_help_panel=SPEC,
        ),
    ] = None,
    draws: Annotated[
        int | None, typer.Option("--draws", help="Draws of random_k. Short for rank.draws.", rich_help_panel=SPEC)
    ] = None,
    aggregate: Annotated[
        str | None,
        typer.Option(
            "--aggregate", help="weight, output, input or tensor. Short for rank.aggregate.", rich_help_panel=SPEC
        ),
    ] = None,
    statistic: Annotated[
        str | None,
        typer.Option("--statistic", help="sum, max or count. Short for rank.statistic.", rich_help_panel=SPEC),
    ] = None,
    metric: Annotated[
        list[str] | None, typer.Option("--metric", help="Only these of the scored metrics; repeatable.")
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
    """Order scores into top, bottom, random and matched groups.

    Without a spec, the one that the scores carry is used. From stdin the ranking goes to stdout, else to a folder whose
    name is printed.

    Examples:
    `esa rank outputs/x/score-3f0a -k 100 --mode per_layer -o top.csv`

    `esa rank scores.parquet -k 10 --aggregate output --statistic count -o -`
    """
    progress = begin(quiet=quiet, verbose=verbose, threads=threads)
    format = check_format(format)
    shorthand = {
        "rank.k": k, "rank.mode": mode, "rank.groups": group, "rank.draws": draws, "rank.aggregate": aggregate,
        "rank.statistic": statistic,
    }  # fmt: skip
    from esa import rank
    from esa.rank.scores import open_scores
    from esa.spec import apply_overrides, dump_spec

    changes = [*(overrides or []), *(f"{key}={toml_value(value)}" for key, value in shorthand.items() if value)]
    given = read_spec(spec, changes, only=only) if spec is not None or only else None
    if dry_run:
        carried = given or (open_scores(source).spec if source != "-" else None)
        typer.echo(
            dump_spec(carried if given or carried is None else apply_overrides(carried, changes)) if carried else "",
            nl=False,
        )
        typer.echo(f"# reads {source}; loads no model")
        return
    to_stdout = out is None and source == "-"
    with progress.closing():
        result = rank.run(
            source,
            spec=given,
            overrides=changes if given is None else (),
            metrics=metric,
            out=folder_target(out),
            write=not (is_file_target(out) or to_stdout),
            force=force,
            progress=progress,
        )
    deliver(result.table, "-" if to_stdout else out, format, result.folder)
