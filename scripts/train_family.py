#!/usr/bin/env python3
"""Train a family of small Llamas, six sizes and two seeds of each, so that laws across sizes can be tried without the network.

python scripts/train_family.py --text corpus.txt -o outputs/family                    # 12 models, under 40 minutes on 2 cores
python scripts/train_family.py --text corpus.txt -o outputs/family --sizes 0.1m 0.3m --seeds 2   # a third seed of two sizes
python scripts/train_family.py --text corpus.txt -o outputs/family --kind mixtral --sizes 0.6m --seeds 0   # a mixture beside them

The text (UTF-8, at least 1 MB) is cut once: its last 5 %, from a line's beginning on, are held out. One byte-level BPE
tokenizer is trained on the rest and serves every member. Each member sees the same number of windows of 128 tokens, drawn
from its own seed, under AdamW with warm-up and a cosine; a single thread each, as many members at a time as --jobs says,
so that the weights come out the same bit for bit on any number of cores of one machine. A finished member is kept; one that
was broken off is trained from its beginning.

OUT/train.txt, OUT/held_out.txt            the two parts of the text, for calibration.source and eval.source
OUT/llama-0.1m-seed0/                      a Hugging Face folder: config.json, model.safetensors, tokenizer, training.json
OUT/llama-0.1m-seed0/checkpoint-000175/    the same after 175 steps, step 0 the untrained one
OUT/llama.json                             every member with its losses, as the table below says them

training.json holds step, tokens seen, seed and the mean NLL over the held-out text (nats per token, windows of 128) beside
two baselines fitted to the training part: a unigram and an interpolated Kneser-Ney bigram of the same tokens. A model whose
NLL is not below the bigram's has learnt too little to stand in a law: `esa scale` leaves it out, and names it.
"""

import argparse
import itertools
import json
import math
import multiprocessing
import os
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

LENGTH = 128  # tokens of a window
BATCH = 8  # windows of a step
LEAST_BYTES = 1_000_000
HELD_OUT = 0.05
EXPERTS = 4  # of a Mixtral's block, two of them for a token
RATE_AT_64 = 3e-3  # the highest learning rate at width 64; falls as 1 / sqrt(width)


@dataclass(frozen=True)
class Size:
    """A member's shape; ``width`` is a multiple of 16 times ``heads``, so that rotary angles come in pairs."""

    name: str
    width: int
    layers: int
    heads: int
    inner: int


SIZES = {
    size.name: size
    for size in (
        Size("0.1m", 48, 2, 3, 128),
        Size("0.3m", 64, 4, 4, 176),
        Size("0.6m", 96, 4, 6, 256),
        Size("1.3m", 128, 6, 8, 344),
        Size("2.8m", 192, 6, 6, 512),
        Size("6m", 256, 7, 8, 688),
    )
}


@dataclass(frozen=True)
class Plan:
    """What a member is trained by, beside its size and seed."""

    kind: str
    steps: int
    vocabulary: int
    text_sha256: str
    unigram_nll: float
    bigram_nll: float

    def checkpoints(self) -> list[int]:
        """Return the steps of which a checkpoint is kept: 0 and halvings of the whole, in ascending order."""
        return sorted({0, *(self.steps >> halvings for halvings in range(1, 8))} - {self.steps})


def cut(text: str) -> tuple[str, str]:
    """Return the part to train on and the last 5 %, cut where a line begins; where none does, between two characters."""
    least = int(len(text) * (1 - HELD_OUT))
    place = text.find("\n", least) + 1
    place = place if 0 < place < len(text) else least
    return text[:place], text[place:]


