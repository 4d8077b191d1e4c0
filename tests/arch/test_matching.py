"""File tensors find their parameters as in transformers' own loaders: renamed, merged, or not at all."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformers import AutoConfig, AutoModelForCausalLM, modeling_gguf_pytorch_utils

from esa.arch import matching
from esa.arch.matching import match
from esa.arch.stored import StoredFiles, StoredTensor, read_stored
from esa.model import describe
from esa.model.sources import ModelSource
from tests.arch.models import llama_gguf
from tests.conftest import SMALL, build


@contextmanager
def meta() -> Iterator[None]:
    """Build on the meta device."""
    with torch.device("meta"):
        yield


def model_of(model_type: str, **keys: Any) -> Any:
    """Return a tiny model without weights."""
    with meta():
        return AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, **SMALL, **keys))


def stored(name: str, numel: int) -> StoredTensor:
    """Return a tensor of float16."""
    return StoredTensor(name, "float16", numel, 2 * numel)


def test_an_expert_too_few_is_not_guessed() -> None:
    """A fused parameter of which one expert is missing in the files has no bytes."""
    model = build("mixtral")
    table = describe(model)
    name = "model.layers.0.mlp.experts.down_proj"
    one = "model.layers.0.block_sparse_moe.experts.{}.w2.weight"
    all_four = tuple(stored(one.format(expert), 16 * 24) for expert in range(4))
    assert match(model, table, StoredFiles(all_four)).held == {name: ("float16", 2 * 4 * 16 * 24)}
    few = match(model, table, StoredFiles(all_four[:3]))
    assert few.held == {}
    assert name in few.unknown


def test_two_levels_name_what_all_levels_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The quick look at two levels of modules gives a GGUF's tensors the names that the loader's look at all levels gives."""
    llama_gguf(tmp_path / "a.gguf")
    files = read_stored(ModelSource(str(tmp_path), "a.gguf", local=True))
    assert files is not None
    config = AutoConfig.from_pretrained(tmp_path, gguf_file="a.gguf")
    with meta():
        model = AutoModelForCausalLM.from_config(config)
    quick = matching._gguf_targets(model, files)
    monkeypatch.setattr(matching, "_Shallow", lambda module: module)
    assert matching._gguf_targets(model, files) == quick
    assert len(quick) == len(files.tensors) - 1  # rope_freqs.weight


def test_all_levels_are_asked_where_two_do_not_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where two levels of modules leave a parameter without a name, the loader's look at all levels decides."""
    llama_gguf(tmp_path / "a.gguf")
    files = read_stored(ModelSource(str(tmp_path), "a.gguf", local=True))
    assert files is not None
    with meta():
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(tmp_path, gguf_file="a.gguf"))
    expected = matching._gguf_targets(model, files)
    look = modeling_gguf_pytorch_utils.get_gguf_hf_weights_map
    asked: list[object] = []

    def short_sighted(root: Any, *rest: Any, **names: Any) -> Any:
        asked.append(type(root))
        return {} if isinstance(root, matching._Shallow) else look(root, *rest, **names)

    monkeypatch.setattr(modeling_gguf_pytorch_utils, "get_gguf_hf_weights_map", short_sighted)
    assert matching._gguf_targets(model, files) == expected
    assert asked[:2] == [matching._Shallow, type(model)]


def test_an_architecture_that_gguf_does_not_know_has_no_names() -> None:
    """Of an architecture without GGUF names no parameter has bytes, and every tensor is extra."""
    model = model_of("jetmoe")
    files = StoredFiles((stored("token_embd.weight", 96 * 16),), "jetmoe")
    found = match(model, describe(model), files)
    assert (found.held, found.extra) == ({}, list(files.tensors))


def test_scales_of_a_matched_weight_are_counted() -> None:
    """A quantized weight that adds up keeps its dtype, and its scales are counted with it."""
    model = build("llama")
    model.config.quantization_config = {"quant_method": "fp8"}
    name = "model.layers.0.mlp.up_proj.weight"
    files = StoredFiles(
        (StoredTensor(name, "float8_e4m3fn", 384, 384), StoredTensor(f"{name}_scale_inv", "float32", 1, 4))
    )
    found = match(model, describe(model), files)
    assert (found.held[name], found.extra) == (("float8_e4m3fn", 388), [])


def test_a_quantizer_without_a_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """The name of a quantizer is read from a table or an object, and is 'quantized' where there is none."""
    model = build("llama")
    cases = [
        (None, None), ({"quant_method": "awq"}, "awq"), ({"load_in_4bit": True}, "quantized"),
        (transformers.BitsAndBytesConfig(load_in_8bit=True), "bitsandbytes"),
    ]  # fmt: skip
    for config, expected in cases:
        monkeypatch.setattr(model.config, "quantization_config", config, raising=False)
        assert matching._quantization(model) == expected
