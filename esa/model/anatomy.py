"""What each parameter is: its module, block, component, axes and experts, read from modules and configuration."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from torch import nn
from transformers.pytorch_utils import Conv1D

from esa.errors import ModelError, SpecError
from esa.registry import suggest

# The field's names for the projections of a decoder block, by the exact name of the module or parameter. A name counts as
# attention only beside one that makes queries, as an MLP only beside its other half. What makes several of queries, keys and
# values, such as the latent that keys and values share, is attn.qkv.
_ATTENTION_NAMES = {
    "attn.q": "q_proj q_a_proj q_b_proj q_lin query query_proj Wq q",
    "attn.k": "k_proj k_lin key key_proj Wk k",
    "attn.v": "v_proj v_lin value value_proj Wv v",
    "attn.o": "o_proj o_a_proj o_b_proj out_proj out_lin dense c_proj Wo",
    "attn.qkv": "qkv_proj query_key_value c_attn Wqkv in_proj_qkv in_proj_qkvz",
}
_SHARED_NAMES = "kv_proj kv_a_proj_with_mqa kv_b_proj"  # of keys and values; they tell no queries
_MLP_NAMES = {
    "mlp.gate": "gate_proj w1 wi_0 proj_up_gate",
    "mlp.up": "up_proj c_fc fc1 w3 v1 dense_h_to_4h fc_in wi wi_1 lin1 proj_up intermediate",
    "mlp.down": "down_proj c_proj fc2 w2 dense_4h_to_h fc_out wo Wo lin2 proj_down output output_linear",
    "mlp.gate_up": "gate_up_proj Wi input_linear",
}
_ATTENTION = {name: component for component, names in _ATTENTION_NAMES.items() for name in names.split()}
_QUERY_NAMES = {name for name, component in _ATTENTION.items() if component in ("attn.q", "attn.qkv")}
_ATTENTION |= dict.fromkeys(_SHARED_NAMES.split(), "attn.qkv")
_MLP = {name: component for component, names in _MLP_NAMES.items() for name in names.split()}
_DOWN_NAMES = {name for name, component in _MLP.items() if component == "mlp.down"}
_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
COMPONENTS = (
    "embed", "attn.q", "attn.k", "attn.v", "attn.o", "attn.qkv", "mlp.gate", "mlp.up", "mlp.gate_up", "mlp.down",
    "router", "expert.gate", "expert.up", "expert.gate_up", "expert.down", "norm", "lm_head", "other",
)  # fmt: skip


@dataclass(frozen=True)
class ParameterInfo:
    """One parameter of a model, described.

    ``name``: in ``named_parameters()``. ``layer``: the module that owns it. ``block``: its decoder block, None outside.
    ``output_axis``, ``input_axis``, ``expert_axis``: axes of the stored tensor, None where it has no such axis. ``shape`` and
    ``numel``: of the numbers, however they are packed.
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


def decoder_blocks(model: Any) -> tuple[str, nn.ModuleList]:
    """Return name and list of the model's decoder blocks: its one outermost ModuleList of ``num_hidden_layers`` modules.

    Where a model has towers beside its decoder (vision, sound), the list is the one inside ``get_decoder()``.
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
    if len(outer) > 1 and not model.config.is_encoder_decoder:
        decoder: Any = model.get_decoder()
        inside = {id(module) for module in decoder.modules()}
        outer = {name: module for name, module in outer.items() if id(module) in inside}
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
    width = getattr(text_config(model), "hidden_size", None)
    names: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    modules = dict(model.named_modules())
    # A head that is more than its output embedding is a module with what comes before that.
    holders = [modules[name.rpartition(".")[0]] for name, module in modules.items() if module is head and "." in name]
    around = next((module for module in holders if not any(block in module.modules() for block in blocks)), None)
    table = {}
    for name, parameter in model.named_parameters():
        layer, _, attribute = name.rpartition(".")
        owner = modules[layer]
        block = block_of.get(id(owner))
        inside = {id(module) for module in blocks} if block is not None else set()
        places = list(_places(layer, modules, inside))
        beside_head = parameter.ndim == 2 and block is None and any(place.module is around for place in places)
        component = "lm_head" if owner is head or beside_head else _component(places, attribute, block)
        output_axis, input_axis, expert_axis = _axes(places, attribute, parameter, component, width)
        table[name] = ParameterInfo(
            name=name, layer=layer, block=block, component=component, shape=shape_of(parameter),
            numel=math.prod(shape_of(parameter)), output_axis=output_axis, input_axis=input_axis, expert_axis=expert_axis,
            uses=tuple(names[id(parameter)]),
        )  # fmt: skip
    return table


def shape_of(parameter: Any) -> tuple[int, ...]:
    """Return the shape of a parameter's numbers: bitsandbytes packs two 4-bit codes into a byte, in a column."""
    state = getattr(parameter, "quant_state", None)
    return tuple(parameter.shape if state is None else state.shape)


