"""``esa check``: validate a spec."""

from pathlib import Path
from typing import Annotated

import typer

from esa.cli import options
from esa.cli.session import handled


@handled
def command(
    spec: Annotated[Path, typer.Argument(help="TOML spec.", metavar="SPEC", show_default=False)],
    overrides: options.Overrides = None,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
    list_names: options.ListNames = False,
    version: options.Version = False,
) -> None:
    """Validate a spec and print it resolved, every default filled in.

    Example: `esa check specs/quickstart.toml`
    """
    from esa.data import check_source
    from esa.errors import EsaError, SpecError
    from esa.eval.item_rows import check_rows
    from esa.eval.tasks import sources as task_sources
    from esa.spec import dump_spec, load_sweep

    runs = load_sweep(spec, overrides or [])
    problems = []
    for one in runs:
        texts = {"calibration.source": (one.calibration.source,), "eval.source": (one.eval.source,)}
        for key, sources in {**texts, "eval.texts": one.eval.texts or ()}.items():
            for source in sources:
                try:
                    check_source(source, key)
                except EsaError as error:
                    problems.append(f"{spec}: {error.where}: {error.what}")
        try:
            for source, key in task_sources(one).values():
                check_rows(source, key)
        except SpecError as error:
            problems += [f"{spec}: {problem}" for problem in error.problems]
        except EsaError as error:
            problems.append(f"{spec}: {error.where}: {error.what}")
    if problems:
        raise SpecError(list(dict.fromkeys(problems)))
    if not quiet:
        typer.echo("\n".join(dump_spec(one) for one in runs), nl=False)
        typer.echo(f"esa: {spec} describes {len(runs)} run{'s' if len(runs) > 1 else ''}: valid", err=True)