def train_tokenizer(text: str, vocabulary: int) -> Any:
    """Return a byte-level BPE tokenizer: any text round-trips, nothing is unknown; one special token, ``<|end|>``."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=["<|end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(text.splitlines(keepends=True), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<|end|>",
        eos_token="<|end|>",
        model_max_length=LENGTH,
        clean_up_tokenization_spaces=False,
    )


def baselines(train: np.ndarray, held_out: np.ndarray, vocabulary: int) -> tuple[float, float]:
    """Return the mean NLL of held-out tokens under a unigram (add one) and an interpolated Kneser-Ney bigram.

    ``p(w | v) = max(c(vw) - D, 0) / c(v.) + D N(v.) / c(v.) p_c(w)``, ``p_c(w) = (N(.w) + 1) / (N(..) + V)``, N counting
    distinct neighbours and ``D = n1 / (n1 + 2 n2)`` from the bigrams seen once and twice (Ney, Essen and Kneser 1994), 1/2
    where none was seen once.
    Predicted is each window's tokens but the first, as the models predict them.
    """
    counts = np.bincount(train, minlength=vocabulary) + 1.0
    pairs = Counter(itertools.pairwise(train.tolist()))
    once, twice = (sum(1 for number in pairs.values() if number == times) for times in (1, 2))
    discount = once / (once + 2 * twice) if once else 0.5
    before, following, preceding = np.zeros(vocabulary), np.zeros(vocabulary), np.zeros(vocabulary)
    for (first, second), number in pairs.items():
        before[first] += number
        following[first] += 1
        preceding[second] += 1
    continued = (preceding + 1) / (len(pairs) + vocabulary)
    windows = held_out[: len(held_out) // LENGTH * LENGTH].reshape(-1, LENGTH)
    unigram = -float(np.log(counts / counts.sum())[windows[:, 1:]].mean())
    total, number = 0.0, 0
    for window in windows.tolist():
        for first, second in itertools.pairwise(window):
            rest = discount * following[first] / before[first] if before[first] else 1.0
            own = max(pairs.get((first, second), 0) - discount, 0) / before[first] if before[first] else 0.0
            total -= math.log(own + rest * continued[second])
            number += 1
    return unigram, total / number


def held_out_nll(model: Any, tokens: np.ndarray) -> float:
    """Return the mean NLL per predicted token over consecutive windows of held-out tokens."""
    import torch

    windows = torch.from_numpy(tokens[: len(tokens) // LENGTH * LENGTH].reshape(-1, LENGTH))
    total, number = 0.0, 0
    model.eval()
    with torch.no_grad():
        for batch in windows.split(BATCH):
            total += float(model(batch, labels=batch, use_cache=False).loss) * batch.shape[0]
            number += batch.shape[0]
    model.train()
    return total / number


def untrained(size: Size, plan: Plan) -> Any:
    """Return a member with its first weights, drawn from the global generator. Of a Mixtral, ``EXPERTS`` share a block."""
    import transformers

    shape = {
        "vocab_size": plan.vocabulary, "hidden_size": size.width, "num_hidden_layers": size.layers,
        "intermediate_size": size.inner, "num_attention_heads": size.heads, "num_key_value_heads": size.heads,
        "max_position_embeddings": LENGTH, "tie_word_embeddings": True, "initializer_range": 0.4 * size.width**-0.5,
        "bos_token_id": 0, "eos_token_id": 0,
    }  # fmt: skip
    if plan.kind == "mixtral":
        routed = {"num_local_experts": EXPERTS, "num_experts_per_tok": 2, "sliding_window": None}
        return transformers.MixtralForCausalLM(transformers.MixtralConfig(**shape, **routed))
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**shape))


def train_member(size: Size, seed: int, plan: Plan, out: str) -> dict[str, Any]:
    """Train one member and write it with its checkpoints; return its line of the table. Runs in a process of its own."""
    os.environ["TRANSFORMERS_VERBOSITY"] = "error"
    import torch
    import transformers

    from esa.artifact import finite
    from esa.spec.seeds import derive_seed, generator

    transformers.utils.logging.disable_progress_bar()
    torch.set_num_threads(1)  # the order of additions, and so every bit, depends on the number of threads
    torch.use_deterministic_algorithms(True)
    started, folder = time.perf_counter(), Path(out) / f"{plan.kind}-{size.name}-seed{seed}"
    train, held_out = (np.load(Path(out) / f"{part}.npy") for part in ("train", "held_out"))
    torch.manual_seed(derive_seed(seed, "train_family", "init", size.name))
    model = untrained(size, plan).train()
    config = model.config
    balanced = {"output_router_logits": True} if plan.kind == "mixtral" else {}  # adds the balance of its experts
    matrices = [one for one in model.parameters() if one.ndim > 1]
    vectors = [one for one in model.parameters() if one.ndim == 1]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]
    rate = RATE_AT_64 * (64 / size.width) ** 0.5
    optimizer = torch.optim.AdamW(groups, lr=rate, betas=(0.9, 0.95))
    draws = generator(seed, "train_family", "windows", size.name)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}.", dir=out) as made:
        temporary = Path(made) / folder.name
        losses: list[float] = []

        def keep(step: int, where: Path) -> float:
            nll = held_out_nll(model, held_out)
            model.save_pretrained(where)
            shutil.copytree(Path(out) / "tokenizer", where, dirs_exist_ok=True)
            content = {
                "kind": plan.kind, "size": size.name, "seed": seed, "step": step, "steps": plan.steps,
                "num_tokens": step * BATCH * LENGTH,
                "train_nll": finite(sum(losses[-50:]) / len(losses[-50:])) if losses else None, "held_out_nll": finite(nll),
                "unigram_nll": plan.unigram_nll, "bigram_nll": plan.bigram_nll, "text_sha256": plan.text_sha256,
            }  # fmt: skip
            (where / "training.json").write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
            return nll

        kept = plan.checkpoints()
        for step in range(plan.steps):
            if step in kept:
                keep(step, temporary / f"checkpoint-{step:06d}")
            warm = min((step + 1) / max(plan.steps // 20, 1), 1.0)
            share = 0.1 + 0.45 * (1 + math.cos(math.pi * step / plan.steps))
            for group in optimizer.param_groups:
                group["lr"] = rate * warm * share
            starts = draws.integers(0, len(train) - LENGTH + 1, BATCH)
            batch = torch.from_numpy(np.stack([train[start : start + LENGTH] for start in starts]))
            found = model(batch, labels=batch, use_cache=False, **balanced)
            found.loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            balance = config.router_aux_loss_coef * float(found.aux_loss.detach()) if balanced else 0.0
            losses.append(float(found.loss.detach()) - balance)
        keep(plan.steps, temporary)
        temporary.rename(folder)
    return line_of(folder, time.perf_counter() - started)


def line_of(folder: Path, seconds: float | None) -> dict[str, Any]:
    """Return a finished member's line of the table; ``seconds`` is None for one that was there before."""
    from safetensors import safe_open

    content = json.loads((folder / "training.json").read_text(encoding="utf-8"))
    with safe_open(folder / "model.safetensors", "pt") as file:
        weights = sum(math.prod(file.get_slice(name).get_shape()) for name in file.keys())  # noqa: SIM118
    return {
        "member": folder.name,
        "num_parameters": weights,
        **content,
        "beats_bigram": content["held_out_nll"] is not None and content["held_out_nll"] < content["bigram_nll"],
        "seconds": seconds,
    }