@dataclass(frozen=True)
class _Place:
    """A module on the way from a parameter's owner up to its block: its name in its parent, and the parent."""

    name: str
    module: nn.Module
    parent: nn.Module

    @property
    def siblings(self) -> set[str]:
        return {name for name, _ in self.parent.named_children()}

    @property
    def alone(self) -> bool:
        """Tell whether the parent has no parameter but this module's: a wrapper."""
        return sum(1 for _ in self.parent.parameters()) == sum(1 for _ in self.module.parameters())


def _places(layer: str, modules: dict[str, nn.Module], blocks: set[int]) -> Iterator[_Place]:
    """Yield the owner's place and those above it, without the block itself."""
    while layer:
        if id(modules[layer]) in blocks:
            return
        above, _, name = layer.rpartition(".")
        yield _Place(name, modules[layer], modules[above])
        layer = above


def _component(places: list[_Place], attribute: str, block: int | None) -> str:
    """Return the component of a parameter from the exact names of its module, its siblings and what it lies in."""
    if not places:
        return "other"
    owner = places[0].module
    if isinstance(owner, nn.Embedding) and block is None:
        return "embed"
    own = dict(owner.named_parameters(recurse=False))
    vectors = all(parameter.ndim == 1 for parameter in own.values())
    if vectors and set(own) <= {"weight", "bias"} and not isinstance(owner, nn.Linear) and not any(owner.children()):
        return "norm"
    if _routes(places, own):
        return "router"
    expert = "experts" in (place.name for place in places) or any(parameter.ndim == 3 for parameter in own.values())
    stem = attribute if attribute in _MLP else attribute.removesuffix("_bias")
    if stem in _MLP:
        return _MLP[stem].replace("mlp.", "expert.") if expert else _MLP[stem]
    for place in places:
        if place.name in _ATTENTION and place.siblings & _QUERY_NAMES:
            return _ATTENTION[place.name]
        if place.name in _MLP and _is_mlp(place):
            return _MLP[place.name].replace("mlp.", "expert.") if expert else _MLP[place.name]
        if not place.alone:
            break
    return _of_dense(places) if places[0].name == "dense" else "other"


def _is_mlp(place: _Place) -> bool:
    """Tell whether the other half of an MLP stands beside a projection; ``input_linear`` opens one where it is gated."""
    halves = {name for name in place.siblings if name in _MLP}
    if not halves & _DOWN_NAMES or not halves - _DOWN_NAMES:
        return False
    opening, closing = (
        getattr(getattr(place.parent, f"{name}_linear", None), "weight", None) for name in ("input", "output")
    )
    return opening is None or closing is None or shape_of(opening)[-2] == 2 * shape_of(closing)[-1]


def _of_dense(places: list[_Place]) -> str:
    """Return the component of ``dense`` in ``intermediate`` or ``output``: of attention where ``self`` is near, else MLP."""
    if len(places) < 2:
        return "other"
    above, near = places[1].name, places[1].siblings
    if above == "output" and "self" in near:
        return "attn.o"
    halves = {"intermediate": "mlp.up", "output": "mlp.down"}
    return halves[above] if above in halves and set(halves) <= near else "other"


