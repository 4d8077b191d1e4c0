"""``esa eval``: measure the intact model on text."""

from typing import Annotated

import typer

from esa.cli import options
from esa.cli.options import SPEC
from esa.cli.session import begin, check_format, deliver, folder_target, handled, is_file_target, read_spec


@handled
def command(
    spec: options.SpecFile = None,
    text: Annotated[
        str | None,
        typer.Option("--text", help="builtin:NAME or file:PATH. Short for eval.source.", rich_help_panel=SPEC),
    ] = None,
    model: Annotated[str | None, typer.Option("--model", help="Short for model.id.", rich_help_panel=SPEC)] = None,
    device: Annotated[
        str | None, typer.Option("--device", help="Short for model.device.", rich_help_panel=SPEC)
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
    """Measure NLL, perplexity, bits per byte and token accuracy of the intact model.

    Prints the step's folder on stdout; with -o - the table.

    Example: `esa eval -s specs/quickstart.toml --text file:wiki.txt -o -`
    """
    progress = begin(quiet=quiet, verbose=verbose, threads=threads)
    format = check_format(format)
    chosen = read_spec(spec, overrides, {"eval.source": text, "model.id": model, "model.device": device})
    if dry_run:
        from esa.cli.dry_run import print_plan

        print_plan([chosen], ["eval"], folder_target(out))
        return
    from esa import eval
    from esa.cli.console import number, print_table

    with progress.closing():
        result = eval.run(chosen, out=folder_target(out), force=force, progress=progress)
    if not quiet and not is_file_target(out):
        rows = [
            [row["metric"], number(row["value"], 5), number(row["stderr"], 2)] for row in result.table.frame.to_dicts()
        ]
        print_table(f"{chosen.eval.source}", ["metric", "value", "stderr"], rows, right=["value", "stderr"])
    deliver(result.table, out, format, result.folder)
