"""Tables of steps that read several runs, with planted laws, forests, trees and experts: what the page across is tested on."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from esa.artifact import Step, make_table
from esa.spec import spec_from_dict

Rows = list[dict[str, Any]]
SIZES = (100_000, 300_000, 900_000, 1_300_000, 3_000_000, 6_000_000)
FAMILY = [f"llama-{size}-seed{seed}" for size in ("0.1m", "0.3m", "0.9m", "1.3m", "3m", "6m") for seed in (0, 1)]
TARGET, EXPONENT = 135_000_000.0, -0.3
MODELS = ("smollm2-135m", "llama-1.3m-seed0", "llama-6m-seed0", "mixtral-tiny")
COMPONENTS = ("embed", "attn.q", "attn.k", "attn.v", "attn.o", "mlp.gate", "mlp.up", "mlp.down")


def write_step(
    root: Path, step: str, tables: Mapping[str, Sequence[dict[str, Any]]], name: str = "llama_smollm2", **content: Any
) -> Path:
    """Write a finished step of several runs, a file per kind of table, and return its folder."""
    spec = spec_from_dict({"name": "several", "model": {"id": "smollm2-135m"}}).model_copy(update={"name": name})
    found = Step(step, spec, {"0:score": "0123456789ab", "asked": str(sorted(tables))}, root=root / "outputs")
    found.begin()
    files = {f"{kind.partition('/')[0]}.csv": kind for kind in tables}
    for file, kind in files.items():
        found.write(make_table(kind, [{"run": found.id, **row} for row in tables[kind]], found.meta()), file)
    found.finish(tables=files, **content)
    return found.folder


def noise(n: int) -> float:
    """Return a number between -1 and 1 that looks like chance and is the same every time."""
    return math.sin(12.9898 * (n + 1)) * 0.9


def points(quantity: str = "damage_top_k", subject: str | None = "obd, k = 10, zero", **changes: Any) -> Rows:
    """Return a point per member of the family, on a power law with a little noise; the smallest is excluded."""
    rows = []
    for n, label in enumerate(FAMILY):
        size = SIZES[n // 2]
        value = 40 * size**EXPONENT * math.exp(0.1 * noise(n))
        row = {
            "label": label, "source": f"outputs/{label}", "model": f"llama {size}", "family": "llama", "kind": "dense", "variant": "base",
            "training_seed": n % 2, "seed": 0, "num_parameters": size, "active_parameters": size, "quantity": quantity,
            "subject": subject, "value": value, "low": value * 0.9, "high": value * 1.1,
            "excluded": "its held-out NLL 5.2 is not under the bigram's 4.9" if n == 0 else None,
        }  # fmt: skip
        rows.append(row | changes)
    return rows


def law(**changes: Any) -> dict[str, Any]:
    """Return the row of a power law over the number of parameters."""
    row = {
        "over": "parameters", "model": None, "quantity": "damage_top_k", "subject": "obd, k = 10, zero", "response": "log", "num_models": 6,
        "num_points": 11, "law": "power", "weight": 0.88, "r2": 0.97, "power_r2": 0.97,
        "exponent": EXPONENT, "exponent_low": -0.33, "exponent_high": -0.27, "prediction_error": 0.08, "target": TARGET,
        "predicted": 40 * TARGET**EXPONENT, "predicted_low": 0.1, "predicted_high": 0.2, "changepoint": 9e5, "changepoint_low": 3e5,
        "changepoint_high": 3e6, "slope_below": -0.31, "slope_above": -0.29, "changepoint_p": 0.4, "changepoint_p_adjusted": 0.8, "flags": None,
        "verdict": "Power law x^-0.30 [-0.33, -0.27] (R2 0.97, weight 0.88)",
    }  # fmt: skip
    return row | changes


def band(**changes: Any) -> Rows:
    """Return the power law with a widening band from the smallest model to the target."""
    start, end = math.log(SIZES[0]), math.log(TARGET)
    rows = []
    for n in range(60):
        x = math.exp(start + (end - start) * n / 59)
        y = 40 * x**EXPONENT
        spread = 0.05 + 0.5 * max(0, n - 34) / 25
        row = {
            "over": "parameters",
            "quantity": "damage_top_k",
            "subject": "obd, k = 10, zero",
            "law": "power",
            "x": x,
            "y": y,
        }
        rows.append({**row, "low": y * math.exp(-spread), "high": y * math.exp(spread), **changes})
    return rows


def flat(quantity: str, level: float) -> tuple[Rows, dict[str, Any], Rows]:
    """Return points, law and band of a quantity that does not change with size."""
    places = points(quantity, "act_mag", kind=None)
    rows = [{**row, "value": level + 0.02 * noise(3 * n), "low": None, "high": None} for n, row in enumerate(places)]
    found = law(
        quantity=quantity, subject="act_mag", response="natural", law="linear", r2=0.1, power_r2=0.12, weight=0.4, predicted=level,
        predicted_low=level - 0.1, predicted_high=level + 0.1, exponent=0.01, exponent_low=-0.05, exponent_high=0.06, changepoint=None, flags="indicative", verdict="No power law (R2 0.12)",
    )  # fmt: skip
    line = [
        {
            **row,
            "quantity": quantity,
            "subject": "act_mag",
            "law": "linear",
            "y": level,
            "low": level - 0.01,
            "high": level + 0.01,
        }
        for row in band()
    ]
    return rows, found, line


def scaling(root: Path) -> Path:
    """Write a scale step: one power law with two families, one quantity without a law, and who is excluded."""
    flat_points, flat_law, flat_band = flat("seed_jaccard", 0.6)
    other = [{**row, "family": "gpt_neox", "label": f"pythia-{n}"} for n, row in enumerate(points()) if n % 3 == 2]
    terms = [
        {"quantity": "damage_top_k", "subject": "obd, k = 10, zero", "term": "family", "level": "llama", "against": "gpt_neox", "estimate": 0.2, "low": -0.1, "high": 0.5, "p_value": 0.2, "p_adjusted": 0.4, "num_models": 10, "num_points": 15},
        {"quantity": "damage_top_k", "subject": "obd, k = 10, zero", "term": "kind", "why": "all models are dense"},
    ]  # fmt: skip
    return write_step(root, "scale", {
        "points/1": [*points(), *other, *flat_points], "laws/1": [law(), flat_law], "bands/1": [*band(), *flat_band],
        "covariates/1": terms,
    })  # fmt: skip


STEPS = (0, 350, 700, 1400, 2800, 5600)


def training(root: Path) -> Path:
    """Write a scale step over checkpoints: a weight that is always there, some that come and stay, one that left."""
    model, rows, emergence = "llama-1.3m-seed0", [], []
    for n in range(8):
        since = 0 if n == 0 else min(n, 5)
        target = f"model.layers.{n}.mlp.down_proj.weight:{n},{2 * n}"
        gone = n == 7
        inside = [(place < 2) if gone else place >= since for place in range(len(STEPS))]
        ranks = [
            n + 1 if there else (None if gone or place == 0 else 30 * (6 - place)) for place, there in enumerate(inside)
        ]
        for place, step in enumerate(STEPS):
            rows.append({
                "model": model, "label": f"checkpoint-{step}", "metric": "obd", "seed": 0, "k": 10, "step": step, "num_tokens": step * 8192,
                "parameter": target.partition(":")[0], "index": n, "target": target, "rank": ranks[place], "score": 1.0 / (n + 1),
                "in_top": inside[place],
            })  # fmt: skip
        emergence.append({
            "model": model, "metric": "obd", "seed": 0, "k": 10, "parameter": target.partition(":")[0], "index": n, "target": target,
            "final_rank": None if gone else n + 1, "num_checkpoints": len(STEPS), "num_in_top": sum(inside), "first_in_top": STEPS[since if not gone else 0],
            "stays_from": None if gone else STEPS[since], "num_exits": int(gone),
        })  # fmt: skip
    jaccard = [
        {"label": f"checkpoint-{step}", "model": model, "step": step, "num_tokens": step * 8192, "quantity": "final_jaccard", "subject": f"obd, k = {k}", "seed": 0, "value": min(1.0, 0.1 + n / 5)}
        for k in (10, 100) for n, step in enumerate(STEPS)
    ]  # fmt: skip
    return write_step(
        root, "scale", {"trajectory/1": rows, "emergence/1": emergence, "points/1": jaccard}, name="checkpoints"
    )


def pooled(root: Path) -> Path:
    """Write a scale step of a meta-analysis: six models, one left out, pooled beside a subject that could not be."""
    subject = "obd, zero, k = 10"
    effects = [
        {"label": label, "model": label, "family": "llama", "num_parameters": SIZES[n], "subject": subject, "effect": 1 + 0.4 * noise(n), "stderr": 0.1 * (1 + n), "low": 1 + 0.4 * noise(n) - 0.2 * (1 + n), "high": 1 + 0.4 * noise(n) + 0.2 * (1 + n), "weight": (6 - n) / 21}
        for n, label in enumerate(FAMILY[::2])
    ]  # fmt: skip
    effects.append(
        {
            "label": "mixtral-tiny",
            "model": "mixtral-tiny",
            "family": "mixtral",
            "subject": subject,
            "excluded": "the top weights leave NaN or Inf",
        }
    )
    meta = [
        {"subject": subject, "num_models": 6, "mean": 1.05, "low": 0.8, "high": 1.3, "prediction_low": 0.3, "prediction_high": 1.8, "p_value": 2e-4, "tau2": 0.08, "i2": 0.62, "q": 13.2, "q_p": 0.02},
        {"subject": "magnitude, zero, k = 10", "num_models": 2, "why": "2 models; at least 3 are needed"},
    ]  # fmt: skip
    return write_step(root, "scale", {"effects/1": effects, "meta/1": meta}, name="meta")


def shares(models: Sequence[str] = MODELS) -> Rows:
    """Return shares by component, part and depth of each model by two metrics: mlp.down holds the most per weight."""
    rows = []
    for m, label in enumerate(models):
        for metric in ("obd", "act_mag"):
            about = {"label": label, "metric": metric, "seed": 0, "k": 100}
            density = {name: 0.5 + 0.2 * n for n, name in enumerate(COMPONENTS)} | {"mlp.down": 6.0 + m}
            weight = {name: 0.05 + 0.02 * n for n, name in enumerate(COMPONENTS)}
            total = sum(weight.values())
            parts = [("component", name, None, weight[name] / total, density[name]) for name in COMPONENTS]
            parts += [
                ("part", "attention", None, 0.3, 0.6),
                ("part", "mlp", None, 0.5, 1.8 + m / 5),
                ("part", "embedding", None, 0.2, 0.05),
            ]
            blocks = 6 + 6 * m
            parts += [
                ("depth", str(b), (b + 0.5) / blocks, 1 / blocks, 0.3 + 2 * ((b + 0.5) / blocks - 0.3) ** 2 + 0.1 * m)
                for b in range(blocks)
            ]
            for by, value, depth, share, dense in parts:
                tried = {
                    "num_tested": 7,
                    "mean_damage": 0.4,
                    "max_damage": 2.1,
                    "joint_damage": 5.0,
                    "joint_low": 4.0,
                    "joint_high": 6.0,
                }
                rows.append({
                    **about, "by": by, "value": value, "relative_depth": depth, "numel": round(share * 1e6), "weight_share": share,
                    "score_share": share * dense, "density": dense, "num_top": 3, **(tried if value == "mlp" else {}),
                })  # fmt: skip
    return rows


def experts(label: str = "mixtral-tiny") -> Rows:
    """Return eight experts of four blocks: the one with the most tokens holds the most score, one got none."""
    rows = []
    for block in range(4):
        raw = [
            0.0 if (block, e) == (3, 7) else 1 + (e == block) * 4 + 0.3 * abs(noise(block * 8 + e)) for e in range(8)
        ]
        for e, use in enumerate(raw):
            share = (use**1.2) / 60
            rows.append({
                "label": label, "metric": "obd", "seed": 0, "block": block, "expert": e, "numel": 10_000, "usage": use / sum(raw), "score": share,
                "score_share": share, "density": share * 40, "num_top": int(use),
            })  # fmt: skip
    return rows


def answer(question: str, quantity: str, **content: Any) -> dict[str, Any]:
    """Return a row of ``comparison/1``."""
    return {"question": question, "a": MODELS[0], "metric": "obd", "quantity": quantity, **content}


def answers() -> Rows:
    """Return what every question of the comparison says, one of them refused."""
    tested = {
        "expected": 0.1,
        "null": "permuted",
        "p_value": 0.001,
        "smallest_p": 0.0001,
        "p_adjusted": 0.002,
        "num": 100,
    }
    return [
        answer("attention against MLP", "density_ratio", value=0.31, low=0.2, high=0.5, num=30),
        answer("depth", "centre_of_mass", value=0.61, low=0.5, high=0.7, num=30),
        answer("concentration over experts", "gini", a="mixtral-tiny", value=0.4, low=0.3, high=0.5, expected=0.0, num=32),
        answer("specialisation", "js_divergence", a="mixtral-tiny", why="only one calibration text is at hand"),
        answer("clustering", "shares_row", value=0.42, **tested),
        answer("variants", "jaccard", b="llama-6m-seed0", value=0.7, **tested),
        answer("transfer", "log_density", b="llama-6m-seed0", value=1.2, low=0.9, high=1.5, **tested),
        answer("between", "log_density_mlp", b="llama-6m-seed0", value=0.3, **{**tested, "p_value": 0.4, "p_adjusted": 0.8}),
        answer("profiles", "silhouette", value=0.5, **tested),
        answer("tree", "cophenetic_correlation", a="all runs", value=0.93, num=4),
        answer("family classifier", "accuracy", a="all runs", why="models by family: llama 2; at least 2 families of 3 models each are needed"),
        answer("robustness", "spearman", a="all runs", why="4 models with a task score; at least 5 are needed"),
        answer("something new", "novelty", value=0.5),
    ]  # fmt: skip


def robustness() -> Rows:
    """Return four models in the order of their damage, with a task each; two are on the front."""
    rows = []
    for n, (label, damage, score) in enumerate(
        zip(MODELS, (0.3, 0.9, 2.5, 4.0), (0.42, 0.35, 0.44, 0.28), strict=True), start=1
    ):
        rows.append({
            "label": label, "family": "llama", "num_parameters": SIZES[n], "metric": "obd", "method": "zero", "k": 100, "damage": damage,
            "low": damage * 0.8, "high": damage * 1.2, "rank": n, "rank_low": n, "rank_high": min(4, n + (n > 1)), "task": "arc_easy",
            "task_metric": "acc", "task_score": score, "task_low": score - 0.03, "task_high": score + 0.03, "on_front": n in (1, 3),
        })  # fmt: skip
    return rows


def profiles() -> Rows:
    """Return three clusters of blocks, early, middle and late, and two blocks that HDBSCAN leaves out."""
    return [
        {"label": label, "metric": "obd", "block": block, "relative_depth": (block + 0.5) / count, "feature": feature, "value": 0.1, "kmeans": min(2, 3 * block // count), "hdbscan": -1 if block == 0 and count < 13 else 0}
        for label, count in zip(MODELS, (30, 6, 12, 18), strict=True) for block in range(count) for feature in ("density", "top")
    ]  # fmt: skip


def positions() -> Rows:
    """Return ten critical weights of two variants: seven stay, one moves, one vanishes, one appears."""
    states = ["stays"] * 7 + ["moves", "vanishes", "appears"]
    rows = []
    for n, status in enumerate(states):
        target = f"model.layers.{n}.mlp.down_proj.weight:{n},7"
        rows.append({
            "a": MODELS[0], "b": f"{MODELS[0]}-base", "metric": "obd", "k": 10, "parameter": target.partition(":")[0], "index": n, "target": target,
            "block": n, "component": "mlp.down", "rank_a": None if status == "appears" else n + 1,
            "rank_b": None if status == "vanishes" else n + 2, "status": status,
            "moved_from": "model.layers.7.mlp.down_proj.weight:7,9" if status == "moves" else None,
        })  # fmt: skip
    return rows


def comparing(root: Path) -> Path:
    """Write an arch step with every table that the page shows."""
    tree = [
        {"metric": "obd", "merge": 1, "left": MODELS[1], "right": MODELS[2], "distance": 0.1, "size": 2},
        {"metric": "obd", "merge": 2, "left": MODELS[0], "right": "merge 1", "distance": 0.3, "size": 3},
        {"metric": "obd", "merge": 3, "left": MODELS[3], "right": "merge 2", "distance": 0.7, "size": 4},
    ]  # fmt: skip
    features = [
        {"metric": "obd", "feature": f"log density of {name}", "importance": 1.5 - 0.2 * n, "low": 1.2 - 0.2 * n, "high": 1.8 - 0.2 * n, "families": "llama gpt_neox"}
        for n, name in enumerate(("mlp out", "attention in", "mlp in"))
    ]  # fmt: skip
    return write_step(root, "arch", {
        "comparison/1": answers(), "shares/1": shares(), "experts/1": experts(), "positions/1": positions(), "profiles/1": profiles(),
        "tree/1": tree, "features/1": features, "robustness/1": robustness(),
    })  # fmt: skip
