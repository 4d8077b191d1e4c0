"""``esa arch``: describe what a model is made of, or compare the models of finished runs."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from esa.cli import arch_compare, options
from esa.cli.session import begin, check_format, deliver, handled, is_file_target, read_spec
from esa.errors import EsaError

if TYPE_CHECKING:
    from esa.spec import Spec


@handled
def command(
    sources: Annotated[
        list[str] | None,
        typer.Argument(
            help="A model to describe: alias, local folder, .gguf file or hub id, short for model.id. Or the folders of"
            " finished runs to compare.",
            metavar="MODEL|RUN",
            show_default=False,
        ),
    ] = None,
    spec: options.SpecFile = None,
    only: options.Only = None,
    metric: options.OfMetrics = None,
    k: Annotated[
        int | None,
        typer.Option("-k", min=1, help="Compare this many weights of each top list; as many as all hold by default."),
    ] = None,
    seed: options.AnalysisSeed = None,
    permutations: options.Permutations = None,
    overrides: options.Overrides = None,
    out: Annotated[
        str | None,
        typer.Option(
            "--out",
            "-o",
            help="Of a model, write the table: a .csv or .parquet file, or - for stdout. Of runs, the folder to write to.",
            metavar="PATH",
            rich_help_panel=options.OUTPUT,
        ),
    ] = None,
    format: options.Format = None,
    force: options.Force = False,
    dry_run: options.DryRun = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
    list_names: options.ListNames = False,
    version: options.Version = False,
) -> None:
    """Describe what a model is made of, or compare the models of finished runs; no weight is loaded.

    Of a model: weights per component and block, tied and fused parts, storage by dtype, sizes by number format, and for a
    mixture of experts what a token uses; from the hub only the configuration is fetched. With -o or -f the table instead,
    one row per tensor.

    Of runs, folders with run.json or of their steps: where score and damage lie by component and depth, attention against
    MLP, experts and their usage, whether critical weights cluster, and how the models differ. Tables with intervals and
    tests go to outputs/NAMES/arch-ID or -o.

    Examples:
    `esa arch smollm2-135m`

    `esa arch ./my-model -o tensors.csv`

    `esa arch outputs/smollm2_quickstart outputs/mixtral_tiny -o reports/two`
    """
    progress = begin(quiet=quiet, verbose=verbose, threads=None)
    given = sources or []
    asked = {"--metric": metric, "-k": k, "--seed": seed, "--permutations": permutations, "--force": force or None}
    if arch_compare.are_runs(given):
        described = {"--spec": spec, "--only": only, "--set": overrides, "--format": format}
        arch_compare.refuse(described, "describing a model", "runs are compared")
        arch_compare.compare(
            given, metric=metric, k=k, seed=seed, permutations=permutations, out=out, force=force, dry_run=dry_run,
            quiet=quiet, progress=progress,
        )  # fmt: skip
        return
    arch_compare.refuse(asked, "comparing finished runs", "a model is described")
    if len(given) > 1:
        raise EsaError(
            f"{len(given)} models are given: {', '.join(given)}; one is described at a time",
            where="MODEL",
            hint="to compare models, esa run a spec of each and give esa arch the folders outputs/<name>",
        )
    model = given[0] if given else None
    format = check_format(format)
    target = "-" if out is None and format is not None else out
    if target is not None and not is_file_target(target):
        raise EsaError(f"'{target}': a table is written; allowed: a .csv or .parquet file, or -", where="--out")
    chosen = _chosen(model, spec, overrides or [], only)
    if model is not None and spec is not None and chosen.model.shape is not None:
        progress.note("model.shape of the spec is another model's: left out")
        chosen = chosen.model_copy(update={"model": chosen.model.model_copy(update={"shape": None})})
    if dry_run:
        from esa.spec import dump_spec

        typer.echo(dump_spec(chosen), nl=False)
        what = f"the configuration of {chosen.model.id} and the headers of its files"
        typer.echo(f"# reads {what}; writes {target or 'a description to stdout'}")
        return
    with _without_collector():
        from esa import arch

        # Beside a table its notes go to stderr; a description holds them.
        found = arch.describe(chosen.model, progress) if target is None else arch.run(chosen, progress=progress)
    if target is not None:
        deliver(found.table, target, format, None)
        return
    from esa.cli.console import page
    from esa.cli.description import print_architecture

    with page() as console:
        print_architecture(found, console)


def _chosen(model: str | None, path: Path | None, overrides: list[str], only: list[str] | None) -> "Spec":
    """Return the spec whose [model] is described: that of --spec, MODEL in its place if it is given."""
    from esa.spec import spec_from_dict
    from esa.spec.loading import apply_overrides

    if model is not None and Path(model).suffix == ".toml":
        raise EsaError(f"'{model}' is a spec, not a model", where="MODEL", hint=f"esa arch --spec {model}")
    if path is None and not only:
        if model is None:
            raise EsaError(
                "no model is given",
                where="MODEL",
                hint="esa arch smollm2-135m, or esa arch --spec specs/mixtral_8x7b.toml",
            )
        return apply_overrides(spec_from_dict({"name": "arch", "model": {"id": model}}), overrides)
    return read_spec(path, overrides, {"model.id": model}, only)


@contextmanager
def _without_collector() -> Iterator[None]:
    """Keep the collector of cycles out of the way: imports and headers leave it nothing, and it took a third of the time."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()
