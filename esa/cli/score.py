"""``esa score``: score every weight of a model."""

from typing import Annotated

import typer

from esa.cli import options
from esa.cli.options import SPEC
from esa.cli.processes import speaks
from esa.cli.session import begin, check_format, deliver, folder_target, handled, is_file_target, read_spec


@handled
def command(
    spec: options.SpecFile = None,
    only: options.Only = None,
    metric: Annotated[
        list[str] | None, typer.Option("--metric", help="Repeatable. Short for score.metrics.", rich_help_panel=SPEC)
    ] = None,
    seed: Annotated[
        list[int] | None, typer.Option("--seed", help="Repeatable. Short for score.seeds.", rich_help_panel=SPEC)
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
    """Score every weight by the spec's metrics, each seed in one shared pass; under torchrun its processes share the windows.

    Prints the step's folder on stdout; with -o - the score table, as Parquet.

    Examples:
    `esa score --spec specs/quickstart.toml`

    `esa score -s s.toml -o - | esa rank - -k 100 | esa perturb -s s.toml --targets -`

    `torchrun --nproc-per-node 2 -m esa score -s s.toml`
    """
    progress = begin(quiet=quiet or not speaks(), verbose=verbose, threads=threads)
    format = check_format(format)
    shorthand = {"score.metrics": metric, "score.seeds": seed, "model.id": model, "model.device": device}
    chosen = read_spec(spec, overrides, shorthand, only)
    if dry_run:
        from esa.cli.dry_run import print_plan

        if speaks():
            print_plan([chosen], ["score"], folder_target(out))
        return
    from esa import score
    from esa.artifact import Table, find_table, to_json

    with progress.closing(), score.joined() as ranks:
        result = score.run(chosen, out=folder_target(out), force=force, progress=progress, ranks=ranks)
    if not ranks.first:
        return
    if out is not None and is_file_target(out):
        table = find_table(result.folder, "scores/1")
        # What reads the pipe ranks by the spec of this command, also where the scores were there before.
        meta = {**table.meta, "spec": to_json(chosen.model_dump(mode="json", exclude_none=True))}
        deliver(Table(table.kind, table.frame, meta), out, format, None)
    else:
        typer.echo(str(result.folder))
