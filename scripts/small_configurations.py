"""Small configurations of any model type: its numbers shrunk by their names, for ``model_compatibility.py``."""

from typing import Any

DEPTH, WIDTH, INNER, HEADS, HEAD, EXPERTS, VOCABULARY, CONTEXT = 3, 32, 48, 4, 8, 4, 96, 64

# Numbers of a configuration by the exact names that families give them.
NUMBERS: tuple[tuple[int, str], ...] = (
    (DEPTH, "num_hidden_layers n_layer n_layers num_layers decoder_layers num_decoder_layers encoder_layers"
    " num_encoder_layers encoder_num_hidden_layers layers num_blocks"),
    (WIDTH, "hidden_size n_embd d_model embedding_size word_embed_proj_dim dim n_embed embed_dim hidden_dim"
    " attention_hidden_size lru_width decoder_hidden_size encoder_hidden_size embedding_dim conv_dim"),
    (INNER, "intermediate_size n_inner ffn_dim decoder_ffn_dim encoder_ffn_dim d_ff ffn_hidden_size mlp_hidden_size"
    " dim_feedforward dff dim_ff prefix_projection_hidden_size feed_forward_size mamba_intermediate_size"),
    (HEADS, "num_attention_heads n_head n_heads num_heads decoder_attention_heads encoder_attention_heads"
    " num_decoder_attention_heads num_encoder_attention_heads linear_num_value_heads num_linear_heads"),
    (2, "num_key_value_heads num_kv_heads linear_num_key_heads num_experts_per_tok moe_topk moe_k num_experts_per_token"
    " moe_top_k top_k_experts experts_per_token num_selected_experts kv_n_heads attention_groups"),
    (HEAD, "head_dim d_kv dim_head attention_head_size rotary_dim linear_key_head_dim linear_value_head_dim index_head_dim"
    " global_head_dim swa_head_dim mamba_d_head mamba_head_dim qk_rope_head_dim qk_nope_head_dim v_head_dim"),
    (EXPERTS, "num_local_experts num_experts n_routed_experts moe_num_experts num_routed_experts"),
    (24, "moe_intermediate_size shared_expert_intermediate_size expert_ffn_hidden_size moe_ffn_hidden_size"
    " moe_shared_expert_intermediate_size"),
    (16, "q_lora_rank kv_lora_rank sliding_window index_topk sliding_window_size attention_window_size window_size"),
    (CONTEXT, "max_position_embeddings n_positions n_ctx max_seq_len max_sequence_length seq_length max_target_positions"),
    (0, "bos_token_id eos_token_id pad_token_id"),
    (1, "n_group topk_group"),
)  # fmt: skip
BY_NAME = {name: number for number, names in NUMBERS for name in names.split()}

