"""The columns of every table that esa reads and writes, in order, with their types."""

import polars as pl

TEXT, INT, REAL, SINGLE, FLAG = pl.String, pl.Int64, pl.Float64, pl.Float32, pl.Boolean

SCHEMA_VERSION = 1

SCHEMAS: dict[str, dict[str, type[pl.DataType]]] = {
    "scores/1": {
        "run": TEXT, "metric": TEXT, "seed": INT, "stratum": TEXT, "parameter": TEXT, "index": INT, "numel": INT,
        "expert": INT, "score": SINGLE, "signed": SINGLE, "stderr": SINGLE, "weight": SINGLE,
    },
    "tensors/1": {
        "run": TEXT, "metric": TEXT, "seed": INT, "parameter": TEXT, "layer": TEXT, "block": INT, "component": TEXT,
        "expert": INT, "shape": TEXT, "numel": INT, "tied": FLAG, "uses": TEXT, "usage": REAL, "num_zero": INT,
        "mean": REAL, "std": REAL, "min": REAL, "max": REAL, "sum": REAL, "q50": REAL, "q90": REAL, "q95": REAL,
        "q99": REAL, "q999": REAL, "peak": REAL, "peak_ratio": REAL, "peak_token": INT, "peak_row": INT,
    },
    "histogram/1": {
        "run": TEXT, "metric": TEXT, "seed": INT, "parameter": TEXT, "bin_low": REAL, "bin_high": REAL, "count": INT,
    },
    "margins/1": {
        "run": TEXT, "metric": TEXT, "seed": INT, "parameter": TEXT, "axis": TEXT, "position": INT, "sum": REAL,
        "max": REAL,
    },
    "ranking/1": {
        "run": TEXT, "metric": TEXT, "seed": INT, "mode": TEXT, "unit_name": TEXT, "group": TEXT, "draw": INT,
        "rank": INT, "parameter": TEXT, "index": INT, "indices": TEXT, "layer": TEXT, "block": INT, "component": TEXT,
        "expert": INT, "score": REAL, "signed": REAL, "weight": REAL, "match_ratio": REAL,
    },
    "damage/1": {
        "run": TEXT, "case": TEXT, "metric": TEXT, "seed": INT, "group": TEXT, "draw": INT, "method": TEXT,
        "options": TEXT, "dose": REAL, "repeat": INT, "unit": TEXT, "k": INT, "nll": REAL, "nll_base": REAL,
        "delta_nll": REAL, "delta_low": REAL, "delta_high": REAL, "noise_floor": REAL, "below_floor": FLAG,
        "ppl": REAL, "ppl_base": REAL, "accuracy": REAL, "accuracy_base": REAL, "agreement": REAL, "kl": REAL,
        "outcome": TEXT, "target": TEXT,
    },
    "windows/1": {
        "run": TEXT, "case": TEXT, "window": INT, "num_tokens": INT, "nll": REAL, "num_correct": INT,
    },
    "faults/1": {
        "run": TEXT, "case": TEXT, "parameter": TEXT, "index": INT, "bit": INT, "field": TEXT, "old_bits": TEXT,
        "new_bits": TEXT, "old": REAL, "new": REAL,
    },
    "bits/1": {
        "run": TEXT, "case": TEXT, "parameter": TEXT, "index": INT, "target": TEXT, "bit": INT, "field": TEXT,
        "old_bits": TEXT, "new_bits": TEXT, "old": REAL, "new": REAL, "nll": REAL, "delta_nll": REAL, "delta_low": REAL,
        "delta_high": REAL, "ppl": REAL, "outcome": TEXT,
    },
    "fault_list/1": {
        "run": TEXT, "rate": REAL, "trial": INT, "parameter": TEXT, "index": INT, "bit": INT, "width": INT, "word": INT,
        "codeword_bit": INT,
    },
    "fault_trials/1": {
        "run": TEXT, "rate": REAL, "trial": INT, "num_faults": INT, "num_words": INT, "num_corrected": INT,
        "num_detected": INT, "num_silent": INT, "num_flips": INT, "nll": REAL, "delta_nll": REAL, "ppl": REAL,
        "outcome": TEXT,
    },
    "fault_rates/1": {
        "run": TEXT, "rate": REAL, "by": TEXT, "value": TEXT, "width": INT, "outcome": TEXT, "count": INT, "trials": INT,
        "share": REAL, "low": REAL, "high": REAL,
    },
    "interactions/1": {
        "run": TEXT, "metric": TEXT, "seed": INT, "group": TEXT, "draw": INT, "method": TEXT, "options": TEXT,
        "unit": TEXT, "k": INT, "target_a": TEXT, "target_b": TEXT, "joint": REAL, "sum_of_singles": REAL,
        "interaction": REAL, "low": REAL, "high": REAL, "num_windows": INT,
    },
    "propagation/1": {
        "run": TEXT, "case": TEXT, "metric": TEXT, "seed": INT, "group": TEXT, "draw": INT, "method": TEXT,
        "options": TEXT, "repeat": INT, "unit": TEXT, "k": INT, "target": TEXT, "block": INT, "tokens": TEXT,
        "relative_change": REAL, "cosine": REAL, "max_abs_change": REAL,
    },
    "truth/1": {
        "run": TEXT, "metric": TEXT, "seed": INT, "quantity": TEXT, "value": REAL, "low": REAL, "high": REAL,
        "num_weights": INT, "num_censored": INT,
    },
    "truth_weights/1": {
        "run": TEXT, "parameter": TEXT, "index": INT, "target": TEXT, "weight": REAL, "sampling_weight": REAL,
        "certain": FLAG, "case": TEXT, "delta_nll": REAL, "noise_floor": REAL, "below_floor": FLAG, "outcome": TEXT,
        "metric": TEXT, "seed": INT, "score": REAL, "signed": REAL,
    },
    "detector/1": {
        "run": TEXT, "rank": INT, "parameter": TEXT, "index": INT, "target": TEXT, "block": INT, "expert": INT, "row": INT,
        "column": INT, "weight": REAL, "growth": REAL, "peak_ratio": REAL, "num_seeds": INT, "role": TEXT,
        "published": FLAG, "group": TEXT, "noise_floor": REAL, "ppl_base": REAL, "delta_nll": REAL, "delta_low": REAL,
        "delta_high": REAL, "below_floor": FLAG, "ppl": REAL, "outcome": TEXT, "group_delta_nll": REAL,
        "group_delta_low": REAL, "group_delta_high": REAL, "group_ppl": REAL, "group_outcome": TEXT, "added_nll": REAL,
        "added_low": REAL, "added_high": REAL, "verdict": TEXT,
    },
    "overlap/1": {
        "run": TEXT, "run_a": TEXT, "metric_a": TEXT, "seed_a": INT, "run_b": TEXT, "metric_b": TEXT, "seed_b": INT,
        "label_a": TEXT, "label_b": TEXT, "by": TEXT, "k": INT, "size_a": INT, "size_b": INT, "shared": INT,
        "jaccard": REAL, "universe": INT, "null": TEXT, "expected_jaccard": REAL, "p_value": REAL,
        "overlap_coefficient": REAL, "rbo": REAL, "spearman": REAL, "kendall": REAL,
    },
    "curve/1": {
        "run": TEXT, "curve": TEXT, "metric": TEXT, "mode": TEXT, "by": TEXT, "k": INT, "x": INT, "pair": TEXT,
        "jaccard": REAL, "expected_jaccard": REAL, "corrected": REAL, "low": REAL, "high": REAL, "num_pairs": INT,
    },
    "confidence/1": {
        "run": TEXT, "metric": TEXT, "mode": TEXT, "k": INT, "unit_name": TEXT, "parameter": TEXT, "index": INT,
        "indices": TEXT, "num_seeds": INT, "seed_share": REAL, "resample_share": REAL, "mean_rank": REAL, "low": REAL,
        "high": REAL,
    },
    "eval/1": {
        "run": TEXT, "case": TEXT, "task": TEXT, "metric": TEXT, "value": REAL, "intact": REAL, "stderr": REAL,
        "num_items": INT, "num_tokens": INT, "source": TEXT, "length": INT, "bos": FLAG, "seed": INT,
    },
    "items/1": {
        "run": TEXT, "case": TEXT, "task": TEXT, "item": INT, "choice": INT, "metric": TEXT, "value": REAL,
    },
    "continuations/1": {
        "run": TEXT, "case": TEXT, "item": INT, "prompt": TEXT, "continuation": TEXT, "num_tokens": INT,
    },
    "spread/1": {
        "run": TEXT, "task": TEXT, "metric": TEXT, "source": TEXT, "length": INT, "num_seeds": INT, "mean": REAL,
        "sd": REAL, "cv": REAL, "min": REAL, "max": REAL,
    },
    "task_damage/1": {
        "run": TEXT, "case": TEXT, "task": TEXT, "metric": TEXT, "value": REAL, "intact": REAL, "delta": REAL,
        "delta_low": REAL, "delta_high": REAL, "p_value": REAL, "num_items": INT, "num_changed": INT,
    },
    "arch/1": {
        "run": TEXT, "parameter": TEXT, "layer": TEXT, "block": INT, "component": TEXT, "expert": INT, "shape": TEXT,
        "numel": INT, "dtype": TEXT, "bytes": INT, "tied": FLAG, "uses": TEXT, "active": INT,
    },
    "fits/1": {
        "run": TEXT, "quantity": TEXT, "model": TEXT, "parameter": TEXT, "value": REAL, "low": REAL, "high": REAL,
        "r2": REAL, "aicc": REAL, "weight": REAL, "num_points": INT,
    },
    "tests/1": {
        "run": TEXT, "claim": TEXT, "phase": TEXT, "metric": TEXT, "seed": INT, "group": TEXT, "draw": INT, "method": TEXT,
        "options": TEXT, "dose": REAL, "unit": TEXT, "k": INT, "target": TEXT, "against": TEXT, "estimate": REAL,
        "low": REAL, "high": REAL, "bca_low": REAL, "bca_high": REAL, "rule": TEXT, "p_value": REAL, "smallest_p": REAL,
        "p_adjusted": REAL, "adjustment": TEXT, "level": REAL, "num_windows": INT, "num_draws": INT, "z": REAL,
        "cliffs_delta": REAL, "ratio": REAL, "flags": TEXT, "holds": FLAG,
    },
    "dose/1": {
        "run": TEXT, "metric": TEXT, "seed": INT, "group": TEXT, "draw": INT, "method": TEXT, "option": TEXT, "unit": TEXT,
        "k": INT, "target": TEXT, "doses": TEXT, "num_doses": INT, "num_broken": INT, "spearman": REAL, "kendall": REAL,
        "p_value": REAL, "rising": REAL, "isotonic_r2": REAL, "page_p": REAL, "separates_at": REAL, "merges_at": REAL,
        "curve": TEXT,
    },
    "discrimination/1": {
        "run": TEXT, "metric": TEXT, "seed": INT, "method": TEXT, "options": TEXT, "dose": REAL, "k": INT, "damage": REAL,
        "num_draws": INT, "z": REAL, "auc": REAL, "p_value": REAL, "power": REAL, "place": INT,
    },
    "reliability/1": {
        "run": TEXT, "over": TEXT, "metric": TEXT, "seed": INT, "group": TEXT, "draw": INT, "method": TEXT, "options": TEXT,
        "unit": TEXT, "k": INT, "target": TEXT, "num_cases": INT, "num_measurements": INT, "num_broken": INT, "mean": REAL,
        "sd": REAL, "cv": REAL, "icc": REAL, "low": REAL, "high": REAL,
    },
    "criteria/1": {
        "run": TEXT, "id": TEXT, "quantity": TEXT, "subject": TEXT, "value": REAL, "low": REAL, "high": REAL,
        "verdict": TEXT, "why": TEXT,
    },
    "points/1": {
        "run": TEXT, "label": TEXT, "source": TEXT, "model": TEXT, "family": TEXT, "kind": TEXT, "variant": TEXT,
        "training_seed": INT, "seed": INT, "num_parameters": INT, "active_parameters": INT, "step": INT, "num_tokens": INT,
        "quantity": TEXT, "subject": TEXT, "k": INT, "value": REAL, "low": REAL, "high": REAL, "excluded": TEXT,
    },
    "laws/1": {
        "run": TEXT, "over": TEXT, "model": TEXT, "quantity": TEXT, "subject": TEXT, "response": TEXT, "num_models": INT,
        "num_points": INT, "law": TEXT, "weight": REAL, "r2": REAL, "power_r2": REAL, "exponent": REAL,
        "exponent_low": REAL, "exponent_high": REAL, "prediction_error": REAL, "target": REAL, "predicted": REAL,
        "predicted_low": REAL, "predicted_high": REAL, "changepoint": REAL, "changepoint_low": REAL,
        "changepoint_high": REAL, "slope_below": REAL, "slope_above": REAL, "changepoint_p": REAL,
        "changepoint_p_adjusted": REAL, "flags": TEXT, "verdict": TEXT,
    },
    "bands/1": {
        "run": TEXT, "over": TEXT, "model": TEXT, "quantity": TEXT, "subject": TEXT, "law": TEXT, "x": REAL, "y": REAL,
        "low": REAL, "high": REAL,
    },
    "covariates/1": {
        "run": TEXT, "quantity": TEXT, "subject": TEXT, "term": TEXT, "level": TEXT, "against": TEXT, "estimate": REAL,
        "low": REAL, "high": REAL, "p_value": REAL, "p_adjusted": REAL, "num_models": INT, "num_points": INT, "why": TEXT,
    },
    "effects/1": {
        "run": TEXT, "label": TEXT, "model": TEXT, "family": TEXT, "num_parameters": INT, "subject": TEXT, "effect": REAL,
        "stderr": REAL, "low": REAL, "high": REAL, "weight": REAL, "excluded": TEXT,
    },
    "meta/1": {
        "run": TEXT, "subject": TEXT, "num_models": INT, "mean": REAL, "low": REAL, "high": REAL, "prediction_low": REAL,
        "prediction_high": REAL, "p_value": REAL, "tau2": REAL, "i2": REAL, "q": REAL, "q_p": REAL, "why": TEXT,
    },
    "trajectory/1": {
        "run": TEXT, "model": TEXT, "label": TEXT, "metric": TEXT, "seed": INT, "k": INT, "step": INT, "num_tokens": INT,
        "parameter": TEXT, "index": INT, "target": TEXT, "rank": INT, "score": REAL, "in_top": FLAG,
    },
    "emergence/1": {
        "run": TEXT, "model": TEXT, "metric": TEXT, "seed": INT, "k": INT, "parameter": TEXT, "index": INT, "target": TEXT,
        "final_rank": INT, "num_checkpoints": INT, "num_in_top": INT, "first_in_top": INT, "stays_from": INT,
        "num_exits": INT,
    },
    "shares/1": {
        "run": TEXT, "label": TEXT, "metric": TEXT, "seed": INT, "by": TEXT, "value": TEXT, "relative_depth": REAL,
        "numel": INT, "weight_share": REAL, "score_share": REAL, "density": REAL, "k": INT, "num_top": INT,
        "num_tested": INT, "mean_damage": REAL, "max_damage": REAL, "joint_damage": REAL, "joint_low": REAL,
        "joint_high": REAL,
    },
    "experts/1": {
        "run": TEXT, "label": TEXT, "metric": TEXT, "seed": INT, "block": INT, "expert": INT, "numel": INT, "usage": REAL,
        "score": REAL, "score_share": REAL, "density": REAL, "num_top": INT,
    },
    "comparison/1": {
        "run": TEXT, "question": TEXT, "a": TEXT, "b": TEXT, "metric": TEXT, "subject": TEXT, "quantity": TEXT,
        "value": REAL, "low": REAL, "high": REAL, "expected": REAL, "null": TEXT, "p_value": REAL, "smallest_p": REAL,
        "p_adjusted": REAL, "num": INT, "why": TEXT,
    },
    "positions/1": {
        "run": TEXT, "a": TEXT, "b": TEXT, "metric": TEXT, "k": INT, "parameter": TEXT, "index": INT, "target": TEXT,
        "block": INT, "component": TEXT, "rank_a": INT, "rank_b": INT, "status": TEXT, "moved_from": TEXT,
    },
    "profiles/1": {
        "run": TEXT, "label": TEXT, "metric": TEXT, "block": INT, "relative_depth": REAL, "feature": TEXT, "value": REAL,
        "kmeans": INT, "hdbscan": INT,
    },
    "tree/1": {
        "run": TEXT, "metric": TEXT, "merge": INT, "left": TEXT, "right": TEXT, "distance": REAL, "size": INT,
    },
    "features/1": {
        "run": TEXT, "metric": TEXT, "feature": TEXT, "importance": REAL, "low": REAL, "high": REAL, "families": TEXT,
    },
    "robustness/1": {
        "run": TEXT, "label": TEXT, "family": TEXT, "num_parameters": INT, "metric": TEXT, "method": TEXT, "k": INT,
        "damage": REAL, "low": REAL, "high": REAL, "interval": TEXT, "outcome": TEXT, "rank": INT, "rank_low": INT,
        "rank_high": INT, "task": TEXT, "task_metric": TEXT, "task_score": REAL, "task_low": REAL, "task_high": REAL,
        "on_front": FLAG,
    },
}  # fmt: skip
