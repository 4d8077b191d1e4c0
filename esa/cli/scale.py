"""``esa scale``: follow quantities of finished runs over the size of their models, or over training."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from esa.cli import options
from esa.cli.session import at_least, begin, handled
from esa.errors import EsaError

if TYPE_CHECKING:
    from esa.scale import Asked

_WHAT, _HOW = "What is followed", "How laws are fitted"


@handled
def command(
    sources: Annotated[
        list[Path],
        typer.Argument(
            help="Run folders, step folders, or a folder that holds runs; no model is loaded.",
            metavar="RUN...",
            show_default=False,
        ),
    ],
    over: Annotated[
        str,
        typer.Option(
            "--over",
            help="Over parameters (all weights), active (those that a token uses: a mixture of experts has fewer), or"
            " checkpoints (of training runs, each by itself).",
            rich_help_panel=_WHAT,
        ),
    ] = "parameters",
    metric: options.OfMetrics = None,
    method: Annotated[
        list[str] | None,
        typer.Option(
            "--method",
            help="Damage by these methods alone; repeatable. By default by all that have one dose at most.",
            rich_help_panel=_WHAT,
        ),
    ] = None,
    k: Annotated[
        list[int] | None,
        typer.Option("-k", help="Of these numbers of top weights alone; repeatable.", rich_help_panel=_WHAT),
    ] = None,
    fraction: Annotated[
        list[float] | None,
        typer.Option(
            "--fraction",
            help="Damage of this share of all weights; repeatable. By default 1e-5 and 1e-4. The nearest K that was"
            " measured is taken where it is within a factor of 2.",
            rich_help_panel=_WHAT,
        ),
    ] = None,
    models: Annotated[
        Path | None,
        typer.Option(
            "--models",
            help="CSV with the columns run, family, variant, exclude (why a run is left out): goes before what the runs say.",
            metavar="FILE",
            rich_help_panel=_WHAT,
        ),
    ] = None,
    exclude: Annotated[
        list[str] | None,
        typer.Option(
            "--exclude",
            help="Leave this run out of the fits, by its name; repeatable.",
            metavar="RUN",
            rich_help_panel=_WHAT,
        ),
    ] = None,
    meta: Annotated[
        bool,
        typer.Option(
            "--meta",
            help="Also pool the damage of top against random weights over all models, by random effects.",
            rich_help_panel=_WHAT,
        ),
    ] = False,
    to: Annotated[
        list[str] | None,
        typer.Option(
            "--to",
            help="Extrapolate to this size, as 7B or 350M; repeatable. The first stands in laws.csv, all in bands.csv.",
            metavar="SIZE",
            rich_help_panel=_HOW,
        ),
    ] = None,
    seed: options.AnalysisSeed = None,
    resamples: Annotated[
        int | None,
        typer.Option(
            "--resamples",
            help="Of the bootstrap over models, at least 99; 999 by default.",
            metavar="N",
            rich_help_panel=_HOW,
        ),
    ] = None,
    permutations: options.Permutations = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="Folder of the tables.", metavar="DIR", rich_help_panel=options.OUTPUT),
    ] = None,
    force: options.Force = False,
    dry_run: options.DryReading = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
    threads: options.Threads = None,
    list_names: options.ListNames = False,
    version: options.Version = False,
) -> None:
    """Fit laws to what finished runs measured, over the size of their models: does it scale, how, and up to where.

    Share of weights that hold half of the score, top 1 % to median, tail index; damage of the top K, of a fixed share of the
    weights, and of the worst single weight; agreement of score seeds; noise that doubles perplexity. Six laws by AICc, with
    intervals, leave-one-model-out error, extrapolation, changepoint, and covariates. "No power law" is said as such; fewer
    than 3 models are refused, fewer than 6 are indicative. Prints the folder of the tables on stdout.

    Examples:
    `esa scale outputs/family_* --to 7B -o outputs/family_laws`

    `esa scale outputs/pythia_* --over checkpoints --metric act_mag -k 100`

    `esa scale outputs/a outputs/b outputs/c --meta --models families.csv`
    """
    from esa import scale

    progress = begin(quiet=quiet, verbose=verbose, threads=threads)
    if out is not None and (str(out) == "-" or (out.exists() and not out.is_dir())):
        raise EsaError(f"'{out}' is no folder; several tables are written", where="--out")
    asked = _asked(over, metric, method, k, fraction, models, exclude, meta, to, seed, resamples, permutations)
    if dry_run:
        lines, folder = scale.plan(sources, asked, out=out)
        typer.echo("\n".join([*(f"# {line}" for line in lines), f"# loads no model; writes {folder}/"]))
        return
    with progress.closing():
        result = scale.run(sources, asked, out=out, force=force, progress=progress)
    if not quiet:
        from esa.cli.scale_tables import print_laws

        print_laws(result, asked)
    typer.echo(str(result.folder))


def _asked(
    over: str,
    metric: list[str] | None,
    method: list[str] | None,
    k: list[int] | None,
    fraction: list[float] | None,
    models: Path | None,
    exclude: list[str] | None,
    meta: bool,
    to: list[str] | None,
    seed: int | None,
    resamples: int | None,
    permutations: int | None,
) -> "Asked":
    """Return what the options ask for. Raises EsaError, naming the option, for a value that is not allowed."""
    from esa.scale import Asked, Settings, Wanted
    from esa.scale.quantities.measured import FRACTIONS
    from esa.scale.sizes import parse_sizes

    for share in fraction or []:
        if not 0 < share <= 1:
            raise EsaError(f"{share:g} is no share of the weights; allowed: above 0, at most 1", where="--fraction")
    for option, value, least in (
        ("--seed", seed, 0), ("--resamples", resamples, options.FEWEST_DRAWS),
        ("--permutations", permutations, options.FEWEST_DRAWS), *(("-k", one, 1) for one in k or []),
    ):  # fmt: skip
        at_least(option, value, least)
    wanted = Wanted(
        tuple(_known("metric", metric)), tuple(_known("method", method)), tuple(dict.fromkeys(k or [])),
        tuple(dict.fromkeys(fraction or FRACTIONS)),
    )  # fmt: skip
    drawn = {"seed": seed, "resamples": resamples, "permutations": permutations}
    settings = Settings(parse_sizes(to or []), **{name: value for name, value in drawn.items() if value is not None})
    return Asked(over, wanted, settings, models, tuple(exclude or []), meta)


def _known(kind: str, names: list[str] | None) -> list[str]:
    """Return registered names, aliases resolved."""
    from esa.registry import canonical

    found = []
    for name in names or []:
        try:
            found.append(canonical(kind, name))
        except EsaError as error:
            raise EsaError(error.what, where=f"--{kind}", hint=error.hint) from None
    return list(dict.fromkeys(found))
