"""How much noise on its weights doubles a model's perplexity."""

import json
import math
from collections.abc import Iterator, Sequence
from typing import Any

import polars as pl

from esa.artifact.gather import Gathered
from esa.scale.quantities.measured import Measured, Wanted

DOUBLED = math.log(2)  # nats of damage
NOISE = "gauss_noise"

Row = dict[str, Any]


def noise_doubling(run: Gathered, wanted: Wanted) -> Iterator[Measured]:
    """Yield the dose of Gaussian noise at which the perplexity doubles, for each metric, score seed, group and K.

    The ``sigma`` of gauss_noise where ``delta_nll = ln 2``, the mean over repeats and random draws: between the last dose under
    ln 2 and the first above it, interpolated as a line of the damage over ln sigma. ``low``, ``high``: the same for the upper
    and the lower ends of the damages' intervals. Without a value where the measured doses do not bracket ln 2, or where the
    first dose above it left NaN or Inf in the logits.
    """
    for (metric, seed, group, k, options), doses in _series(run, wanted).items():
        rest = "".join(f", {key}={value}" for key, value in json.loads(options).items())
        subject = f"{metric or 'all metrics'}, {group} {k:,}{rest}"
        damages = {dose: _mean(rows, "delta_nll") for dose, rows in doses.items()}
        value, why = crossing(damages)
        highs, lows = ({dose: _mean(rows, end) for dose, rows in doses.items()} for end in ("delta_high", "delta_low"))
        low, high = crossing(highs)[0], crossing(lows)[0]
        if value is None:
            low = high = None
        yield Measured("noise_doubling", subject, value, seed, k, low, high, excluded=why)


def crossing(damages: dict[float, float | None]) -> tuple[float | None, str | None]:
    """Return the dose where the damage reaches ln 2, or why there is none; None stands for a model without finite logits."""
    doses = sorted(damages)
    above = [place for place, dose in enumerate(doses) if (d := damages[dose]) is None or d >= DOUBLED]
    if not above:
        return None, f"perplexity is not doubled by the largest dose, {doses[-1]:g}"
    first = above[0]
    if first == 0:
        return None, f"perplexity is more than doubled by the smallest dose, {doses[0]:g}"
    one, two = damages[doses[first - 1]], damages[doses[first]]
    if two is None or one is None:
        return None, f"NaN or Inf in the logits at dose {doses[first]:g}, before any finite damage above ln 2"
    share = (DOUBLED - one) / (two - one)
    return math.exp(math.log(doses[first - 1]) * (1 - share) + math.log(doses[first]) * share), None


def _series(run: Gathered, wanted: Wanted) -> dict[tuple[Any, ...], dict[float, list[Row]]]:
    """Return the rows of noise by what it was put on, then by dose; two doses at least."""
    damage = run.damage
    if damage is None or (wanted.methods and NOISE not in wanted.methods):
        return {}
    rows = damage.filter((pl.col("method") == NOISE) & (pl.col("unit") == "joint") & (pl.col("dose") > 0))
    found: dict[tuple[Any, ...], dict[float, list[Row]]] = {}
    for row in rows.iter_rows(named=True):
        if not wanted.metric(row["metric"]) or not wanted.k(row["k"]):
            continue
        options = {key: value for key, value in json.loads(row["options"]).items() if key != "sigma"}
        seed = row["seed"] if row["metric"] is not None else None
        key = (row["metric"], seed, row["group"], row["k"], json.dumps(options, sort_keys=True))
        found.setdefault(key, {}).setdefault(row["dose"], []).append(row)
    return {key: doses for key, doses in found.items() if len(doses) > 1}


def _mean(rows: Sequence[Row], column: str) -> float | None:
    """Return the mean over repeats and draws, None where one of them left no finite logits."""
    values = [row[column] for row in rows]
    return None if None in values else math.fsum(values) / len(values)
