"""``esa eval``: measure the intact model on texts, at context lengths."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from esa.cli import options
from esa.cli.options import SPEC
from esa.cli.session import begin, check_format, deliver, folder_target, handled, is_file_target, read_spec
from esa.errors import CheckError

if TYPE_CHECKING:
    from esa.artifact import Table

_SHOWN = {"perplexity": "perplexity", "nll": "nll", "bits_per_byte": "bits/byte", "accuracy": "accuracy"}


@handled
def command(
    spec: options.SpecFile = None,
    only: options.Only = None,
    text: Annotated[
        list[str] | None,
        typer.Option(
            "--text",
            help="builtin:NAME, file:PATH or hf:DATASET:SPLIT; repeatable. Short for eval.texts.",
            metavar="SOURCE",
            rich_help_panel=SPEC,
        ),
    ] = None,
    length: Annotated[
        list[int] | None,
        typer.Option(
            "--length",
            help="Tokens of a window; repeatable. Short for eval.lengths.",
            metavar="TOKENS",
            rich_help_panel=SPEC,
        ),
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
    """Measure perplexity, NLL, bits per byte and token accuracy of the intact model on each text, at each length.

    Every length reads the same stretch of text: as many tokens as eval.windows windows of eval.length hold. Prints a table
    on stderr and the step's folder on stdout; with -o - the table as CSV. NaN or infinite logits end with exit code 4.

    Examples:
    `esa eval -s specs/quickstart.toml --text file:wiki.txt -o -`

    `esa eval -s s.toml --text builtin:prose --text hf:Salesforce/wikitext/wikitext-2-raw-v1:test --length 128 --length 512`
    """
    progress = begin(quiet=quiet, verbose=verbose, threads=threads)
    format = check_format(format)
    shorthand = {"eval.texts": text, "eval.lengths": length, "model.id": model, "model.device": device}
    chosen = read_spec(spec, overrides, shorthand, only)
    if dry_run:
        from esa.cli.dry_run import print_plan

        print_plan([chosen], ["eval"], folder_target(out))
        return
    from esa import eval

    with progress.closing():
        result = eval.run(chosen, out=folder_target(out), force=force, progress=progress)
    if not quiet and not is_file_target(out):
        print_evaluations(result.table)
    deliver(result.table, out, format, result.folder)
    if result.nonfinite:
        found = ", ".join(f"{source} at length {number:,}" for source, number in result.nonfinite)
        raise CheckError(
            f"NaN or infinite logits on {found}: its metrics are null",
            where=str(result.folder),
            hint=None if "float32" in (chosen.model.dtype, chosen.model.compute) else "try model.compute = 'float32'",
        )


def print_evaluations(table: "Table") -> None:
    """Print a row per text and length: each metric with its standard error over windows."""
    from esa.cli.console import print_table

    rows = []
    for _, part in table.frame.group_by("case", maintain_order=True):
        found = {row["metric"]: row for row in part.to_dicts()}
        first = found["nll"]
        rows.append(
            [
                first["source"],
                f"{first['length']:,}",
                f"{first['num_items']:,}",
                *(_with_error(found[n]) for n in _SHOWN),
            ]
        )
    bos = "each window opens with BOS" if table.frame["bos"][0] else "no BOS"
    title = f"Intact model (\u00b1 standard error over windows; {bos})"
    header = ["text", "length", "windows", *_SHOWN.values()]
    print_table(title, header, rows, right=header[1:])


def _with_error(row: dict[str, Any]) -> str:
    """Return a value with its standard error, where it has one (from two windows on)."""
    from esa.cli.console import number

    value = number(row["value"])
    return value if row["stderr"] is None else f"{value} \u00b1 {number(row['stderr'], 2)}"
