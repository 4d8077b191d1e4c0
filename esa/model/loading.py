"""Load a causal language model and its tokenizer, and say exactly what was loaded."""

from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any

import torch
import transformers
from torch import nn

from esa.artifact import Step, read_manifest
from esa.errors import ArtifactError, ModelError, SpecError
from esa.model.anatomy import ParameterInfo, decoder_blocks, describe, text_config
from esa.model.block_stack import BlockStack
from esa.model.disk import DiskBlocks, Placement, disk_weights, placement, require_safetensors, stored_tensors
from esa.model.experts import active_weights
from esa.model.explaining import explained, quiet
from esa.model.footprint import skeleton
from esa.model.null import make_null, null_facts, null_words
from esa.model.quantizing import (
    checked_afterwards,
    loading_arguments,
    move,
    quantization_of,
    quantize,
    quantized_weights,
    require_kind,
)
from esa.model.shape import architecture_facts
from esa.model.sources import find_source, pinned, source_hashes
from esa.model.training import training_facts
from esa.model.weights import Weight, fingerprint, weights_of
from esa.progress import Progress, Silent
from esa.spec.sections import Model as ModelSection


@dataclass
class LoadedModel:
    """A model in eval mode, proven to be a chain of blocks, with its tokenizer and what a manifest says of it.

    ``weights`` gives every parameter's numbers by name, a tied one once: wherever they are, however they are stored. Their
    tensors have the compute dtype, which holds every storage number exactly.
    """

    model: Any  # a transformers.PreTrainedModel: an nn.Module with a configuration
    tokenizer: Any
    stack: BlockStack
    table: dict[str, ParameterInfo]
    weights: dict[str, Weight]
    device: torch.device
    facts: dict[str, Any] = field(default_factory=dict)
    disk: DiskBlocks | None = None

    def parameters(self) -> dict[str, nn.Parameter]:
        """Return the parameters as the modules hold them now, by name; a tied one once, one on disk without its numbers."""
        return dict(self.model.named_parameters())


def load_model(section: ModelSection, progress: Progress | None = None) -> LoadedModel:
    """Load the model that ``section`` names, put it on its device, and prove that it can be walked block by block.

    Configuration, weights and tokenizer of a hub model are all taken from the one commit that ``pinned`` gives, from the
    cache alone where the hub was not asked; ``facts`` says which commit, and what was asked for.
    Raises ModelError where the files are missing, gated, out of reach, not a causal language model, or need foreign code;
    SpecError where the configuration contradicts ``model.shape``.
    """
    progress = progress or Silent()
    device, why = choose_device(section.device)
    source, commit = find_source(section.id), pinned(section.id, section.revision)
    named = section.id if commit is None else f"{section.id} ({commit.words()})"
    codes = "" if section.quantization == "none" else f", linear maps as {section.quantization} codes,"
    if section.residency == "disk":
        require_safetensors(source.gguf)
    codes += ", its blocks from disk one at a time," if section.residency == "disk" else ""
    codes += null_words(section)
    progress.note(f"loading {named} as {section.dtype}{codes} on {device} ({why})")
    if section.quantization == "int8":
        progress.note(
            "int8 maps round their inputs too: to 8 bits per token, outliers apart, which a whole batch decides"
        )
    if commit is None and section.revision is not None:
        progress.warn(f"model.revision = '{section.revision}' is of the hub; {section.id} is local and has none")
    dtype = getattr(torch, section.dtype)
    shared = {
        "revision": commit.sha if commit else None,
        "local_files_only": commit is not None and commit.unasked is not None,
        "trust_remote_code": section.trust_remote_code,
        **source.arguments(),
    }
    # A GGUF file cannot be quantised as it is read: ``prepare`` does it afterwards.
    quantized = {} if source.gguf else loading_arguments(section.quantization, _compute(section), device)
    placed = None
    with quiet(), explained(section), checked_afterwards():
        if section.residency == "disk":
            config = transformers.AutoConfig.from_pretrained(source.location, **shared)
            placed = placement(skeleton(config, section), device, dtype)
        model, report = transformers.AutoModelForCausalLM.from_pretrained(
            source.location,
            dtype=dtype,
            use_safetensors=None if source.gguf else True,
            output_loading_info=True,
            **quantized,
            **(placed.arguments() if placed is not None else {}),
            **({"device_map": section.device_map} if section.device_map != "none" else {}),
            **shared,
        )
        tokenizer = transformers.AutoTokenizer.from_pretrained(source.location, **shared)
    if report["missing_keys"]:  # transformers draws them at random, with a warning
        missing = sorted(report["missing_keys"])
        raise ModelError(
            f"the files of '{section.id}' lack {len(missing)} of its parameters, such as {missing[0]}", where="model.id"
        )
    if section.shape is not None:
        check_shape(section.shape, model.config)
    loaded = prepare(model, tokenizer, section, device, placed)
    origin: dict[str, Any] = {"id": section.id, "revision": commit.sha if commit else None}
    if commit is not None:
        origin |= {"revision_asked": commit.asked, "without_hub": commit.unasked}
    if training := training_facts(source, section.revision):
        origin["training"] = training
    loaded.facts = {**origin, **loaded.facts, "device": str(device), "device_why": why}
    return loaded


