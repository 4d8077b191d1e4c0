"""Tiny models as bitsandbytes holds them: rows of 64 weights, the size of an NF4 block."""

from typing import Any

import torch
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig, MixtralConfig

from esa.model import LoadedModel, prepare
from esa.model.quantized import QuantizedWeight
from tests.conftest import VOCABULARY, make_tokenizer, tiny_spec

KINDS = ("nf4", "int8")
WIDE = {
    "vocab_size": VOCABULARY, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "bos_token_id": 0,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64, "eos_token_id": 0,
    "tie_word_embeddings": True,
}  # fmt: skip
DOWN = "model.layers.1.mlp.down_proj.weight"  # (64, 128)
UP = "model.layers.0.mlp.up_proj.weight"  # (128, 64)
EMBEDDING = "model.embed_tokens.weight"


def wide_model(name: str = "llama", dtype: torch.dtype = torch.float32) -> Any:
    """Return a random model whose every weight has a different size and sign."""
    config = {
        "llama": lambda: LlamaConfig(**WIDE),
        "mixtral": lambda: MixtralConfig(**WIDE, num_local_experts=2, num_experts_per_tok=1),
        "gpt2": lambda: GPT2Config(
            vocab_size=VOCABULARY, n_embd=64, n_layer=2, n_head=4, n_positions=64, bos_token_id=0, eos_token_id=0
        ),
    }[name]()
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=dtype).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim >= 2:
                parameter.copy_(torch.randn(parameter.shape) * 0.1)
    return model


def load_quantized(kind: str, name: str = "llama", model: Any = None, **section: Any) -> LoadedModel:
    """Return a tiny model, its linear maps quantised, as esa holds it."""
    spec = tiny_spec(model={"id": "tiny", "quantization": kind, **section})
    model = wide_model(name, getattr(torch, spec.model.dtype)) if model is None else model
    return prepare(model, make_tokenizer(), spec.model, torch.device("cpu"))


def weight_of(loaded: LoadedModel, name: str) -> QuantizedWeight:
    """Return a weight that must be quantised."""
    found = loaded.weights[name]
    assert isinstance(found, QuantizedWeight), name
    return found


def turned(name: str, loaded: LoadedModel, parameter: str) -> bool:
    """Tell whether quantising turned a weight's storage: GPT-2's linear maps are stored (in, out)."""
    return name == "gpt2" and isinstance(loaded.weights[parameter], QuantizedWeight)


def dense_twin(loaded: LoadedModel, name: str = "llama") -> LoadedModel:
    """Return a model in float32 with the numbers that the codes of another stand for."""
    model = wide_model(name)
    with torch.no_grad():
        for parameter_name, parameter in model.named_parameters():
            values = loaded.weights[parameter_name].values().float()
            parameter.copy_(values.T if turned(name, loaded, parameter_name) else values)
    return prepare(model, make_tokenizer(), tiny_spec().model, torch.device("cpu"))
