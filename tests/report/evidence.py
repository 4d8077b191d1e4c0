"""Tables of causal evidence with plausible numbers, written beside a fake run's: what criteria and their page are tested on."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from esa.artifact import Step, make_table, sha256_of
from esa.artifact.manifest import read_manifest
from tests.report.conftest import BASE, FLOOR, Fake

Tables = Mapping[str, tuple[str, Sequence[dict[str, Any]]]]
SUPER = "model.layers.11.mlp.down_proj.weight"


def add_tables(folder: Path, tables: Tables) -> None:
    """Write further tables into a finished step, as if it had written them: file name -> kind and rows."""
    manifest = read_manifest(folder)
    for name, (kind, rows) in tables.items():
        from esa.artifact.tables import write_table

        write_table(make_table(kind, list(rows)), folder / name)
        manifest["kinds"][name], manifest["outputs"][name] = kind, sha256_of(folder / name)
    (folder / "manifest.json").write_text(json.dumps(manifest))


def add_step(made: Fake, step: str, tables: Tables, inputs: Mapping[str, str] | None = None, **content: Any) -> Path:
    """Write another finished step of a fake run and return its folder."""
    assert made.spec is not None
    found = Step(step, made.spec, dict(inputs or {"model": made.fingerprint}), root=made.root / "outputs")
    found.begin()
    for name, (kind, rows) in tables.items():
        found.write(make_table(kind, list(rows), found.meta()), name)
    model = {
        "id": made.model_id,
        "architecture": "LlamaForCausalLM",
        "fingerprint": made.fingerprint,
        "num_parameters": 1000,
    }
    found.finish(tables={name: kind for name, (kind, _) in tables.items()}, **{"model": model, **content})
    return found.folder


def claim(name: str = "more_than_random", **changes: Any) -> dict[str, Any]:
    """Return a claim that holds on the joint top ten by act_mag."""
    row = {
        "claim": name, "phase": "screen", "metric": "act_mag", "seed": 0, "group": "top_k", "method": "zero", "options": "{}",
        "unit": "joint", "k": 10, "against": "random_k", "estimate": 1.5, "low": 1.2, "high": 1.8, "rule": "monte_carlo",
        "p_value": 0.05, "smallest_p": 0.05, "p_adjusted": 0.05, "adjustment": "benjamini_hochberg", "level": 0.05,
        "num_windows": 64, "num_draws": 19, "z": 40.0, "cliffs_delta": 1.0, "ratio": 12.0, "flags": None, "holds": True,
    }  # fmt: skip
    return row | changes


def claims() -> list[dict[str, Any]]:
    """Return the claims of a campaign with a confirmatory test."""
    confirmed = {
        "phase": "confirmatory",
        "p_value": 1 / 200,
        "smallest_p": 1 / 200,
        "p_adjusted": 1 / 200,
        "num_draws": 199,
    }
    shaken = {"method": "gauss_noise", "options": '{"sigma":0.1}', "dose": 0.1}
    return [
        claim("hurts", against="intact", rule="sign_flip", p_value=1e-4, p_adjusted=2e-4, num_draws=None, ratio=None),
        claim(**confirmed),
        claim("more_than_bottom", against="bottom_k", rule="sign_flip", p_value=1e-4, p_adjusted=1e-4, num_draws=None),
        claim(**shaken, ratio=0.8, holds=False, p_value=0.3, p_adjusted=0.4, flags="few_windows"),
        claim("no_harm", group="bottom_k", rule="tost", estimate=1e-6, low=-1e-5, high=1e-5, ratio=None, num_draws=None),
    ]  # fmt: skip


def dosed() -> list[dict[str, Any]]:
    """Return the claims that top weights hurt at four doses of noise, by two metrics."""
    return [
        claim(
            "hurts", metric=metric, method="gauss_noise", options=json.dumps({"sigma": sigma}), dose=sigma, against="intact",
            estimate=size * sigma, low=0.8 * size * sigma, high=1.2 * size * sigma,
        )
        for metric, size in (("act_mag", 2.5), ("grad_x_weight", 0.6))
        for sigma in (0.05, 0.1, 0.2, 0.5)
    ]  # fmt: skip


def noisy_draws() -> list[dict[str, Any]]:
    """Return the damage of random draws at the same doses."""
    return [
        {
            "case": f"n{sigma}{draw}", "group": "random_k", "draw": draw, "seed": 0, "method": "gauss_noise",
            "options": json.dumps({"sigma": sigma}), "dose": sigma, "unit": "joint", "k": 10, "nll_base": BASE, "ppl_base": 19.5,
            "nll": BASE + sigma * draw * 0.01, "delta_nll": sigma * draw * 0.01, "ppl": 19.5, "noise_floor": FLOOR, "outcome": "ok",
            "below_floor": False,
        }
        for sigma in (0.05, 0.1, 0.2, 0.5) for draw in range(5)
    ]  # fmt: skip


def dose(**changes: Any) -> dict[str, Any]:
    """Return a monotone dose-response of the top ten by act_mag."""
    row = {
        "metric": "act_mag", "seed": 0, "group": "top_k", "method": "gauss_noise", "option": "sigma", "unit": "joint", "k": 10,
        "doses": "0.05 0.1 0.2 0.5", "num_doses": 4, "num_broken": 0, "spearman": 1.0, "kendall": 1.0, "p_value": 1 / 24,
        "rising": 1.0, "isotonic_r2": 1.0, "page_p": 1e-9, "separates_at": 0.1, "merges_at": None, "curve": "power",
    }  # fmt: skip
    return row | changes


def candidate(rank: int, block: int, row: int, column: int, **changes: Any) -> dict[str, Any]:
    """Return a row of the detector's table."""
    name = f"model.layers.{block}.mlp.down_proj.weight"
    found = {
        "rank": rank, "parameter": name, "index": row * 1536 + column, "target": f"{name}:{row},{column}", "block": block, "row": row,
        "column": column, "weight": 5.876, "growth": 10604.0 / rank, "peak_ratio": 489.0, "num_seeds": 1, "role": "writer",
        "noise_floor": FLOOR, "ppl_base": 19.5, "delta_nll": 1.68, "delta_low": 1.5, "delta_high": 1.9, "ppl": 104.8, "outcome": "ok",
        "verdict": "critical",
    }  # fmt: skip
    return found | changes


