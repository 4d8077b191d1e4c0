"""What each parameter is: block, component, axes and uses, on every tiny architecture, against a table written by hand."""

from typing import Any

import pytest
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    LlamaConfig,
    Qwen2MoeConfig,
    T5Config,
    T5ForConditionalGeneration,
)

from esa.errors import ModelError, SpecError
from esa.model import ParameterInfo, describe, eligible, experts_of
from esa.model.anatomy import COMPONENTS, decoder_blocks
from tests.conftest import CONFIGS, SMALL, build

LINEAR, STORED_IN_OUT, VECTOR, FUSED = (0, 1, None), (1, 0, None), (0, None, None), (1, 2, 0)
EMBEDDING = STORED_IN_OUT  # looking a token up is a product with its one-hot vector, from the left
Expected = dict[str, tuple[str, tuple[int, ...], tuple[int | None, int | None, int | None]]]

LLAMA_BLOCK: Expected = {
    "self_attn.q_proj.weight": ("attn.q", (16, 16), LINEAR),
    "self_attn.k_proj.weight": ("attn.k", (8, 16), LINEAR),
    "self_attn.v_proj.weight": ("attn.v", (8, 16), LINEAR),
    "self_attn.o_proj.weight": ("attn.o", (16, 16), LINEAR),
    "mlp.gate_proj.weight": ("mlp.gate", (24, 16), LINEAR),
    "mlp.up_proj.weight": ("mlp.up", (24, 16), LINEAR),
    "mlp.down_proj.weight": ("mlp.down", (16, 24), LINEAR),
    "input_layernorm.weight": ("norm", (16,), VECTOR),
    "post_attention_layernorm.weight": ("norm", (16,), VECTOR),
}
# name -> where its blocks are, one block's parameters, and those outside the blocks
ANATOMY: dict[str, tuple[str, Expected, Expected]] = {
    "llama": (
        "model.layers", LLAMA_BLOCK,
        {
            "model.embed_tokens.weight": ("embed", (96, 16), EMBEDDING),
            "model.norm.weight": ("norm", (16,), VECTOR),
            "lm_head.weight": ("lm_head", (96, 16), LINEAR),
        },
    ),
    "llama_tied": (
        "model.layers", LLAMA_BLOCK,
        {
            "model.embed_tokens.weight": ("embed", (96, 16), EMBEDDING),
            "model.norm.weight": ("norm", (16,), VECTOR),
        },
    ),
    "gpt2": (
        "transformer.h",
        {
            "ln_1.weight": ("norm", (16,), VECTOR),
            "ln_1.bias": ("norm", (16,), VECTOR),
            "attn.c_attn.weight": ("attn.qkv", (16, 48), STORED_IN_OUT),
            "attn.c_attn.bias": ("attn.qkv", (48,), VECTOR),
            "attn.c_proj.weight": ("attn.o", (16, 16), STORED_IN_OUT),
            "attn.c_proj.bias": ("attn.o", (16,), VECTOR),
            "ln_2.weight": ("norm", (16,), VECTOR),
            "ln_2.bias": ("norm", (16,), VECTOR),
            "mlp.c_fc.weight": ("mlp.up", (16, 64), STORED_IN_OUT),
            "mlp.c_fc.bias": ("mlp.up", (64,), VECTOR),
            "mlp.c_proj.weight": ("mlp.down", (64, 16), STORED_IN_OUT),
            "mlp.c_proj.bias": ("mlp.down", (16,), VECTOR),
        },
        {
            "transformer.wte.weight": ("embed", (96, 16), EMBEDDING),
            "transformer.wpe.weight": ("embed", (64, 16), EMBEDDING),
            "transformer.ln_f.weight": ("norm", (16,), VECTOR),
            "transformer.ln_f.bias": ("norm", (16,), VECTOR),
        },
    ),
    "gpt_neox": (
        "gpt_neox.layers",
        {
            "input_layernorm.weight": ("norm", (16,), VECTOR),
            "input_layernorm.bias": ("norm", (16,), VECTOR),
            "post_attention_layernorm.weight": ("norm", (16,), VECTOR),
            "post_attention_layernorm.bias": ("norm", (16,), VECTOR),
            "attention.query_key_value.weight": ("attn.qkv", (48, 16), LINEAR),
            "attention.query_key_value.bias": ("attn.qkv", (48,), VECTOR),
            "attention.dense.weight": ("attn.o", (16, 16), LINEAR),
            "attention.dense.bias": ("attn.o", (16,), VECTOR),
            "mlp.dense_h_to_4h.weight": ("mlp.up", (24, 16), LINEAR),
            "mlp.dense_h_to_4h.bias": ("mlp.up", (24,), VECTOR),
            "mlp.dense_4h_to_h.weight": ("mlp.down", (16, 24), LINEAR),
            "mlp.dense_4h_to_h.bias": ("mlp.down", (16,), VECTOR),
        },
        {
            "gpt_neox.embed_in.weight": ("embed", (96, 16), EMBEDDING),
            "gpt_neox.final_layer_norm.weight": ("norm", (16,), VECTOR),
            "gpt_neox.final_layer_norm.bias": ("norm", (16,), VECTOR),
            "lm_head.weight": ("lm_head", (96, 16), LINEAR),
        },
    ),
    "phi3": (
        "model.layers",
        {
            "self_attn.o_proj.weight": ("attn.o", (16, 16), LINEAR),
            "self_attn.qkv_proj.weight": ("attn.qkv", (32, 16), LINEAR),
            "mlp.gate_up_proj.weight": ("mlp.gate_up", (48, 16), LINEAR),
            "mlp.down_proj.weight": ("mlp.down", (16, 24), LINEAR),
            "input_layernorm.weight": ("norm", (16,), VECTOR),
            "post_attention_layernorm.weight": ("norm", (16,), VECTOR),
        },
        {
            "model.embed_tokens.weight": ("embed", (96, 16), EMBEDDING),
            "model.norm.weight": ("norm", (16,), VECTOR),
            "lm_head.weight": ("lm_head", (96, 16), LINEAR),
        },
    ),
    "mixtral": (
        "model.layers",
        {
            "self_attn.q_proj.weight": ("attn.q", (16, 16), LINEAR),
            "self_attn.k_proj.weight": ("attn.k", (8, 16), LINEAR),
            "self_attn.v_proj.weight": ("attn.v", (8, 16), LINEAR),
            "self_attn.o_proj.weight": ("attn.o", (16, 16), LINEAR),
            "mlp.gate.weight": ("router", (4, 16), LINEAR),
            "mlp.experts.gate_up_proj": ("expert.gate_up", (4, 48, 16), FUSED),
            "mlp.experts.down_proj": ("expert.down", (4, 16, 24), FUSED),
            "input_layernorm.weight": ("norm", (16,), VECTOR),
            "post_attention_layernorm.weight": ("norm", (16,), VECTOR),
        },
        {
            "model.embed_tokens.weight": ("embed", (96, 16), EMBEDDING),
            "model.norm.weight": ("norm", (16,), VECTOR),
            "lm_head.weight": ("lm_head", (96, 16), LINEAR),
        },
    ),
}  # fmt: skip
TIED = {
    "llama_tied": {"model.embed_tokens.weight": ("model.embed_tokens.weight", "lm_head.weight")},
    "gpt2": {"transformer.wte.weight": ("transformer.wte.weight", "lm_head.weight")},
}


