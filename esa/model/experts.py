"""How many weights of a tensor one token uses: all of them, or the part of the experts that it is routed to."""

from collections.abc import Mapping
from typing import Any

from torch import nn

from esa.model.anatomy import ParameterInfo

# The families' names for the same two numbers.
_EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts", "num_routed_experts")
_PER_TOKEN = (
    "num_experts_per_tok", "num_experts_per_token", "moe_topk", "moe_top_k", "moe_k", "top_k_experts",
    "experts_per_token", "num_selected_experts",
)  # fmt: skip


def active_weights(model: Any, table: Mapping[str, ParameterInfo], config: Any) -> dict[str, int | None]:
    """Return the weights of every parameter that enter the computation for one token.

    ``numel``, or ``numel * experts_per_token / num_experts`` for tensors of routed experts, whose number is the size of
    their expert axis; their biases go with them. Shared experts and routers count whole, and so does an embedding table,
    though a token reads one row of it: the convention by which Mixtral 8x7B has 12.9 billion active parameters.
    None where it cannot be told: the configuration does not say how many experts a token uses, or says that there are
    experts and no tensor has an axis of them, or they lie on top of each other in a matrix.
    """
    routed = routed_experts(model, table, config)
    if not routed and (_stated(config, _EXPERTS, None) or 1) > 1:
        return dict.fromkeys(table)
    active: dict[str, int | None] = {}
    for name, info in table.items():
        if name not in routed:
            stacked = info.component.startswith("expert.") and info.expert_axis is None
            active[name] = None if stacked else info.numel
            continue
        per_token = _stated(config, _PER_TOKEN, info.block)
        active[name] = None if per_token is None else info.numel // routed[name] * per_token
    return active


def routed_experts(model: Any, table: Mapping[str, ParameterInfo], config: Any) -> dict[str, int]:
    """Return the parameters of routed experts with the number of experts that each holds."""
    modules = dict(model.named_modules())
    routed: dict[str, int] = {}
    for name, info in table.items():
        if info.expert_axis is None or isinstance(modules[info.layer], nn.Conv1d):  # its kernel has three axes, too
            continue
        stated = _stated(config, _EXPERTS, info.block)
        count = info.shape[info.expert_axis]
        if count == stated or (stated is None and info.component.startswith("expert.")):
            routed[name] = count
    layers = {table[name].layer: count for name, count in routed.items()}
    biases = {
        name: layers[info.layer]
        for name, info in table.items()
        if name not in routed and info.layer in layers and info.shape[0] == layers[info.layer]
    }
    return routed | biases


def experts_per_token(config: Any) -> int | None:
    """Return how many routed experts a token uses, None where the configuration does not say or has several numbers."""
    return _stated(config, _PER_TOKEN, None)


def _stated(config: Any, names: tuple[str, ...], block: int | None) -> int | None:
    """Return the number that the configuration gives under one of ``names``; that of ``block`` where it is a list."""
    for name in names:
        value = getattr(config, name, None)
        if isinstance(value, list | tuple):
            distinct = set(value)
            value = next(iter(distinct)) if len(distinct) == 1 else None if block is None else value[block]
        if isinstance(value, int):
            return value
    return None