def detected() -> list[dict[str, Any]]:
    """Return two writers that share a row, and an eraser that is harmless."""
    together = {
        "group": "row 507 of blocks 2, 11", "group_delta_nll": 2.85, "group_delta_low": 2.6, "group_delta_high": 3.1, "group_ppl": 336.4,
        "group_outcome": "ok", "added_nll": 1.2, "added_low": 1.0, "added_high": 1.4,
    }  # fmt: skip
    eraser = {
        "role": "eraser",
        "growth": -1132.0,
        "delta_nll": 1e-4,
        "delta_low": -1e-4,
        "delta_high": 3e-4,
        "ppl": 19.5,
    }
    return [
        candidate(1, 11, 507, 1229, **together),
        candidate(2, 28, 507, 33, **eraser, verdict="harmless"),
        candidate(3, 2, 507, 90, **{**together, "delta_nll": 0.31, "delta_low": 0.2, "delta_high": 0.4, "ppl": 26.65}),
    ]


def truths() -> list[dict[str, Any]]:
    """Return the figures of three metrics, not in the order of their truth."""
    return [
        {"metric": metric, "seed": seed, "quantity": quantity, "value": value, "low": value - 0.1, "high": value + 0.1, "num_weights": 300, "num_censored": 40}
        for metric, seed, base, behind in (("magnitude", None, 0.2, 0.05), ("obd", 0, 0.81, 0.0), ("act_mag", 0, 0.5, 0.31))
        for quantity, value in (("spearman", base), ("top_1_percent", base / 2), ("spearman_behind_best", behind))
    ]  # fmt: skip


def swept() -> list[dict[str, Any]]:
    """Return the sixteen bits of one weight, bit 14 of them fatal."""
    return [
        {
            "case": f"b{bit}", "parameter": SUPER, "index": 1, "target": f"{SUPER}:507,1229", "bit": bit,
            "field": "sign" if bit == 15 else "exponent" if bit > 6 else "mantissa", "old_bits": "0x40bc", "new_bits": "0x00bc",
            "old": 5.875, "new": None if bit == 13 else 2.0**bit, "nll": None if bit == 14 else BASE + bit / 20,
            "delta_nll": None if bit == 14 else bit / 20, "delta_low": None if bit == 14 else bit / 25, "delta_high": None if bit == 14 else bit / 15,
            "ppl": None if bit == 14 else 19.5 * 1.05**bit, "outcome": "nonfinite" if bit == 14 else "ok",
        }
        for bit in range(16)
    ]  # fmt: skip


