"""The command line: ``esa COMMAND``. One file per command beside this one; nothing here imports torch."""

import sys

import typer

from esa.cli import check, eval, overlap, perturb, rank, report, run, score
from esa.cli.options import ListNames, Version
from esa.errors import EXIT_INTERRUPTED

app = typer.Typer(
    name="esa",
    help="Find the few weights that a language model cannot live without, and prove by intervention that they matter.",
    epilog="Start with: esa run --spec specs/quickstart.toml",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback()
def esa(version: Version = False, list_names: ListNames = False) -> None:
    """Find the few weights that a language model cannot live without, and prove by intervention that they matter."""


for command in (run, score, rank, perturb, overlap, eval, report, check):
    app.command(command.__name__.rpartition(".")[2])(command.command)


def main() -> None:
    """Run the command line and exit with its code."""
    try:
        app()
    except KeyboardInterrupt:
        print("esa: interrupted", file=sys.stderr)
        sys.exit(EXIT_INTERRUPTED)
