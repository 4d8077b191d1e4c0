#!/usr/bin/env python3
"""Measure what esa promises of its speed, as ratios taken side by side in one run: medians over repeats, with their spread.

    python scripts/bench.py all [--json FILE] [--repeats 3]      # everything below; half an hour on 2 cores
    python scripts/bench.py score | curvature | rank | campaign | processes | help

score:      seconds = a + b x tokens, from scoring act_mag and grad_x_weight at 2,048 and 16,384 tokens (the reduction of the
            scores included, writing excluded). a: per metric and 1e8 weights. b: over that of a plain forward and backward over
            the same windows, one by one; with a window's graph kept, and with every block's forward run again.
curvature:  one Hutchinson probe against one bare double-backward on a retained graph.
rank:       ranking a score step's artifact against one pass of torch.topk over as many numbers.
campaign:   cases over evenly spread blocks, from the first changed block on against whole forward passes.
processes:  two processes of one thread each against one of one thread, scoring the same windows.
help:       ``esa --help`` in a fresh process.
Memory is measured by scripts/bench_memory.py.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

TARGETS = {
    "a": 1.5, "b_kept": 1.15, "b_recomputed": 1.45, "probe": 1.1, "rank": 2.0, "campaign": 0.65, "speed-up": 1.8, "help": 0.5,
}  # fmt: skip
MODEL = "smollm2-135m"


def seconds(action: Callable[[], object]) -> float:
    """Return the wall time of a call."""
    import torch

    began = time.perf_counter()
    action()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - began


def shown(name: str, values: Sequence[float], what: str) -> dict[str, Any]:
    """Print a quantity's median, spread and target, and return them."""
    median = statistics.median(values)
    print(
        f"{name:<13}{median:7.3f}  ({min(values):.3f} to {max(values):.3f})  target {TARGETS[name]:<5} {what}",
        flush=True,
    )
    return {"median": median, "low": min(values), "high": max(values), "target": TARGETS[name], "what": what}


def loaded_model(windows: int, length: int) -> tuple[Any, Any, Any]:
    """Return the model, calibration windows and the parameters to score."""
    from esa.data import calibration_windows
    from esa.model import eligible, load_model
    from esa.spec import spec_from_dict

    spec = spec_from_dict(
        {"name": "bench", "model": {"id": MODEL}, "calibration": {"windows": windows, "length": length}}
    )
    loaded = load_model(spec.model)
    return loaded, calibration_windows(spec.calibration, loaded.tokenizer, [0])[0], eligible(loaded.table)


def plain_pass(loaded: Any, texts: Any) -> None:
    """Run every window forward and backward."""
    import torch

    from esa.score.labels import window_loss

    for ids in texts.ids:
        batch = torch.tensor([ids], device=loaded.device)
        window_loss(loaded.model(input_ids=batch, use_cache=False).logits, batch).backward()
        loaded.model.zero_grad(set_to_none=True)


def score_pass(loaded: Any, texts: Any, chosen: Any, strategy: Any, metrics: Sequence[str]) -> None:
    """Score, and reduce every tensor's scores."""
    from esa.progress import Silent
    from esa.score.engine import Engine, load_metrics
    from esa.score.reduce import reduce_scores

    large: dict[str, Any] = {}

    def emit(metric: Any, info: Any, weight: Any, scores: Any, usage: Any) -> None:
        reduced = reduce_scores(scores, 4096, 0, large.get(info.name))
        large[info.name] = reduced.strata.get("large")

    Engine(loaded, chosen, load_metrics(metrics), emit, Silent(), strategy=strategy).run(texts, 0)