# Numbers that fit the ones above together, and what keeps parts beside the text decoder small.
MORE: dict[str, int] = {
    "qk_head_dim": 2 * HEAD, "attention_head_dim": HEAD, "mamba_headdim": 16, "n_mamba_heads": HEADS, "mamba_d_ssm": 64,
    "mamba_n_heads": 4, "mamba_num_heads": 4, "mamba_d_state": 8, "mamba_dt_rank": 4, "mamba_chunk_size": 8, "n_groups": 1,
    "state_size": 8, "ssm_state_size": 8, "time_step_rank": 4, "num_kv_shared_layers": 0, "hidden_size_per_layer_input": 8,
    "laurel_rank": 4, "index_n_heads": 2, "index_block_size": 8, "o_lora_rank": 8, "o_groups": 2, "adapter_rank": 4,
    "shared_intermediate_size": 24, "dense_intermediate_size": INNER, "intermediate_size_mlp": INNER,
    "shared_experts_intermediate_size": 24, "swa_num_attention_heads": HEADS, "swa_num_key_value_heads": 2,
    "router_hidden_size": 16, "linear_head_dim": HEAD, "linear_num_heads": HEADS, "query_pre_attn_scalar": HEAD,
    "first_k_dense_replace": 1, "n_shared_experts": 1, "num_expert_group": 1, "num_group": 1,
    "num_dense_layers": 1, "moe_layer_start_index": 1, "expansion_ratio": 2, "context_length": CONTEXT,
    "model_max_length": CONTEXT, "d_inner": INNER, "d_head": HEAD, "input_embedding_size": 16, "output_embedding_size": 24,
    "emb_dim": WIDTH, "attention_heads": HEADS, "prompt_length": 4, "prompt_types": 4, "segment_types": 4, "chunk_size": 8,
    "local_attn_chunk_length": 8, "lsh_attn_chunk_length": 8, "ple_embed_dim": 16, "hc_lowrank": 8, "split_ngram_parts": 4,
    "ngram_vocab_size_base": 97, "make_ngram_vocab_size_divisible_by": 1, "d_rel": 4, "rel_extent": 16,
    "attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_period": 2, "expert_layer_offset": 1, "kv_channels": HEAD,
    "pronunciation_embed_dim": 8, "shape_embed_dim": 8, "num_layers_per_stack": 1, "depth": 2, "out_hidden_size": WIDTH,
    "projector_input_dim": WIDTH, "projector_output_dim": WIDTH, "vision_output_dim": WIDTH, "adapter_out_dim": WIDTH,
    "image_size": 28, "patch_size": 14, "conf_num_hidden_layers": 2, "backbone_hidden_size": WIDTH, "num_centroids": 8,
    "max_source_positions": CONTEXT, "num_mel_bins": 8, "audio_vocab_size": 32, "codebook_size": 32, "num_query_groups": HEADS,
    "hidden_size_global": WIDTH, "gated_norm_rank": 4, "mamba_expand": 2, "expand": 2, "block_size": 8, "base_channels": 32,
    "mlp_dim": INNER, "output_channels": 16, "centroid_intermediate_top_k": 4,
}  # fmt: skip
OFF_BY_NONE = {"sliding_window", "q_lora_rank", "pad_token_id", "bos_token_id", "eos_token_id"}
TEXT = ("text_config", "decoder", "decoder_config", "global_config")
# What is tried in turn where a configuration is refused or does not fit together: entries to change (None: to leave alone).
ROPES = ("full_attention", "sliding_attention")
VARIANTS: tuple[dict[str, Any], ...] = (
    {},
    {"head_dim": None, "v_head_dim": None},
    {"num_key_value_heads": HEADS, "num_kv_heads": HEADS},
    {"num_key_value_heads": HEADS, "head_dim": 2 * HEAD, "n_group": 1, "num_group": 1},
    {"layer_types": None, "mlp_layer_types": None, "layers_block_type": None},
    {"layer_types": ["conv", "full_attention", "conv"]},
    {"layers_block_type": ["linear_attention", "hybrid", "linear_attention"], "hybrid_layer_ids": [1],
     "attention_hidden_size": 2 * WIDTH, "attention_head_dim": 2 * HEAD},
    {"head_dim": None, "mamba_n_heads": 8, "mamba_d_head": 8},
    {"num_heads": 8},
    {"num_experts_per_tok": 1},
    {"depth": 4},
    {"depth": 6, "num_kv_shared_layers": 2},
    {"hidden_size_per_layer_input": 0},
    {"add": {"rope_theta": 1e4}, "clip_qkv": 8},
    {"add": {"rope_parameters": {key: {"rope_type": "default", "rope_theta": 1e4} for key in ROPES}}},
)  # fmt: skip


def shrunk(
    default: dict[str, Any], classes: dict[str, Any], changes: dict[str, Any], depth: int = DEPTH
) -> dict[str, Any]:
    """Return the entries of a configuration that change when it is made small, nested configurations with theirs."""
    numbers = {**BY_NAME, **dict.fromkeys(NUMBERS[0][1].split(), depth), **MORE, **changes}
    lengths = {value for key, value in default.items() if BY_NAME.get(key) == DEPTH and isinstance(value, int)}
    small: dict[str, Any] = dict(changes.get("add", {}))
    for key, value in default.items():
        plain = isinstance(value, int | float | None) and not isinstance(value, bool)
        if key in classes and isinstance(value, dict):
            nested = getattr(classes[key], "sub_configs", {})
            small[key] = shrunk(value, nested, changes, depth if key in TEXT else 2)
        elif key == "per_layer_config":
            small[key] = None
        elif isinstance(value, list) and key in changes and changes[key] is None:
            continue
        elif isinstance(changes.get(key), list):
            small[key] = changes[key]
        elif isinstance(value, list) and key not in changes and len(value) in lengths and len(value) > depth:
            small[key] = [numbers[key]] * depth if isinstance(numbers.get(key), int) else shortened(value, depth)
        elif key == "attention_types":
            small[key] = [[["global", "local"], depth // 2], *([[["global"], 1]] if depth % 2 else [])]
        elif key in numbers and numbers[key] is not None and plain:
            if value is not None or key not in OFF_BY_NONE:
                small[key] = numbers[key]
        elif "vocab" in key and plain and value is not None and value > VOCABULARY:
            small[key] = VOCABULARY
        elif key.endswith(("_token_id", "_token_index")) and plain and value is not None and value >= VOCABULARY:
            small[key] = VOCABULARY - 1
    return small


def shortened(values: list[Any], length: int) -> list[Any]:
    """Return some of a list's entries in their order, the first of each kind among them."""
    firsts = [values.index(value) for n, value in enumerate(values) if values.index(value) == n]
    places = sorted([*firsts, *(n for n in range(len(values)) if n not in firsts)][:length])
    return [values[place] for place in places]


def configuration(model_type: str, changes: dict[str, Any]) -> Any:
    """Return a small configuration of a type."""
    from transformers import CONFIG_MAPPING

    kind = CONFIG_MAPPING[model_type]
    changes = dict(changes)
    depth = changes.pop("depth", DEPTH)
    try:
        default = kind().to_dict()
    except Exception:  # a default that refuses itself: its fields alone
        default = {name: value for name, value in vars(kind).items() if not name.startswith("_")}
    small = shrunk(default, kind.sub_configs, changes, depth)
    return kind(**small)
