#!/usr/bin/env python3
"""Measure the memory that scoring a large model takes: an 8.03e9-weight Llama of random bfloat16 weights, made on the spot.

    python scripts/bench_memory.py make      --folder FOLDER [--blocks 32]     # 16.1 GB; the disk is asked first
    python scripts/bench_memory.py memory    --folder FOLDER [--json FILE]     # grad_x_weight and grad_squared, resident
    python scripts/bench_memory.py disk      --folder FOLDER [--json FILE]     # the same, blocks read when their turn comes
    python scripts/bench_memory.py curvature --folder FOLDER [--json FILE]     # one Hutchinson probe of the last block

Each runs ``esa score`` in a process of its own on 4 windows of 256 tokens and samples RssAnon + RssShmem of it ten times a
second. RssFile is printed beside it: weights of the files' own dtype are mapped from them, not copied.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

HIDDEN, INNER, HEADS, KEYS, VOCABULARY = 4096, 14336, 32, 8, 128256
POOL = (
    1 << 24
)  # random numbers that every tensor is filled from, each from another place: memory does not look at values
GIB = 1 << 30
RUNS: dict[str, list[str]] = {
    "memory": ["model.memory_budget='19 GiB'", "score.metrics=['grad_x_weight', 'grad_squared']"],
    "disk": [
        "model.memory_budget='8 GiB'",
        "model.residency='disk'",
        "score.metrics=['grad_x_weight', 'grad_squared']",
    ],
    "curvature": ["score.metrics=['hutchinson_diag']", "score.probes=1", "calibration.windows=1"],
}


def make(folder: Path, blocks: int) -> None:
    """Write configuration, tokenizer and weights as the hub lays them out, a file per block."""
    import torch
    from safetensors.torch import save_file
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, PreTrainedTokenizerFast

    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=HIDDEN, intermediate_size=INNER, num_hidden_layers=blocks,
        num_attention_heads=HEADS, num_key_value_heads=KEYS, max_position_embeddings=131072, rope_theta=500000.0,
        tie_word_embeddings=False, dtype="bfloat16", bos_token_id=0, eos_token_id=0, architectures=["LlamaForCausalLM"],
    )  # fmt: skip
    head = VOCABULARY * HIDDEN
    block = HIDDEN * (2 * HIDDEN + 2 * KEYS * HIDDEN // HEADS + 3 * INNER + 2)
    needed = 2 * (2 * head + blocks * block + HIDDEN)
    folder.mkdir(parents=True, exist_ok=True)
    if (free := shutil.disk_usage(folder).free) < needed + GIB:
        sys.exit(f"{folder}: the weights are {needed / 1e9:.1f} GB, {free / 1e9:.1f} GB are free")
    config.save_pretrained(folder)
    letters = {"<unk>": 0, **{chr(code): code - 31 for code in range(32, 127)}}
    tokenizer = Tokenizer(models.WordLevel(letters, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<unk>").save_pretrained(folder)
    pool = torch.randn(POOL, generator=torch.Generator().manual_seed(0)).mul_(0.02).bfloat16()
    index: dict[str, str] = {}
    count = 0

    def filled(*shape: int) -> torch.Tensor:
        nonlocal count
        count += 1
        number = 1
        for size in shape:
            number *= size
        start = count * 7919 % POOL
        return torch.cat([pool[start:], pool]).repeat(-(-number // POOL) + 1)[:number].view(shape).contiguous()

    def save(name: str, tensors: dict[str, torch.Tensor]) -> None:
        save_file(tensors, folder / name, metadata={"format": "pt"})
        index.update(dict.fromkeys(tensors, name))

    ones = torch.ones(HIDDEN, dtype=torch.bfloat16)
    save("embedding.safetensors", {"model.embed_tokens.weight": filled(VOCABULARY, HIDDEN)})
    for number in range(blocks):
        at = f"model.layers.{number}."
        save(f"block-{number:02}.safetensors", {
            f"{at}input_layernorm.weight": ones.clone(), f"{at}post_attention_layernorm.weight": ones.clone(),
            f"{at}self_attn.q_proj.weight": filled(HIDDEN, HIDDEN),
            f"{at}self_attn.k_proj.weight": filled(KEYS * HIDDEN // HEADS, HIDDEN),
            f"{at}self_attn.v_proj.weight": filled(KEYS * HIDDEN // HEADS, HIDDEN),
            f"{at}self_attn.o_proj.weight": filled(HIDDEN, HIDDEN),
            f"{at}mlp.gate_proj.weight": filled(INNER, HIDDEN), f"{at}mlp.up_proj.weight": filled(INNER, HIDDEN),
            f"{at}mlp.down_proj.weight": filled(HIDDEN, INNER),
        })  # fmt: skip
    save("head.safetensors", {"model.norm.weight": ones.clone(), "lm_head.weight": filled(VOCABULARY, HIDDEN)})
    written = {"metadata": {"total_size": needed}, "weight_map": index}
    (folder / "model.safetensors.index.json").write_text(json.dumps(written), encoding="utf-8")
    print(f"{folder}: {needed / 2:,.0f} weights, {needed / 1e9:.1f} GB")


def measure(folder: Path, what: str) -> dict[str, Any]:
    """Run ``esa score`` and return its peak memory by kind, and its seconds."""
    blocks = json.loads((folder / "config.json").read_text(encoding="utf-8"))["num_hidden_layers"]
    settings = [*RUNS[what], *([f"score.include=['block={blocks - 1}']"] if what == "curvature" else [])]
    spec = f'name = "bench"\n[model]\nid = "{folder}"\ndtype = "bfloat16"\ndevice = "cpu"\n[calibration]\nwindows = 4\n'
    with tempfile.TemporaryDirectory(dir=folder) as work:
        file = Path(work) / "bench.toml"
        file.write_text(spec, encoding="utf-8")
        command = [sys.executable, "-m", "esa", "score", "--spec", str(file), "-o", f"{work}/step/"]
        command += [word for setting in settings for word in ("--set", setting)]
        plan = subprocess.run([*command, "--dry-run"], capture_output=True, text=True, check=True).stdout
        predicted = [line.strip("# ") for line in plan.splitlines() if "peak" in line][-1]
        began = time.perf_counter()
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        held = mapped = 0
        while process.poll() is None:
            kinds = resident(process.pid)
            if kinds:
                held = max(held, kinds["RssAnon"] + kinds["RssShmem"])
                mapped = max(mapped, kinds["RssFile"])
            time.sleep(0.1)
        seconds = time.perf_counter() - began
    if process.returncode:
        sys.exit(process.returncode)
    return {
        "what": what, "settings": settings, "peak_gib": held / GIB, "mapped_gib": mapped / GIB, "seconds": seconds,
        "predicted": predicted, "threads": os.environ.get("OMP_NUM_THREADS", str(os.cpu_count())),
    }  # fmt: skip


def resident(pid: int) -> dict[str, int]:
    """Return the resident bytes of a process by kind, nothing once it is gone."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines()
    except FileNotFoundError:
        return {}
    found = dict(line.split(":", 1) for line in lines)
    return {kind: int(found[kind].split()[0]) * 1024 for kind in ("RssAnon", "RssShmem", "RssFile") if kind in found}


def main() -> None:
    """Read the command line; make the model, or run one measurement."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["make", *RUNS])
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--blocks", type=int, default=32)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    if options.what == "make":
        make(options.folder, options.blocks)
        return
    found = measure(options.folder, options.what)
    print(
        f"{options.what}: peak of RssAnon + RssShmem {found['peak_gib']:.2f} GiB, RssFile {found['mapped_gib']:.2f} GiB"
    )
    print(f"  {found['seconds']:.0f} s; predicted: {found['predicted']}")
    if options.json is not None:
        options.json.write_text(json.dumps(found, indent=2), encoding="utf-8")


if __name__ == "__main__":
    main()
