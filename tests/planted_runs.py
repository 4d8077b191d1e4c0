"""Small complete runs of several models with planted truths, written through esa.artifact: what comparisons are tested on.

    run = Planted(tmp_path, "small", width=8, critical={"model.layers.0.mlp.down_proj.weight:3,5": 50.0}).write()
    runs = family(tmp_path, [8, 16, 32, 64], damage=lambda one, case: 0.1 * one.num_parameters**0.3)

No model exists behind a run: its parameters, their shapes and their scores are made up from the knobs, and every table is
reduced from the same scores by naive NumPy code, so that the tables of a run agree with each other.
"""

import json
import math
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from esa.artifact import Step, make_table, read_manifest
from esa.spec import Spec, generator, spec_from_dict
from tests.planted_shapes import Parameter, parameters_of
from tests.planted_tables import (
    EVALUATED,
    FLOOR,
    claim_rows,
    damage_row,
    histogram_rows,
    margin_rows,
    overlap_rows,
    tensor_rows,
)

Array = npt.NDArray[np.float64]
BASE = math.log(40.0)


class Case(NamedTuple):
    """What was changed in a case of the campaign, as ``damage`` is asked about it; ``targets`` are those changed."""

    metric: str | None
    seed: int | None
    group: str
    draw: int | None
    method: str
    options: dict[str, Any]
    unit: str
    k: int
    targets: tuple[str, ...]

    @property
    def dose(self) -> float | None:
        """Return the number among the options."""
        return next((float(value) for value in self.options.values()), None)


def harm(run: "Planted", case: Case) -> float | None:
    """Return the default damage in nats: what ``run.harms`` gives the changed targets, else next to nothing."""
    return sum(run.harms.get(target, 1e-5) for target in case.targets) * (1.0 if case.dose is None else case.dose)


