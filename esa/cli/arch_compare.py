"""``esa arch RUN...``: compare the models of finished runs, and print what came of it."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from esa.cli.console import ConsoleProgress, number, print_line, print_table
from esa.cli.options import FEWEST_DRAWS
from esa.cli.session import at_least, folder_target, is_file_target
from esa.errors import EsaError

if TYPE_CHECKING:
    import polars as pl

    from esa.arch.comparison import ArchResult, Prepared

_RUN_FILES = ("run.json", "manifest.json")
_MOST = 10  # rows of a question that are printed
_BY_COMPONENT = 3  # runs; more are printed by part of the model
_COLUMNS = {
    "weight_share": "weights %", "score_share": "score %", "density": "density", "num_top": "of top K",
    "num_tested": "tested", "mean_damage": "mean damage", "max_damage": "largest", "joint_damage": "all zeroed",
}  # fmt: skip


def are_runs(sources: Sequence[str]) -> bool:
    """Tell whether all sources are folders of runs or finished steps. Raises EsaError where some are and some are not."""
    found = [source for source in sources if any((Path(source) / name).is_file() for name in _RUN_FILES)]
    if found and len(found) < len(sources):
        others = [source for source in sources if source not in found]
        raise EsaError(
            f"{', '.join(others)}: no finished run, beside {len(found)} that {'are' if len(found) > 1 else 'is'};"
            " allowed: one model, or finished runs alone",
            where="MODEL|RUN",
            hint="a finished run is a folder with run.json, a finished step one with manifest.json",
        )
    return bool(found)


def refuse(given: Mapping[str, Any], why: str, instead: str) -> None:
    """Raise EsaError for the first option that was given and has no meaning here."""
    for name, value in given.items():
        if value is not None and value != []:
            raise EsaError(f"is for {why}; here {instead}", where=name)


def compare(
    sources: Sequence[str],
    *,
    metric: list[str] | None,
    k: int | None,
    seed: int | None,
    permutations: int | None,
    out: str | None,
    force: bool,
    dry_run: bool,
    quiet: bool,
    progress: ConsoleProgress,
) -> None:
    """Compare the runs, print shares and answers on stderr and the step's folder on stdout."""
    from esa.arch import comparison

    if is_file_target(out):
        raise EsaError(f"'{out}': a comparison is a folder of tables; give a folder", where="--out")
    at_least("--seed", seed, 0)
    at_least("--permutations", permutations, FEWEST_DRAWS)
    drawn = {"seed": seed, "permutations": permutations}
    asked: dict[str, Any] = {"metric": metric, "k": k, "out": folder_target(out)}
    asked |= {name: value for name, value in drawn.items() if value is not None}
    if dry_run:
        _print_plan(comparison.prepare(sources, **asked))
        return
    with progress.closing():
        result = comparison.run(sources, **asked, force=force, progress=progress)
    if not quiet:
        print_comparison(result)
    typer.echo(str(result.folder))


def _print_plan(prepared: "Prepared") -> None:
    from esa.arch.comparison import FILES, PARTS

    for one in prepared.runs:
        steps = ", ".join(one.run.folders)
        typer.echo(f"{one.label}: {steps}; {number(one.run.num_parameters)} weights, {number(one.num_blocks)} blocks")
    chosen = prepared.options
    typer.echo(
        f"metrics: {', '.join(chosen.metrics)}; K: {number(chosen.k)}; {number(chosen.permutations)} permutations"
    )
    typer.echo(f"asks: {', '.join(PARTS)}; loads no model")
    typer.echo(f"writes {prepared.step.folder}: up to {', '.join(FILES.values())}")


def print_comparison(result: "ArchResult") -> None:
    """Print where the score lies in every run, and the answers question by question; what has none, with its reason."""
    if result.models:
        header = ["run", "model", "family", "weights", "blocks"]
        cells = [
            [
                one["label"],
                str(one["id"]),
                one["family"] or "-",
                number(one["num_parameters"]),
                number(one["num_blocks"]),
            ]
            for one in result.models
        ]
        print_table("Runs", header, cells, right=["weights", "blocks"])
    if "shares/1" in result.tables:
        _print_shares(result.tables["shares/1"].frame, len(result.labels))
    frame = result.tables["comparison/1"].frame
    for question in frame["question"].unique(maintain_order=True):
        _print_question(str(question), frame.filter(frame["question"] == question))
    if "robustness/1" in result.tables:
        _print_robustness(result.tables["robustness/1"].frame)


def _print_robustness(frame: "pl.DataFrame") -> None:
    """Print a table per metric: the runs from the least damaged on, with the intervals of damage and rank."""
    for (metric, method, k), part in frame.group_by("metric", "method", "k", maintain_order=True):
        rows = [
            [
                row["label"], number(row["damage"], 3) if row["damage"] is not None else str(row["outcome"]),
                _range(row["low"], row["high"]), number(row["rank"]), _range(row["rank_low"], row["rank_high"]),
            ]
            for row in part.unique("label", keep="first").sort("rank", maintain_order=True).to_dicts()
        ]  # fmt: skip
        header = ["run", "damage (nats)", "95 %", "rank", "95 % of the rank"]
        title = f"Robustness: the least damaged by losing its own top {number(k)} first ({metric}, {method})"
        print_table(title, header, rows, right=header[1:], wrap=[])


