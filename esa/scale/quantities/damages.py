"""What losing the top weights costs a run's model, in nats per token: a fixed number, a fixed share, or the worst one alone."""

import json
import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import polars as pl

from esa.artifact.gather import Gathered
from esa.scale.quantities.measured import Measured, Wanted

UNTRAINED = "untrained: the intact model's own perplexity is over half the vocabulary"
WITHIN = 2.0  # a measured K stands for a share of the weights if it is off by no more than this factor

Row = dict[str, Any]


def damage_top_k(run: Gathered, wanted: Wanted) -> Iterator[Measured]:
    """Yield the damage of the joint change of the K top weights, for each metric, score seed, method and K.

    ``delta_nll`` of ``damage/1`` (group top_k, unit joint), the mean over repeats. ``low``, ``high``: the case's interval over
    windows; of several repeats the lowest and the highest end. A broken model has no value: see :func:`_damage`.
    """
    for (metric, seed, method, options, k), rows in _cases(run, wanted).items():
        if wanted.k(k):
            yield _damage(
                "damage_top_k", f"{metric}, {label(method, options)}, top {k:,}", seed, k, rows, _vocabulary(run)
            )


def damage_fraction(run: Gathered, wanted: Wanted) -> Iterator[Measured]:
    """Yield the damage of about the top share f of all weights, for each metric, score seed, method and f asked for.

    The damage at the measured K nearest to ``f N`` on a log scale, N all weights of the model. ``k`` says which; nothing is
    interpolated, so that the share proper differs between models by as much as the measured K are apart: a list of K that
    is dense around ``f N`` keeps that out of a law. Without a value where no K lies within a factor of 2 of ``f N``, and
    in a run whose K counts something else: weights of each unit (``rank.mode``), or whole rows (``rank.aggregate``).
    """
    if wanted.num_parameters is None or run.spec.rank.mode != "global" or run.spec.rank.aggregate != "weight":
        return
    series: dict[tuple[Any, ...], dict[int, list[Row]]] = {}
    for (metric, seed, method, options, k), rows in _cases(run, wanted).items():
        series.setdefault((metric, seed, method, options), {})[k] = rows
    for (metric, seed, method, options), by_k in series.items():
        for fraction in wanted.fractions:
            subject = f"{metric}, {label(method, options)}, K nearest to {share_words(fraction)} of the weights"
            aim = fraction * wanted.num_parameters
            k = _nearest(by_k, aim)
            if abs(math.log(k / aim)) <= math.log(WITHIN) * (1 + 1e-9):
                yield _damage("damage_fraction", subject, seed, k, by_k[k], _vocabulary(run))
            else:
                measured = ", ".join(f"{one:,}" for one in sorted(by_k))
                near = f"{aim:,.0f}" if aim >= 10 else f"{aim:.2g}"
                why = f"no K within a factor of {WITHIN:g} of {near}; measured: {measured}"
                yield Measured("damage_fraction", subject, None, seed, excluded=why)


def share_words(fraction: float) -> str:
    """Return a share as ``1e-5``, or ``0.01`` from a thousandth on."""
    return f"{fraction:g}" if fraction >= 1e-3 else np.format_float_scientific(fraction, trim="-", exp_digits=1)


def _nearest(ks: Iterable[int], aim: float) -> int:
    """Return the K nearest to a number of weights on a log scale, the smaller of two."""
    return min(ks, key=lambda k: (abs(math.log(k / aim)), k))


def damage_single(run: Gathered, wanted: Wanted) -> Iterator[Measured]:
    """Yield the damage of the most harmful single weight, for each metric, score seed and method.

    The largest ``delta_nll`` among the top weights changed one by one (unit single), or of the first one (k = 1, joint) where
    none were. The subject says of how many it is the worst: among more weights the worst is worse. ``low``, ``high``:
    its own interval over windows, which does not know that it was chosen for being the worst.
    """
    for (metric, seed, method, options), rows in _singles(run, wanted).items():
        targets: dict[str, list[Row]] = {}
        for row in rows:
            targets.setdefault(row["target"] or "", []).append(row)
        subject = f"{metric}, {label(method, options)}, worst of {len(targets)} alone"
        found = [_damage("damage_single", subject, seed, 1, repeats, _vocabulary(run)) for repeats in targets.values()]
        broken = [one for one in found if one.value is None]
        yield broken[0] if broken else max(found, key=lambda one: one.value or 0.0)