def drawn(info: ParameterInfo) -> tuple[Any, ...]:
    """Return component, shape and axes of a description."""
    return info.component, info.shape, (info.output_axis, info.input_axis, info.expert_axis)


def test_every_tiny_architecture_has_its_table() -> None:
    """No architecture of the suite is without a table written by hand."""
    assert set(ANATOMY) == set(CONFIGS)


def test_blocks_are_described(architecture: str) -> None:
    """Every parameter of every block has the component, shape and axes of the table, and its block's number."""
    prefix, block, _ = ANATOMY[architecture]
    table = describe(build(architecture))
    for number in range(3):
        found = {name: info for name, info in table.items() if info.block == number}
        assert {name: drawn(info) for name, info in found.items()} == {
            f"{prefix}.{number}.{name}": expected for name, expected in block.items()
        }


def test_the_rest_is_described(architecture: str) -> None:
    """What is outside the blocks is described too, with no block's number."""
    outside = {name: drawn(info) for name, info in describe(build(architecture)).items() if info.block is None}
    assert outside == ANATOMY[architecture][2]


def test_the_order_is_the_model_s(architecture: str) -> None:
    """The table has the names, order and sizes of named_parameters(), each layer is the module that owns it."""
    model = build(architecture)
    table = describe(model)
    assert [(name, info.numel) for name, info in table.items()] == [(n, p.numel()) for n, p in model.named_parameters()]
    for name, info in table.items():
        assert (info.name, f"{info.layer}.{name.rpartition('.')[2]}") == (name, name)
        assert model.get_submodule(info.layer) is not None