def prepare(
    model: Any,
    tokenizer: Any,
    section: ModelSection,
    device: torch.device | None = None,
    placed: Placement | None = None,
) -> LoadedModel:
    """Return a model that is already in memory, ready for scoring: eval mode, compute dtype, device, described and proven.

    ``placed``: where ``from_pretrained`` was told to leave the blocks, for a model that is not in memory as a whole.

    Fused experts run one by one: their inputs can then be watched, and their second derivatives exist. Where
    ``model.quantization`` is a kind and the model is not quantised yet, its linear maps are, in place; so is the model turned
    into the null model that ``model.null`` names (``make_null``).
    """
    device = device or choose_device(section.device)[0]
    kind, compute = quantization_of(model), _compute(section)
    require_kind(kind, section.quantization)
    stored = stored_tensors(model) if placed is not None else {}
    _require_weights(model, kind, stored)
    make_null(model, section)
    model.eval()
    if device.type == "cuda":  # the same bits every time, wherever CUDA knows how
        torch.use_deterministic_algorithms(True, warn_only=True)
    storage = {name: parameter.dtype for name, parameter in model.named_parameters()}
    wider = None if section.compute in ("auto", section.dtype) else compute
    if section.quantization != "none":
        if kind == "none":
            quantize(model, section.quantization, compute, device)
        move(model, wider, device)
    elif placed is not None or section.device_map != "none":
        model.to(dtype=wider)
    else:
        model.to(device=device, dtype=wider)
    if any(parameter.ndim == 3 for parameter in model.parameters()) and hasattr(model, "set_experts_implementation"):
        model.set_experts_implementation("eager")
    table = describe(model)
    weights = weights_of(model, table, storage) | quantized_weights(model, table, compute)
    disk = None
    if placed is not None:
        name, blocks = decoder_blocks(model)
        disk = DiskBlocks(blocks, name, stored, device, wider, placed)
        weights |= disk_weights(model, table, disk)
    with torch.no_grad():
        facts = {
            "architecture": type(model).__name__,
            "fingerprint": fingerprint(weights),
            "dtype": section.dtype,
            "compute": section.dtype if section.compute == "auto" else section.compute,
            "quantization": section.quantization,
            **({"residency": "disk"} if placed is not None else {}),
            **null_facts(section),
            "threads": torch.get_num_threads(),
            "accelerator": torch.cuda.get_device_name(device) if device.type == "cuda" else None,
            "num_parameters": sum(info.numel for info in table.values()),
            "active_parameters": _active(model, table),
            "shape": _shape(model, table),
            "chat_template": bool(getattr(tokenizer, "chat_template", None)),
        }
    return LoadedModel(model, tokenizer, BlockStack(model), table, weights, device, facts, disk)


