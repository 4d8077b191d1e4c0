"""The tables of a planted run, reduced from its scores and damages by naive NumPy code (see planted_runs)."""

import json
import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from tests.planted_runs import Array, Case, Planted
    from tests.planted_shapes import Parameter

BINS_PER_DECADE = 64
FLOOR = 1e-6
COLLAPSE = 5.0  # nats of damage from which a model counts as collapsed
EVALUATED = 8, 32  # windows, tokens of each


def tensor_rows(run: "Planted") -> list[dict[str, Any]]:
    """Return the rows of ``tensors/1``: every tensor, and every expert of a fused one."""
    rows = []
    for metric, seed, one, scores in _pairs(run):
        uses = "model.embed_tokens lm_head" if run.tied and one.component == "embed" else one.name
        about = {
            "metric": metric, "seed": seed, "parameter": one.name, "layer": one.name.removesuffix(".weight"),
            "block": one.block, "component": one.component, "shape": str(one.shape),
            "tied": run.tied and one.component == "embed", "uses": uses,
        }  # fmt: skip
        parts: list[tuple[int | None, Array]] = [(None, scores)]
        if one.expert_axis is not None:
            parts += list(enumerate(scores))
        for expert, part in parts:
            used = None if expert is None or run.usage is None else run.usage(one.block or 0, expert)
            quantiles = {
                f"q{n}": float(np.quantile(part, q))
                for n, q in (("50", 0.5), ("90", 0.9), ("95", 0.95), ("99", 0.99), ("999", 0.999))
            }
            rows.append({
                **about, "expert": expert, "numel": part.size, "usage": 1.0 if one.expert_axis is None else used,
                "num_zero": int((part == 0).sum()), "mean": float(part.mean()), "std": float(part.std()),
                "min": float(part.min()), "max": float(part.max()), "sum": float(part.sum()), **quantiles,
            })  # fmt: skip
    return rows


def histogram_rows(run: "Planted") -> list[dict[str, Any]]:
    """Return the rows of ``histogram/1``."""
    rows = []
    for metric, seed, one, scores in _pairs(run):
        about = {"metric": metric, "seed": seed, "parameter": one.name}
        if zeros := int((scores == 0).sum()):
            rows.append({**about, "bin_low": 0.0, "bin_high": 0.0, "count": zeros})
        bins = np.floor(np.log10(scores[scores > 0]) * BINS_PER_DECADE).astype(int)
        for place, count in zip(*np.unique(bins, return_counts=True), strict=True):
            edges = {"bin_low": 10 ** (place / BINS_PER_DECADE), "bin_high": 10 ** ((place + 1) / BINS_PER_DECADE)}
            rows.append({**about, **edges, "count": int(count)})
    return rows


def margin_rows(run: "Planted") -> list[dict[str, Any]]:
    """Return the rows of ``margins/1`` of the matrices."""
    return [
        {
            "metric": metric, "seed": seed, "parameter": one.name, "axis": axis, "position": position,
            "sum": float(line.sum()), "max": float(line.max()),
        }
        for metric, seed, one, scores in _pairs(run) if scores.ndim == 2
        for axis, lines in (("output", scores), ("input", scores.T))
        for position, line in enumerate(lines)
    ]  # fmt: skip


def damage_row(run: "Planted", case: "Case", value: float | None) -> dict[str, Any]:
    """Return the row of ``damage/1`` of a case; without a value the model is nonfinite."""
    row = {
        "metric": case.metric, "seed": case.seed, "group": case.group, "draw": case.draw, "method": case.method,
        "options": json.dumps(case.options, sort_keys=True, separators=(",", ":")), "dose": case.dose,
        "unit": case.unit, "k": case.k, "nll_base": run.nll_base, "ppl_base": math.exp(run.nll_base),
        "accuracy_base": 0.4, "noise_floor": FLOOR, "target": case.targets[0] if case.k == 1 else None,
    }  # fmt: skip
    if value is None:
        return {**row, "outcome": "nonfinite"}
    nll, half = run.nll_base + value, abs(value) * run.half_width
    return {
        **row, "nll": nll, "delta_nll": value, "delta_low": value - half, "delta_high": value + half,
        "below_floor": abs(value) < FLOOR, "ppl": math.exp(nll) if nll < 700 else None, "kl": abs(value),
        "accuracy": 0.4 * math.exp(-abs(value)), "agreement": math.exp(-abs(value)),
        "outcome": "collapsed" if value > COLLAPSE else "ok",
    }  # fmt: skip


def overlap_rows(run: "Planted", rank: str) -> list[dict[str, Any]]:
    """Return the rows of ``overlap/1`` of every two lists by weight, counted as sets."""
    lists = [(metric, seed) for metric, seed in run.scores]
    chosen = {pair: [row[:2] for row in run.ordered(*pair, most=max(run.ks))] for pair in lists}
    rows = []
    for k in run.ks:
        for n, a in enumerate(lists):
            for b in lists[n + 1 :]:
                shared = len(set(chosen[a][:k]) & set(chosen[b][:k]))
                size = len(chosen[a][:k])
                rows.append({
                    "run_a": rank, "metric_a": a[0], "seed_a": a[1], "run_b": rank, "metric_b": b[0], "seed_b": b[1],
                    "label_a": f"{a[0]} seed {a[1]}", "label_b": f"{b[0]} seed {b[1]}", "by": "weight", "k": k,
                    "size_a": size, "size_b": size, "shared": shared, "jaccard": shared / (2 * size - shared),
                    "universe": run.num_weights, "null": "hypergeometric",
                    "expected_jaccard": size / (2 * run.num_weights - size), "p_value": 0.0,
                })  # fmt: skip
    return rows


def claim_rows(damage: Sequence[dict[str, Any]]) -> Iterable[dict[str, Any]]:
    """Yield the rows of ``tests/1``: hurts, and more than random where there are draws."""
    keys = ("method", "options", "dose", "unit", "k")
    for row in damage:
        if row["group"] != "top_k":
            continue
        about = {key: row[key] for key in ("metric", "seed", "group", "draw", *keys)}
        about |= {"phase": "screen", "level": 0.95, "num_windows": EVALUATED[0], "target": row["target"]}
        broken = row["outcome"] == "nonfinite"
        size = None if broken else row["delta_nll"]
        interval = {} if broken else {"estimate": size, "low": row["delta_low"], "high": row["delta_high"]}
        flags = {"flags": "nonfinite"} if broken else {}
        yield {
            **about,
            **interval,
            **flags,
            "claim": "hurts",
            "against": "intact",
            "rule": "sign_flip",
            "holds": broken or size > FLOOR,
        }
        drawn = [
            other.get("delta_nll") for other in damage
            if other["group"] == "random_k" and all(other[key] == row[key] for key in keys)
        ]  # fmt: skip
        if row["unit"] == "joint" and drawn and all(value is not None for value in drawn):
            above = sum(broken or value >= size for value in drawn) if not broken else 0
            p = (1 + above) / (len(drawn) + 1)
            yield {
                **about, **interval, **flags, "claim": "more_than_random", "against": "random_k", "rule": "monte_carlo",
                "p_value": p, "smallest_p": 1 / (len(drawn) + 1), "num_draws": len(drawn), "holds": p <= 0.25,
                "ratio": None if broken else row["delta_low"] / max(*drawn, FLOOR),
            }  # fmt: skip


def _pairs(run: "Planted") -> Iterable[tuple[str, int | None, "Parameter", "Array"]]:
    """Yield metric, seed, parameter and its scores."""
    for (metric, seed), scores in run.scores.items():
        for one in run.parameters:
            yield metric, seed, one, scores[one.name]
