"""Quantities of the intact model and of several runs: spread, NaN, phases, and damage against the model's size."""

import itertools
import math
from collections.abc import Iterator, Sequence

import polars as pl

from esa.artifact.gather import Gathered
from esa.report.markdown import join, number, percent
from esa.report.quantities.measures import Answer, Found, Needs, Options, Runs, of_claim, subjects

PHASES = ("smoke", "standard", "extended")
FEWEST_SIZES = 4  # a line through two points fits always, and through three hardly says more


def phase_of(run: Gathered) -> str | None:
    """Return the phase of a baseline protocol that a run's name says, as a word of it: ``llama_standard``; None for none."""
    words = run.name.lower().replace("-", "_").replace(".", "_").split("_")
    found = [phase for phase in PHASES if phase in words]
    return found[0] if len(found) == 1 else None


def perplexity_spread(run: Gathered, wanted: Options) -> Answer:
    """Return the largest coefficient of variation of the intact perplexity across seeds.

    ``cv`` of ``spread/1``, metric perplexity: the standard deviation (n - 1 below the line) over the mean, per text and
    length.
    """
    table = run.table("eval", "spread/1")
    rows = [] if table is None else [
        row for row in table.iter_rows(named=True) if row["metric"] == "perplexity" and row["cv"] is not None
    ]  # fmt: skip
    if not rows:
        return Needs("an eval step of two seeds or more (eval.seeds, with eval.sample = 'random')")
    worst = max(rows, key=lambda row: row["cv"])
    where = f"{worst['source']}, length {number(worst['length'])}" if worst["source"] else worst["task"]
    of = f", the largest of {number(len(rows))}" if len(rows) > 1 else ""
    why = f"{number(worst['min'])} to {number(worst['max'])} over {number(worst['num_seeds'])} seeds ({where}){of}"
    return Found(worst["cv"], why)


def num_nonfinite(run: Gathered, wanted: Options) -> Answer:
    """Return how many measurements of the intact model ended with NaN or Inf in the logits.

    Those without an NLL: rows of ``eval/1`` with metric nll, and the intact model of ``damage/1``.
    """
    found: list[bool] = []
    table = run.table("eval", "eval/1")
    if table is not None:
        rows = table.filter(pl.col("metric") == "nll")
        found += rows["value"].is_null().to_list()
    if run.damage is not None:
        found.append(run.damage["nll_base"][0] is None)
    if not found:
        return Needs("a measurement of the intact model (esa eval, or esa perturb)")
    return Found(float(sum(found)), f"{number(sum(found))} of {number(len(found))} measurements of the intact model")


def phase_degradation(runs: Runs, wanted: Options) -> list[tuple[str, Answer]]:
    """Return the largest rise of the intact perplexity from smoke to standard, and from standard to extended.

    ``exp(mean difference of the nll) - 1`` of ``eval/1``, over the texts at the lengths that both phases measured, the mean
    over seeds of each. Negative: it falls in both steps. A run's phase is a word of its name.
    """
    phases = {
        phase: run for _, run in reversed(runs) if (phase := phase_of(run)) and run.table("eval", "eval/1") is not None
    }
    if missing := [phase for phase in PHASES if phase not in phases]:
        return [
            ("", Needs(f"eval steps of runs named for the phases smoke, standard and extended, lacks {join(missing)}"))
        ]
    steps = []
    for one, two in itertools.pairwise(PHASES):
        before, after = _nll(phases[one]), _nll(phases[two])
        shared = [key for key in before if key in after and math.isfinite(before[key])]
        if not shared:
            return [("", Needs(f"a text that {one} and {two} measure at the same length"))]
        rise = sum(after[key] - before[key] for key in shared) / len(shared)
        steps.append((math.expm1(rise), f"{one} to {two} {percent(math.expm1(rise))}"))
    return [("", Found(max(value for value, _ in steps), ", ".join(words for _, words in steps)))]


def _nll(run: Gathered) -> dict[tuple[str, int], float]:
    """Return the mean NLL over seeds per text and length; a nonfinite one is infinite."""
    table = run.table("eval", "eval/1")
    assert table is not None, "asked for by the caller"
    rows = table.filter((pl.col("metric") == "nll") & (pl.col("task") == "language_modeling"))
    means = rows.group_by("source", "length", maintain_order=True).agg(pl.col("value").fill_null(math.inf).mean())
    return {(source, length): value for source, length, value in means.iter_rows()}


