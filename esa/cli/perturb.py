"""``esa perturb``: change weights, measure the damage, restore them."""

from typing import Annotated, Any

import typer

from esa.cli import options
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
        list[str] | None, typer.Option("--target", help="One weight, PARAMETER:I,J. Repeatable.", metavar="ADDRESS")
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
        str | None, typer.Option("--unit", help="joint or single. Short for every method's unit.", rich_help_panel=SPEC)
    ] = None,
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
    """
    progress = begin(quiet=quiet, verbose=verbose, threads=threads)
    format = check_format(format)
    chosen = read_spec(spec, overrides, {"rank.k": k, "model.id": model, "model.device": device}, only)
    if method or unit or option:
        chosen = _with_methods(chosen, method, option, unit)
    if (targets is None) == (not target):
        raise EsaError("give either --targets or --target", where="--targets")
    if dry_run:
        from esa.cli.dry_run import print_plan

        print_plan([chosen], ["perturb"], folder_target(out))
        return
    from esa import perturb
    from esa.cli.summary import print_damage

    with progress.closing():
        result = perturb.run(chosen, targets or target or [], out=folder_target(out), force=force, progress=progress)
    if not quiet and not is_file_target(out):
        print_damage(result.damage.frame)
    deliver(result.damage, out, format, result.folder)


def _with_methods(spec: Any, method: list[str] | None, option: list[str] | None, unit: str | None) -> Any:
    """Return the spec with the methods that the flags name, or its own with their unit changed."""
    from esa.spec import spec_from_dict
    from esa.spec.loading import parse_override

    if option and not method:
        raise EsaError("needs --method", where="--option")
    tree = spec.model_dump(exclude_none=True)
    tables = [{"method": name, **dict(parse_override(item) for item in option or [])} for name in method or []]
    tables = tables or list(tree["perturb"])
    tree["perturb"] = [{**table, **({"unit": unit} if unit else {})} for table in tables]
    return spec_from_dict(tree, where="--method" if method else "--unit")
