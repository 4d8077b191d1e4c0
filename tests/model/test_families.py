"""Every family of decoders is walked block by block and described as a person would describe it."""

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, BertConfig, Gemma3Config, XLNetConfig

from esa.errors import ModelError
from esa.model import BlockStack, describe, eligible
from esa.model.anatomy import decoder_blocks
from tests.families import FAMILIES, build_family, expected_components, load_family, short_name
from tests.score.test_streaming import assert_same_bits, plain_gradients, streamed_gradients

every_family = pytest.mark.parametrize("name", FAMILIES)


@every_family
def test_components_are_those_written_by_hand(name: str) -> None:
    """Every parameter of the family has the component of the table, and the table has no name that the family lacks."""
    family = FAMILIES[name]
    table = describe(build_family(name))
    found = {short_name(info.name): info.component for info in table.values()}
    assert found == expected_components(family)
    assert any(info.tied for info in table.values()) == family.tied


@every_family
def test_streamed_gradients_equal_backward(name: str, windows: list[Tensor]) -> None:
    """Every gradient of every window is that of loss.backward(), bit for bit, and reaches every matrix."""
    loaded = load_family(name)
    for ids, found in zip(windows, streamed_gradients(loaded, windows), strict=True):
        plain = plain_gradients(loaded, ids)
        assert set(found) == set(eligible(loaded.table)) <= set(plain)
        assert_same_bits(found, plain)


AXES = {  # output, input and expert axis of stored tensors that are no plain linear map, or not stored like one
    ("gpt2", "transformer.h.0.attn.c_attn.weight"): (1, 0, None),
    ("gpt_bigcode", "transformer.h.0.attn.c_attn.weight"): (0, 1, None),  # of the same name, and a Linear
    ("mixtral", "model.layers.0.mlp.experts.down_proj"): (1, 2, 0),
    ("gpt_oss", "model.layers.0.mlp.experts.gate_up_proj"): (2, 1, 0),
    ("gpt_oss", "model.layers.0.mlp.experts.down_proj"): (2, 1, 0),
    ("gpt_oss", "model.layers.0.mlp.experts.down_proj_bias"): (1, None, 0),
    ("llama4", "model.layers.0.feed_forward.experts.gate_up_proj"): (2, 1, 0),  # nothing but its shape tells
    ("llama4", "model.layers.0.feed_forward.experts.down_proj"): (2, 1, 0),
    ("dbrx", "transformer.blocks.0.ffn.experts.mlp.w1"): (0, 1, None),
    ("dbrx", "transformer.blocks.0.ffn.experts.mlp.w2"): (1, 0, None),
    ("mamba", "backbone.layers.0.mixer.conv1d.weight"): (0, None, None),
}  # fmt: skip


@pytest.mark.parametrize(("name", "parameter"), AXES)
def test_axes_are_those_of_the_computation(name: str, parameter: str) -> None:
    """Output and input are told apart however a family stores its weights; a convolution has no experts and no input axis."""
    info = describe(build_family(name))[parameter]
    assert (info.output_axis, info.input_axis, info.expert_axis) == AXES[name, parameter]


def tiny_bert(**keys: Any) -> Any:
    """Return a random BERT with a head of its own."""
    config = BertConfig(
        vocab_size=96, hidden_size=16, num_hidden_layers=2, num_attention_heads=4, intermediate_size=24,
        max_position_embeddings=64, **keys,
    )  # fmt: skip
    return AutoModelForCausalLM.from_config(config).eval()


def test_an_encoder_walks_only_as_a_decoder() -> None:
    """BERT reads what follows and is refused; told that it is a decoder it walks, and its layers are named by where they lie."""
    with pytest.raises(ModelError, match="is not a causal language model"):
        BlockStack(tiny_bert())
    model = tiny_bert(is_decoder=True)
    assert len(BlockStack(model)) == 2
    found = {name: info.component for name, info in describe(model).items() if info.block == 1 and info.shape != (16,)}
    layer = "bert.encoder.layer.1"
    assert found == {
        f"{layer}.attention.self.query.weight": "attn.q", f"{layer}.attention.self.key.weight": "attn.k",
        f"{layer}.attention.self.value.weight": "attn.v", f"{layer}.attention.output.dense.weight": "attn.o",
        f"{layer}.intermediate.dense.weight": "mlp.up", f"{layer}.intermediate.dense.bias": "mlp.up",
        f"{layer}.output.dense.weight": "mlp.down",
    }  # fmt: skip
    assert describe(model)["cls.predictions.transform.dense.weight"].component == "lm_head"


def test_a_tower_beside_the_decoder_is_left_alone() -> None:
    """Of a text decoder and a vision tower of equal depth, the text decoder's blocks are walked."""
    parts = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = Gemma3Config(
        text_config={**parts, "vocab_size": 96, "num_key_value_heads": 2, "head_dim": 4, "max_position_embeddings": 64},
        vision_config={**parts, "image_size": 28, "patch_size": 14}, mm_tokens_per_image=4, image_token_index=95,
        boi_token_index=94, eoi_token_index=93,
    )  # fmt: skip
    model = AutoModelForCausalLM.from_config(config).eval()
    name, blocks = decoder_blocks(model)
    assert (name, len(blocks)) == ("model.language_model.layers", 2)
    assert len(BlockStack(model)) == 2


def test_a_model_without_an_end_is_tried_on_32_tokens() -> None:
    """A configuration that says -1 positions means any number of them; XLNet, which reads both ways, is refused as not causal."""
    config = XLNetConfig(vocab_size=96, d_model=16, n_layer=2, n_head=4, d_inner=24)
    assert config.max_position_embeddings == -1
    with pytest.raises(ModelError, match="is not a causal language model"):
        BlockStack(AutoModelForCausalLM.from_config(config).eval())


def test_a_name_alone_is_no_component() -> None:
    """What shares an MLP's name and not its other half is none: the gate of an attention's output, here planted."""
    model = build_family("llama")
    model.model.layers[1].self_attn.gate_proj = torch.nn.Linear(16, 16, bias=False)
    table = describe(model)
    assert table["model.layers.1.self_attn.gate_proj.weight"].component == "other"
    assert table["model.layers.1.mlp.gate_proj.weight"].component == "mlp.gate"
