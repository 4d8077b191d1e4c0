"""``esa eval``: measure the intact model on texts, at context lengths, and on tasks."""

from pathlib import Path
from typing import Annotated

import typer

from esa.cli import options
from esa.cli.options import SPEC
from esa.cli.session import begin, check_format, deliver, folder_target, handled, is_file_target, read_spec
from esa.errors import CheckError


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
    tasks: Annotated[
        list[str] | None,
        typer.Option(
            "--tasks",
            help="language_modeling, calibration_error, generation, hellaswag, lambada; repeatable, or with commas."
            " Short for eval.tasks.",
            metavar="NAME,...",
            rich_help_panel=SPEC,
        ),
    ] = None,
    harness: options.Harness = None,
    power: Annotated[
        Path | None,
        typer.Option(
            "--power",
            help="Finished perturb step to plan from: how many windows and random draws an effect needs.",
            metavar="FOLDER",
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
    """Measure perplexity, NLL, bits per byte and token accuracy of the intact model on each text, at each length; and tasks.

    Every length reads the same stretch of text: as many tokens as eval.windows windows of eval.length hold. --tasks replaces
    language modelling by those it names; their items come from eval.task_sources. Prints tables on stderr and the step's
    folder on stdout; with -o - the table as CSV. NaN or infinite logits end with exit code 4.

    Examples:
    `esa eval -s specs/quickstart.toml --text file:wiki.txt -o -`

    `esa eval -s s.toml --text builtin:prose --text hf:Salesforce/wikitext/wikitext-2-raw-v1:test --length 128 --length 512`

    `esa eval -s s.toml --tasks hellaswag,lambada --set eval.task_sources.lambada=file:lambada.jsonl`

    `esa eval -s s.toml --power outputs/pilot/perturb-0123456789ab`
    """
    progress = begin(quiet=quiet, verbose=verbose, threads=threads)
    format = check_format(format)
    shorthand = {
        **{"eval.texts": text, "eval.lengths": length, "model.id": model, "model.device": device},
        "eval.tasks": [name.strip() for words in tasks or () for name in words.split(",")],
    }
    chosen = read_spec(spec, overrides, shorthand, only)
    if dry_run:
        from esa.cli import dry_run as plan_of_run

        plan_of_run.print_plan([chosen], ["eval"], folder_target(out))
        return
    from esa import eval
    from esa.cli.eval_tables import print_evaluations, print_plan, print_spread
    from esa.eval import planning

    plans = planning.plan(power) if power is not None else []  # a wrong folder is told before anything is measured
    with progress.closing():
        result = eval.run(chosen, harness=harness or (), out=folder_target(out), force=force, progress=progress)
    if not quiet and not is_file_target(out):
        print_evaluations(result.table.frame)
        print_spread(result.spread)
    if plans:
        print_plan(plans, planning.EFFECTS, planning.POWER, planning.ALPHA)
    deliver(result.table, out, format, result.folder)
    broken = [f"{source} at length {number:,}" for source, number in result.nonfinite] + result.nonfinite_tasks
    if broken:
        raise CheckError(
            f"NaN or infinite logits on {', '.join(broken)}: its metrics are null",
            where=str(result.folder),
            hint=None if "float32" in (chosen.model.dtype, chosen.model.compute) else "try model.compute = 'float32'",
        )
