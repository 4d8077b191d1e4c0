"""What each parameter is: its module, block, component, axes and experts, read from modules and configuration."""

from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from torch import nn
from transformers.pytorch_utils import Conv1D

from esa.errors import ModelError, SpecError
from esa.registry import suggest

# The field's names for the projections of a decoder block, by the exact name of the module or parameter.
_ATTENTION = {
    "q_proj": "attn.q", "k_proj": "attn.k", "v_proj": "attn.v", "o_proj": "attn.o", "out_proj": "attn.o",
    "qkv_proj": "attn.qkv", "query_key_value": "attn.qkv", "c_attn": "attn.qkv", "Wqkv": "attn.qkv",
    "dense": "attn.o", "c_proj": "attn.o",
}  # fmt: skip
_MLP = {
    "gate_proj": "mlp.gate", "up_proj": "mlp.up", "down_proj": "mlp.down", "gate_up_proj": "mlp.gate_up",
    "c_fc": "mlp.up", "c_proj": "mlp.down", "fc1": "mlp.up", "fc2": "mlp.down", "w1": "mlp.gate", "w3": "mlp.up",
    "w2": "mlp.down", "dense_h_to_4h": "mlp.up", "dense_4h_to_h": "mlp.down", "fc_in": "mlp.up", "fc_out": "mlp.down",
}  # fmt: skip
_QUERY_NAMES = {name for name, component in _ATTENTION.items() if component in ("attn.q", "attn.qkv")}
COMPONENTS = (
    "embed", "attn.q", "attn.k", "attn.v", "attn.o", "attn.qkv", "mlp.gate", "mlp.up", "mlp.gate_up", "mlp.down",
    "router", "expert.gate", "expert.up", "expert.gate_up", "expert.down", "norm", "lm_head", "other",
)  # fmt: skip


@dataclass(frozen=True)
class ParameterInfo:
    """One parameter of a model, described.

    ``name``: in ``named_parameters()``. ``layer``: the module that owns it. ``block``: its decoder block, None outside.
    ``output_axis``, ``input_axis``, ``expert_axis``: axes of the stored tensor, None where it has no such axis.
    ``uses``: every name it goes by; more than one where it is ``tied``.
    """

    name: str
    layer: str
    block: int | None
    component: str
    shape: tuple[int, ...]
    numel: int
    output_axis: int | None
    input_axis: int | None
    expert_axis: int | None
    uses: tuple[str, ...]

    @property
    def tied(self) -> bool:
        """Tell whether the tensor is used under more than one name."""
        return len(self.uses) > 1

    def expert_of(self, index: int) -> int | None:
        """Return the expert that owns the weight at a row-major ``index``."""
        return None if self.expert_axis is None else index // (self.numel // self.shape[0])

    def record(self) -> dict[str, Any]:
        """Return the description as a JSON row: what a score table carries so that it can be ranked anywhere."""
        return {
            "parameter": self.name, "layer": self.layer, "block": self.block, "component": self.component,
            "shape": list(self.shape), "numel": self.numel, "output_axis": self.output_axis,
            "input_axis": self.input_axis, "expert_axis": self.expert_axis, "uses": list(self.uses),
        }  # fmt: skip


def decoder_blocks(model: nn.Module) -> tuple[str, nn.ModuleList]:
    """Return name and list of the model's decoder blocks: its one outermost ModuleList of ``num_hidden_layers`` modules.

    Raises ModelError where there is none, or more than one.
    """
    config = text_config(model)
    depth = getattr(config, "num_hidden_layers", None)
    lists = {name: module for name, module in model.named_modules() if isinstance(module, nn.ModuleList)}
    outer = {
        name: module
        for name, module in lists.items()
        if not any(name.startswith(other + ".") for other in lists) and len(module) == depth
    }
    if len(outer) != 1:
        found = ", ".join(f"{name} ({len(module)})" for name, module in lists.items()) or "no ModuleList"
        raise ModelError(
            f"{type(model).__name__} has no single list of {depth} decoder blocks; found: {found}",
            hint="esa walks decoder-only causal language models",
        )
    return next(iter(outer.items()))


def text_config(model: nn.Module) -> Any:
    """Return the configuration of the model's text decoder."""
    config: Any = model.config
    return config.get_text_config() if hasattr(config, "get_text_config") else config


