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
}  # fmt: skip