def test_a_tied_tensor_appears_once(architecture: str) -> None:
    """A tensor of two names stands under its first, with both as its uses; every other has one."""
    table = describe(build(architecture))
    assert {name: info.uses for name, info in table.items() if info.tied} == TIED.get(architecture, {})
    assert all(info.uses == (name,) for name, info in table.items() if not info.tied)


def test_a_record_is_plain_data(architecture: str) -> None:
    """A description as a row holds what its fields hold, with lists for tuples."""
    for info in describe(build(architecture)).values():
        record = info.record()
        assert (
            ParameterInfo(
                **{
                    "name": record.pop("parameter"),
                    **record,
                    "shape": tuple(record["shape"]),
                    "uses": tuple(record["uses"]),
                }
            )
            == info
        )


def test_axes_are_those_of_the_computation() -> None:
    """The output axis of a Linear and of GPT-2's Conv1D is where its bias goes."""
    for name in ("gpt2", "gpt_neox"):
        table = describe(build(name))
        biased = [info for info in table.values() if len(info.shape) == 2 and f"{info.layer}.bias" in table]
        assert len(biased) == 12
        for info in biased:
            assert info.output_axis is not None
            assert (info.shape[info.output_axis],) == table[f"{info.layer}.bias"].shape


def test_experts_are_counted() -> None:
    """A weight of a fused tensor belongs to the expert of its first axis; elsewhere there is none."""
    table = describe(build("mixtral"))
    fused = table["model.layers.0.mlp.experts.down_proj"]
    assert list(experts_of(fused)) == [0, 1, 2, 3]
    assert [fused.expert_of(index) for index in (0, 383, 384, 1535)] == [0, 0, 1, 3]
    router = table["model.layers.0.mlp.gate.weight"]
    assert list(experts_of(router)) == []
    assert router.expert_of(5) is None


def deep() -> dict[str, ParameterInfo]:
    """Return the description of a model of 12 blocks."""
    config = LlamaConfig(**{**SMALL, "num_hidden_layers": 12}, num_key_value_heads=2)
    return describe(AutoModelForCausalLM.from_config(config))


def test_block_1_is_not_block_10() -> None:
    """Blocks are told apart by their modules, never by how their names begin."""
    table = deep()
    for number in range(12):
        names = {name for name, info in table.items() if info.block == number}
        assert names == {f"model.layers.{number}.{name}" for name in LLAMA_BLOCK}
    assert set(eligible(table, ("block=1",))) == {f"model.layers.1.{name}" for name in LLAMA_BLOCK}
    assert set(eligible(table, ("model.layers.1.*",))) == {f"model.layers.1.{name}" for name in LLAMA_BLOCK}


MATRICES = {name for name, (_, shape, _) in LLAMA_BLOCK.items() if len(shape) > 1}
PATTERNS: list[tuple[tuple[str, ...], tuple[str, ...], set[str]]] = [
    ((), (), {f"model.layers.{b}.{name}" for b in range(3) for name in MATRICES} | {"model.embed_tokens.weight", "lm_head.weight"}),
    (("component=mlp.down",), (), {f"model.layers.{b}.mlp.down_proj.weight" for b in range(3)}),
    (("component=attn.[qk]",), (), {f"model.layers.{b}.self_attn.{n}_proj.weight" for b in range(3) for n in "qk"}),
    (("component=attn.*",), ("block=[12]",), {f"model.layers.0.self_attn.{n}_proj.weight" for n in "qkvo"}),
    (("block=1",), ("component=norm", "*attn*"), {f"model.layers.1.mlp.{n}_proj.weight" for n in ("gate", "up", "down")}),
    (("model.norm.weight", "lm_head.weight"), (), {"model.norm.weight", "lm_head.weight"}),
    (("*.0.mlp.down_proj.weight",), (), {"model.layers.0.mlp.down_proj.weight"}),
    ((), ("component=mlp.*", "component=attn.*"), {"model.embed_tokens.weight", "lm_head.weight"}),
    ((), ("block=*", "component=embed"), set()),
]  # fmt: skip


