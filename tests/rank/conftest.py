"""A dense model of scores, small enough to sort whole, and the score step that a naive reducer makes of it."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

import esa.rank
from esa.artifact import Step, make_table, sha256_of
from esa.spec import Spec, spec_from_dict
from esa.spec.sections import Rank

KEEP = 16
MODES = ("global", "per_layer", "per_block", "per_component")
UNIT = {
    "global": lambda entry: "all",
    "per_layer": lambda entry: entry["parameter"],
    "per_block": lambda entry: "no block" if entry["block"] is None else f"block {entry['block']}",
    "per_component": lambda entry: entry["component"],
}


def entry(parameter: str, block: int | None, component: str, shape: tuple[int, ...], **axes: int) -> dict[str, Any]:
    """Return one row of the anatomy."""
    return {
        "parameter": parameter, "layer": parameter.removesuffix(".weight"), "block": block, "component": component,
        "shape": list(shape), "numel": int(np.prod(shape)), "output_axis": axes.get("output", 0),
        "input_axis": axes.get("input", 1), "expert_axis": axes.get("expert"),
    }  # fmt: skip


ANATOMY = [
    entry("embed.weight", None, "embed", (30, 6), output=1, input=0),
    entry("h.0.attn.q.weight", 0, "attn.q", (6, 6)),
    entry("h.0.mlp.down.weight", 0, "mlp.down", (12, 8), output=1, input=0),
    entry("h.1.attn.q.weight", 1, "attn.q", (6, 6)),
    entry("h.1.mlp.down.weight", 1, "mlp.down", (12, 8), output=1, input=0),
    entry("lm_head.weight", None, "lm_head", (30, 6)),
]
EXPERTS = [*ANATOMY[:3], entry("h.1.experts.down.weight", 1, "expert.down", (3, 5, 8), output=1, input=2, expert=0)]


@dataclass
class Dense:
    """Every weight and every score, by parameter, flat; and what ``esa.rank`` must make of them."""

    anatomy: list[dict[str, Any]] = field(default_factory=lambda: ANATOMY)
    seed: int = 0
    pairs: tuple[tuple[str, int | None], ...] = (("act_mag", 0), ("act_mag", 1), ("magnitude", None))
    keep: int = KEEP
    zeros: dict[str, float] = field(default_factory=dict)  # share of zero scores by parameter
    levels: int | None = None  # round scores to so many values: ties

    def __post_init__(self) -> None:
        """Draw weights and scores."""
        rng = np.random.default_rng(self.seed)
        self.weights = {e["parameter"]: rng.standard_normal(e["numel"]).astype(np.float32) for e in self.anatomy}
        self.scores: dict[tuple[str, int | None, str], np.ndarray] = {}
        for metric, seed in self.pairs:
            for name, weight in self.weights.items():
                score = np.abs(weight) * rng.random(len(weight)).astype(np.float32)
                if self.levels:
                    score = np.ceil(score * self.levels) / self.levels
                score[rng.random(len(score)) < self.zeros.get(name, 0)] = 0
                self.scores[metric, seed, name] = score.astype(np.float32)

    def spec(self) -> Spec:
        """Return the spec the scores claim to come from."""
        metrics = tuple(dict.fromkeys(metric for metric, _ in self.pairs))
        score = {"metrics": metrics, "seeds": (0, 1), "keep": self.keep}
        return spec_from_dict({"name": "dense", "model": {"id": "tiny"}, "score": score})

    def write(self, root: Path) -> Path:
        """Write the score step and return its folder."""
        step = Step("score", self.spec(), {}, root=root)
        step.begin()
        scores, tensors, margins = [], [], []
        rng = np.random.default_rng(99)
        for (metric, seed, name), score in self.scores.items():
            about = {"run": step.id, "metric": metric, "seed": seed, "parameter": name}
            shape = next(e["shape"] for e in self.anatomy if e["parameter"] == name)
            axes = next(e for e in self.anatomy if e["parameter"] == name)
            for stratum, kept in reduce(score, self.weights[name], self.keep, rng).items():
                scores += [
                    {**about, "stratum": stratum, "index": i, "numel": len(score), "score": float(score[i]),
                     "weight": float(self.weights[name][i])}
                    for i in kept.tolist()
                ]  # fmt: skip
            total = {"sum": float(score.sum(dtype=np.float64)), "max": float(score.max())}
            tensors.append({**about, **total, "numel": len(score), "num_zero": int((score == 0).sum())})
            for axis in ("output", "input") if axes["expert_axis"] is None else ():
                for position, row in enumerate(np.moveaxis(score.reshape(shape), axes[f"{axis}_axis"], 0)):
                    total = {"sum": float(row.sum(dtype=np.float64)), "max": float(row.max())}
                    margins.append({**about, "axis": axis, "position": position, **total})
        meta = step.meta(anatomy=json.dumps(self.anatomy))
        kinds = {"scores": "scores/1", "tensors": "tensors/1", "margins": "margins/1"}
        for (file, kind), rows in zip(kinds.items(), (scores, tensors, margins), strict=True):
            step.write(make_table(kind, rows, meta), f"{file}.parquet")
        step.finish(tables={f"{file}.parquet": kind for file, kind in kinds.items()})
        return step.folder

    def sorted(self, metric: str, seed: int | None, mode: str) -> dict[str, list[tuple[float, int, int]]]:
        """Return all (score, tensor, index) of each unit, best first: the ranking by brute force."""
        units: dict[str, list[tuple[float, int, int]]] = {}
        for number, e in enumerate(self.anatomy):
            score = self.scores[metric, seed, e["parameter"]].tolist()
            units.setdefault(UNIT[mode](e), []).extend((value, number, index) for index, value in enumerate(score))
        return {unit: sorted(rows, key=lambda row: (-row[0], *row[1:])) for unit, rows in units.items()}


def reduce(score: np.ndarray, weight: np.ndarray, keep: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Keep of one tensor what the score step keeps, by sorting all of it."""
    index = np.arange(len(score))
    if len(score) <= 4 * keep:
        return {"all": index}
    low = np.lexsort((index, score))
    cut = score[low[keep - 1]]
    below = low[score[low] < cut]
    return {
        "top": np.lexsort((index, -score))[:keep],
        "bottom": np.concatenate([below, rng.permutation(np.flatnonzero(score == cut))[: keep - len(below)]]),
        "sample": rng.choice(len(score), keep, replace=False),
        "large": np.lexsort((index, -np.abs(weight)))[:keep],
    }


def ranked(source: Any, **rank: Any) -> pl.DataFrame:
    """Return the rows of a ranking that is not written."""
    return esa.rank.run(source, rank=Rank(**rank), write=False).table.frame


@pytest.fixture
def dense() -> Dense:
    """Return scores without ties, but for the many zeros that no test asks for by accident."""
    return Dense()


@pytest.fixture
def folder(dense: Dense, tmp_path: Path) -> Path:
    """Return the score step of ``dense``."""
    return dense.write(tmp_path)


def vouch_for(path: Path) -> None:
    """Write a changed file's sha256 into its step's manifest, as if the step had written it so."""
    manifest = json.loads((path.parent / "manifest.json").read_text())
    manifest["outputs"][path.name] = sha256_of(path)
    (path.parent / "manifest.json").write_text(json.dumps(manifest))
