"""A small complete run with plausible numbers, written through esa.artifact: what the report is tested on."""

import json
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from esa.artifact import Step, make_table
from esa.spec import Spec, spec_from_dict

WORST = "model.layers.11.mlp.down_proj.weight"
BASE, FLOOR = math.log(19.5), 2.5e-6
BLOCKS, MODEL = 30, 134_515_008
PARTS = {
    "attn.q": ("self_attn.q_proj", 331_776), "attn.k": ("self_attn.k_proj", 110_592), "attn.v": ("self_attn.v_proj", 110_592),
    "attn.o": ("self_attn.o_proj", 331_776), "mlp.gate": ("mlp.gate_proj", 884_736), "mlp.up": ("mlp.up_proj", 884_736),
    "mlp.down": ("mlp.down_proj", 884_736),
}  # fmt: skip


@dataclass
class Fake:
    """The knobs of a fake run; ``effect`` scales the log damage of the top weights."""

    root: Path
    name: str = "fake_run"
    question: str | None = "Which weights can the model not live without?"
    effect: float = 1.0
    metrics: tuple[str, ...] = ("magnitude", "act_mag", "grad_x_weight")
    methods: tuple[dict[str, Any], ...] = (
        {"method": "zero"},
        {"method": "sign_flip"},
        {"method": "bit_flip", "bit": 14, "repeats": 2},
    )
    broken: bool = True
    steps: tuple[str, ...] = ("score", "rank", "perturb", "overlap")
    model_id: str = "smollm2-135m"
    warnings: tuple[str, ...] = ()
    singles: bool = False  # five weights of each metric's top alone, too
    settings: dict[str, Any] = field(default_factory=dict)  # sections of the spec that differ from the fake's
    fingerprint: str = "f1" * 32
    digest: str = "ab" * 32  # of every text's token ids
    evil: str = ""  # what a hostile file has added to every text in it that is not fixed by a schema
    folders: dict[str, Path] = field(default_factory=dict)
    spec: Spec | None = None

    @property
    def run(self) -> Path:
        """Return the run folder."""
        return self.root / "outputs" / self.name

    def seeds(self, metric: str) -> list[int | None]:
        """Return the seeds that a metric was scored under."""
        return [None] if metric == "magnitude" else [0, 1, 2]

    def write(self) -> Path:
        """Write the run and return its folder."""
        tree: dict[str, Any] = {
            "name": self.name,
            "model": {"id": self.model_id},
            "score": {"metrics": list(self.metrics), "seeds": [0, 1, 2]},
            "rank": {"k": [1, 10, 100]},
            "perturb": [dict(method) for method in self.methods],
        }
        tree |= self.settings
        if self.question is not None:
            tree["question"] = self.question
        self.spec = spec_from_dict(tree)
        score = self._score()
        rank = self._rank(score)
        perturb = self._perturb(rank)
        overlap = self._overlap(rank)
        self.folders = {step.step: step.folder for step in (score, rank, perturb, overlap) if step.step in self.steps}
        names = {step: folder.name for step, folder in self.folders.items()}
        run = {"name": self.name, "spec": f"outputs/{self.name}/spec.toml", "steps": names}
        (self.run / "run.json").write_text(json.dumps(run))
        return self.run

    def _step(self, step: str, inputs: dict[str, str]) -> Step:
        assert self.spec is not None
        found = Step(step, self.spec, inputs, root=self.root / "outputs")
        found.begin()
        return found

    def _model(self) -> dict[str, Any]:
        return {
            "id": self.model_id + self.evil, "revision": None, "fingerprint": self.fingerprint, "dtype": "float32", "compute": "float32",
            "device": "cpu", "quantization": "none", "num_parameters": MODEL, "num_eligible": 134_479_872,
        }  # fmt: skip

    def _data(self, source: str, windows: int, length: int, **more: Any) -> dict[str, Any]:
        tokens = windows * length
        return {
            "source": source + self.evil, "windows": windows, "tokens": tokens, "sha256": self.digest, "bos": False, "packing": "stream",
            "length": length, **more,
        }  # fmt: skip

    def _score(self) -> Step:
        step = self._step("score", {"model": self.fingerprint})
        rng = np.random.default_rng(0)
        tensors, histogram = [], []
        parts = [("model.embed_tokens.weight", None, "embed", 28_311_552)]
        parts += [
            (f"model.layers.{b}.{name}.weight{self.evil}", b, component + self.evil, numel)
            for b in range(BLOCKS) for component, (name, numel) in PARTS.items()
        ]  # fmt: skip
        for metric in self.metrics:
            centre = {"magnitude": -1.2, "act_mag": -2.0}.get(metric, -6.5)
            spread = {"magnitude": 0.35, "act_mag": 0.6}.get(metric, 0.8)
            for seed in self.seeds(metric):
                for parameter, block, component, numel in parts:
                    heavy = 3.0 if component == "mlp.down" and metric != "magnitude" else 1.0
                    depth = 1.0 if block is None or metric == "magnitude" else 0.5 + 1.5 * (block / BLOCKS) ** 2
                    total = numel * 10**centre * heavy * depth * (1 + 0.05 * rng.random())
                    row = {
                        "metric": metric,
                        "seed": seed,
                        "parameter": parameter,
                        "block": block,
                        "component": component,
                    }
                    layer = parameter.removesuffix(".weight")
                    tensors.append({**row, "layer": layer, "numel": numel, "sum": total, "tied": block is None})
                    edges = np.arange(-5 * 16, 5 * 16) / 16 + centre
                    share = np.exp(-(((edges - centre) / spread) ** 2) / 2)
                    counts = np.round(numel * share / share.sum()).astype(int)
                    histogram += [
                        {**row, "bin_low": 10**low, "bin_high": 10 ** (low + 1 / 16), "count": int(count)}
                        for low, count in zip(edges, counts, strict=True) if count
                    ]  # fmt: skip
                tail = {"metric": metric, "seed": seed, "parameter": f"{WORST}"}
                histogram += [{**tail, "bin_low": 10 ** (centre + 4.2), "bin_high": 10 ** (centre + 4.216), "count": 1}]
        step.write(make_table("scores/1", []), "scores.parquet")
        step.write(make_table("tensors/1", tensors), "tensors.parquet")
        step.write(make_table("histogram/1", histogram), "histogram.parquet")
        step.finish(
            tables={"scores.parquet": "scores/1", "tensors.parquet": "tensors/1", "histogram.parquet": "histogram/1"},
            warnings=self.warnings,
            model=self._model(),
            data=[self._data("builtin:prose", 8, 256, seed=seed) for seed in (0, 1, 2)],
            seeds=[0, 1, 2],
        )
        return step

    def _targets(self, metric: str | None, group: str, draw: int | None) -> list[tuple[str, int, int, int]]:
        rng = np.random.default_rng([len(metric or "random"), len(group), (draw or 0) + 1])
        found = [(int(b), int(i), int(j)) for b, i, j in rng.integers([0, 0, 0], [BLOCKS, 576, 1536], (100, 3))]
        if group == "top_k":
            found[0 if metric == "act_mag" else 3] = (11, 507, 1229)
        if group == "top_k" and metric == "grad_x_weight":
            found[0] = (2, 507, 90)
        return [(f"model.layers.{b}.mlp.down_proj.weight{self.evil}", b, i, j) for b, i, j in found]

    def _rank(self, score: Step) -> Step:
        step = self._step("rank", {"score": score.id})
        rows = []
        lists: list[tuple[str | None, int | None, str, int | None]] = [
            (metric, seed, group, None)
            for metric in self.metrics for seed in self.seeds(metric) for group in ("top_k", "bottom_k")
        ]  # fmt: skip
        lists += [(None, 0, "random_k", draw) for draw in range(5)]
        for metric, seed, group, draw in lists:
            for rank, (parameter, block, i, j) in enumerate(self._targets(metric, group, draw), start=1):
                worst = (i, j) == (507, 1229)
                centre = {"magnitude": -1.2, "act_mag": -2.0}.get(metric or "", -6.5)
                rows.append({
                    "metric": metric, "seed": seed, "mode": "global", "unit_name": "all", "group": group, "draw": draw,
                    "rank": rank, "parameter": parameter, "index": i * 1536 + j, "indices": f"({i}, {j})", "block": block,
                    "component": "mlp.down" + self.evil, "weight": 5.876 if worst else 0.01 * rank,
                    "score": 10 ** (centre + 4.2) * rank**-0.6 if group == "top_k" else 1e-12 * rank,
                })  # fmt: skip
        step.write(make_table("ranking/1", rows, step.meta()), "ranking.csv")
        step.finish(tables={"ranking.csv": "ranking/1"})
        return step

    def _perturb(self, rank: Step) -> Step:
        step = self._step("perturb", {"rank": rank.id, "eval": self.digest})
        rng = np.random.default_rng(1)
        damage, faults, number = [], [], 0
        lists: list[tuple[str | None, str, int | None]] = [
            (m, g, None) for m in self.metrics for g in ("top_k", "bottom_k")
        ]
        lists += [(None, "random_k", draw) for draw in range(5)]
        for method in self.methods:
            name = method["method"]
            options = {key: value for key, value in method.items() if key not in ("method", "repeats")}
            options |= {f"key{self.evil}": self.evil} if self.evil else {}
            for metric, group, draw in lists:
                for k in (1, 10, 100):
                    for repeat in range(method.get("repeats", 1)):
                        number += 1
                        strength = {"magnitude": 0.6, "act_mag": 1.68}.get(metric or "", 0.2) * (
                            1 + 0.9 * math.log10(k)
                        )
                        strength *= {"sign_flip": 1.6, "bit_flip": 2.0}.get(name, 1.0) * self.effect
                        delta = strength if group == "top_k" else float(rng.normal(0, FLOOR * math.sqrt(k)))
                        if self.effect == 0:
                            delta = float(rng.uniform(-0.9, 0.9)) * FLOOR
                        outcome = "collapsed" if delta > 5 else "ok"
                        if self.broken and name == "bit_flip" and k == 100 and (group, repeat) == ("top_k", 1):
                            outcome = "nonfinite"
                        parameter, _, i, j = self._targets(metric, group, draw)[0]
                        damage.append(
                            self._row(f"{number:012x}", metric, group, draw, name, options, repeat, k, delta, outcome)
                        )
                        damage[-1]["group"] += self.evil if group == "bottom_k" else ""
                        damage[-1]["target"] = f"{parameter}:{i},{j}" if k == 1 else None
                        if name == "bit_flip":
                            fault = {"case": f"{number:012x}", "parameter": parameter, "index": i * 1536 + j, "bit": 14}
                            bits = {"old_bits": "0x3f80", "new_bits": "0x7f80", "old": 1.0, "new": None}
                            faults.append({**fault, "field": "exponent", **bits})
        damage += self._singles() if self.singles else []
        step.write(make_table("damage/1", damage, step.meta()), "damage.csv")
        step.write(make_table("windows/1", []), "windows.csv")
        tables = {"damage.csv": "damage/1", "windows.csv": "windows/1"}
        if faults:
            step.write(make_table("faults/1", faults, step.meta()), "faults.csv")
            tables["faults.csv"] = "faults/1"
        step.finish(
            tables=tables,
            model=self._model(),
            data=self._data("builtin:prose_eval", 32, 64),
            seeds=[0],
            checksum={"before": "c0" * 8, "after": "c0" * 8, "restored": True},
            noise_floor=FLOOR,
            num_cases=len(damage),
            num_reused=0,
        )
        return step

    def _singles(self) -> list[dict[str, Any]]:
        """Return five single weights per metric, set to zero one by one; the last one breaks the logits."""
        rows = []
        for metric in self.metrics:
            for n, (parameter, _, i, j) in enumerate(self._targets(metric, "top_k", None)[:5]):
                outcome = "nonfinite" if n == 4 and self.broken else "ok"
                delta = (1.68 if (i, j) == (507, 1229) else 0.2 / (n + 1)) * self.effect
                row = self._row(f"a{len(rows):011x}", metric, "top_k", None, "zero", {}, 0, 1, delta, outcome)
                rows.append({**row, "unit": "single", "target": f"{parameter}:{i},{j}"})
        return rows

    def _row(
        self, case: str, metric: str | None, group: str, draw: int | None, method: str, options: dict[str, Any], repeat: int,
        k: int, delta: float, outcome: str,
    ) -> dict[str, Any]:  # fmt: skip
        broken = outcome == "nonfinite"
        row = {
            "case": case, "metric": metric, "seed": None if metric == "magnitude" else 0, "group": group, "draw": draw,
            "method": method, "options": json.dumps(options), "repeat": repeat, "unit": "joint", "k": k, "nll_base": BASE,
            "ppl_base": math.exp(BASE), "accuracy_base": 0.41, "noise_floor": FLOOR, "outcome": outcome,
            "below_floor": None if broken else abs(delta) < FLOOR,
        }  # fmt: skip
        if not broken:
            row |= {
                "nll": BASE + delta, "delta_nll": delta, "delta_low": delta * 0.9, "delta_high": delta * 1.1,
                "ppl": math.exp(BASE + delta), "accuracy": 0.41 * math.exp(-abs(delta)), "agreement": math.exp(-abs(delta)),
                "kl": abs(delta) / 2,
            }  # fmt: skip
        return row

    def _overlap(self, rank: Step) -> Step:
        step = self._step("overlap", {"rank": rank.id})
        lists = [(metric, seed) for metric in self.metrics for seed in self.seeds(metric)]
        rows = []
        for k in (10, 100):
            for n, (metric_a, seed_a) in enumerate(lists):
                for metric_b, seed_b in lists[n + 1 :]:
                    shared = round(k * (0.9 if metric_a == metric_b else 0.12))
                    rows.append({
                        "run_a": rank.id, "metric_a": metric_a, "seed_a": seed_a, "run_b": rank.id, "metric_b": metric_b,
                        "seed_b": seed_b, "label_a": f"{metric_a} seed {seed_a}{self.evil}", "label_b": f"{metric_b} seed {seed_b}",
                        "by": "weight", "k": k, "size_a": k, "size_b": k, "shared": shared, "jaccard": shared / (2 * k - shared),
                        "universe": MODEL, "expected_jaccard": k / 2 / MODEL, "p_value": 0.0,
                    })  # fmt: skip
        step.write(make_table("overlap/1", rows, step.meta()), "overlap.csv")
        step.finish(tables={"overlap.csv": "overlap/1"})
        return step


@pytest.fixture
def fake(tmp_path: Path) -> Callable[..., Fake]:
    """Return a maker of fake runs under the test's own folder."""

    def make(**knobs: Any) -> Fake:
        made = Fake(tmp_path, **knobs)
        made.write()
        return made

    return make


@pytest.fixture
def damage(fake: Callable[..., Fake]) -> pl.DataFrame:
    """Return the fake run's damage table."""
    from esa.artifact import find_table

    return find_table(fake().folders["perturb"], "damage/1").frame


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let pages be written without drawing their charts, which takes nearly all of the time."""
    monkeypatch.setattr("esa.report.theme.render", lambda chart: (b"", '<svg width="1" height="1"></svg>'))
