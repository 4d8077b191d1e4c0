"""``esa runs``: what lies in outputs/, and deleting from it."""

import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from typer.core import TyperGroup

from esa.cli import options
from esa.cli.session import handled
from esa.errors import EsaError

if TYPE_CHECKING:
    from esa.artifact.runs import Check as Checks
    from esa.artifact.runs import StepState

_DAY, _MINUTE = 10, 16  # characters of an ISO time


class _ListByDefault(TyperGroup):
    """Take ``esa runs`` and ``esa runs FOLDER`` for ``esa runs list ...``."""

    def parse_args(self, ctx, args):  # type: ignore[no-untyped-def]
        """Put ``list`` where no command is named."""
        named = bool(args) and args[0] in (*self.commands, "-h", "--help")
        return super().parse_args(ctx, args if named else ["list", *args])


app = typer.Typer(
    name="runs",
    cls=_ListByDefault,
    help="List the runs in outputs/ with the status of every step, and delete what is no longer wanted.\n\n"
    "`esa runs` and `esa runs FOLDER` are short for `esa runs list`.",
    rich_markup_mode="markdown",
)

Verify = Annotated[
    bool,
    typer.Option("--verify", help="Hash every table, text and local model again; otherwise sizes and times are taken."),
]
In = Annotated[
    Path | None,
    typer.Option("--in", help="Folder that the runs are in; outputs by default.", metavar="FOLDER", show_default=False),
]


@app.command("list")
@handled
def list_command(
    folder: Annotated[
        Path | None,
        typer.Argument(
            help="An outputs folder, a run, a step, or reports; outputs by default.",
            metavar="FOLDER",
            show_default=False,
        ),
    ] = None,
    verify: Verify = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
    list_names: options.ListNames = False,
    version: options.Version = False,
) -> None:
    """List every step on a line: name, status, size, when it was finished, how long it took, and what is wrong with it.

    complete: finished, and so is all that it was made from. incomplete: begun, and running or stopped. failed: ended by an
    error. stale: finished, but its tables or what it was made from (steps, texts, local models) are gone or changed.

    Examples:
    `esa runs`

    `esa runs | grep stale`

    `esa runs outputs/smollm2_quickstart --verify`
    """
    from esa.artifact.runs import read_steps
    from esa.artifact.steps import OUTPUTS
    from esa.cli.plain import window_width

    root = folder or OUTPUTS
    if folder is not None and not folder.exists() and (OUTPUTS / folder).is_dir():
        root = OUTPUTS / folder  # the bare name of a run
    if folder is None and not root.exists():
        steps: list[StepState] = []
    else:
        steps = read_steps(root, checks(verify=verify))
    for line in lines(steps, root, window_width()):
        typer.echo(line)
    if not quiet:
        sys.stdout.flush()
        typer.echo(f"esa: {_totals(steps, root)}", err=True)


@app.command("rm")
@handled
def rm_command(
    names: Annotated[
        list[str] | None,
        typer.Argument(help="A run (NAME), or one of its steps (NAME/STEP).", metavar="NAME...", show_default=False),
    ] = None,
    incomplete: Annotated[bool, typer.Option("--incomplete", help="Only steps that stopped before their end.")] = False,
    failed: Annotated[bool, typer.Option("--failed", help="Only failed steps.")] = False,
    stale: Annotated[bool, typer.Option("--stale", help="Only stale steps.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Delete without asking.")] = False,
    root: In = None,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
    list_names: options.ListNames = False,
    version: options.Version = False,
) -> None:
    """Delete runs or steps, after showing what goes, what was made from it, and asking.

    Whole folders of esa's below outputs/ go, with every file in them, and none that is being written. Without NAME,
    --incomplete, --failed and --stale choose among all runs.

    Examples:
    `esa runs rm smollm2_quickstart`

    `esa runs rm --failed --incomplete`
    """
    from esa.artifact.lock import busy
    from esa.artifact.removal import choose, remove
    from esa.artifact.runs import dependents, read_steps
    from esa.artifact.steps import OUTPUTS
    from esa.cli.plain import window_width

    home = root or OUTPUTS
    kinds = [kind for kind, wanted in (("incomplete", incomplete), ("failed", failed), ("stale", stale)) if wanted]
    if not names and not kinds:
        raise EsaError(
            "nothing is named", where="esa runs rm", hint="name a run or a step that esa runs lists, or give --failed"
        )
    steps = read_steps(home, checks(verify=False))
    chosen = choose(home, names, steps) if names else steps
    if kinds:
        chosen = [one for one in chosen if one.status in kinds and not one.running]
    if not chosen:
        typer.echo(f"esa: nothing to delete: no step is {' or '.join(kinds)}", err=True)
        return
    for one in chosen:
        if one.writer is not None:
            raise busy(one.folder, one.writer)
    for line in lines(chosen, home, window_width()):
        typer.echo(line, err=True)
    reports = home.parent / "reports"
    if left := dependents([*steps, *(read_steps(reports) if reports.is_dir() else [])], chosen):
        typer.echo("\nmade from them, and stale without them:", err=True)
        for line in lines(left, home, window_width(), header=False):
            typer.echo(line, err=True)
    what = _amount(chosen)
    if not yes and not _agreed(f"\nDelete {what}? [y/N] "):
        typer.echo("esa: nothing was deleted", err=True)
        return
    remove(home, chosen)
    if not quiet:
        typer.echo(f"esa: deleted {what}", err=True)