def complete(made: Fake) -> list[Path]:
    """Give a fake run everything that a report shows, and return the folders of its further steps."""
    perturb = made.folders["perturb"]
    from esa.artifact import find_table

    damage = find_table(perturb, "damage/1").frame.to_dicts() + noisy_draws()
    pairs = [
        ("11.mlp.down_proj.weight:507,1229", "2.mlp.down_proj.weight:507,90", 0.9),
        ("3.mlp.down_proj.weight:1,2", "4.mlp.down_proj.weight:5,6", 1e-4),
    ]
    about = {"metric": "act_mag", "seed": 0, "group": "top_k", "method": "zero", "options": "{}"}
    moved = [
        {
            "case": "p",
            **about,
            "unit": "joint",
            "k": 10,
            "block": block,
            "tokens": tokens,
            "relative_change": change,
            "cosine": 1 - change,
            "max_abs_change": 9.0,
        }
        for block in range(30)
        for tokens, change in (
            ("first", 0.0 if block < 11 else 0.9),
            ("rest", 0.0 if block < 11 else 0.01 * (block - 9)),
        )
    ]
    add_tables(perturb, {
        "damage.csv": ("damage/1", damage),
        "tests.csv": ("tests/1", [*claims(), *dosed()]),
        "dose.csv": ("dose/1", [dose(), dose(metric="grad_x_weight", rising=2 / 3)]),
        "discrimination.csv": ("discrimination/1", [
            {"metric": "act_mag", "seed": 0, "method": "zero", "options": "{}", "k": 10, "damage": 1.5, "num_draws": 19, "z": 40.0, "auc": 1.0, "p_value": 0.05, "power": 1.0, "place": 1},
            {"metric": "act_mag", "seed": 0, "method": "gauss_noise", "options": '{"sigma":0.1}', "dose": 0.1, "k": 10, "damage": 0.2, "num_draws": 19, "z": 3.0, "auc": 0.9, "p_value": 0.05, "power": 0.6, "place": 2},
        ]),
        "bits.csv": ("bits/1", swept()),
        "interactions.csv": ("interactions/1", [
            {**about, "unit": "pairs", "k": 2, "target_a": f"model.layers.{a}", "target_b": f"model.layers.{b}", "joint": 2.8, "sum_of_singles": 1.9, "interaction": size, "low": size - 0.1, "high": size + 0.1, "num_windows": 64}
            for a, b, size in pairs
        ]),
        "propagation.csv": ("propagation/1", moved),
        "task_damage.csv": ("task_damage/1", [
            {"case": damage[0]["case"], "task": "hellaswag", "metric": "acc_norm", "value": 0.27, "intact": 0.43, "delta": -0.16, "delta_low": -0.2, "delta_high": -0.12, "p_value": 1e-4, "num_items": 500, "num_changed": 120},
        ]),
    })  # fmt: skip
    score = {"score": made.folders["score"].name.removeprefix("score-")}
    shares = [
        {
            "rate": rate,
            "by": "all",
            "outcome": outcome,
            "count": count,
            "trials": 100,
            "share": count / 100,
            "low": max(0, count / 100 - 0.05),
            "high": count / 100 + 0.05,
        }
        for rate, fatal in ((1e-9, 3), (1e-8, 40))
        for outcome, count in (("ok", 90 - fatal), ("degraded", 10), ("collapsed", fatal), ("fatal", fatal))
    ]
    shares += [
        {
            "by": "bit",
            "value": str(bit),
            "width": 16,
            "outcome": "fatal",
            "count": bit == 14,
            "trials": 5,
            "share": float(bit == 14),
            "low": 0.0,
            "high": 0.6,
        }
        for bit in (0, 14)
    ]
    rows = [
        {"curve": "k", "metric": metric, "mode": "global", "by": "weight", "k": k, "x": k, "pair": "between_seeds", "jaccard": 0.5, "expected_jaccard": 1e-4, "corrected": level, "low": level - 0.1, "high": level + 0.1, "num_pairs": 3}
        for metric, base in (("act_mag", 0.8), ("grad_x_weight", 0.3))
        for k, level in ((1, base), (10, base * 0.9), (100, base * 0.8))
    ]  # fmt: skip
    curve = add_step(made, "curve", {"curve.csv": ("curve/1", rows)}, curve="k")
    line = {
        "metric": "act_mag",
        "mode": "global",
        "by": "weight",
        "k": None,
        "pair": "between_seeds",
        "from": 1,
        "smallest": 1,
        "largest": 100,
        "chance_known": True,
    }
    size = {
        "k": {"global": 100, "per_layer": 1},
        "num_weights": {"global": 100.0, "per_layer": 100.0},
        "shared": 64.0,
        "share": 0.64,
    }
    modes = {"act_mag": {"equal_sizes": True, "sizes": [size], "reason": "global agrees better across seeds"}}
    (curve / "curve_summary.json").write_text(json.dumps({"curve": "k", "level": 0.5, "lines": [line], "modes": modes}))
    published = [
        {
            "model": "SmolLM2",
            "exact": True,
            "found": [f"{SUPER}:507,1229"],
            "missed": ["model.layers.1.mlp.down_proj.weight:1,2"],
        }
    ]
    evaluated = [
        {"case": "intact", "task": "language_modeling", "metric": metric, "value": value, "intact": value, "stderr": 0.01, "num_items": 64, "num_tokens": 8128, "source": "builtin:prose_eval", "length": 128, "bos": False, "seed": seed}
        for seed in (0, 1) for metric, value in (("nll", BASE), ("perplexity", 19.5))
    ]  # fmt: skip
    across = {
        "task": "language_modeling",
        "metric": "perplexity",
        "source": "builtin:prose_eval",
        "length": 128,
        "num_seeds": 2,
        "mean": 19.5,
        "sd": 0.4,
        "cv": 0.02,
        "min": 19.1,
        "max": 19.9,
    }
    return [
        add_step(made, "truth", {"truth.csv": ("truth/1", truths())}, score),
        add_step(made, "detector", {"detector.csv": ("detector/1", detected())}, score, published=published),
        add_step(made, "faults", {"fault_rates.csv": ("fault_rates/1", shares)}),
        add_step(made, "eval", {"eval.csv": ("eval/1", evaluated), "spread.csv": ("spread/1", [across])}),
        curve,
    ]  # fmt: skip