def describe(model: Any) -> dict[str, ParameterInfo]:
    """Return a description of every parameter, in ``named_parameters()`` order; a tied tensor appears once."""
    _, blocks = decoder_blocks(model)
    block_of = {id(module): number for number, block in enumerate(blocks) for module in block.modules()}
    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    names: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    modules = dict(model.named_modules())
    table = {}
    for name, parameter in model.named_parameters():
        layer, _, attribute = name.rpartition(".")
        owner = modules[layer]
        parent = modules[layer.rpartition(".")[0]] if layer else model
        block = block_of.get(id(owner))
        component = _component(layer.rpartition(".")[2], attribute, owner, parent, parameter.ndim, block, owner is head)
        output_axis, input_axis, expert_axis = _axes(owner, parameter.ndim)
        table[name] = ParameterInfo(
            name=name, layer=layer, block=block, component=component, shape=tuple(parameter.shape),
            numel=parameter.numel(), output_axis=output_axis, input_axis=input_axis, expert_axis=expert_axis,
            uses=tuple(names[id(parameter)]),
        )  # fmt: skip
    return table


def _component(
    layer: str, attribute: str, owner: nn.Module, parent: nn.Module, ndim: int, block: int | None, is_head: bool
) -> str:
    """Return the component of a parameter from the exact names of its module and its siblings."""
    siblings = {name for name, _ in parent.named_children()}
    if is_head:
        return "lm_head"
    if isinstance(owner, nn.Embedding) and block is None:
        return "embed"
    if ndim == 3 and attribute in _MLP:
        return _MLP[attribute].replace("mlp.", "expert.")
    if "experts" in siblings and layer != "experts" and not any(name in _MLP for name, _ in owner.named_children()):
        return "router" if any(p.ndim == 2 for p in owner.parameters(recurse=False)) else "other"
    if layer in _ATTENTION and siblings & _QUERY_NAMES:
        return _ATTENTION[layer]
    if layer in _MLP:
        return _MLP[layer]
    own = list(owner.parameters(recurse=False))
    if own and all(p.ndim == 1 for p in own) and not any(True for _ in owner.children()):
        return "norm"
    return "other"


def _axes(owner: nn.Module, ndim: int) -> tuple[int | None, int | None, int | None]:
    """Return the output, input and expert axis of a stored tensor."""
    if ndim == 3:
        transposed = bool(
            getattr(owner, "is_transposed", False)
        )  # set by transformers on fused experts stored (in, out)
        return (2, 1, 0) if transposed else (1, 2, 0)
    if ndim != 2:
        return (0 if ndim == 1 else None), None, None
    if isinstance(owner, Conv1D | nn.Embedding):
        return 1, 0, None
    return 0, 1, None


def eligible(
    table: dict[str, ParameterInfo], include: tuple[str, ...] = (), exclude: tuple[str, ...] = ()
) -> dict[str, ParameterInfo]:
    """Return the parameters to score: of two dimensions or more, or those that ``include`` matches, less ``exclude``.

    A pattern is a glob on the parameter, ``component=GLOB`` or ``block=GLOB``.
    Raises SpecError for a pattern that matches nothing.
    """
    for key, patterns in (("include", include), ("exclude", exclude)):
        for pattern in patterns:
            if not any(_matches(info, pattern) for info in table.values()):
                near = suggest(pattern, [*table, *(f"component={c}" for c in COMPONENTS)])
                raise SpecError([f"score.{key}: '{pattern}' matches no parameter{near}"])
    chosen = {
        name: info
        for name, info in table.items()
        if (any(_matches(info, p) for p in include) if include else len(info.shape) >= 2)
        and not any(_matches(info, p) for p in exclude)
    }
    if not chosen:
        raise SpecError(["score.include: no parameter is left to score"])
    return chosen


def _matches(info: ParameterInfo, pattern: str) -> bool:
    key, separator, value = pattern.partition("=")
    if separator and key == "component":
        return fnmatchcase(info.component, value)
    if separator and key == "block":
        return fnmatchcase("" if info.block is None else str(info.block), value)
    return any(fnmatchcase(name, pattern) for name in info.uses)


def experts_of(info: ParameterInfo) -> Iterator[int]:
    """Yield the numbers of the experts that a parameter fuses."""
    if info.expert_axis is not None:
        yield from range(info.shape[info.expert_axis])