def checks(*, verify: bool) -> "Checks":
    """Return how steps are looked at: texts by hash; local models by hash too, where ``verify`` or their times ask for it.

    What is needed for that is imported when it is: torch, for a model alone.
    """
    from esa.artifact.runs import Check

    def text_hash(source: str) -> str:
        from esa.data import source_hash

        return source_hash(source)

    def model_hash(name: str) -> str:
        from esa.model.sources import find_source, source_hashes

        if not find_source(name).local:
            raise EsaError("is gone")
        return source_hashes(name)["model"]

    return Check(verify=verify, text_hash=text_hash, model_hash=model_hash)


def lines(steps: Sequence["StepState"], root: Path, width: int, *, header: bool = True) -> list[str]:
    """Return a line per step; the time is cut to the day where the columns would not fit ``width``."""
    from esa.artifact.space import size_text
    from esa.cli.plain import aligned, cut, duration

    if not steps:
        return []

    def table(digits: int) -> list[str]:
        rows = [["step", "status", "size", "when (UTC)", "took"]] if header else []
        for one in steps:
            when = one.when[:digits].replace("T", " ")
            rows.append([_name(one, root), one.status, size_text(one.num_bytes), when, duration(one.seconds)])
        return aligned(rows, right={2, 4})

    found = table(_MINUTE)
    if max(map(len, found)) > width:
        found = table(_DAY)
    whys = [*([""] if header else []), *(one.why for one in steps)]
    return [
        f"{line.ljust(max(map(len, found)))}  {cut(why, 300)}".rstrip() for line, why in zip(found, whys, strict=True)
    ]


def _name(one: "StepState", root: Path) -> str:
    """Return a step as ``esa runs rm`` takes it: its path below the folder that was listed."""
    inside = one.folder.relative_to(root) if one.folder.is_relative_to(root) else one.folder
    return str(inside) if inside.parts else one.folder.name


def _totals(steps: Sequence["StepState"], root: Path) -> str:
    if not steps:
        return f"no step of esa lies in {root}; esa run --spec specs/quickstart.toml makes the first"
    counts = {kind: sum(one.status == kind for one in steps) for kind in ("complete", "incomplete", "failed", "stale")}
    return f"{_amount(steps)}: {', '.join(f'{count} {kind}' for kind, count in counts.items() if count)}"


def _amount(steps: Sequence["StepState"]) -> str:
    from esa.artifact.space import size_text

    homes = {one.home for one in steps}
    several = f" of {len(homes)} runs" if len(homes) > 1 else ""
    return (
        f"{len(steps)} step{'s' if len(steps) > 1 else ''}{several}, {size_text(sum(one.num_bytes for one in steps))}"
    )


def _agreed(question: str) -> bool:
    """Ask on standard error. Raises EsaError where nobody can be asked."""
    if sys.stdin is None or not sys.stdin.isatty():
        raise EsaError(
            "standard input is no terminal: nobody can be asked",
            where="esa runs rm",
            hint="--yes deletes without asking",
        )
    typer.echo(question, err=True, nl=False)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # polars leaves one behind that lets the read go on
    return sys.stdin.readline().strip().lower() in ("y", "yes")