def _range(low: float | None, high: float | None) -> str:
    return "-" if low is None or high is None else f"{number(low, 3)} to {number(high, 3)}"


def _print_shares(frame: "pl.DataFrame", num_runs: int) -> None:
    """Print a table per metric, of the first score seed of each run: by component, or densities by part where runs are many."""
    import polars as pl

    many = num_runs > _BY_COMPONENT
    frame = frame.filter((pl.col("by") == ("part" if many else "component")) & pl.col("weight_share").is_not_null())
    first = frame.group_by("label", "metric", maintain_order=True).agg(pl.col("seed").first().alias("first"))
    frame = frame.join(first, on=["label", "metric"], maintain_order="left")
    frame = frame.filter(pl.col("seed").eq_missing(pl.col("first")))
    for metric in frame["metric"].unique(maintain_order=True):
        part = frame.filter(pl.col("metric") == metric)
        if many:
            _print_densities(part, metric)
        else:
            _print_components(part, metric, num_runs)


def _print_components(part: "pl.DataFrame", metric: str, num_runs: int) -> None:
    columns = [name for name in _COLUMNS if part[name].null_count() < part.height]
    rows = [
        [*([row["label"]] if num_runs > 1 else []), row["value"], *(_share(name, row[name]) for name in columns)]
        for row in part.to_dicts()
    ]
    header = [*(["run"] if num_runs > 1 else []), "component", *(_COLUMNS[name] for name in columns)]
    right = [_COLUMNS[name] for name in columns]
    print_table(f"Where the score lies: {metric}, first seed", header, rows, right=right, wrap=[])


def _print_densities(part: "pl.DataFrame", metric: str) -> None:
    parts = list(part["value"].unique(maintain_order=True))
    found = {(row["label"], row["value"]): row["density"] for row in part.to_dicts()}
    rows = [
        [label, *(_share("density", found.get((label, name))) for name in parts)]
        for label in part["label"].unique(maintain_order=True)
    ]
    print_table(f"Density by part: {metric}, first seed", ["run", *parts], rows, right=parts, wrap=[])


def _share(name: str, value: float | int | None) -> str:
    if value is None:
        return "-"
    return f"{100 * value:.2f}" if name.endswith("_share") else number(value, 3)


def _print_question(question: str, frame: "pl.DataFrame") -> None:
    import polars as pl

    tested_first = pl.col("p_value").is_null()
    answered = frame.filter(pl.col("value").is_not_null()).sort(tested_first, maintain_order=True)
    tested = answered.height - answered["p_value"].null_count()
    if answered.height > _MOST and tested:
        smallest = pl.col("p_adjusted").fill_null(pl.col("p_value"))
        answered = answered.sort(tested_first, smallest, "p_value", maintain_order=True)
    about = {name: name for name in ("a", "b", "metric", "subject") if answered[name].drop_nulls().n_unique() > 1}
    about |= {"quantity": "quantity"}
    known = [name for name in ("low", "expected", "p_value") if answered[name].null_count() < answered.height]
    titles = {"low": "95 %", "expected": "expected", "p_value": "p (Holm)"}
    header = [*about, "value", *(titles[name] for name in known), "n"]
    rows = []
    for row in answered.head(_MOST).to_dicts():
        cells = [number(row["value"], 3), *(_cell(name, row) for name in known), number(row["num"])]
        rows.append([*(row[name] or "-" for name in about), *cells])
    if rows:
        runs = " and ".join(str(found) for name in ("a", "b") if (found := _one_of(answered, name, about)) is not None)
        alone = [text for text in (runs, _one_of(answered, "metric", about)) if text]
        title = f"{question[:1].upper()}{question[1:]}{': ' if alone else ''}{', '.join(alone)}"
        print_table(title, header, rows, right=[name for name in header if name not in about], wrap=[])
    if answered.height > _MOST:
        order = ", these being of the smallest p" if tested > _MOST else ""
        print_line(f"and {answered.height - _MOST:,} more in comparison.csv{order}")
    for (why,), part in answered.filter(pl.col("why").is_not_null()).group_by(["why"], maintain_order=True):
        of = part["metric"].drop_nulls().unique(maintain_order=True)
        metrics = "" if len(of) == answered["metric"].drop_nulls().n_unique() else f"{', '.join(of)}: "
        print_line(f"{metrics}{why}")
    missing = frame.filter(pl.col("value").is_null())
    for (why,), part in missing.group_by(["why"], maintain_order=True):
        names = [", ".join(part[name].drop_nulls().unique(maintain_order=True)) for name in ("a", "subject")]
        print_line(f"{question}: no answer for {', '.join(filter(None, names))}: {why}")


def _one_of(frame: "pl.DataFrame", name: str, shown: Mapping[str, str]) -> str | None:
    """Return the one value of a column that the table does not show; None where it is shown, or there is none."""
    values = frame[name].drop_nulls()
    return None if name in shown or not len(values) else str(values[0])


def _cell(name: str, row: Mapping[str, Any]) -> str:
    if name == "low":
        return "-" if row["low"] is None else f"{number(row['low'], 3)} to {number(row['high'], 3)}"
    if name == "p_value":
        found = row["p_value"] if row["p_adjusted"] is None else row["p_adjusted"]
        return "-" if found is None else number(found, 2)
    return number(row[name], 3)