def _routes(places: list[_Place], own: dict[str, nn.Parameter]) -> bool:
    """Tell whether a parameter chooses experts: it lies in a ``router``, or beside ``experts`` with a row for each, or one."""
    for depth, place in enumerate(places):
        if place.name == "router":
            return True
        experts = dict(place.parent.named_children()).get("experts")
        if experts is None or place.name == "experts" or depth > 1:
            continue
        numbers = {len(experts) if isinstance(experts, nn.ModuleList) else 1, 1}
        numbers |= {parameter.shape[0] for parameter in experts.parameters() if parameter.ndim == 3}
        if any(parameter.ndim == 2 and shape_of(parameter)[0] in numbers for parameter in own.values()):
            return True
    return False


def _axes(
    places: list[_Place], attribute: str, parameter: nn.Parameter, component: str, width: int | None
) -> tuple[int | None, int | None, int | None]:
    """Return the output, input and expert axis of a stored tensor; ``width``: of the hidden state."""
    owner, shape = places[0].module if places else None, parameter.shape
    if parameter.ndim == 1 or isinstance(
        owner, _CONVOLUTIONS
    ):  # a kernel has no input axis of its own where it is depthwise
        return 0, None, None
    own = {} if owner is None else dict(owner.named_parameters(recurse=False))
    fused = component.startswith("expert.") or any(p.name == "experts" or "router" in p.siblings for p in places)
    if parameter.ndim == 3:
        if not fused:
            return None, None, None
        output, into = _orientation(owner, attribute, tuple(shape), component, width)
        return output, into, 0
    if parameter.ndim != 2:
        return None, None, None
    if fused and any(other.ndim == 3 and other.shape[0] == shape[0] for other in own.values()):
        return 1, None, 0  # a bias per expert
    if attribute in _MLP:
        output, into = _orientation(owner, attribute, tuple(shape), component, width)
        return output, into, None
    return (1, 0, None) if isinstance(owner, Conv1D | nn.Embedding) else (0, 1, None)


def _orientation(
    owner: nn.Module | None, attribute: str, shape: tuple[int, ...], component: str, width: int | None
) -> tuple[int, int]:
    """Return output and input axis of experts' weights.

    They are stored (out, in) or (in, out), as the module says or else as the width of the hidden state tells.
    """
    first, last = len(shape) - 2, len(shape) - 1
    transposed = getattr(owner, "is_transposed", None)  # set by transformers on many, not on all
    if transposed is None:
        hidden_at = {first: shape[first] == width, last: shape[last] == width}
        if hidden_at[first] != hidden_at[last]:
            writes = component.endswith(".down")
            transposed = hidden_at[last] if writes else hidden_at[first]
    return (last, first) if transposed else (first, last)


def eligible(
    table: dict[str, ParameterInfo],
    include: tuple[str, ...] = (),
    exclude: tuple[str, ...] = (),
    section: str = "score",
) -> dict[str, ParameterInfo]:
    """Return the parameters to score: of two dimensions or more, or those that ``include`` matches, less ``exclude``.

    A pattern is a glob on the parameter, ``component=GLOB`` or ``block=GLOB``. ``section``: of the spec, whose keys they are.
    Raises SpecError for a pattern that matches nothing, and where nothing is left; for a single number, to ``score``.
    """
    for key, patterns in (("include", include), ("exclude", exclude)):
        for pattern in patterns:
            if not any(_matches(info, pattern) for info in table.values()):
                near = suggest(pattern, [*table, *(f"component={c}" for c in COMPONENTS)])
                raise SpecError([f"{section}.{key}: '{pattern}' matches no parameter{near}"])
    chosen = {
        name: info
        for name, info in table.items()
        if (any(_matches(info, p) for p in include) if include else len(info.shape) >= 2)
        and not any(_matches(info, p) for p in exclude)
    }
    if not chosen:
        raise SpecError([f"{section}.include: no parameter is left{' to score' if section == 'score' else ''}"])
    single = [name for name, info in chosen.items() if not info.shape]
    if single and section == "score":
        raise SpecError([f"score.include: {single[0]} is a single number, with nothing to be ranked among"])
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
