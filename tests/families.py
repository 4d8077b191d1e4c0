"""The families of decoders that esa is tried on: a tiny configuration, its components by hand, and where a value weight lies."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import transformers as hf
from torch import nn
from transformers import AutoModelForCausalLM

from esa.model import LoadedModel, prepare
from tests.conftest import CONFIGS, SMALL, VOCABULARY, make_tokenizer, tiny_spec

Names = dict[str, str]  # component -> modules or parameters, without the block's number and a last .weight or .bias


@dataclass(frozen=True)
class Family:
    """One family.

    ``value``: parameter, place and size of a weight that makes values of the first block's attention, large enough to rule.
    ``unseen``: matrices that multiply no input, so that act_mag and wanda have no meaning for them. ``untold``: its experts do
    not say which tokens they see, so that super_activation is refused.
    """

    config: Callable[[], Any]
    components: Names
    value: tuple[str, tuple[int, ...], float] | None = None
    unseen: str = ""
    untold: bool = False
    tied: bool = False
    embedding: float = 0.2


def small(kind: Any, without: str = "", **keys: Any) -> Callable[[], Any]:
    """Return what makes a configuration of three blocks and 16 channels."""
    shared = {key: value for key, value in SMALL.items() if key not in without.split()}
    return lambda: kind(**{**shared, **keys})


QKVO = {
    "attn.q": "self_attn.q_proj", "attn.k": "self_attn.k_proj", "attn.v": "self_attn.v_proj", "attn.o": "self_attn.o_proj",
}  # fmt: skip
OUT = {**QKVO, "attn.o": "self_attn.out_proj"}
GATED = {"mlp.gate": "mlp.gate_proj", "mlp.up": "mlp.up_proj", "mlp.down": "mlp.down_proj"}
ENDS = {"embed": "model.embed_tokens", "lm_head": "lm_head"}
TIED = {"embed": "model.embed_tokens"}
TWO = {"norm": "input_layernorm post_attention_layernorm model.norm"}
PLAIN = {**QKVO, **GATED, **ENDS, **TWO}
EXPERTS = {"expert.gate_up": "mlp.experts.gate_up_proj", "expert.down": "mlp.experts.down_proj"}
MIXTURE = {**QKVO, **ENDS, **TWO, **EXPERTS, "router": "mlp.gate"}
GPT = {
    "embed": "transformer.wte", "attn.q": "attn.q_proj", "attn.k": "attn.k_proj", "attn.v": "attn.v_proj",
    "attn.o": "attn.out_proj", "mlp.up": "mlp.fc_in", "mlp.down": "mlp.fc_out", "norm": "ln_1 transformer.ln_f",
    "lm_head": "lm_head",
}  # fmt: skip
GPT2 = {
    "embed": "transformer.wte transformer.wpe", "attn.qkv": "attn.c_attn", "attn.o": "attn.c_proj", "mlp.up": "mlp.c_fc",
    "mlp.down": "mlp.c_proj", "norm": "ln_1 ln_2 transformer.ln_f",
}  # fmt: skip
FALCON = {
    "embed": "transformer.word_embeddings", "attn.qkv": "self_attention.query_key_value", "attn.o": "self_attention.dense",
    "mlp.up": "mlp.dense_h_to_4h", "mlp.down": "mlp.dense_4h_to_h", "norm": "input_layernorm transformer.ln_f",
}  # fmt: skip
NEOX = {
    "attn.qkv": "attention.query_key_value", "attn.o": "attention.dense", "mlp.up": "mlp.dense_h_to_4h",
    "mlp.down": "mlp.dense_4h_to_h", "embed": "gpt_neox.embed_in", "lm_head": "lm_head",
    "norm": "input_layernorm post_attention_layernorm gpt_neox.final_layer_norm",
}  # fmt: skip
V_PROJ = "model.layers.0.self_attn.v_proj.weight"
TWO_HEADS: dict[str, Any] = {"num_key_value_heads": 2}
ATTENTION_FREE = "num_attention_heads max_position_embeddings"
GPT_KEYS: dict[str, Any] = {
    "vocab_size": VOCABULARY, "n_embd": 16, "n_layer": 3, "n_head": 4, "n_positions": 64, "bos_token_id": 0, "eos_token_id": 0,
}  # fmt: skip
MAMBA = {
    "norm": "norm backbone.norm_f", "embed": "backbone.embeddings",
    "other": "mixer.A_log mixer.D mixer.conv1d mixer.in_proj mixer.x_proj mixer.dt_proj mixer.out_proj",
}  # fmt: skip

FAMILIES: dict[str, Family] = {
    "llama": Family(CONFIGS["llama"], PLAIN, (V_PROJ, (3, 5), 8)),
    "llama_tied": Family(CONFIGS["llama_tied"], {**QKVO, **GATED, **TIED, **TWO}, (V_PROJ, (3, 5), 14), tied=True),
    "mistral": Family(small(hf.MistralConfig, **TWO_HEADS, sliding_window=4), PLAIN, (V_PROJ, (3, 5), 8)),
    "qwen2": Family(small(hf.Qwen2Config, **TWO_HEADS), PLAIN, (V_PROJ, (3, 5), 8)),
    "qwen3": Family(
        small(hf.Qwen3Config, **TWO_HEADS, head_dim=4),
        {**PLAIN, "norm": f"{TWO['norm']} self_attn.q_norm self_attn.k_norm"}, (V_PROJ, (3, 5), 4),
    ),
    "gemma2": Family(
        small(hf.Gemma2Config, **TWO_HEADS, head_dim=4, sliding_window=4),
        {**QKVO, **GATED, **TIED, "norm": f"{TWO['norm']} pre_feedforward_layernorm post_feedforward_layernorm"},
        (V_PROJ, (3, 5), 4), tied=True,
    ),
    "olmo2": Family(
        small(hf.Olmo2Config, **TWO_HEADS),
        {**PLAIN, "norm": "post_attention_layernorm post_feedforward_layernorm self_attn.q_norm self_attn.k_norm model.norm"},
        (V_PROJ, (6, 9), 3), embedding=3.0,
    ),
    "phi3": Family(
        CONFIGS["phi3"],
        {**ENDS, **TWO, "attn.qkv": "self_attn.qkv_proj", "attn.o": "self_attn.o_proj", "mlp.gate_up": "mlp.gate_up_proj",
         "mlp.down": "mlp.down_proj"},
        ("model.layers.0.self_attn.qkv_proj.weight", (27, 5), 8),  # rows 24 to 31 are the values
    ),
    "phi": Family(
        small(hf.PhiConfig, **TWO_HEADS),
        {**QKVO, **ENDS, "attn.o": "self_attn.dense", "mlp.up": "mlp.fc1", "mlp.down": "mlp.fc2",
         "norm": "input_layernorm model.final_layernorm"},
        (V_PROJ, (3, 5), 8),
    ),
    "gpt_neox": Family(
        CONFIGS["gpt_neox"], NEOX,
        ("gpt_neox.layers.0.attention.query_key_value.weight", (10, 5), 8),  # rows 8 to 11: head 0's values
    ),
    "gpt2": Family(
        CONFIGS["gpt2"], GPT2, ("transformer.h.0.attn.c_attn.weight", (5, 35), 8), tied=True  # columns 32 to 47: the values
    ),
    "opt": Family(
        small(hf.OPTConfig, "intermediate_size", ffn_dim=24, word_embed_proj_dim=16),
        {**OUT, "mlp.up": "fc1", "mlp.down": "fc2",
         "norm": "self_attn_layer_norm final_layer_norm model.decoder.final_layer_norm",
         "embed": "model.decoder.embed_tokens model.decoder.embed_positions"},
        ("model.decoder.layers.1.self_attn.v_proj.weight", (3, 5), 6), tied=True,
    ),
    "falcon": Family(
        small(hf.FalconConfig, "intermediate_size", multi_query=True, ffn_hidden_size=24), FALCON,
        ("transformer.h.0.self_attention.query_key_value.weight", (21, 5), 8), tied=True,  # rows 20 to 23: the one head's values
    ),
    "falcon_new": Family(
        small(hf.FalconConfig, "intermediate_size", new_decoder_architecture=True, num_kv_heads=2, ffn_hidden_size=24),
        {**FALCON, "norm": "ln_attn ln_mlp transformer.ln_f"},
        ("transformer.h.0.self_attention.query_key_value.weight", (13, 5), 8), tied=True,  # 12 to 15: the first group's
    ),
    "falcon_alibi": Family(
        small(hf.FalconConfig, "intermediate_size", alibi=True, multi_query=False, parallel_attn=False, bias=True,
              ffn_hidden_size=24),
        {**FALCON, "norm": "input_layernorm post_attention_layernorm transformer.ln_f"},
        ("transformer.h.0.self_attention.query_key_value.weight", (10, 5), 8), tied=True,
    ),
    "mixtral": Family(CONFIGS["mixtral"], MIXTURE, (V_PROJ, (3, 5), 8)),
    "qwen3_moe": Family(
        small(hf.Qwen3MoeConfig, **TWO_HEADS, head_dim=4, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=8),
        {**MIXTURE, "norm": f"{TWO['norm']} self_attn.q_norm self_attn.k_norm"}, (V_PROJ, (3, 5), 4),
    ),
    # Beyond those, unchanged: models that transformers builds from a configuration.
    "gemma3": Family(
        small(hf.Gemma3TextConfig, **TWO_HEADS, head_dim=4, sliding_window=4),
        {**QKVO, **GATED, **TIED,
         "norm": f"{TWO['norm']} pre_feedforward_layernorm post_feedforward_layernorm self_attn.q_norm self_attn.k_norm"},
        (V_PROJ, (3, 5), 3), tied=True,
    ),
    "cohere": Family(
        small(hf.CohereConfig, **TWO_HEADS, logit_scale=1.0), {**QKVO, **GATED, **TIED, "norm": "input_layernorm model.norm"},
        (V_PROJ, (3, 5), 4), tied=True,
    ),
    "granite": Family(small(hf.GraniteConfig, **TWO_HEADS), PLAIN, (V_PROJ, (3, 5), 4)),
    "smollm3": Family(
        small(hf.SmolLM3Config, **TWO_HEADS), {**QKVO, **GATED, **TIED, **TWO}, (V_PROJ, (3, 5), 14), tied=True
    ),
    "stablelm": Family(small(hf.StableLmConfig, **TWO_HEADS), PLAIN, (V_PROJ, (3, 5), 8)),
    "starcoder2": Family(
        small(hf.Starcoder2Config, **TWO_HEADS),
        {**QKVO, **TIED, **TWO, "mlp.up": "mlp.c_fc", "mlp.down": "mlp.c_proj"}, (V_PROJ, (3, 5), 4), tied=True,
    ),
    "glm4": Family(
        small(hf.Glm4Config, **TWO_HEADS, head_dim=4),
        {**QKVO, **ENDS, "mlp.gate_up": "mlp.gate_up_proj", "mlp.down": "mlp.down_proj",
         "norm": f"{TWO['norm']} post_self_attn_layernorm post_mlp_layernorm"},
        (V_PROJ, (3, 5), 4),
    ),
    "bloom": Family(
        lambda: hf.BloomConfig(vocab_size=VOCABULARY, hidden_size=16, n_layer=3, n_head=4, bos_token_id=0, eos_token_id=0),
        {**FALCON, "norm": "input_layernorm post_attention_layernorm transformer.ln_f transformer.word_embeddings_layernorm"},
        ("transformer.h.0.self_attention.query_key_value.weight", (10, 5), 8), tied=True,
    ),
    "mpt": Family(
        lambda: hf.MptConfig(d_model=16, n_heads=4, n_layers=3, expansion_ratio=2, max_seq_len=64, vocab_size=VOCABULARY),
        {"embed": "transformer.wte", "attn.qkv": "attn.Wqkv", "attn.o": "attn.out_proj", "mlp.up": "ffn.up_proj",
         "mlp.down": "ffn.down_proj", "norm": "norm_1 norm_2 transformer.norm_f"},
        ("transformer.blocks.0.attn.Wqkv.weight", (35, 5), 4), tied=True,  # rows 32 to 47: the values
    ),
    "gpt_bigcode": Family(
        lambda: hf.GPTBigCodeConfig(**GPT_KEYS), GPT2,
        ("transformer.h.0.attn.c_attn.weight", (21, 5), 8), tied=True,  # a Linear here; rows 20 to 23: the one head's values
    ),
    "gptj": Family(
        lambda: hf.GPTJConfig(**GPT_KEYS, rotary_dim=4), GPT, ("transformer.h.0.attn.v_proj.weight", (3, 5), 8)
    ),
    "codegen": Family(
        lambda: hf.CodeGenConfig(**GPT_KEYS, rotary_dim=4),
        {**{key: value for key, value in GPT.items() if key not in ("attn.q", "attn.k", "attn.v")}, "attn.qkv": "attn.qkv_proj"},
        ("transformer.h.0.attn.qkv_proj.weight", (5, 5), 8),  # four pieces of queries, values, keys: rows 4 to 7
    ),
    "gpt_neo": Family(
        lambda: hf.GPTNeoConfig(
            vocab_size=VOCABULARY, hidden_size=16, num_layers=2, attention_types=[[["global", "local"], 1]], num_heads=4,
            window_size=4, max_position_embeddings=64, bos_token_id=0, eos_token_id=0,
        ),
        {"attn.q": "attn.attention.q_proj", "attn.k": "attn.attention.k_proj", "attn.v": "attn.attention.v_proj",
         "attn.o": "attn.attention.out_proj", "mlp.up": "mlp.c_fc", "mlp.down": "mlp.c_proj",
         "norm": "ln_1 ln_2 transformer.ln_f", "embed": "transformer.wte transformer.wpe"},
        ("transformer.h.0.attn.attention.v_proj.weight", (3, 5), 8), tied=True,
    ),
    "openai_gpt": Family(
        lambda: hf.OpenAIGPTConfig(vocab_size=VOCABULARY, n_embd=16, n_layer=3, n_head=4, n_positions=64),
        {**GPT2, "embed": "transformer.tokens_embed transformer.positions_embed", "norm": "ln_1 ln_2"},
        ("transformer.h.0.attn.c_attn.weight", (5, 35), 8), tied=True,
    ),
    "deepseek_v3": Family(
        small(
            hf.DeepseekV3Config, num_key_value_heads=4, moe_intermediate_size=8, n_routed_experts=4, num_experts_per_tok=2,
            n_shared_experts=1, n_group=1, topk_group=1, q_lora_rank=8, kv_lora_rank=8, qk_rope_head_dim=4, qk_nope_head_dim=4,
            v_head_dim=4, first_k_dense_replace=1,
        ),
        {**ENDS, "attn.q": "self_attn.q_a_proj self_attn.q_b_proj", "attn.o": "self_attn.o_proj",
         "attn.qkv": "self_attn.kv_a_proj_with_mqa self_attn.kv_b_proj",
         "norm": f"{TWO['norm']} self_attn.q_a_layernorm self_attn.kv_a_layernorm", **EXPERTS, "router": "mlp.gate",
         "mlp.gate": "mlp.gate_proj mlp.shared_experts.gate_proj", "mlp.up": "mlp.up_proj mlp.shared_experts.up_proj",
         "mlp.down": "mlp.down_proj mlp.shared_experts.down_proj"},
        ("model.layers.0.self_attn.kv_b_proj.weight", (14, 3), 4),  # rows 12 to 15: the second head's values
    ),
    "gpt_oss": Family(
        small(hf.GptOssConfig, **TWO_HEADS, head_dim=4, num_local_experts=4, num_experts_per_tok=2, sliding_window=4),
        {**QKVO, **ENDS, **TWO, "router": "mlp.router", "other": "self_attn.sinks",
         "expert.gate_up": "mlp.experts.gate_up_proj mlp.experts.gate_up_proj_bias",
         "expert.down": "mlp.experts.down_proj mlp.experts.down_proj_bias"},
        (V_PROJ, (3, 5), 8), unseen="mlp.experts.gate_up_proj_bias mlp.experts.down_proj_bias",
    ),
    "llama4": Family(
        small(
            hf.Llama4TextConfig, **TWO_HEADS, head_dim=4, intermediate_size_mlp=24, num_local_experts=4, num_experts_per_tok=1,
            interleave_moe_layer_step=1, attention_chunk_size=8,
        ),
        {**QKVO, **ENDS, **TWO, "router": "feed_forward.router", "expert.gate_up": "feed_forward.experts.gate_up_proj",
         "expert.down": "feed_forward.experts.down_proj", "mlp.gate": "feed_forward.shared_expert.gate_proj",
         "mlp.up": "feed_forward.shared_expert.up_proj", "mlp.down": "feed_forward.shared_expert.down_proj"},
        (V_PROJ, (3, 5), 8), untold=True,
    ),
    "dbrx": Family(
        lambda: hf.DbrxConfig(
            d_model=16, n_heads=4, n_layers=3, max_seq_len=64, vocab_size=VOCABULARY,
            attn_config={"kv_n_heads": 2, "rope_theta": 1e4, "clip_qkv": 8.0},
            ffn_config={"hidden_size": 16, "ffn_hidden_size": 24, "moe_num_experts": 4, "moe_top_k": 2},
        ),
        {"embed": "transformer.wte", "attn.qkv": "norm_attn_norm.attn.Wqkv", "attn.o": "norm_attn_norm.attn.out_proj",
         "router": "ffn.router.layer", "expert.gate": "ffn.experts.mlp.w1", "expert.up": "ffn.experts.mlp.v1",
         "expert.down": "ffn.experts.mlp.w2", "norm": "norm_attn_norm.norm_1 norm_attn_norm.norm_2 transformer.norm_f",
         "lm_head": "lm_head"},
        ("transformer.blocks.0.norm_attn_norm.attn.Wqkv.weight", (27, 5), 8), untold=True,  # rows 24 to 31: the values
    ),
    "jamba": Family(
        small(
            hf.JambaConfig, **TWO_HEADS, num_experts=4, num_experts_per_tok=2, attn_layer_period=2, attn_layer_offset=1,
            expert_layer_period=2, expert_layer_offset=1, mamba_d_state=4, mamba_dt_rank=4, use_mamba_kernels=False,
        ),
        {**QKVO, **ENDS,
         "norm": "input_layernorm pre_ff_layernorm model.final_layernorm mamba.dt_layernorm mamba.b_layernorm mamba.c_layernorm",
         "mlp.gate": "feed_forward.gate_proj", "mlp.up": "feed_forward.up_proj", "mlp.down": "feed_forward.down_proj",
         "router": "feed_forward.router", "expert.gate_up": "feed_forward.experts.gate_up_proj",
         "expert.down": "feed_forward.experts.down_proj",
         "other": "mamba.A_log mamba.D mamba.conv1d mamba.in_proj mamba.x_proj mamba.dt_proj mamba.out_proj"},
        ("model.layers.1.self_attn.v_proj.weight", (3, 5), 4), unseen="mamba.A_log mamba.conv1d",
    ),
    "mamba": Family(
        small(hf.MambaConfig, f"{ATTENTION_FREE} intermediate_size", state_size=4, time_step_rank=4), MAMBA,
        unseen="mixer.A_log mixer.conv1d", tied=True,
    ),
}  # fmt: skip


def build_family(name: str) -> Any:
    """Return a random model of a family, its matrices large enough for gradients to matter, in eval mode."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(FAMILIES[name].config(), dtype=torch.float32).eval()
    table = model.get_input_embeddings().weight
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim >= 2:
                parameter.copy_(
                    torch.randn(parameter.shape) * (FAMILIES[name].embedding if parameter is table else 0.2)
                )
    return model


def load_family(name: str, model: nn.Module | None = None) -> LoadedModel:
    """Return a family's random model as esa holds it."""
    return prepare(model or build_family(name), make_tokenizer(), tiny_spec().model, torch.device("cpu"))


def short_name(name: str) -> str:
    """Return a parameter's name without all up to its block's number, and without a last weight or bias."""
    parts = name.split(".")
    numbers = [place for place, part in enumerate(parts) if part.isdecimal()]
    parts = parts[numbers[0] + 1 :] if numbers else parts
    return ".".join(parts[:-1] if parts[-1] in ("weight", "bias") else parts)


def expected_components(family: Family) -> dict[str, str]:
    """Return the component of every short name."""
    return {name: component for component, names in family.components.items() for name in names.split()}
