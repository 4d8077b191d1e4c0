"""What ``esa eval`` prints: figures on text, tasks, the spread across seeds, and what a pilot says an effect needs."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from esa.cli.console import number, print_line, print_table

if TYPE_CHECKING:
    import polars as pl

    from esa.eval.planning import Plan

_SHOWN = {"perplexity": "perplexity", "nll": "nll", "bits_per_byte": "bits/byte", "accuracy": "accuracy"}
_TEXT = "language_modeling"
# The figures of a task that stand for it where there is little room.
_LEADING = (
    ("hellaswag", "acc_norm"),
    ("lambada", "acc"),
    ("lambada", "perplexity"),
    ("calibration_error", "calibration_error"),
    ("generation", "rep_4"),
    ("generation", "agreement"),
)
_OF_CHANGES = ("agreement", "first_difference")  # with the intact model: of itself they tell nothing


def print_evaluations(frame: "pl.DataFrame") -> None:
    """Print a row per text, length and seed with standard errors over windows, and below a row per figure of every task."""
    import polars as pl

    print_texts(frame.filter(pl.col("task") == _TEXT))
    print_tasks(frame.filter(pl.col("task") != _TEXT))


def print_texts(frame: "pl.DataFrame") -> None:
    """Print language modelling: a row per text, length and seed, each metric with its standard error over windows."""
    if not frame.height:
        return
    seeded = frame["seed"].n_unique() > 1
    rows = []
    for _, part in frame.group_by("case", maintain_order=True):
        found = {row["metric"]: row for row in part.to_dicts()}
        first = found["nll"]
        rows.append(
            [first["source"], f"{first['length']:,}"]
            + ([str(first["seed"])] if seeded else [])
            + [f"{first['num_items']:,}", *(with_error(found[n]) for n in _SHOWN)]
        )
    bos = "each window opens with BOS" if frame["bos"][0] else "no BOS"
    title = f"Intact model (\u00b1 standard error over windows; {bos})"
    header = ["text", "length", *(["seed"] if seeded else []), "windows", *_SHOWN.values()]
    print_table(title, header, rows, right=header[1:])


def print_tasks(frame: "pl.DataFrame") -> None:
    """Print a row per figure of every task: what it was measured on, how many items, the value with its standard error."""
    import polars as pl

    if not frame.height:
        return
    rows, before = [], None
    for row in frame.filter(~pl.col("metric").is_in(_OF_CHANGES)).to_dicts():
        key = (row["task"], row["source"], row["length"], row["seed"])
        of = row["source"] or ""
        of += "" if row["length"] is None else f", length {row['length']:,}"
        of += "" if row["seed"] is None else f", seed {row['seed']}"
        count = "-" if row["num_items"] is None else f"{row['num_items']:,}"
        opening = [row["task"], of, count] if key != before else ["", "", ""]
        rows.append([*opening, row["metric"], with_error(row)])
        before = key
    header = ["task", "of", "items", "metric", "value"]
    print_table("Tasks (\u00b1 standard error over items)", header, rows, right=["items", "value"])


def print_spread(frame: "pl.DataFrame") -> None:
    """Print how far the figures of several seeds lie apart."""
    if not frame.height:
        return
    rows = [
        [
            row["task"], f"{row['source']}, length {row['length']:,}", row["metric"], number(row["mean"]),
            number(row["sd"], 2), "-" if row["cv"] is None else f"{100 * row['cv']:.2g} %",
        ]
        for row in frame.to_dicts()
    ]  # fmt: skip
    seeds = frame["num_seeds"][0]
    header = ["task", "of", "metric", "mean", "sd", "cv"]
    print_table(f"Spread across {seeds} seeds' windows", header, rows, right=["mean", "sd", "cv"])


def print_task_damage(damage: "pl.DataFrame", tasks: "pl.DataFrame") -> None:
    """Print what perturbations did to the tasks: a row per method, group, k and leading figure, cases of one row averaged.

    An interval stands where there is a single case. Single weights are left out: the table has them.
    """
    import polars as pl

    from esa.report.tables import label

    keys = ["method", "options", "metric", "group", "k", "unit"]
    cases = damage.filter(pl.col("unit") != "single").select(*keys, "case").unique(maintain_order=True)
    led = tasks.filter(pl.struct("task", "metric").is_in([{"task": t, "metric": m} for t, m in _LEADING]))
    both = cases.join(led.rename({"metric": "figure"}), on="case", how="inner", maintain_order="left_right")
    rows = []
    for (method, options, metric, group, k, _, task, figure), part in both.group_by(
        *keys, "task", "figure", maintain_order=True
    ):
        one = part.row(0, named=True)
        ends = (one["delta_low"], one["delta_high"])
        interval = "" if part.height > 1 or None in ends else f"{number(ends[0], 3)} to {number(ends[1], 3)}"
        means = [_mean(part[name].to_list()) for name in ("intact", "value", "delta")]
        rows.append(
            [label(str(method), str(options)), str(metric or "-"), str(group), f"{k:,}", str(task), str(figure)]
            + [number(mean) for mean in means]
            + [interval]
        )
    if rows:
        header = ["method", "metric", "group", "k", "task", "figure", "intact", "perturbed", "difference", "interval"]
        print_table("Tasks, perturbed minus intact", header, rows, right=["k", "intact", "perturbed", "difference"])


def print_plan(plans: Sequence["Plan"], effects: Sequence[float], power: float, alpha: float) -> None:
    """Print how many windows and random draws each effect needs, a row per group, method, unit and k of the pilot."""
    from esa.report.tables import label

    columns = [f"{effect:g}" for effect in effects]
    rows = [
        [
            label(one.method, one.options), one.group, one.unit, f"{one.k:,}", number(one.sd, 2),
            *map(_count, one.windows), *map(_count, one.draws),
        ]
        for one in plans
    ]  # fmt: skip
    header = ["method", "group", "unit", "k", "sd", *(f"win {c}" for c in columns), *(f"draws {c}" for c in columns)]
    title = f"Windows and random draws for an effect of {', '.join(columns)} nats per token"
    print_table(title, header, rows, right=header[3:])
    print_line(
        f"Power {power:g}, alpha {alpha:g}: a two-sided paired t test over windows, sd that of a window's difference in the"
        " pilot; draws against those that the pilot made at random. -: out of reach, or the pilot does not tell."
    )


def with_error(row: dict[str, Any]) -> str:
    """Return a value with its standard error, where it has one (from two windows on)."""
    value = number(row["value"])
    return value if row["stderr"] is None else f"{value} \u00b1 {number(row['stderr'], 2)}"


def _mean(values: Sequence[float | None]) -> float | None:
    """Return the mean, or None where a value is missing."""
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if len(known) == len(values) else None


def _count(value: int | None) -> str:
    return "-" if value is None else f"{value:,}"