@dataclass
class Planted:
    """The knobs of a planted run of one model.

    ``critical``: target -> its score as a multiple of the highest other score of its metric. ``harms``: target -> damage in
    nats of zeroing it, for the default ``damage(run, case)``; a damage of None is a nonfinite model, one above COLLAPSE a
    collapsed one. ``density``: component -> factor of its scores. ``depth(block)``:
    factor of a block's. ``usage(block, expert)``: share of the tokens that reach an expert; its scores grow with it.
    ``spread``: standard deviation of ln score; ``seed_noise``: of what a score seed adds to it. ``stated_parameters`` and
    ``facts`` go into the manifests in place of what the tensors say (a fact of None is left out, as runs of older days do).
    ``tables``: file name -> rows that replace a table's, or a function of the rows; ``more_steps``: step -> file -> kind, rows.
    """

    root: Path
    name: str = "planted"
    model_id: str | None = None
    architecture: str = "LlamaForCausalLM"
    model_type: str = "llama"
    blocks: int = 2
    width: int = 8
    inner: int | None = None  # channels inside the MLP, 3 width by default
    vocabulary: int = 32
    num_experts: int | None = None
    experts_per_token: int = 2
    tied: bool = False
    names: Mapping[str, str] = field(default_factory=dict)  # part of Llama's names -> another family's
    stated_parameters: int | None = None
    stated_vocabulary: int = 11_873  # a model that knows 40 of its tokens apart collapses at COLLAPSE nats of damage
    active_parameters: int | None = None
    chat_template: bool = False
    training: Mapping[str, Any] | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)
    fingerprint: str | None = None
    metrics: tuple[str, ...] = ("act_mag",)
    seeds: tuple[int, ...] = (0, 1)
    ks: tuple[int, ...] = (1, 10, 100)
    draws: int = 3
    methods: tuple[dict[str, Any], ...] = ({"method": "zero"},)
    singles: int = 3  # top weights that are also changed alone
    spread: float = 1.0
    seed_noise: float = 0.1
    model_seed: int = 0  # which random model this is
    density: Mapping[str, float] = field(default_factory=dict)
    depth: Callable[[int], float] = lambda block: 1.0
    usage: Callable[[int, int], float] | None = None
    critical: Mapping[str, float] = field(default_factory=dict)
    harms: Mapping[str, float] = field(default_factory=dict)
    damage: Callable[["Planted", Case], float | None] = harm
    half_width: float = 0.1  # of a damage's interval, as a share of the damage
    nll_base: float = BASE
    tasks: Mapping[str, float] = field(default_factory=dict)  # task -> accuracy, with a standard error of .02
    calibration: str = "builtin:prose"
    steps: tuple[str, ...] = ("score", "rank", "perturb", "overlap", "eval")
    settings: Mapping[str, Any] = field(default_factory=dict)  # sections of the spec that differ
    tables: Mapping[str, Any] = field(default_factory=dict)
    folders: dict[str, Path] = field(default_factory=dict)

    # the model

    @cached_property
    def parameters(self) -> list[Parameter]:
        """Return the weight matrices in the order of named_parameters."""
        found = parameters_of(
            self.blocks, self.width, self.inner or 3 * self.width, self.vocabulary, self.num_experts, tied=self.tied
        )
        return [one._replace(name=self._renamed(one.name)) for one in found]

    def _renamed(self, name: str) -> str:
        for old, new in self.names.items():
            name = name.replace(old, new)
        return name

    @property
    def num_weights(self) -> int:
        """Return how many weights the tensors hold."""
        return sum(math.prod(one.shape) for one in self.parameters)

    @property
    def num_parameters(self) -> int:
        """Return how many weights the manifests state."""
        return self.stated_parameters or self.num_weights

    def model(self) -> dict[str, Any]:
        """Return what the manifests say of the model."""
        active = self.active_parameters
        if active is None and not self.num_experts:
            active = self.num_parameters
        found = {
            "id": self.model_id or self.name, "revision": None, "architecture": self.architecture,
            "fingerprint": self.fingerprint or f"{self.name}-fingerprint", "dtype": "float32", "compute": "float32",
            "quantization": "none", "device": "cpu", "num_parameters": self.num_parameters, "active_parameters": active,
            "shape": {
                key: value for key, value in {
                    "architecture": self.architecture, "model_type": self.model_type, "num_blocks": self.blocks,
                    "hidden_size": self.width, "intermediate_size": self.inner or 3 * self.width,
                    "vocab_size": self.stated_vocabulary, "num_experts": self.num_experts,
                    "num_experts_per_tok": self.experts_per_token if self.num_experts else None,
                }.items() if value is not None
            },
            "chat_template": self.chat_template, "training": None if self.training is None else dict(self.training),
        } | dict(self.facts)  # fmt: skip
        return {
            key: value for key, value in found.items() if value is not None or key in ("revision", "active_parameters")
        }

    # the scores

    @cached_property
    def scores(self) -> dict[tuple[str, int | None], dict[str, Array]]:
        """Return the scores of every metric and seed by parameter; magnitude has one seed, null."""
        return {
            (metric, seed): self._scored(metric, seed)
            for metric in self.metrics for seed in ((None,) if metric == "magnitude" else self.seeds)
        }  # fmt: skip

    def _scored(self, metric: str, seed: int | None) -> dict[str, Array]:
        found = {}
        for one in self.parameters:
            shared = generator(self.model_seed, "planted", metric, one.name)
            own = generator(self.model_seed, "planted", metric, one.name, str(seed))
            log = self.spread * shared.standard_normal(one.shape) + self.seed_noise * own.standard_normal(one.shape)
            factor = self.density.get(one.component, 1.0)
            factor *= 1.0 if one.block is None else self.depth(one.block)
            scores = 1e-3 * factor * np.exp(log)
            if one.expert_axis is not None and self.usage is not None:
                shares = [self.usage(one.block or 0, expert) for expert in range(one.shape[0])]
                scores *= np.asarray(shares)[:, None, None]
            found[one.name] = scores
        highest = max(float(scores.max()) for scores in found.values())
        for target, multiple in self.critical.items():
            name, at = self.place(target)
            found[name][at] = multiple * highest
        return found

    def place(self, target: str) -> tuple[str, tuple[int, ...]]:
        """Return parameter and position of a target ``name:row,column``."""
        name, _, at = target.rpartition(":")
        return name, tuple(int(part) for part in at.split(","))

    def ordered(
        self, metric: str, seed: int | None, group: str = "top_k", most: int | None = None
    ) -> list[tuple[str, int, float]]:
        """Return parameter, index and score of all weights, or the first ``most``, the highest (of bottom_k: the lowest) first."""
        scores = np.concatenate([array.ravel() for array in self.scores[metric, seed].values()])
        places = np.argsort(scores if group == "bottom_k" else -scores, kind="stable")[:most]
        return [(*self.address(int(place)), float(scores[place])) for place in places]

    @cached_property
    def _starts(self) -> list[int]:
        return np.cumsum([0, *(math.prod(one.shape) for one in self.parameters)]).tolist()

    def address(self, place: int) -> tuple[str, int]:
        """Return parameter and index of a weight by its place among all of them."""
        number = bisect_right(self._starts, place) - 1
        return self.parameters[number].name, place - self._starts[number]

    def target(self, name: str, index: int) -> str:
        """Return a weight's address as a person types it."""
        shape = next(one.shape for one in self.parameters if one.name == name)
        return f"{name}:{','.join(str(int(i)) for i in np.unravel_index(index, shape))}"

    # the steps

    def write(self) -> Path:
        """Write the run's steps and run.json, and return the run folder."""
        score = self._score()
        rank = self._rank(score)  # what others are made from, whether the run names it or not
        make = {
            "score": lambda: score, "rank": lambda: rank, "perturb": lambda: self._perturb(rank.id, self.cases()),
            "overlap": lambda: self._overlap(rank), "eval": self._eval,
        }  # fmt: skip
        self.folders |= {step: one().folder for step, one in make.items() if step in self.steps}
        folder = self.root / "outputs" / self.name
        content = {"name": self.name, "spec": "spec.toml", "steps": {s: f.name for s, f in self.folders.items()}}
        (folder / "run.json").write_text(json.dumps(content))
        return folder

    @cached_property
    def spec(self) -> Spec:
        """Return the resolved spec."""
        tree: dict[str, Any] = {
            "name": self.name,
            "model": {"id": self.model_id or self.name},
            "calibration": {"source": self.calibration},
            "score": {"metrics": list(self.metrics), "seeds": list(self.seeds)},
            "rank": {"k": list(self.ks), "draws": self.draws},
            "perturb": [dict(method) for method in self.methods],
        }
        return spec_from_dict(tree | dict(self.settings))

    def _step(self, step: str, inputs: dict[str, str], tables: Mapping[str, tuple[str, Any]], **content: Any) -> Step:
        found = Step(step, self.spec, inputs, root=self.root / "outputs")
        found.begin(force=True)
        for file, (kind, rows) in tables.items():
            change = self.tables.get(file)
            kept = change(list(rows)) if callable(change) else list(rows) if change is None else change
            found.write(make_table(kind, [{**row, "run": found.id} for row in kept], found.meta()), file)
        found.finish(
            tables={file: kind for file, (kind, _) in tables.items()}, **({"seeds": list(self.seeds)} | content)
        )
        return found

    def _score(self) -> Step:
        return self._step(
            "score", {"model": self.model()["fingerprint"]},
            {
                "scores.parquet": ("scores/1", []),
                "tensors.parquet": ("tensors/1", tensor_rows(self)),
                "histogram.parquet": ("histogram/1", histogram_rows(self)),
                "margins.parquet": ("margins/1", margin_rows(self)),
            },
            model=self.model(),
            data=[self._data(self.calibration) | {"seed": seed} for seed in self.seeds],
        )  # fmt: skip

    def _data(self, source: str) -> dict[str, Any]:
        windows, length = EVALUATED
        return {
            "source": source, "packing": "stream", "windows": windows, "length": length, "tokens": windows * length,
            "sha256": f"{source}-tokens", "bos": False,
        }  # fmt: skip

    def lists(self) -> list[tuple[str | None, int | None, str, int | None, list[tuple[str, int, float]]]]:
        """Return metric, seed, group, draw and the ordered weights of every list of the ranking."""
        longest = max(self.ks)
        found: list[tuple[str | None, int | None, str, int | None, list[tuple[str, int, float]]]] = [
            (metric, seed, group, None, self.ordered(metric, seed, group, longest))
            for metric, seed in self.scores for group in ("top_k", "bottom_k")
        ]  # fmt: skip
        for draw in range(self.draws):
            chosen = generator(self.model_seed, "planted", "random_k", str(draw)).permutation(self.num_weights)[
                :longest
            ]
            weights = [(*self.address(int(place)), math.nan) for place in chosen]
            found.append((None, self.seeds[0], "random_k", draw, weights))
        return found

    def _rank(self, score: Step) -> Step:
        known = {one.name: one for one in self.parameters}
        rows = []
        for metric, seed, group, draw, weights in self.lists():
            for rank, (name, index, value) in enumerate(weights, start=1):
                one = known[name]
                at = tuple(int(i) for i in np.unravel_index(index, one.shape))
                rows.append({
                    "metric": metric, "seed": seed, "mode": "global", "unit_name": "all", "group": group, "draw": draw,
                    "rank": rank, "parameter": name, "index": int(index), "indices": str(at),
                    "layer": name.removesuffix(".weight"), "block": one.block, "component": one.component,
                    "expert": at[0] if one.expert_axis is not None else None,
                    "score": None if math.isnan(value) else value, "weight": 0.1,
                })  # fmt: skip
        return self._step("rank", {"score": score.id}, {"ranking.csv": ("ranking/1", rows)})

    def cases(self) -> list[Case]:
        """Return the campaign's cases: every list's first k under every method, and single top weights set to zero."""
        found = []
        for metric, seed, group, draw, weights in self.lists():
            if seed not in (None, self.seeds[0]):
                continue
            targets = [self.target(name, index) for name, index, _ in weights]
            for method in self.methods:
                options = {key: value for key, value in method.items() if key not in ("method", "repeats")}
                found += [
                    Case(metric, seed, group, draw, method["method"], options, "joint", k, tuple(targets[:k]))
                    for k in self.ks if k <= len(targets)
                ]  # fmt: skip
            if group == "top_k":
                found += [
                    Case(metric, seed, group, draw, "zero", {}, "single", 1, (one,)) for one in targets[: self.singles]
                ]
        return found

    def cross(self, other: "Planted") -> Path:
        """Write a perturb step in this run's model by the ranking of another run, and return its folder."""
        return self._perturb(read_manifest(other.folders["rank"])["run"], other.cases()).folder

    def _perturb(self, rank: str, cases: Sequence[Case]) -> Step:
        count, tokens = EVALUATED[0], EVALUATED[1] - 1
        about = {"case": "intact", "num_tokens": tokens, "num_correct": 0}
        damage: list[dict[str, Any]] = []
        windows = [{**about, "window": n, "nll": self.nll_base * tokens} for n in range(count)]
        noise = generator(self.model_seed, "planted", "windows").standard_normal(count)
        noise -= noise.mean()
        for number, case in enumerate(cases):
            value = self.damage(self, case)
            damage.append({"case": f"{number:012x}", **damage_row(self, case, value)})
            if value is not None:
                each = (self.nll_base + value * (1 + self.half_width * noise)) * tokens
                windows += [
                    {"case": f"{number:012x}", "window": n, "num_tokens": tokens, "nll": float(nll), "num_correct": 0}
                    for n, nll in enumerate(each)
                ]
        return self._step(
            "perturb", {"ranking": rank, "model": self.model()["fingerprint"]},
            {
                "damage.csv": ("damage/1", damage), "windows.csv": ("windows/1", windows),
                "tests.csv": ("tests/1", list(claim_rows(damage))),
            },
            model=self.model(), data=self._data("builtin:prose_eval"), noise_floor=FLOOR, num_cases=len(damage),
        )  # fmt: skip

    def _overlap(self, rank: Step) -> Step:
        return self._step("overlap", {"rank": rank.id}, {"overlap.csv": ("overlap/1", overlap_rows(self, rank.id))})

    def _eval(self) -> Step:
        tokens = EVALUATED[0] * (EVALUATED[1] - 1)
        about = {"case": "intact", "seed": None, "num_items": EVALUATED[0], "num_tokens": tokens}
        text = {"task": "language_modeling", "source": "builtin:prose_eval", "length": EVALUATED[1], "bos": False}
        figures = [("nll", self.nll_base), ("perplexity", math.exp(self.nll_base))]
        rows = [{**about, **text, "metric": m, "value": v, "intact": v, "stderr": 0.01 * v} for m, v in figures]
        rows += [
            {**about, "task": task, "metric": "acc", "value": value, "intact": value, "stderr": 0.02, "num_items": 500}
            for task, value in self.tasks.items()
        ]
        return self._step(
            "eval", {"model": self.model()["fingerprint"]}, {"eval.csv": ("eval/1", rows)}, model=self.model()
        )


def family(root: Path, widths: Sequence[int], *, training_seeds: Sequence[int] = (0,), **knobs: Any) -> list[Planted]:
    """Write a run per width and training seed and return them: one architecture, so each width is one model."""
    made = []
    for width in widths:
        for seed in training_seeds:
            losses = {"held_out_nll": 4.0, "bigram_nll": 5.0, "unigram_nll": 6.0}
            training = {"step": 100, "num_tokens": 12_800, "seed": seed, **losses}
            one = Planted(root, f"w{width}_seed{seed}", width=width, model_seed=1000 * width + seed, training=training)
            one = replace(one, **{key: value for key, value in knobs.items() if key != "training"})
            if "training" in knobs:
                one.training = training | knobs["training"]
            one.write()
            made.append(one)
    return made
