"""``esa perturb``: change weights, measure the damage, restore them."""

from typing import Annotated, Any

import typer

from esa.cli import options, perturb_detect, perturb_faults, perturb_truth
from esa.cli.options import SPEC
from esa.cli.session import begin, check_format, deliver, folder_target, handled, is_file_target, read_spec
from esa.errors import EsaError


@handled
def command(
    spec: options.SpecFile = None,
    only: options.Only = None,
    targets: Annotated[
        str | None,
        typer.Option(
            "--targets", help="Ranking: a rank folder, a CSV or Parquet file, or - for stdin.", metavar="PATH"
        ),
    ] = None,
    target: Annotated[
        list[str] | None,
        typer.Option(
            "--target",
            help="A weight NAME:507,1229, a row NAME:507,: a column NAME::,1229, a tensor NAME, an expert NAME:@expert=3, a head"
            " NAME:@head=3, or a selection such as component=mlp.down,block=11. Repeatable.",
            metavar="ADDRESS",
        ),
    ] = None,
    method: Annotated[
        list[str] | None,
        typer.Option(
            "--method", help="Repeatable; replaces the spec's methods. Short for perturb.", rich_help_panel=SPEC
        ),
    ] = None,
    option: Annotated[
        list[str] | None,
        typer.Option(
            "--option", help="Option of every --method: sigma=0.1.", metavar="KEY=VALUE", rich_help_panel=SPEC
        ),
    ] = None,
    unit: Annotated[
        list[str] | None,
        typer.Option(
            "--unit",
            help="joint, single, leave_one_out, cumulative or pairs; repeatable. Short for every method's unit.",
            rich_help_panel=SPEC,
        ),
    ] = None,
    sweep_bits: perturb_faults.SweepBits = False,
    faults: perturb_faults.RandomFaults = False,
    fault_rate: perturb_faults.FaultRates = None,
    trials: perturb_faults.Trials = None,
    ecc: perturb_faults.Ecc = None,
    fault_list: perturb_faults.FaultList = None,
    detect: perturb_detect.Detect = None,
    validate: perturb_truth.Validate = None,
    harness: options.Harness = None,
    k: options.Ks = None,
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
    """Change the targets by every method, measure the damage, and bring the exact bits back.

    Prints the step's folder on stdout; with -o - the damage table.

    Examples:
    `esa perturb -s llama.toml --targets top.csv`

    `esa perturb -s llama.toml --target model.embed_tokens.weight:128000,3303 --method zero`

    `esa perturb -s llama.toml --target component=mlp.down,block=11 --method zero --method mean`

    `esa perturb -s llama.toml --target model.layers.11.mlp.down_proj.weight:507,1229 --sweep-bits`

    `esa perturb -s llama.toml --detect outputs/llama/score-3f0a`

    `esa perturb -s llama.toml --validate outputs/llama/score-3f0a`

    `esa perturb -s llama.toml --faults --fault-rate 1e-9 --trials 200 --ecc secded`
    """
    progress = begin(quiet=quiet, verbose=verbose, threads=threads)
    format = check_format(format)
    of_faults: dict[str, Any] = {
        "--fault-rate": fault_rate,
        "--trials": trials,
        "--ecc": ecc,
        "--fault-list": fault_list,
    }
    of_methods: dict[str, Any] = {"--method": method, "--option": option, "--unit": unit}
    of_targets: dict[str, Any] = {"--targets": targets, "--target": target, "-k": k, "--sweep-bits": sweep_bits}
    of_targets["--harness"] = harness
    perturb_detect.require_alone(detect, of_targets | of_methods | {"--faults": faults} | of_faults)
    perturb_truth.require_alone(
        validate, of_targets | of_methods | {"--detect": detect, "--faults": faults} | of_faults
    )
    perturb_faults.require_faults(faults=faults, of_faults=of_faults, others=of_methods | of_targets)
    shorthand: dict[str, Any] = {"rank.k": k, "model.id": model, "model.device": device}
    shorthand |= {"faults.rates": fault_rate, "faults.trials": trials, "faults.ecc": ecc}
    chosen = read_spec(spec, overrides, shorthand, only)
    if detect is not None:
        perturb_detect.run_detector(chosen, detect, out, format, progress, force=force, dry_run=dry_run)
        return
    if validate is not None:
        perturb_truth.run_truth(chosen, validate, out, format, progress, force=force, dry_run=dry_run)
        return
    if faults:
        perturb_faults.run_faults(chosen, fault_list, out, format, progress, force=force, dry_run=dry_run)
        return
    if sweep_bits:
        chosen = perturb_faults.with_sweep(chosen, others=of_methods)
    if method or unit or option:
        chosen = _with_methods(chosen, method, option, unit)
    if (targets is None) == (not target):
        raise EsaError("give either --targets or --target", where="--targets")
    if dry_run:
        from esa.cli.dry_run import print_plan

        print_plan([chosen], ["perturb"], folder_target(out), len(target) if target else None)
        return
    from esa import perturb
    from esa.artifact import find_table
    from esa.cli.claims import print_claims
    from esa.cli.eval_tables import print_task_damage
    from esa.cli.summary import print_damage, print_parts

    with progress.closing():
        result = perturb.run(
            chosen,
            targets or target or [],
            harness=harness or (),
            out=folder_target(out),
            force=force,
            progress=progress,
        )
    if not quiet and not is_file_target(out):
        print_damage(result.damage.frame)
        print_parts(result.damage.frame)
        if (result.folder / "task_damage.csv").is_file():
            print_task_damage(result.damage.frame, find_table(result.folder, "task_damage/1").frame)
        print_claims(result.folder)
        perturb_faults.print_bits(result.folder, chosen.model.model_dump(), progress)
    deliver(result.damage, out, format, result.folder)


def _with_methods(spec: Any, method: list[str] | None, option: list[str] | None, unit: list[str] | None) -> Any:
    """Return the spec with the methods that the flags name, or its own with their units changed."""
    from esa.spec import spec_from_dict
    from esa.spec.loading import parse_override

    if option and not method:
        raise EsaError("needs --method", where="--option")
    tree = spec.model_dump(exclude_none=True)
    tables = [{"method": name, **dict(parse_override(item) for item in option or [])} for name in method or []]
    tables = tables or list(tree["perturb"])
    tree["perturb"] = [{**table, **({"unit": unit} if unit else {})} for table in tables]
    return spec_from_dict(tree, where="--method" if method else "--unit")
