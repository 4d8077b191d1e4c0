"""``esa init``: start a spec."""

from pathlib import Path
from typing import Annotated

import typer

from esa.cli import options
from esa.cli.session import handled
from esa.errors import EsaError, SpecError

_NAME = "my_run"
_MODEL = "smollm2-135m"


@handled
def command(
    file: Annotated[
        Path | None,
        typer.Argument(help="Where to; stdout by default, as with -.", metavar="FILE", show_default=False),
    ] = None,
    name: Annotated[
        str | None,
        typer.Option(
            "--name", help="Sets name; by default that of FILE.", metavar="NAME", rich_help_panel=options.SPEC
        ),
    ] = None,
    model: Annotated[
        str, typer.Option("--model", help="Sets model.id.", metavar="MODEL", rich_help_panel=options.SPEC)
    ] = _MODEL,
    force: Annotated[bool, typer.Option("--force", help="Write over FILE.", rich_help_panel=options.OUTPUT)] = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
    list_names: options.ListNames = False,
    version: options.Version = False,
) -> None:
    """Write a commented spec that runs as it is: every key with its type, its default, its meaning, and who reads it.

    Examples:
    `esa init llama.toml --model meta-llama/Llama-3.1-8B`

    `esa init | less`
    """
    from esa.artifact import write_text
    from esa.artifact.steps import readers
    from esa.spec.template import spec_template

    target = None if file is None or str(file) == "-" else file
    if target is not None and target.is_dir():
        raise EsaError(f"'{target}' is a folder", where="FILE", hint=f"esa init {target / 'spec.toml'}")
    if target is not None and target.exists() and not force:
        raise EsaError("is there already", where=str(target), hint="give another FILE, or --force to write over it")
    chosen = _checked(name, target, model)
    text = spec_template(readers, name=chosen, model=model)
    if target is None:
        typer.echo(text, nl=False)
        return
    write_text(target, text)
    typer.echo(str(target))
    if not quiet:
        typer.echo(f"esa: esa run --spec {target} --dry-run shows what it would do", err=True)


def _checked(name: str | None, target: Path | None, model: str) -> str:
    """Return the run's name: the one given, else that of the file where a run can be called so.

    Raises EsaError, naming the option, for a name or a model that no spec takes.
    """
    wanted = name if name is not None else _NAME
    if name is None and target is not None and not _problems(target.stem, _MODEL):
        wanted = target.stem
    for problem in _problems(wanted, model):
        where = "--name" if problem.startswith("name:") else "--model"
        raise EsaError(problem.partition(": ")[2], where=where)
    return wanted


def _problems(name: str, model: str) -> list[str]:
    """Return what a spec has against a name and a model."""
    from esa.spec import spec_from_dict

    try:
        spec_from_dict({"name": name, "model": {"id": model}}, "")
    except SpecError as error:
        return [problem.removeprefix(": ") for problem in error.problems]
    return []
