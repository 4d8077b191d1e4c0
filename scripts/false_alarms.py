#!/usr/bin/env python3
"""Measure the detector's false alarms: what it finds in models that have no super weight, random and weight-shuffled ones.

python scripts/false_alarms.py --model smollm2-135m                          # five models of each kind, some minutes
python scripts/false_alarms.py --model gpt2 --runs 20 --thresholds 5 20 100  # another model, more of them, other thresholds
python scripts/false_alarms.py --model smollm2-135m --kinds none             # what it finds in the model itself
python scripts/false_alarms.py --model smollm2-135m --json alarms.json       # also as JSON, every candidate of every model

A model of each kind and seed is made (model.null, model.null_seed), its blocks are looked at (super_activation, one round),
and every weight that stands out at the lowest threshold is zeroed alone and with its group (esa perturb --detect). Prints a
Markdown table per threshold on peak_ratio: models with a block that stands out, blocks that do, models with a weight that
writes (positive growth), and models with one that is critical or critical together; shares with Wilson intervals. The
blocks of one model are not independent: their interval is too narrow, that of the models is the one to quote.
Cost per model: loading it, one forward pass, and an evaluation per candidate and twice per candidate of a group.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

HARM = ("critical", "critical_together")
HEADER = ["kind", "peak_ratio from", "models that stand out", "blocks", "models with a writer", "models with harm"]


def look(tree: dict[str, Any]) -> dict[str, Any]:
    """Return what the detector says of one model: every block's peak ratio, every candidate's ratio, role and verdict."""
    from esa import score
    from esa.artifact import find_table
    from esa.model import load_model
    from esa.perturb import detector
    from esa.spec import spec_from_dict

    spec = spec_from_dict(tree)
    loaded = load_model(spec.model)
    with tempfile.TemporaryDirectory() as root:
        scored = score.run(spec, loaded=loaded, root=Path(root))
        found = detector.run(spec, scored.folder, loaded=loaded, root=Path(root))
        blocks = find_table(scored.folder, "tensors/1", ["peak_ratio"]).frame["peak_ratio"].to_list()
    columns = ["target", "peak_ratio", "growth", "role", "delta_nll", "delta_low", "verdict"]
    candidates = found.table.frame.select(columns).to_dicts()
    return {"fingerprint": loaded.facts["fingerprint"], "blocks": blocks, "candidates": candidates}


def spec_tree(options: argparse.Namespace, kind: str, seed: int) -> dict[str, Any]:
    """Return the spec of one model."""
    return {
        "name": "false_alarms",
        "model": {"id": options.model, "dtype": options.dtype, "null": kind, "null_seed": seed},
        "calibration": {"source": options.calibration, "windows": options.windows, "length": options.length},
        "eval": {"source": options.eval, "windows": options.eval_windows, "length": options.eval_length},
        "score": {"metrics": ["super_activation"], "peak_ratio": min(options.thresholds)},
    }


def stands_out(ratio: float | None, threshold: float) -> bool:
    """Tell whether a peak is that far above its median channel; without a median it is."""
    return ratio is None or ratio >= threshold


def share(count: int, total: int) -> str:
    """Return a count with its share's Wilson interval."""
    from esa.statistics.proportions import wilson_interval

    low, high = wilson_interval(count, total)
    return f"{count} of {total:,} ({low:.2f} to {high:.2f})"


def row(kind: str, threshold: float, models: list[dict[str, Any]]) -> list[str]:
    """Return the cells of one kind of model at one threshold."""
    blocks = [ratio for model in models for ratio in model["blocks"]]
    above = [[one for one in model["candidates"] if stands_out(one["peak_ratio"], threshold)] for model in models]
    return [
        kind,
        f"{threshold:g}",
        share(sum(any(stands_out(ratio, threshold) for ratio in model["blocks"]) for model in models), len(models)),
        share(sum(stands_out(ratio, threshold) for ratio in blocks), len(blocks)),
        share(sum(any(one["role"] == "writer" for one in found) for found in above), len(models)),
        share(sum(any(one["verdict"] in HARM for one in found) for found in above), len(models)),
    ]


def table(found: dict[str, list[dict[str, Any]]], thresholds: list[float]) -> str:
    """Return a Markdown table, a row per kind and threshold, and below it the largest ratios."""
    lines = [HEADER, ["---"] * len(HEADER)]
    lines += [row(kind, threshold, models) for kind, models in found.items() for threshold in sorted(thresholds)]
    text = "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
    for kind, models in found.items():
        largest = [max(ratio for ratio in model["blocks"] if ratio is not None) for model in models]
        text += f"\n{kind}: the largest peak_ratio of a model is {statistics.median(largest):.3g} (median), at most"
        text += f" {max(largest):.3g}"
    return text


def main() -> None:
    """Read the command line, make the models one by one, and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="as model.id")
    parser.add_argument("--dtype", default="float32", help="as model.dtype")
    parser.add_argument("--kinds", nargs="+", choices=["none", "shuffled", "random"], default=["shuffled", "random"])
    parser.add_argument("--runs", type=int, default=5, help="models of each kind, with the null seeds 0, 1, ...")
    parser.add_argument("--thresholds", type=float, nargs="+", default=[5.0, 10.0, 20.0, 50.0], help="on peak_ratio")
    parser.add_argument("--calibration", default="builtin:prose", help="as calibration.source")
    parser.add_argument("--windows", type=int, default=4, help="as calibration.windows")
    parser.add_argument("--length", type=int, default=256, help="as calibration.length")
    parser.add_argument("--eval", default="builtin:prose_eval", help="as eval.source")
    parser.add_argument("--eval-windows", type=int, default=32, help="as eval.windows")
    parser.add_argument("--eval-length", type=int, default=64, help="as eval.length")
    parser.add_argument("--json", type=Path, help="also write every model's blocks and candidates to this file")
    given = parser.parse_args()
    os.environ.setdefault("TQDM_DISABLE", "1")  # bars of the loading libraries
    found: dict[str, list[dict[str, Any]]] = {}
    for kind in given.kinds:
        for seed in range(1 if kind == "none" else given.runs):
            one = look(spec_tree(given, kind, seed))
            found.setdefault(kind, []).append({"seed": seed, **one})
            print(f"{kind}, seed {seed}: {len(one['candidates'])} candidates", file=sys.stderr, flush=True)
    print(table(found, given.thresholds))
    if given.json:
        given.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