@pytest.mark.parametrize(("include", "exclude", "expected"), PATTERNS)
def test_patterns_choose_parameters(include: tuple[str, ...], exclude: tuple[str, ...], expected: set[str]) -> None:
    """include chooses among all parameters, exclude takes away; without include those of two dimensions or more are chosen."""
    table = describe(build("llama"))
    if not expected:  # block=* matches an empty block too: nothing would be left
        with pytest.raises(SpecError) as caught:
            eligible(table, include, exclude)
        assert str(caught.value) == "score.include: no parameter is left to score"
        return
    chosen = eligible(table, include, exclude)
    assert set(chosen) == expected
    assert list(chosen) == [name for name in table if name in expected]


def test_a_tied_tensor_is_chosen_by_either_name() -> None:
    """A pattern on the second name of a tied tensor finds it."""
    table = describe(build("llama_tied"))
    assert set(eligible(table, ("lm_head.weight",))) == {"model.embed_tokens.weight"}
    assert "model.embed_tokens.weight" not in eligible(table, (), ("lm_head.*",))


@pytest.mark.parametrize(
    ("include", "exclude", "text"),
    [
        (
            ("component=mlp.dwon",), (),
            "score.include: 'component=mlp.dwon' matches no parameter (did you mean 'component=mlp.down'?)",
        ),
        ((), ("block=3",), "score.exclude: 'block=3' matches no parameter"),
        (
            ("model.layers.0.mlp.down_proj",), (),
            "score.include: 'model.layers.0.mlp.down_proj' matches no parameter"
            " (did you mean 'model.layers.0.mlp.down_proj.weight'?)",
        ),
    ],
)  # fmt: skip
def test_a_pattern_that_matches_nothing_is_refused(
    include: tuple[str, ...], exclude: tuple[str, ...], text: str
) -> None:
    """A pattern without a match is an error that names the nearest one."""
    with pytest.raises(SpecError) as caught:
        eligible(describe(build("llama")), include, exclude)
    assert str(caught.value) == text


def test_only_known_components_are_given(architecture: str) -> None:
    """Every component is one of the list, and none of these architectures has a part without a name."""
    components = {info.component for info in describe(build(architecture)).values()}
    assert components <= set(COMPONENTS) - {"other"}


def test_a_mixture_beside_dense_experts_is_described() -> None:
    """Qwen-MoE's shared expert is a dense MLP, and both its gates are routers."""
    config = Qwen2MoeConfig(
        **SMALL, num_key_value_heads=2, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=8,
        shared_expert_intermediate_size=8,
    )  # fmt: skip
    table = describe(AutoModelForCausalLM.from_config(config))
    found = {
        name.removeprefix("model.layers.1.mlp."): info.component
        for name, info in table.items()
        if name.startswith("model.layers.1.mlp.")
    }
    assert found == {
        "gate.weight": "router", "experts.gate_up_proj": "expert.gate_up", "experts.down_proj": "expert.down",
        "shared_expert.gate_proj.weight": "mlp.gate", "shared_expert.up_proj.weight": "mlp.up",
        "shared_expert.down_proj.weight": "mlp.down", "shared_expert_gate.weight": "router",
    }  # fmt: skip


def test_every_norm_of_a_block_is_one() -> None:
    """Gemma-2's four norms in each block are norms."""
    config = Gemma2Config(**SMALL, num_key_value_heads=2, head_dim=4)
    table = describe(AutoModelForCausalLM.from_config(config))
    assert sum(info.component == "norm" for info in table.values() if info.block == 0) == 4


class Flat(nn.Module):
    """A model without a list of blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.config = LlamaConfig(**SMALL)
        self.layer = nn.Linear(2, 2)


def test_a_model_without_its_blocks_is_refused() -> None:
    """A model without one list of as many blocks as its configuration says is refused with what was found."""
    with pytest.raises(ModelError) as caught:
        describe(Flat())
    assert str(caught.value) == (
        "Flat has no single list of 3 decoder blocks; found: no ModuleList\n"
        "hint: esa walks decoder-only causal language models"
    )
    small = T5Config(vocab_size=96, d_model=16, d_kv=4, d_ff=24, num_layers=2, num_heads=4)
    with pytest.raises(ModelError, match=r"has no single list of 2 decoder blocks; found: encoder\.block \(2\), "):
        decoder_blocks(T5ForConditionalGeneration(small))
