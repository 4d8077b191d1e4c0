"""Folders and GGUF files of tiny models, as people have them."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from safetensors.torch import load_file, save_file

from tests.conftest import build


def save(name: str, folder: Path, dtype: torch.dtype = torch.bfloat16, **how: Any) -> Any:
    """Save a tiny model as the hub lays it out, and return it."""
    model = build(name, dtype)
    model.save_pretrained(folder, **how)
    return model


def change_config(folder: Path, **keys: Any) -> None:
    """Change keys of a folder's configuration; None takes a key out."""
    path = folder / "config.json"
    config = {**json.loads(path.read_text()), **keys}
    path.write_text(json.dumps({key: value for key, value in config.items() if value is not None}))


def change_tensors(folder: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    """Change the tensors of a folder's one file."""
    path = folder / "model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, metadata={"format": "pt"})


def data_bytes(folder: Path) -> int:
    """Return the bytes of weights in a folder's safetensors files: their sizes less their headers."""
    total = 0
    for path in folder.glob("*.safetensors"):
        with path.open("rb") as file:
            total += path.stat().st_size - 8 - int.from_bytes(file.read(8), "little")
    return total


def write_gguf(
    path: Path, architecture: str, keys: dict[str, Any], tensors: dict[str, tuple[tuple[int, ...], str]]
) -> None:
    """Write a GGUF file: ``tensors`` maps a name to its shape (as torch has it) and ggml's type."""
    writer = gguf.GGUFWriter(path, architecture)
    for key, value in keys.items():
        add = writer.add_float32 if isinstance(value, float) else writer.add_uint32
        add(f"{architecture}.{key}", value)
    writer.add_token_list([f"t{number}" for number in range(64)])
    writer.add_array("tokenizer.ggml.scores", [0.0] * 64)
    for name, (shape, kind) in tensors.items():
        data = np.ones(shape, dtype=np.float32)
        if kind == "F32":
            writer.add_tensor(name, data)
        else:
            quantization = gguf.GGMLQuantizationType[kind]
            writer.add_tensor(name, gguf.quants.quantize(data, quantization), raw_dtype=quantization)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


GGUF_KEYS: dict[str, Any] = {
    "block_count": 2, "context_length": 128, "embedding_length": 64, "feed_forward_length": 96, "vocab_size": 64,
    "attention.head_count": 4, "attention.head_count_kv": 2, "attention.layer_norm_rms_epsilon": 1e-5,
}  # fmt: skip


def llama_gguf(path: Path) -> None:
    """Write a Llama of two blocks with a head of its own, its tensors of four types, and a table that is no parameter."""
    tensors: dict[str, tuple[tuple[int, ...], str]] = {
        "token_embd.weight": ((64, 64), "Q8_0"), "output.weight": ((64, 64), "F16"), "output_norm.weight": ((64,), "F32"),
        "rope_freqs.weight": ((8,), "F32"),
    }  # fmt: skip
    for block in range(2):
        tensors |= {
            f"blk.{block}.attn_norm.weight": ((64,), "F32"), f"blk.{block}.ffn_norm.weight": ((64,), "F32"),
            f"blk.{block}.attn_q.weight": ((64, 64), "Q4_0"), f"blk.{block}.attn_k.weight": ((32, 64), "Q4_0"),
            f"blk.{block}.attn_v.weight": ((32, 64), "Q4_0"), f"blk.{block}.attn_output.weight": ((64, 64), "Q4_0"),
            f"blk.{block}.ffn_gate.weight": ((96, 64), "Q4_0"), f"blk.{block}.ffn_up.weight": ((96, 64), "Q4_0"),
            f"blk.{block}.ffn_down.weight": ((64, 96), "Q8_0" if block else "Q4_0"),
        }  # fmt: skip
    write_gguf(path, "llama", GGUF_KEYS, tensors)


def qwen_moe_gguf(path: Path, expert_size: int = 768) -> None:
    """Write a Qwen3-MoE of two blocks: gate and up of its experts are two tensors here and one in the model.

    The size of an expert is not among the keys that transformers reads: 768 is its default.
    """
    keys = {**GGUF_KEYS, "expert_count": 4, "expert_used_count": 2, "attention.key_length": 16}
    tensors: dict[str, tuple[tuple[int, ...], str]] = {
        "token_embd.weight": ((64, 64), "Q8_0"), "output.weight": ((64, 64), "Q8_0"), "output_norm.weight": ((64,), "F32"),
    }  # fmt: skip
    for block in range(2):
        tensors |= {
            f"blk.{block}.attn_norm.weight": ((64,), "F32"), f"blk.{block}.ffn_norm.weight": ((64,), "F32"),
            f"blk.{block}.attn_q.weight": ((64, 64), "Q4_0"), f"blk.{block}.attn_k.weight": ((32, 64), "Q4_0"),
            f"blk.{block}.attn_v.weight": ((32, 64), "Q4_0"), f"blk.{block}.attn_output.weight": ((64, 64), "Q4_0"),
            f"blk.{block}.attn_q_norm.weight": ((16,), "F32"), f"blk.{block}.attn_k_norm.weight": ((16,), "F32"),
            f"blk.{block}.ffn_gate_inp.weight": ((4, 64), "F32"),
            f"blk.{block}.ffn_gate_exps.weight": ((4, expert_size, 64), "Q4_0"),
            f"blk.{block}.ffn_up_exps.weight": ((4, expert_size, 64), "Q8_0"),
            f"blk.{block}.ffn_down_exps.weight": ((4, 64, expert_size), "Q8_0"),
        }  # fmt: skip
    write_gguf(path, "qwen3moe", keys, tensors)
