"""The options that mean the same in every command, defined once."""

from pathlib import Path
from typing import Annotated

import typer

from esa import __version__
from esa.registry import ALIASES, REGISTRIES


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"esa {__version__}")
        raise typer.Exit


def _show_names(wanted: bool) -> None:
    if wanted:
        for kind, table in REGISTRIES.items():
            typer.echo(f"{kind}: {', '.join(table)}")
        typer.echo(f"alias: {', '.join(f'{alias} = {name}' for alias, name in ALIASES.items())}")
        raise typer.Exit


SPEC = "Spec"
OUTPUT = "Output"
TALK = "Options"

SpecFile = Annotated[
    Path | None, typer.Option("--spec", "-s", help="TOML spec of the run.", metavar="FILE", rich_help_panel=SPEC)
]
Overrides = Annotated[
    list[str] | None,
    typer.Option(
        "--set", help="Change one key: score.metrics=['obd']. Repeatable.", metavar="KEY=VALUE", rich_help_panel=SPEC
    ),
]
Only = Annotated[
    list[str] | None,
    typer.Option(
        "--only",
        help="Take this run of a sweep alone: its number, counted from 0 as in its name. esa run also takes 0-3,7, and"
        " waits for a step that another process is writing.",
        metavar="NUMBER",
        rich_help_panel=SPEC,
    ),
]
Out = Annotated[
    str | None,
    typer.Option(
        "--out",
        "-o",
        help="Where to: a folder, a .csv or .parquet file, or - for stdout.",
        metavar="PATH",
        rich_help_panel=OUTPUT,
    ),
]
Format = Annotated[
    str | None,
    typer.Option(
        "--format",
        "-f",
        help="csv or parquet, where the suffix does not say.",
        metavar="FORMAT",
        rich_help_panel=OUTPUT,
    ),
]
Force = Annotated[
    bool,
    typer.Option(
        "--force", help="Do it again even if it is complete; what is there goes first.", rich_help_panel=OUTPUT
    ),
]
DryRun = Annotated[
    bool,
    typer.Option(
        "--dry-run", "-n", help="Print spec, passes, memory and outputs; touch nothing.", rich_help_panel=OUTPUT
    ),
]
DryReading = Annotated[
    bool,
    typer.Option(
        "--dry-run", "-n", help="Print what would be read, computed and written; touch nothing.", rich_help_panel=OUTPUT
    ),
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Say nothing but errors.", rich_help_panel=TALK)]
Verbose = Annotated[
    bool, typer.Option("--verbose", "-v", help="Say more; show where a content error was raised.", rich_help_panel=TALK)
]
Threads = Annotated[
    int | None, typer.Option("--threads", min=1, help="CPU threads; all by default.", rich_help_panel=TALK)
]
ListNames = Annotated[
    bool,
    typer.Option(
        "--list",
        help="List metrics, groups, methods, tasks and fits.",
        callback=_show_names,
        is_eager=True,
        rich_help_panel=TALK,
    ),
]
Version = Annotated[
    bool,
    typer.Option("--version", help="Print the version.", callback=_show_version, is_eager=True, rich_help_panel=TALK),
]
Ks = Annotated[
    list[int] | None,
    typer.Option("-k", help="How many weights; repeatable. Short for rank.k.", metavar="K", rich_help_panel=SPEC),
]
Harness = Annotated[
    list[str] | None,
    typer.Option(
        "--harness",
        help="Also run this task of lm-evaluation-harness, or a task's .yaml file, on the model in memory; repeatable."
        " Needs the extra eval.",
        metavar="TASK",
    ),
]
OfMetrics = Annotated[
    list[str] | None,
    typer.Option(
        "--metric", help="By this metric alone; repeatable. By all that were scored by default.", metavar="NAME"
    ),
]
AnalysisSeed = Annotated[
    int | None, typer.Option("--seed", help="Seed of resamples and permutations; 0 by default.", metavar="N")
]
Permutations = Annotated[
    int | None,
    typer.Option("--permutations", help="Random draws of each test, at least 99; 9999 by default.", metavar="N"),
]
FEWEST_DRAWS = 99  # a p of 0.01 is the smallest that so few can give