def label(method: str, options: str) -> str:
    """Return a method with its options: ``gauss_noise sigma=0.1``."""
    found = json.loads(options) if options else {}
    return " ".join([method, *(f"{key}={value}" for key, value in found.items())])


def num_doses(damage: pl.DataFrame) -> dict[str, int]:
    """Return how many doses each method was put to; 0 of a method that has none."""
    return dict(damage.group_by("method").agg(pl.col("dose").drop_nulls().n_unique()).iter_rows())


def _cases(run: Gathered, wanted: Wanted) -> dict[tuple[Any, ...], list[Row]]:
    """Return the rows of each metric's joint top weights by metric, seed, method, options and K, in their order."""
    return _grouped(run, wanted, ("joint",), ("metric", "seed", "method", "options", "k"))


def _singles(run: Gathered, wanted: Wanted) -> dict[tuple[Any, ...], list[Row]]:
    """Return the rows of single top weights by metric, seed, method and options; of k = 1 where none were changed alone."""
    keys = ("metric", "seed", "method", "options")
    alone = _grouped(run, wanted, ("single",), keys)
    first = {
        key: [row for row in rows if row["k"] == 1] for key, rows in _grouped(run, wanted, ("joint",), keys).items()
    }
    return {key: rows for key, rows in (first | alone).items() if rows}


def _grouped(
    run: Gathered, wanted: Wanted, units: Sequence[str], keys: Sequence[str]
) -> dict[tuple[Any, ...], list[Row]]:
    found: dict[tuple[Any, ...], list[Row]] = {}
    damage = run.damage
    if damage is None:
        return found
    rows = damage.filter(
        (pl.col("group") == "top_k") & pl.col("unit").is_in(list(units)) & pl.col("metric").is_not_null()
    )
    doses = num_doses(rows)
    for row in rows.iter_rows(named=True):
        if wanted.metric(row["metric"]) and wanted.method(row["method"], doses[row["method"]]):
            found.setdefault(tuple(row[key] for key in keys), []).append(row)
    return found


def guesses(nll: float | None, vocabulary: int | None) -> bool:
    """Tell whether a model knows next to nothing: its perplexity is over half the vocabulary; False where that is unknown."""
    return nll is not None and vocabulary is not None and nll > math.log(vocabulary / 2)


def _vocabulary(run: Gathered) -> int | None:
    found = (run.model.get("shape") or {}).get("vocab_size")
    return found if isinstance(found, int) else None


def _damage(
    quantity: str, subject: str, seed: int | None, k: int, rows: Sequence[Row], vocabulary: int | None
) -> Measured:
    """Return the mean damage of repeats; no value where the model is broken, or was from the beginning.

    Nonfinite: NaN or Inf in the logits, of which there is no NLL. Collapsed: a perplexity over half the vocabulary (``uniform``
    included, a collapse whose NLL is near ln V); the damage is a number, but what it measures is how wrong a dead model is,
    and it no longer grows with what was done. Untrained: the intact model's perplexity is there already, as an early
    checkpoint's is, so that there was nothing to lose.
    """
    if guesses(rows[0]["nll_base"], vocabulary):
        return Measured(quantity, subject, None, seed, k, excluded=UNTRAINED)
    for outcomes, words in (
        (("nonfinite",), "nonfinite: NaN or Inf in the logits"),
        (("collapsed", "uniform"), "collapsed: a perplexity over half the vocabulary"),
    ):
        broken = sum(row["outcome"] in outcomes for row in rows)
        if broken:
            of = f" in {broken} of {len(rows)} repeats" if len(rows) > 1 else ""
            return Measured(quantity, subject, None, seed, k, excluded=f"{words}{of}")
    value = math.fsum(row["delta_nll"] for row in rows) / len(rows)
    lows, highs = [row["delta_low"] for row in rows], [row["delta_high"] for row in rows]
    low = None if None in lows else min(lows)
    high = None if None in highs else max(highs)
    below = all(bool(row["below_floor"]) for row in rows)
    return Measured(quantity, subject, value, seed, k, low, high, below_floor=below)
