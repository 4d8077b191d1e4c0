"""Which parameter each tensor of a file becomes, by the names that transformers' own loaders give it."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from esa.arch.stored import StoredFiles, StoredTensor
from esa.model import ParameterInfo


@dataclass
class Storage:
    """What the files hold of each parameter.

    ``held``: parameter -> dtype and bytes in the files; ``unknown``: parameters that are not there, or in another number of
    elements; ``extra``: tensors that are no parameter's, or a second copy of one.
    """

    held: dict[str, tuple[str, int]] = field(default_factory=dict)
    unknown: list[str] = field(default_factory=list)
    extra: list[StoredTensor] = field(default_factory=list)


def match(model: Any, table: Mapping[str, ParameterInfo], files: StoredFiles) -> Storage:
    """Return what the files hold of each parameter of ``model`` (its weights may be on the meta device).

    A parameter that is fused in the model may lie in the files in pieces, such as every expert alone: it counts as held if
    the numbers of elements add up. Of a quantized checkpoint, scales and packed weights belong to the ``weight`` of their
    module.
    """
    targets = _gguf_targets(model, files) if files.gguf_architecture else _safetensors_targets(model, files)
    owner = {use: info.name for info in table.values() for use in info.uses}
    sources: dict[str, dict[str, list[StoredTensor]]] = {name: {} for name in table}
    for tensor in files.tensors:
        use = targets.get(tensor.name)
        if use in owner:
            sources[owner[use]].setdefault(use, []).append(tensor)
    found, taken = Storage(), set()
    for name, info in table.items():
        parts = next((sources[name][use] for use in info.uses if use in sources[name]), [])
        if sum(part.numel for part in parts) != info.numel:
            found.unknown.append(name)
            continue
        dtype = "+".join(sorted({part.dtype for part in parts}))
        found.held[name] = dtype, sum(part.num_bytes for part in parts)
        taken |= {part.name for part in parts}
    found.extra = [tensor for tensor in files.tensors if tensor.name not in taken]
    method = _quantization(model)
    return _packed(found, table, method) if method else found


def _safetensors_targets(model: Any, files: StoredFiles) -> dict[str, str]:
    """Return the name in the model's state that each tensor of safetensors files becomes, or becomes a part of."""
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key

    mapping = get_model_conversion_mapping(model)
    renamings = [entry for entry in mapping if isinstance(entry, WeightRenaming)]
    converters = [entry for entry in mapping if isinstance(entry, WeightConverter)]
    state, prefix = model.state_dict(), model.base_model_prefix
    targets = {}
    for name in sorted(tensor.name for tensor in files.tensors):  # the order in which the loader renames
        renamed, _ = rename_source_key(name, renamings, converters, prefix, state)
        targets[name] = name if renamed not in state and name in state else renamed
    return targets


def _gguf_targets(model: Any, files: StoredFiles) -> dict[str, str]:
    """Return the name in the model's state that each tensor of a GGUF file becomes, or becomes a part of."""
    from transformers.modeling_gguf_pytorch_utils import TENSOR_PROCESSORS, TensorProcessor, get_gguf_hf_weights_map

    processor = TENSOR_PROCESSORS.get(files.gguf_architecture, TensorProcessor)(config=model.config.to_dict())
    # The loader builds a table of names for every module down to the last norm. Two levels name nearly all models'
    # parameters in a hundredth of the time; where they do not, all levels are asked.
    parameters = {name for name, _ in model.named_parameters()}
    found: dict[str, str | None] = {}
    for root in (_Shallow(model), model):
        try:
            names = get_gguf_hf_weights_map(root, processor)
        except NotImplementedError:  # gguf knows no names for this architecture: nothing can be told of its parameters
            return {}
        # Fused experts stand in the map without the suffix that they have in the file.
        found = {one.name: names.get(one.name, names.get(one.name.removesuffix(".weight"))) for one in files.tensors}
        if parameters <= set(found.values()):
            break
    return {name: target for name, target in found.items() if target is not None}


class _Shallow:
    """A model whose children have no children."""

    def __init__(self, module: Any, levels: int = 1) -> None:
        self.module, self.levels = module, levels
        self.config, self.state_dict = getattr(module, "config", None), module.state_dict

    def named_children(self) -> list[tuple[str, "_Shallow"]]:
        return [(name, _Shallow(child, self.levels - 1)) for name, child in self.module.named_children() if self.levels]


def _quantization(model: Any) -> str | None:
    """Return the name of the method that quantized a checkpoint, or None."""
    config = getattr(model.config, "quantization_config", None)
    if config is None:
        return None
    method = config.get("quant_method") if isinstance(config, dict) else getattr(config, "quant_method", None)
    return str(getattr(method, "value", method) or "quantized")


def _packed(found: Storage, table: Mapping[str, ParameterInfo], method: str) -> Storage:
    """Give packed weights, scales and zero points of a quantized module to its ``weight``."""
    modules = {info.layer: name for name, info in table.items() if name == f"{info.layer}.weight"}
    left: list[StoredTensor] = []
    for tensor in found.extra:
        layer = next((layer for layer in _above(tensor.name) if layer in modules), None)
        if layer is None:
            left.append(tensor)
            continue
        dtype, num_bytes = found.held.get(modules[layer], (method, 0))
        found.held[modules[layer]] = dtype, num_bytes + tensor.num_bytes
    return Storage(found.held, [name for name in found.unknown if name not in found.held], left)


def _above(name: str) -> Iterable[str]:
    """Yield the modules that a name lies in, innermost first."""
    while "." in name:
        name = name.rpartition(".")[0]
        yield name
