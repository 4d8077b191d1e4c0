"""``esa perturb --detect``: what super_activation found, put to the test, and held against what was published."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from esa.cli.console import ConsoleProgress, number, print_line, print_table
from esa.cli.session import deliver, folder_target, is_file_target
from esa.errors import EsaError

if TYPE_CHECKING:
    from esa.perturb.detector import DetectorResult
    from esa.spec import Spec

Detect = Annotated[
    Path | None,
    typer.Option(
        "--detect",
        help="Instead of targets: zero what super_activation found, alone and in groups; a score folder, or a rank folder.",
        metavar="FOLDER",
    ),
]
_OUTCOMES = ("collapsed", "uniform", "nonfinite")


def require_alone(detect: Path | None, others: Mapping[str, object]) -> None:
    """Raise EsaError for flags of targets, methods and faults beside ``--detect``."""
    given = [name for name, value in others.items() if value not in (None, [], (), False)]
    if detect is not None and given:
        raise EsaError(f"zeroes the candidates of a score step; it takes no {given[0]}", where="--detect")


def run_detector(
    spec: "Spec", scores: Path, out: str | None, format: str | None, progress: ConsoleProgress, *,
    force: bool, dry_run: bool,
) -> None:  # fmt: skip
    """Test the candidates of a score step, print the verdicts, and write the table where ``-o`` says."""
    from esa.artifact import read_manifest

    if dry_run:
        from esa.cli.dry_run import print_plan
        from esa.perturb.detector import score_folder, scored_candidates

        folder = score_folder(scores)
        found = {one["address"] for one in scored_candidates(read_manifest(folder), folder)}
        print_plan([spec], ["detector"], folder_target(out))
        typer.echo(f"# {len(found)} candidates of {folder}, and those that were published and did not stand out")
        return
    from esa.perturb import detector

    with progress.closing():
        result = detector.run(spec, scores, out=folder_target(out), force=force, progress=progress)
    if not progress.quiet and not is_file_target(out):
        print_verdicts(result)
    deliver(result.table, out, format, result.folder)


def print_verdicts(result: "DetectorResult") -> None:
    """Print the verdict on each candidate, what its group does together, and which published weights were found."""
    manifest, rows = result.manifest, result.table.frame.to_dicts()
    if rows:
        intact = number(rows[0]["ppl_base"])
        cells = [
            [
                row["role"] or "missed",
                row["target"] + (" (published)" if row["published"] else ""),
                number(row["growth"]),
                number(row["peak_ratio"], 3),
                _perplexity(row["ppl"], row["outcome"]),
                _interval(row["delta_nll"], row["delta_low"], row["delta_high"]),
                _interval(row["added_nll"], row["added_low"], row["added_high"]),
                row["verdict"].replace("_", " "),
            ]
            for row in rows
        ]
        header = [
            "role",
            "weight",
            "growth",
            "peak ratio",
            "perplexity",
            "change in NLL",
            "added to its group",
            "verdict",
        ]
        title = f"What stands out, each zeroed alone (intact: {intact})"
        print_table(title, header, cells, right=header[2:7])
        print_groups(rows, intact)
    if (everything := manifest["all_writers"]) is not None:
        words = _perplexity(everything["ppl"], everything["outcome"])
        print_line(f"All {everything['num_weights']} writers zeroed together: perplexity {words}.")
    for one in manifest["published"]:
        print_line(published_line(one))


def print_groups(rows: Sequence[Mapping[str, Any]], intact: str) -> None:
    """Print what each group does when all of it is zeroed; nothing where no candidates share a row or column."""
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        if row["group"] is not None:
            groups.setdefault(row["group"], []).append(row)
    if groups:
        cells = [
            [
                name,
                str(len(members)),
                _perplexity(members[0]["group_ppl"], members[0]["group_outcome"]),
                _interval(*(members[0][f"group_{key}"] for key in ("delta_nll", "delta_low", "delta_high"))),
            ]
            for name, members in groups.items()
        ]
        header = ["shared", "weights", "perplexity", "change in NLL"]
        print_table(f"Zeroed together (intact: {intact})", header, cells, right=header[1:], wrap=["shared"])


def published_line(one: Mapping[str, Any]) -> str:
    """Return which of a published model's weights were found and missed."""
    total = len(one["found"]) + len(one["missed"])
    what = f"The model is {one['model']}" if one["exact"] else f"The model looks like {one['model']}"
    missed = f"; missed: {', '.join(one['missed'])}" if one["missed"] else ""
    return f"{what}: {len(one['found'])} of its {total} published super weights were found{missed}."


def _perplexity(ppl: float | None, outcome: str) -> str:
    """Return a perplexity, with the outcome where the model is no model any more."""
    return " ".join([number(ppl), *([outcome] if outcome in _OUTCOMES else [])])


def _interval(value: float | None, low: float | None, high: float | None) -> str:
    """Return a change with its interval, a dash where there is none."""
    if value is None:
        return "-"
    return f"{value:+.3g}" if low is None or high is None else f"{value:+.3g} ({low:+.3g} to {high:+.3g})"