def bench_score(repeats: int) -> dict[str, Any]:
    """Fit seconds = a + b tokens for plain passes and both ways of scoring, each repeat on its own."""
    from dataclasses import replace

    from esa.score.strategy import Strategy

    metrics, length, few, many = ["act_mag", "grad_x_weight"], 512, 2048, 16384
    loaded, texts, chosen = loaded_model(many // length // 2, length)
    texts = replace(
        texts, ids=texts.ids * 2
    )  # the built-in text is shorter; the time of a window does not depend on it
    short = replace(texts, ids=texts.ids[: few // length])
    numel = sum(info.numel for info in chosen.values())
    ways: dict[str, Callable[[Any], None]] = {
        "plain": lambda texts: plain_pass(loaded, texts),
        "b_kept": lambda texts: score_pass(loaded, texts, chosen, Strategy(keep_graphs=True), metrics),
        "b_recomputed": lambda texts: score_pass(loaded, texts, chosen, Strategy(), metrics),
    }
    plain_pass(loaded, short)
    fits: list[dict[str, tuple[float, float]]] = []
    for _ in range(repeats):
        times = {tokens: {way: seconds(lambda: run(cut)) for way, run in ways.items()}  # noqa: B023
                 for tokens, cut in ((few, short), (many, texts))}  # fmt: skip
        slopes = {way: (times[many][way] - times[few][way]) / (many - few) for way in ways}
        fits.append({way: (times[few][way] - slopes[way] * few, slopes[way]) for way in ways})
        print(
            "  seconds:", {t: {way: round(s, 1) for way, s in found.items()} for t, found in times.items()}, flush=True
        )
    each = [(fit["b_kept"][0] / len(metrics)) / (numel / 1e8) for fit in fits]
    found = {"a": shown("a", each, f"seconds per metric and 1e8 weights, windows of {length}")}
    for way in ("b_kept", "b_recomputed"):
        found[way] = shown(way, [fit[way][1] / fit["plain"][1] for fit in fits], "over plain forward and backward")
    return found


def bench_curvature(repeats: int) -> dict[str, Any]:
    """Time a probe of Hutchinson, everything included, against a bare double-backward on the same graph."""
    import torch

    from esa.progress import Silent
    from esa.score.curvature import eager_attention, hutchinson, rademacher
    from esa.score.labels import window_loss
    from esa.score.streaming import Window

    loaded, texts, every = loaded_model(1, 128)
    chosen = {name: info for name, info in every.items() if info.block is not None and info.block >= 20}
    window = Window(0, torch.tensor([texts.ids[0]], device=loaded.device))
    tensors = [loaded.weights[name].source() for name in chosen]

    def bare(probes: int) -> float:
        with eager_attention(loaded.model):
            loss = window_loss(loaded.model(input_ids=window.ids, use_cache=False).logits, window.ids)
            gradients = torch.autograd.grad(loss, tensors, create_graph=True)
            signs = [rademacher(torch.empty_like(t), 0, 0, 0, "bench") for t in tensors]
            return seconds(
                lambda: [torch.autograd.grad(gradients, tensors, signs, retain_graph=True) for _ in range(probes)]
            )

    def ours(probes: int) -> float:
        return seconds(lambda: hutchinson(loaded, [window], chosen, probes, 0, Silent()))

    bare(1), ours(1)
    ratios = [(ours(9) - ours(1)) / bare(8) for _ in range(repeats)]
    return {"probe": shown("probe", ratios, "one Hutchinson probe over one bare double-backward")}


def bench_rank(repeats: int) -> dict[str, Any]:
    """Time the ranking of a score step against one pass of torch.topk over as many numbers."""
    import torch

    from esa import rank, score
    from esa.spec import spec_from_dict

    tree = {
        "name": "bench", "model": {"id": MODEL}, "calibration": {"windows": 1, "length": 32},
        "score": {"metrics": ["act_mag"]}, "rank": {"k": [1, 10, 100]},
    }  # fmt: skip
    spec = spec_from_dict(tree)
    with tempfile.TemporaryDirectory() as folder:
        done = score.run(spec, root=Path(folder))
        number = 134_515_008
        scores = torch.rand(number)
        rank.run(done.folder, spec=spec, root=Path(folder))
        ratios = []
        for _ in range(repeats):
            pure = seconds(lambda: torch.topk(scores, 100))
            mine = seconds(lambda: rank.run(done.folder, spec=spec, root=Path(folder), force=True))
            ratios.append(mine / pure)
    return {"rank": shown("rank", ratios, "esa rank, read and written, over one torch.topk of as many numbers")}


def bench_campaign(repeats: int, num_cases: int = 30, windows: int = 8, length: int = 256) -> dict[str, Any]:
    """Print the time of a campaign over evenly spread blocks, from the first changed block on against whole passes.

    Every case zeroes one weight of a block's last matrix. Both sides evaluate the intact model once and measure the same
    quantities, and their bits are compared. Alternating; the first pair is not counted.
    """
    import torch

    from esa.data import eval_windows
    from esa.eval import Edit, Evaluator, Measured
    from esa.eval.language_modeling import Reference, add_batch
    from esa.model import load_model
    from esa.perturb.apply import applied, plan_changes
    from esa.spec import generator, spec_from_dict

    section = {"windows": windows, "length": length}
    spec = spec_from_dict({"name": "bench", "model": {"id": MODEL}, "eval": section})
    loaded = load_model(spec.model)
    texts = eval_windows(spec.eval, loaded.tokenizer)
    last = {info.block: name for name, info in loaded.table.items() if info.block is not None and len(info.shape) == 2}
    blocks = [number * len(loaded.stack) // num_cases for number in range(num_cases)]
    cases = [plan_changes(loaded, [(last[b], 0)], "zero", {}, generator(0, "bench")) for b in blocks]

    def from_block() -> list[Measured]:
        evaluator = Evaluator(loaded, texts, spec.eval.batch_tokens)
        evaluator.remember(blocks)
        edits = [
            Edit(frozenset({change.name for change in changes}), lambda _, changes=changes: applied(loaded, changes))
            for changes in cases
        ]
        found: list[Measured] = []
        for start in range(0, len(edits), evaluator.together):
            evaluator.forget_below(blocks[start])
            found += evaluator.compare(edits[start : start + evaluator.together])
        return found

    def whole() -> list[Measured]:
        batches = Evaluator(loaded, texts, spec.eval.batch_tokens).batches
        found: list[Measured] = []
        with torch.no_grad():
            intact = [Reference(loaded.model(input_ids=ids, use_cache=False).logits) for ids in batches]
            for reference, ids in zip(intact, batches, strict=True):
                add_batch(Measured(), reference.logits, ids, None)
            for changes in cases:
                measured = Measured()
                with applied(loaded, changes):
                    for reference, ids in zip(intact, batches, strict=True):
                        add_batch(measured, loaded.model(input_ids=ids, use_cache=False).logits, ids, reference)
                found.append(measured)
        return found

    assert from_block() == whole(), "suffix evaluation is not bit-identical"
    ratios = [seconds(from_block) / seconds(whole) for _ in range(repeats)]
    return {
        "campaign": shown("campaign", ratios, f"{num_cases} cases, {windows} windows of {length}, over whole passes")
    }


PASS = """
import json, sys, time
from pathlib import Path
import torch
torch.set_num_threads(1)
from esa import score
from esa.model import load_model
from esa.score.passes import Passes
from esa.spec import spec_from_dict

model, windows, folder = json.loads(sys.argv[1])
tree = {"name": "bench", "model": {"id": model, "device": "cpu"}, "calibration": {"windows": windows, "length": 256}}
spec = spec_from_dict(tree)
seconds, whole = [], Passes.score

def timed(*args, **kwargs):
    start = time.perf_counter()
    found = whole(*args, **kwargs)
    seconds.append(time.perf_counter() - start)
    return found

Passes.score = timed  # the pass with its rows on disk: no loading, no tables, no manifest
with score.joined() as ranks:
    loaded = load_model(ranks.place(spec.model))
    score.run(spec, loaded=loaded, out=Path(folder), ranks=ranks)
    if ranks.first:
        print(seconds[0])
"""


def bench_processes(repeats: int, windows: int = 16) -> dict[str, Any]:
    """Time a score pass in one process and in two that torchrun starts, one thread each, taking turns."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    ratios = []
    with tempfile.TemporaryDirectory() as folder:
        script = Path(folder) / "pass.py"
        script.write_text(PASS, encoding="utf-8")
        for repeat in range(repeats):
            times = []
            for size in (1, 2):
                given = json.dumps([MODEL, windows, f"{folder}/{size}-{repeat}"])
                launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={size}"]
                done = subprocess.run([*launch, str(script), given], env=environment, capture_output=True, check=True)
                times.append(float(done.stdout.splitlines()[-1]))
            ratios.append(times[0] / times[1])
    return {"speed-up": shown("speed-up", ratios, f"of two processes over one, {windows} windows of 256")}


def bench_help(repeats: int) -> dict[str, Any]:
    """Time ``esa --help`` in fresh processes."""
    command = [sys.executable, "-m", "esa", "--help"]
    times = [seconds(lambda: subprocess.run(command, capture_output=True, check=True)) for _ in range(max(repeats, 3))]
    return {"help": shown("help", times, "seconds of esa --help")}


BENCHES: dict[str, Callable[[int], dict[str, Any]]] = {
    "score": bench_score, "curvature": bench_curvature, "rank": bench_rank, "campaign": bench_campaign,
    "processes": bench_processes, "help": bench_help,
}  # fmt: skip


def machine() -> dict[str, Any]:
    """Return what the figures depend on."""
    import torch

    names = [
        line.partition(":")[2].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if "model name" in line
    ]
    return {
        "processor": names[0] if names else platform.processor(), "cores": os.cpu_count(), "threads": torch.get_num_threads(),
        "torch": torch.__version__, "python": platform.python_version(),
        "accelerator": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }  # fmt: skip


def main() -> None:
    """Read the command line, run the benchmarks, print and write them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["all", *BENCHES])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    found: dict[str, Any] = {"machine": machine()}
    print(found["machine"])
    for name, bench in BENCHES.items():
        if options.what in ("all", name):
            found |= bench(options.repeats)
            if options.json is not None:
                options.json.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