def model_inputs(section: ModelSection, loaded: LoadedModel | None = None) -> dict[str, str]:
    """Return what identifies a step's model among its inputs: sha256 of local files, the commit of a hub model.

    A model at hand is of the commit it was loaded from; one that was made in memory under a name of its own has nothing to
    be identified by here, and is told apart by its fingerprint (``require_same_model``). Raises ModelError as ``pinned``.
    """
    if loaded is not None and not find_source(section.id).local:
        commit = loaded.facts.get("revision")
        return {"model": str(commit)} if commit else {}
    return source_hashes(section.id, section.revision)


def require_same_model(step: Step, loaded: LoadedModel | None) -> None:
    """Raise ArtifactError if a finished step was computed on a model with other weights than the one at hand."""
    if loaded is None:
        return
    stated = read_manifest(step.folder).get("model", {}).get("fingerprint")
    if stated != fingerprint(loaded.weights):
        raise ArtifactError(
            "was computed on a model with other weights", where=str(step.folder), hint="compute it afresh with --force"
        )


def _shape(model: Any, table: dict[str, ParameterInfo]) -> dict[str, Any]:
    """Return the numbers by which people know the architecture, those that it has."""
    found = architecture_facts(model, table)
    return {key: value for key, value in found.items() if key != "architecture" and value is not None}


def _active(model: Any, table: dict[str, ParameterInfo]) -> int | None:
    """Return how many weights one token uses, None where the configuration does not tell."""
    counts = active_weights(model, table, text_config(model)).values()
    known = [count for count in counts if count is not None]
    return sum(known) if len(known) == len(counts) else None


def _compute(section: ModelSection) -> torch.dtype:
    """Return the compute dtype."""
    found: torch.dtype = getattr(torch, section.dtype if section.compute == "auto" else section.compute)
    return found


def _require_weights(model: Any, kind: str, stored: Collection[str] = ()) -> None:
    """Raise ModelError for weights that are neither here nor ``stored``, or no floating-point numbers nor codes of ``kind``."""
    for name, parameter in model.named_parameters():
        if parameter.is_meta and name not in stored:
            raise ModelError(
                f"{name} is not in memory: an offloaded model gives no gradients",
                where="model.id",
                hint='model.residency = "disk" reads blocks from their files, and gives them',
            )
        if not parameter.is_floating_point() and kind == "none":
            raise ModelError(
                f"{name} is stored as {parameter.dtype}; float32, bfloat16 and float16 can be scored", where="model.id"
            )


def choose_device(name: str) -> tuple[torch.device, str]:
    """Return the device and why it is the one. Raises ModelError where the named one is not there."""
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        kind = next(kind for kind, there in available.items() if there)
        why = {"cuda": "a CUDA device is there", "mps": "an Apple GPU is there", "cpu": "no GPU was found"}[kind]
        return torch.device(kind), f"auto: {why}"
    if not available[name.partition(":")[0]]:
        there = ", ".join(kind for kind, present in available.items() if present)
        raise ModelError(f"'{name}' is not available; available: {there}", where="model.device")
    return torch.device(name), "named by model.device"


def check_shape(shape: dict[str, Any], config: Any) -> None:
    """Compare ``model.shape`` with the loaded configuration. Raises SpecError with every difference."""
    problems = []
    for key, stated in shape.items():
        found = getattr(config, key, None)
        wanted = _lists(stated)
        if found != wanted:
            problems.append(f"model.shape.{key}: {wanted!r} in the spec, {found!r} in the model's configuration")
    if problems:
        raise SpecError(problems, hint="correct model.shape, or leave it out")


def _lists(value: Any) -> Any:
    """Return ``value`` with its tuples as lists, as a configuration holds them."""
    if isinstance(value, dict):
        return {key: _lists(item) for key, item in value.items()}
    return [_lists(item) for item in value] if isinstance(value, tuple | list) else value
