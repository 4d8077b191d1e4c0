#!/usr/bin/env python3
"""Measure on SmolLM2-135M what the documentation states of it.

python scripts/facts.py damage --text wikitext2_valid.txt     # the perplexities of the interventions, then the ranks
python scripts/facts.py ranks  --text wikitext2_valid.txt     # where the super weight stands among all weights by each metric
"""

import argparse
import tempfile
from pathlib import Path
from typing import Any

SUPER = "model.layers.11.mlp.down_proj.weight"
SUPER_INDEX = 507 * 1536 + 1229


def damage(text: Path) -> None:
    """Print the table of interventions and the ranks of the super weight by metric."""
    from esa import perturb
    from esa.spec import spec_from_dict

    second = "model.layers.2.mlp.down_proj.weight:507,90"
    first = f"{SUPER}:507,1229"
    base = {
        "name": "facts",
        "model": {"id": "smollm2-135m"},
        "eval": {"source": f"file:{text}", "windows": 8, "length": 512, "bos": False, "rewrites": 0},
    }
    bits = {**base, "model": {"id": "smollm2-135m", "dtype": "bfloat16", "compute": "float32"}}
    cases = [
        (
            base,
            [first],
            [
                {"method": "zero"},
                {"method": "zero_keep_peak"},
                {"method": "sign_flip"},
                {"method": "scale", "factor": 0.5},
            ],
        ),
        (base, [second], [{"method": "zero"}]),
        (base, [first, second], [{"method": "zero"}]),
        (bits, [first], [{"method": "bit_flip", "bit": 14}, {"method": "bit_flip", "bit": 12}]),
    ]
    with tempfile.TemporaryDirectory() as folder:
        for tree, targets, methods in cases:
            spec = spec_from_dict({**tree, "perturb": methods})
            damage = perturb.run(spec, targets, root=Path(folder)).damage.frame
            for row in damage.to_dicts():
                print(
                    f"{row['method']:<10} {row['options']:<16} {' + '.join(targets)}: {row['ppl_base']:.2f} -> {row['ppl']:.4g}"
                )
    ranks(text)


def ranks(text: Path) -> None:
    """Print where the super weight stands among all weights by each metric: 4 windows of 256 tokens, two probes."""
    import torch

    from esa.data import calibration_windows
    from esa.model import eligible, load_model
    from esa.progress import Silent
    from esa.score.engine import Effort, Engine, load_metrics
    from esa.spec import spec_from_dict

    calibration = {"source": f"file:{text}", "windows": 4, "length": 256, "bos": False, "sample": "first"}
    spec = spec_from_dict({"name": "ranks", "model": {"id": "smollm2-135m"}, "calibration": calibration})
    loaded = load_model(spec.model)
    texts = calibration_windows(spec.calibration, loaded.tokenizer, [0])[0]
    for names in (
        ["magnitude", "act_mag", "wanda"],
        ["super_activation"],
        ["grad_x_weight", "grad_squared", "fisher_obd"],
        ["ggn_diag", "ggn_obd"],
        ["hutchinson_diag", "obd", "taylor2"],
    ):
        found: dict[str, list[torch.Tensor]] = {name: [] for name in names}
        mine: dict[str, float] = {}
        signed: dict[str, torch.Tensor] = {}

        def emit(metric, info, weight, scores, usage, found=found, mine=mine, signed=signed) -> None:  # type: ignore[no-untyped-def]
            if metric.name == "super_activation":
                signed[info.name] = scores.signed
            found[metric.name].append(scores.score.reshape(-1).clone())
            if info.name == SUPER:
                mine[metric.name] = float(scores.score.reshape(-1)[SUPER_INDEX])

        Engine(loaded, eligible(loaded.table), load_metrics(names), emit, Silent(), Effort(probes=2)).run(texts, 0)
        for name in names:
            above = sum(int((part > mine[name]).sum()) for part in found[name])
            print(f"{name:<16} rank {above + 1:,}", flush=True)
        if names == ["super_activation"]:
            growths(signed)


def growths(signed: dict[str, Any]) -> None:
    """Print the weight of the largest signed growth of each block, writers first, erasers last."""
    rows = []
    for name, values in signed.items():
        index = int(values.abs().argmax())
        rows.append((float(values.reshape(-1)[index]), f"{name}:{','.join(map(str, divmod(index, values.shape[1])))}"))
    rows.sort(reverse=True)
    for growth, address in [*rows[:5], *rows[-5:]]:
        print(f"  {growth:>9,.0f}  {address}")


def main() -> None:
    """Read the command line and measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["damage", "ranks"])
    parser.add_argument("--text", type=Path, required=True)
    options = parser.parse_args()
    {"damage": damage, "ranks": ranks}[options.what](options.text)


if __name__ == "__main__":
    main()