def prepare(options: argparse.Namespace) -> Plan:
    """Cut the text, train the tokenizer, fit the baselines, and write what every member reads.

    Stops, before anything is written, where the folder holds a member of another text, vocabulary or number of steps: the
    tokenizer and the texts are its own.
    """
    import hashlib

    out: Path = options.out
    try:
        raw = options.text.read_bytes()
        text = raw.decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise SystemExit(f"train_family: --text {options.text}: {error}") from None
    if len(raw) < LEAST_BYTES:
        raise SystemExit(
            f"train_family: --text {options.text}: {len(raw):,} bytes; at least {LEAST_BYTES:,} are needed"
        )
    sha256 = hashlib.sha256(raw).hexdigest()
    for folder in (path for path in sorted(out.glob("[!.]*-seed*")) if path.is_dir()):
        require_same(folder, sha256, options.vocabulary, options.steps)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SystemExit(f"train_family: --out {out}: {error.strerror}") from None
    parts = dict(zip(("train", "held_out"), cut(text)))
    tokenizer = train_tokenizer(parts["train"], options.vocabulary)
    tokenizer.save_pretrained(out / "tokenizer")
    tokens = {}
    for name, part in parts.items():
        (out / f"{name}.txt").write_text(part, encoding="utf-8")
        tokens[name] = np.asarray(tokenizer.backend_tokenizer.encode(part).ids, dtype=np.int64)
        np.save(out / f"{name}.npy", tokens[name])
    unigram, bigram = baselines(tokens["train"], tokens["held_out"], options.vocabulary)
    print(
        f"{options.text.name}: {len(raw):,} bytes, {len(tokens['train']):,} tokens to train on, {len(tokens['held_out']):,}"
        f" held out; held-out NLL unigram {unigram:.4f}, bigram {bigram:.4f} nats per token",
        flush=True,
    )
    return Plan(options.kind, options.steps, options.vocabulary, sha256, unigram, bigram)


def require_same(folder: Path, text_sha256: str, vocabulary: int, steps: int) -> None:
    """Stop where a member is of another text, vocabulary or number of steps, or its folder holds no member."""
    if not (folder / "training.json").is_file():
        raise SystemExit(f"train_family: {folder} is in the way: it holds no member; move it, or name another -o")
    content = json.loads((folder / "training.json").read_text(encoding="utf-8"))
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    asked = {"text": text_sha256, "vocabulary": vocabulary, "steps": steps}
    there = {"text": content["text_sha256"], "vocabulary": config["vocab_size"], "steps": content["steps"]}
    if other := [f"{name} {there[name]}, not {asked[name]}" for name in asked if there[name] != asked[name]]:
        raise SystemExit(f"train_family: {folder} was trained on {'; '.join(other)}; name another -o")


