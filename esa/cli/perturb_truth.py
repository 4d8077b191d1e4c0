"""``esa perturb --validate``: which metric tells the truth."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from esa.cli.console import ConsoleProgress, number, print_line, print_table
from esa.cli.session import deliver, folder_target, is_file_target
from esa.errors import EsaError

if TYPE_CHECKING:
    import polars as pl

    from esa.spec import Spec

Validate = Annotated[
    Path | None,
    typer.Option(
        "--validate",
        help="Instead of targets: zero a sample of weights one by one and hold every metric against the damage; a score folder.",
        metavar="FOLDER",
    ),
]
_FIGURES = {
    "spearman": "Spearman",
    "spearman_behind_best": "behind best",
    "spearman_signed": "with sign",
    "top_1_percent": "top 1 %",
    "top_10_percent": "top 10 %",
    "spearman_measured": "unweighted",
    "top_measured": "largest {top}",
}
_LINE = ("slope", "intercept")


def require_alone(validate: Path | None, others: Mapping[str, object]) -> None:
    """Raise EsaError for flags of targets, methods and faults beside ``--validate``."""
    given = [name for name, value in others.items() if value not in (None, [], (), False)]
    if validate is not None and given:
        raise EsaError(f"zeroes a sample of what a score step scored; it takes no {given[0]}", where="--validate")


def run_truth(
    spec: "Spec", scores: Path, out: str | None, format: str | None, progress: ConsoleProgress, *,
    force: bool, dry_run: bool,
) -> None:  # fmt: skip
    """Hold the metrics of a score step against measured damage, print them, and write the table where ``-o`` says."""
    if dry_run:
        from esa.cli.dry_run import print_plan

        print_plan([spec], ["truth"], folder_target(out))
        return
    from esa.perturb import truth

    with progress.closing():
        result = truth.run(spec, scores, out=folder_target(out), force=force, progress=progress)
    if not progress.quiet and not is_file_target(out):
        print_truth(result.table.frame, spec.truth.top)
    deliver(result.table, out, format, result.folder)


def print_truth(truth: "pl.DataFrame", top: int) -> None:
    """Print a row per metric, by Spearman's correlation, and the calibration of the signed predictions."""
    by_metric: dict[tuple[str, Any], dict[str, dict[str, Any]]] = {}
    for row in truth.to_dicts():
        by_metric.setdefault((row["metric"], row["seed"]), {})[row["quantity"]] = row
    ordered = sorted(by_metric.items(), key=lambda item: -_value(item[1]["spearman"]))
    rows = [[metric, *(_with_interval(found[name]) for name in _FIGURES)] for (metric, _), found in ordered]
    first = truth.row(0, named=True)
    censored = first["num_censored"]
    floor = "no noise floor" if censored is None else f"{censored} of them under the noise floor"
    header = ["metric", *(name.format(top=top) for name in _FIGURES.values())]
    title = f"Metrics against the damage of zeroing {first['num_weights']} weights one by one ({floor})"
    print_table(title, header, rows, right=header[1:])
    print_line(
        "Weighted to the whole model but for the last two, where each measured weight counts once:"
        f" all of them, and the {top} largest changes."
    )
    for (metric, _), found in ordered:
        if "slope" in found:
            slope, intercept = (_with_interval(found[name]) for name in _LINE)
            print_line(f"{metric}: measured = {slope} x predicted + {intercept} nats")


def _value(row: dict[str, Any]) -> float:
    return -2.0 if row["value"] is None else float(row["value"])


def _with_interval(row: dict[str, Any]) -> str:
    if row["value"] is None:
        return "-"
    value = number(row["value"], 3)
    return value if row["low"] is None else f"{value} ({number(row['low'], 2)} to {number(row['high'], 2)})"
