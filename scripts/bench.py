#!/usr/bin/env python3
"""Measure what esa promises, side by side in one process or over fresh ones; print ratios.

    python scripts/bench.py score   [--model smollm2-135m] [--windows 32] [--length 256] [--repeats 3]
    python scripts/bench.py facts   --text wikitext2_valid.txt
    python scripts/bench.py ranks   --text wikitext2_valid.txt
    python scripts/bench.py help    [--repeats 5]

score: scoring act_mag and grad_x_weight (reduction included, writing excluded) against a plain forward and backward over the
       same windows one by one.
facts: the perplexities of the interventions that the documentation states, then ranks.
ranks: where the super weight stands among all weights by each metric.
help:  the time of ``esa --help`` in a fresh process.
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

SUPER = "model.layers.11.mlp.down_proj.weight"
SUPER_INDEX = 507 * 1536 + 1229


def seconds(action: Callable[[], object]) -> float:
    """Return the wall time of a call."""
    began = time.perf_counter()
    action()
    return time.perf_counter() - began


def bench_score(model: str, windows: int, length: int, repeats: int) -> None:
    """Print the ratio of scoring to plain passes, alternating between the two."""
    import torch

    from esa.data import calibration_windows
    from esa.model import eligible, load_model
    from esa.progress import Silent
    from esa.score.engine import Engine, load_metrics
    from esa.score.labels import window_loss
    from esa.score.reduce import reduce_scores
    from esa.spec import spec_from_dict

    tree = {
        "name": "bench",
        "model": {"id": model},
        "calibration": {"windows": windows, "length": length},
        "score": {"metrics": ["act_mag", "grad_x_weight"]},
    }
    spec = spec_from_dict(tree)
    loaded = load_model(spec.model)
    texts = calibration_windows(spec.calibration, loaded.tokenizer, [0])[0]
    chosen = eligible(loaded.table)

    def plain() -> None:
        for ids in texts.ids:
            batch = torch.tensor([ids])
            window_loss(loaded.model(input_ids=batch, use_cache=False).logits, batch).backward()
            loaded.model.zero_grad(set_to_none=True)

    def scored(keep: int | None) -> Callable[[], None]:
        def emit(metric, info, weight, scores, usage) -> None:  # type: ignore[no-untyped-def]
            if keep:
                reduce_scores(metric.name, info, scores, weight, keep, 0, usage)

        return lambda: Engine(loaded, chosen, load_metrics(spec.score.metrics), emit, Silent()).run(texts, 0)

    plain()
    rows = [(seconds(plain), seconds(scored(None)), seconds(scored(4096))) for _ in range(repeats)]
    print(f"{texts.num_tokens} tokens, {windows} windows of {length}; seconds: plain, passes, passes and reduction")
    for a, b, c in rows:
        print(f"  {a:7.2f} {b:7.2f} {c:7.2f}   ratio {b / a:.2f} {c / a:.2f}")
    print(
        f"  median ratio {statistics.median(b / a for a, b, _ in rows):.2f} {statistics.median(c / a for a, _, c in rows):.2f}"
    )


def bench_facts(text: Path) -> None:
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
    bench_ranks(text)


def bench_ranks(text: Path) -> None:
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
            bench_growth(signed)


def bench_growth(signed: dict[str, Any]) -> None:
    """Print the weight of the largest signed growth of each block, writers first, erasers last."""
    rows = []
    for name, values in signed.items():
        index = int(values.abs().argmax())
        rows.append((float(values.reshape(-1)[index]), f"{name}:{','.join(map(str, divmod(index, values.shape[1])))}"))
    rows.sort(reverse=True)
    for growth, address in [*rows[:5], *rows[-5:]]:
        print(f"  {growth:>9,.0f}  {address}")


def bench_help(repeats: int) -> None:
    """Print the time of ``esa --help``."""
    command = [sys.executable, "-m", "esa", "--help"]
    times = [seconds(lambda: subprocess.run(command, capture_output=True, check=True)) for _ in range(repeats)]
    print(f"esa --help: {statistics.median(times):.2f} s (median of {repeats})")


def main() -> None:
    """Read the command line and run one benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["score", "facts", "ranks", "help"])
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--windows", type=int, default=32)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--text", type=Path)
    options = parser.parse_args()
    if options.what == "score":
        bench_score(options.model, options.windows, options.length, options.repeats)
    elif options.what == "facts":
        if options.text is None:
            parser.error("facts needs --text")
        bench_facts(options.text)
    elif options.what == "ranks":
        if options.text is None:
            parser.error("ranks needs --text")
        bench_ranks(options.text)
    else:
        bench_help(options.repeats)


if __name__ == "__main__":
    main()