def train_all(options: argparse.Namespace, plan: Plan) -> list[dict[str, Any]] | None:
    """Return the lines of all members that were asked for, trained now or there before; None where Ctrl-C broke it off."""
    lines, waiting = [], {}
    spawn = multiprocessing.get_context("spawn")
    # Ctrl-C reaches every process of the terminal: a pool whose idle workers die of it hangs, so the parent alone answers.
    deaf = {"initializer": signal.signal, "initargs": (signal.SIGINT, signal.SIG_IGN)}
    with ProcessPoolExecutor(options.jobs, mp_context=spawn, **deaf) as pool:
        try:
            for name in sorted(set(options.sizes), key=lambda one: -SIZES[one].width):  # the longest first
                for seed in sorted(set(options.seeds)):
                    folder = options.out / f"{plan.kind}-{name}-seed{seed}"
                    if folder.exists():
                        lines.append(line_of(folder, None))
                    else:
                        waiting[pool.submit(train_member, SIZES[name], seed, plan, str(options.out))] = folder
            for done in as_completed(waiting):
                lines.append(done.result())
                print(f"{lines[-1]['member']}: {sentence(lines[-1])}", flush=True)
        except KeyboardInterrupt:
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            for child in multiprocessing.active_children():
                child.terminate()
            pool.shutdown(cancel_futures=True)
            for half in (half for folder in waiting.values() for half in options.out.glob(f".{folder.name}.*")):
                shutil.rmtree(half)
            return None
    return sorted(lines, key=lambda line: (line["num_parameters"], line["seed"]))


def main() -> int:
    """Train what is missing, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", type=Path, required=True, help="the text, UTF-8, at least 1 MB")
    parser.add_argument("-o", "--out", type=Path, default=Path("outputs/family"), help="the folder of the family")
    kinds = "a Mixtral has the same shape with four experts in each block: about twice the weights"
    parser.add_argument("--kind", choices=["llama", "mixtral"], default="llama", help=kinds)
    parser.add_argument("--sizes", nargs="+", choices=list(SIZES), default=list(SIZES), help="which of the sizes")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1], help="training seeds of each size")
    parser.add_argument("--steps", type=int, default=1400, help="of optimisation, 1,024 tokens each")
    parser.add_argument("--vocabulary", type=int, default=1024, help="tokens of the tokenizer, at least 257")
    parser.add_argument(
        "--jobs", type=int, default=os.cpu_count() or 1, help="members trained at a time, a thread each"
    )
    options = parser.parse_args()
    for name, least in {"steps": 1, "jobs": 1, "vocabulary": 257, "seeds": 0}.items():
        if (given := min(np.atleast_1d(getattr(options, name)))) < least:
            parser.error(f"--{name}: {given}; at least {least}")
    started, plan = time.perf_counter(), prepare(options)
    lines = train_all(options, plan)
    if lines is None:
        print("train_family: interrupted; the same command keeps what is finished and trains the rest", file=sys.stderr)
        return 130
    content = [{name: value for name, value in line.items() if name != "seconds"} for line in lines]
    summary = json.dumps({**asdict(plan), "members": content}, indent=2)
    (options.out / f"{options.kind}.json").write_text(summary + "\n", encoding="utf-8")
    print("\n| member | weights | train NLL | held-out NLL | unigram | bigram | beats the bigram | seconds |")
    print("| --- | --: | --: | --: | --: | --: | --- | --: |")
    for line in lines:
        seconds = "kept" if line["seconds"] is None else f"{line['seconds']:.0f}"
        print(
            f"| {line['member']} | {line['num_parameters']:,} | {shown(line['train_nll'])} | {shown(line['held_out_nll'])} |"
            f" {line['unigram_nll']:.4f} | {line['bigram_nll']:.4f} | {'yes' if line['beats_bigram'] else 'no'} | {seconds} |"
        )
    print(f"\n{len(lines)} members in {(time.perf_counter() - started) / 60:.1f} minutes, {options.jobs} at a time")
    return 0


def shown(value: float | None) -> str:
    """Return a loss in four digits, or that training diverged."""
    return "diverged" if value is None else f"{value:.4f}"


def sentence(line: dict[str, Any]) -> str:
    """Return how far a member came."""
    verdict = "below the bigram" if line["beats_bigram"] else "NOT below the bigram: no law counts it"
    return (
        f"{line['num_parameters']:,} weights, held-out NLL {shown(line['held_out_nll'])}, {verdict};"
        f" {line['seconds']:.0f} s"
    )


if __name__ == "__main__":
    sys.exit(main())