def scaling_r2(runs: Runs, wanted: Options) -> list[tuple[str, Answer]]:
    """Return R2 of the line of log damage against log number of weights, over models of different size.

    Damage: the estimate of the claim ``hurts`` (nats per token) of one subject that all runs have; of a scale step the points
    ``damage_top_k`` of the models in its fits, the largest K of each metric and method. Models of one size are averaged in
    the logarithm; those whose damage is not above zero have none, and are counted in words.
    """
    found: list[tuple[str, Answer]] = []
    for metric, sizes in _sizes(runs, wanted).items():
        if isinstance(sizes, Needs):
            found.append((metric, sizes))
            continue
        points, left = sizes
        slope, intercept = _line(points)
        rest = sum((y - intercept - slope * x) ** 2 for x, y in points)
        mean = sum(y for _, y in points) / len(points)
        total = sum((y - mean) ** 2 for _, y in points)
        why = f"damage goes as the number of weights to the power {number(slope)}, {number(len(points))} sizes{left}"
        found.append((metric, Found(1 - rest / total, why) if total else Needs("damage that differs between sizes")))
    return found


def prediction_error(runs: Runs, wanted: Options) -> list[tuple[str, Answer]]:
    """Return by what share the damage in the largest model differs from what the smaller ones predict.

    ``|predicted / measured - 1|``, predicted by the line of :func:`scaling_r2` through all but the largest size.
    """
    found: list[tuple[str, Answer]] = []
    for metric, sizes in _sizes(runs, wanted).items():
        if isinstance(sizes, Needs):
            found.append((metric, sizes))
            continue
        (*smaller, (size, measured)), left = sizes
        slope, intercept = _line(smaller)
        predicted = intercept + slope * size
        why = (
            f"{number(round(math.exp(size)))} weights: predicted {number(math.exp(predicted))} nats per token from"
            f" {number(len(smaller))} smaller sizes, measured {number(math.exp(measured))}{left}"
        )
        found.append((metric, Found(abs(math.expm1(predicted - measured)), why)))
    return found


def _sizes(runs: Runs, wanted: Options) -> dict[str, tuple[list[tuple[float, float]], str] | Needs]:
    """Return by subject the log sizes and log damages in ascending order and who is left out, or what they need."""
    measured: dict[str, dict[float, list[float]]] = {}
    left: dict[str, int] = {}
    for _, run in runs:
        for name, size, damage in (*_claimed(run, wanted), *_followed(run, wanted)):
            if damage > 0:
                measured.setdefault(name, {}).setdefault(math.log(size), []).append(math.log(damage))
            else:
                left[name] = left.get(name, 0) + 1
    most = max((len(sizes) for sizes in measured.values()), default=0)
    if most < FEWEST_SIZES:
        return {"": Needs(f"{FEWEST_SIZES} models of different size whose top weights do harm, has {number(most)}")}
    return {
        name: (
            sorted((size, sum(some) / len(some)) for size, some in sizes.items()),
            f"; {number(left[name])} without damage above zero left out" if name in left else "",
        )
        for name, sizes in measured.items()
        if len(sizes) >= FEWEST_SIZES
    }


def _claimed(run: Gathered, wanted: Options) -> Iterator[tuple[str, int, float]]:
    """Yield subject, number of weights and damage of what a run's tests claim."""
    for one in subjects(run, wanted):
        row, size = of_claim(run, "hurts", one), run.num_parameters
        if row is not None and size and row["estimate"] is not None:
            yield str(one), size, row["estimate"]


def _followed(run: Gathered, wanted: Options) -> Iterator[tuple[str, int, float]]:
    """Yield subject, number of weights and damage of the models that a scale step fitted laws to."""
    points = run.table("scale", "points/1")
    if points is None:
        return
    known = points.filter((pl.col("quantity") == "damage_top_k") & pl.col("excluded").is_null())
    known = known.drop_nulls(["subject", "k", "value", "num_parameters"])
    known = known.with_columns(pl.col("subject").str.replace(r", top [\d,]+$", "").alias("of"))
    if wanted.metric is not None:
        known = known.filter(pl.col("of").str.starts_with(f"{wanted.metric}, "))
    if wanted.method is not None:
        known = known.filter(pl.col("of").str.contains(f", {wanted.method}", literal=True))
    largest = pl.col("k").max().over("of") if wanted.k is None else pl.lit(wanted.k)
    yield from known.filter(pl.col("k") == largest).select("subject", "num_parameters", "value").iter_rows()


def _line(points: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """Return slope and intercept of the least squares line."""
    x, y = (sum(point[axis] for point in points) / len(points) for axis in (0, 1))
    slope = sum((a - x) * (b - y) for a, b in points) / sum((a - x) ** 2 for a, _ in points)
    return slope, y - slope * x
