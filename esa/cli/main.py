"""The command line: ``esa COMMAND``. One file per command beside this one; nothing here imports torch."""

import sys

import typer

from esa.cli import arch, check, eval, init, overlap, perturb, rank, report, run, runs, scale, score, show
from esa.cli.options import ListNames, Version
from esa.errors import EXIT_CONTENT, EXIT_INTERRUPTED, EXIT_USAGE

app = typer.Typer(
    name="esa",
    help="Find the few weights that a language model cannot live without, and prove by intervention that they matter.",
    epilog="Start with: esa run --spec specs/quickstart.toml",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback()
def esa(version: Version = False, list_names: ListNames = False) -> None:
    """Find the few weights that a language model cannot live without, and prove by intervention that they matter."""


for command in (init, run, score, rank, perturb, overlap, eval, arch, scale, report, show, check):
    app.command(command.__name__.rpartition(".")[2])(command.command)
app.add_typer(runs.app)


def main() -> None:
    """Run the command line and exit with its code."""
    try:
        sys.exit(app(standalone_mode=False))
    except typer.Abort:
        print("esa: interrupted", file=sys.stderr)
        sys.exit(EXIT_INTERRUPTED)
    except typer.BadParameter as error:  # a value, where what is missing or unknown is a matter of usage
        if type(error).__name__ == "MissingParameter":
            error.show()
            sys.exit(EXIT_USAGE)
        option = getattr(error.param, "opts", ["argument"])[0]
        print(f"esa: error: {option}: {error.message}", file=sys.stderr)
        sys.exit(EXIT_CONTENT)
    except Exception as error:
        if not hasattr(error, "show") or not hasattr(error, "exit_code"):
            raise
        error.show()  # typer's own word on an unknown command or option
        sys.exit(error.exit_code)
