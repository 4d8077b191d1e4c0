"""The numbers by which people know an architecture: depth, width, heads, vocabulary, experts."""

from collections.abc import Mapping
from typing import Any

from esa.model.anatomy import ParameterInfo, decoder_blocks, text_config
from esa.model.experts import experts_per_token, routed_experts

# Configuration keys that stand in no tensor's shape: a default of the class is no fact about a model.
_BEYOND_SHAPES = {
    "context_length": ("max_position_embeddings", "n_positions", "max_seq_len", "n_ctx"),
    "activation": ("hidden_act", "hidden_activation", "activation_function"),
}
_GATED = ("mlp.gate_up", "expert.gate_up")


def architecture_facts(
    model: Any, table: Mapping[str, ParameterInfo], stated: frozenset[str] | None = None
) -> dict[str, Any]:
    """Return what a headline tells of a model, by name; None where it has no such number.

    ``architecture`` (class), ``model_type``, ``num_blocks``, ``hidden_size``, ``num_heads``, ``num_kv_heads``,
    ``head_dim``, ``intermediate_size`` and ``expert_intermediate_size`` (these three read from the projections, a list where
    blocks differ), ``vocab_size``, ``num_experts``, ``num_experts_per_tok``, ``context_length``, ``activation``.
    ``stated``: the configuration's keys that somebody wrote down, where the others are defaults of its class.
    """
    config = text_config(model)
    heads = getattr(config, "num_attention_heads", None)
    kv_heads = getattr(config, "num_key_value_heads", None) or heads
    routed = routed_experts(model, table, config)
    facts = {
        "architecture": type(model).__name__,
        "model_type": model.config.model_type,
        "num_blocks": len(decoder_blocks(model)[1]),
        "hidden_size": getattr(config, "hidden_size", None),
        "num_heads": heads,
        "num_kv_heads": kv_heads,
        "head_dim": _head_dim(table, heads, kv_heads),
        "intermediate_size": _widths(table, ("mlp.up", "mlp.gate_up")),
        "expert_intermediate_size": _widths(table, ("expert.up", "expert.gate_up")),
        "vocab_size": getattr(config, "vocab_size", None),
        "num_experts": _one_or_all(set(routed.values())),
        "num_experts_per_tok": experts_per_token(config) if routed else None,
    }
    for fact, keys in _BEYOND_SHAPES.items():
        known = [key for key in keys if stated is None or key in stated]
        facts[fact] = next((value for key in known if (value := getattr(config, key, None)) is not None), None)
    return facts


def _head_dim(table: Mapping[str, ParameterInfo], heads: int | None, kv_heads: int | None) -> Any:
    """Return the channels of a query head, None where no projection makes heads alone (latent attention)."""
    if not heads or not kv_heads:
        return None
    shares = {"attn.q": heads, "attn.qkv": heads + 2 * kv_heads}
    makers = [i for i in table.values() if i.component in shares and i.output_axis is not None and len(i.shape) == 2]
    # Two of one kind in one attention come one behind the other, with a latent between them.
    if len({(info.layer.rpartition(".")[0], info.component) for info in makers}) < len(makers):
        return None
    widths = {info.shape[info.output_axis] / shares[info.component] for info in makers}  # type: ignore[index]
    return _one_or_all({int(width) for width in widths}) if all(width.is_integer() for width in widths) else None


def _widths(table: Mapping[str, ParameterInfo], components: tuple[str, ...]) -> Any:
    """Return how many channels the inner layer of the MLPs has."""
    widths = set()
    for info in table.values():
        if info.component.startswith("expert.") and info.expert_axis is None:
            continue  # they lie on top of each other, and nothing says how many
        if info.component in components and info.output_axis is not None and len(info.shape) >= 2:
            widths.add(info.shape[info.output_axis] // (2 if info.component in _GATED else 1))
    return _one_or_all(widths)


def _one_or_all(numbers: set[int]) -> Any:
    if len(numbers) <= 1:
        return next(iter(numbers), None)
    return sorted(numbers)
