"""Tiny models of every shape that matters, built in milliseconds, and a tokenizer made on the spot."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    MixtralConfig,
    Phi3Config,
    PreTrainedTokenizerFast,
)

from esa.model import LoadedModel, describe, fingerprint, prepare
from esa.model.weights import weights_of
from esa.spec import Spec, spec_from_dict

VOCABULARY = 96

# One thread for tensors of a few hundred numbers: two threads that wait for each other on busy cores cost tenfold.
torch.set_num_threads(1)
SMALL = {
    "vocab_size": VOCABULARY, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 3, "bos_token_id": 0,
    "num_attention_heads": 4, "max_position_embeddings": 64, "eos_token_id": 0, "pad_token_id": 0,
}  # fmt: skip
CONFIGS: dict[str, Callable[[], Any]] = {
    "llama": lambda: LlamaConfig(**SMALL, num_key_value_heads=2, tie_word_embeddings=False),
    "llama_tied": lambda: LlamaConfig(**SMALL, num_key_value_heads=2, tie_word_embeddings=True),
    "gpt2": lambda: GPT2Config(
        vocab_size=VOCABULARY, n_embd=16, n_layer=3, n_head=4, n_positions=64, bos_token_id=0, eos_token_id=0
    ),
    "gpt_neox": lambda: GPTNeoXConfig(**SMALL),
    "phi3": lambda: Phi3Config(**SMALL, num_key_value_heads=2),
    "mixtral": lambda: MixtralConfig(**SMALL, num_key_value_heads=2, num_local_experts=4, num_experts_per_tok=2),
}


def build(name: str, dtype: torch.dtype = torch.float32, seed: int = 0) -> Any:
    """Return a random model of a named configuration, its weights large enough for gradients to matter."""
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(CONFIGS[name](), dtype=dtype).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim >= 2:
                parameter.copy_(torch.randn(parameter.shape) * 0.2)
    return model


def model_fingerprint(model: Any, names: set[str] | None = None) -> str:
    """Return the fingerprint of a model as transformers holds it."""
    return fingerprint(weights_of(model, describe(model)), names)


def make_tokenizer() -> PreTrainedTokenizerFast:
    """Return a byte-like tokenizer of 95 printable characters and one token for the rest."""
    letters = {chr(code): code - 31 for code in range(32, 127)}
    vocabulary = {"<unk>": 0, **{letter: number for letter, number in letters.items() if number < VOCABULARY}}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<unk>")


def tiny_spec(**sections: Any) -> Spec:
    """Return a spec for tiny models: short windows, few of them."""
    tree: dict[str, Any] = {
        "name": "tiny",
        "model": {"id": "tiny"},
        "calibration": {"source": "builtin:dev_small", "windows": 3, "length": 12},
        "eval": {"source": "builtin:sentences", "windows": 4, "length": 12},
        "score": {"metrics": ["act_mag"], "keep": 16},
    }
    for name, section in sections.items():
        tree[name] = {**tree[name], **section} if isinstance(tree.get(name), dict) else section
    return spec_from_dict(tree)


def load(name: str, dtype: torch.dtype = torch.float32, **section: Any) -> LoadedModel:
    """Return a tiny model as esa holds it."""
    spec = tiny_spec(model={"id": "tiny", "dtype": str(dtype).removeprefix("torch."), **section})
    return prepare(build(name, dtype), make_tokenizer(), spec.model, torch.device("cpu"))


@pytest.fixture(autouse=True)
def no_hub() -> Iterator[None]:
    """Keep every test from asking the hub; those of the hub point at a stand-in (``tests/hub.py``)."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        patch.setattr("esa.artifact.hub._known", {})
        yield


@pytest.fixture(params=list(CONFIGS))
def architecture(request: pytest.FixtureRequest) -> str:
    """Name each tiny architecture in turn."""
    return str(request.param)


@pytest.fixture
def windows() -> list[torch.Tensor]:
    """Return three windows of different lengths, tokens repeated among them."""
    draw = torch.Generator().manual_seed(1)
    return [torch.randint(0, VOCABULARY, (1, length), generator=draw) for length in (9, 12, 7)]


@pytest.fixture
def folder_model(tmp_path: Any) -> Any:
    """Return the folder of a tiny Llama as the hub lays it out."""
    folder = tmp_path / "tiny-llama"
    build("llama").save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return folder
