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
    "overlap/1": {
        "run": TEXT, "run_a": TEXT, "metric_a": TEXT, "seed_a": INT, "run_b": TEXT, "metric_b": TEXT, "seed_b": INT,
        "label_a": TEXT, "label_b": TEXT, "by": TEXT, "k": INT, "size_a": INT, "size_b": INT, "shared": INT,
        "jaccard": REAL, "universe": INT, "null": TEXT, "expected_jaccard": REAL, "p_value": REAL,
        "overlap_coefficient": REAL, "rbo": REAL, "spearman": REAL, "kendall": REAL,
    },
    "eval/1": {
        "run": TEXT, "case": TEXT, "task": TEXT, "metric": TEXT, "value": REAL, "intact": REAL, "stderr": REAL,
        "num_items": INT, "num_tokens": INT, "source": TEXT, "length": INT, "bos": FLAG,
    },
    "arch/1": {
        "run": TEXT, "parameter": TEXT, "layer": TEXT, "block": INT, "component": TEXT, "expert": INT, "shape": TEXT,
        "numel": INT, "dtype": TEXT, "bytes": INT, "tied": FLAG, "uses": TEXT, "active": INT,
    },
}  # fmt: skip
