"""Models whose linear maps bitsandbytes holds as codes: made, recognised, and made fit to be scored and changed."""

import importlib
import logging
import sys
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from esa.errors import ModelError
from esa.model.anatomy import ParameterInfo, shape_of
from esa.model.quantized import Int8Weight, Nf4Weight, QuantizedWeight

WHERE = "model.quantization"
_PROVEN = 1 << 16  # weights of each tensor that are compared, from the first row on
_WEIGHTS: dict[str, type[QuantizedWeight]] = {"int8": Int8Weight, "nf4": Nf4Weight}


def library() -> Any:
    """Import and return bitsandbytes. Nothing is fetched. Raises ModelError where it is not installed.

    On a CPU with AVX512-BF16 it would, when imported, ask the hub for a kernel for repacked weights, or else warn that the
    package ``kernels`` is missing. Repacking is turned off here (``prepared``): the kernel would never run.
    """
    if sys.modules.get("bitsandbytes") is None:
        with _without_kernels():
            try:
                importlib.import_module("bitsandbytes")
            except ImportError as error:
                raise ModelError(
                    f"bitsandbytes cannot be imported: {error}", where=WHERE, hint="pip install 'esa[quant]'"
                ) from None
    logging.getLogger("bitsandbytes.autograd._functions").addFilter(_said_once)
    return sys.modules["bitsandbytes"]


def _said_once(record: logging.LogRecord) -> bool:
    """Hold back what bitsandbytes says at every product of every int8 layer: the loader says once that they round inputs."""
    return "inputs will be cast" not in str(record.msg)


@contextmanager
def _without_kernels() -> Iterator[None]:
    """Import as if the package ``kernels`` were not there, and do not mind that it is not."""
    logger = logging.getLogger("bitsandbytes.backends.cpu.ops")
    known, level = sys.modules.get("kernels"), logger.level
    sys.modules["kernels"] = None  # type: ignore[assignment]
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
        if known is None:
            del sys.modules["kernels"]
        else:
            sys.modules["kernels"] = known


def configuration_of(kind: str, compute: torch.dtype) -> Any:
    """Return transformers' configuration of a kind: NF4 in blocks of 64 with float32 scales, int8 with bitsandbytes' defaults."""
    library()
    from transformers import BitsAndBytesConfig

    if kind == "int8":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=compute, bnb_4bit_use_double_quant=False
    )


def loading_arguments(kind: str, compute: torch.dtype, device: torch.device) -> dict[str, Any]:
    """Return what ``from_pretrained`` needs to quantise each weight as it is read, and to leave none elsewhere."""
    if kind == "none":
        return {}
    return {"quantization_config": configuration_of(kind, compute), "device_map": {"": str(device)}}


@contextmanager
def checked_afterwards() -> Iterator[None]:
    """Ignore that a quantised checkpoint's own configuration wins over ours: ``require_kind`` compares what was loaded."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="You passed `quantization_config`")
        yield


def quantization_of(model: nn.Module) -> str:
    """Return how a model's linear maps are held: ``none``, ``int8`` or ``nf4``.

    Raises ModelError for what bitsandbytes can make and nothing here reads: FP4, embeddings, layers not quantised yet, mixtures.
    """
    bnb = sys.modules.get("bitsandbytes")
    if bnb is None:
        return "none"
    kinds: dict[str, str] = {}
    for name, module in model.named_modules():
        if isinstance(module, bnb.nn.Linear4bit | bnb.nn.Embedding4bit):
            kind = module.weight.quant_type if module.weight.bnb_quantized else "not quantised yet"
        elif isinstance(module, bnb.nn.Linear8bitLt | bnb.nn.Embedding8bit):
            kind = "int8" if module.weight.dtype == torch.int8 else "not quantised yet"
        else:
            continue
        kinds.setdefault(kind if isinstance(module, nn.Linear) else f"{kind} embedding", name)
    if not kinds:
        return "none"
    if len(kinds) > 1 or next(iter(kinds)) not in _WEIGHTS:
        found = ", ".join(f"{name} is {kind}" for kind, name in kinds.items())
        raise ModelError(f"{found}; linear maps that are all int8, or all nf4, can be read", where=WHERE)
    return next(iter(kinds))


def require_kind(found: str, wanted: str) -> None:
    """Raise ModelError for a model that is quantised otherwise than ``model.quantization`` says."""
    if found not in ("none", wanted):
        raise ModelError(
            f"'{wanted}', but the model's linear maps are stored as {found} codes",
            where=WHERE,
            hint=f"--set model.quantization='{found}'",
        )


def quantize(model: Any, kind: str, compute: torch.dtype, device: torch.device) -> None:
    """Quantise the linear maps of a model in memory, in place, as ``from_pretrained`` would have: all but the head.

    Conv1D becomes a linear map with its storage transposed. Embeddings, norms, biases and fused experts stay numbers.
    Cost: a read of the weights; both kinds of one weight are held at a time.
    """
    _require_device(device)
    library()
    from transformers.quantizers import AutoHfQuantizer

    quantizer = AutoHfQuantizer.from_config(configuration_of(kind, compute), pre_quantized=False)
    floats = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear | Conv1D)}
    quantizer.preprocess_model(model, device_map={"": str(device)})
    for name in list(floats):
        old, new = floats.pop(name), model.get_submodule(name)
        if new is old:
            continue
        values = (old.weight.T if isinstance(old, Conv1D) else old.weight).detach().contiguous().cpu()
        made = type(new.weight)(values, requires_grad=False, **new.weight.__dict__)
        new.weight, new.bias = made.to(device), old.bias
        new.train(old.training)  # in training mode int8 multiplies by dequantised weights, and rounds no input
    quantizer.postprocess_model(model)
    model.hf_quantizer = quantizer


def saved_bytes(model: Any, kind: str, item_bytes: int) -> int:
    """Return the bytes that a model takes less where its linear maps are held as codes, or will be, and not as numbers.

    An NF4 weight takes half a byte, and its share of a block's float32 scale; an int8 weight one, and its share of a row's.
    """
    saved = 0.0
    head = model.get_output_embeddings()
    for module in model.modules() if kind != "none" else ():
        if isinstance(module, nn.Linear | Conv1D) and module is not head:
            out, into = shape_of(module.weight)
            if isinstance(module, Conv1D):
                out, into = into, out
            numel = out * into
            saved += numel * item_bytes - (numel + 4 * out if kind == "int8" else numel / 2 + 4 * -(-numel // 64))
    return int(saved)


def move(model: Any, compute: torch.dtype | None, device: torch.device) -> None:
    """Put a quantised model on its device, and what it holds as numbers into the compute dtype, if one is given."""
    _require_device(device)
    bnb = library()
    if any(parameter.device.type != device.type for parameter in model.parameters()):
        model.to(device)
    if compute is None:
        return
    for module in model.modules():
        for parameter in module.parameters(recurse=False):
            if not isinstance(parameter, bnb.nn.Params4bit | bnb.nn.Int8Params):
                parameter.data = parameter.data.to(compute)
        for name, buffer in module.named_buffers(recurse=False):
            if buffer.is_floating_point():
                setattr(module, name, buffer.to(compute))


def quantized_weights(
    model: nn.Module, table: Mapping[str, ParameterInfo], compute: torch.dtype
) -> dict[str, QuantizedWeight]:
    """Return the quantised ones among the weights that ``table`` describes, and make their layers keep their codes in place.

    On a CPU with AVX512-BF16 a Linear4bit repacks its codes at the first forward pass and rounds its scales to bfloat16:
    indices would move, gradients turn wrong. Raises ModelError where that has happened. A Linear8bitLt moves codes and scales
    out of its parameter at the first forward pass: they are moved now.
    """
    bnb = sys.modules.get("bitsandbytes")
    found: dict[str, QuantizedWeight] = {}
    if bnb is None:
        return found
    for name, info in table.items():
        layer: Any = model.get_submodule(info.layer)
        if not name.endswith(".weight") or not isinstance(layer, bnb.nn.Linear4bit | bnb.nn.Linear8bitLt):
            continue
        if isinstance(layer, bnb.nn.Linear4bit):
            layer.support_avx512bf16_for_cpu = False
            if getattr(layer.weight.quant_state, "packing_format_for_cpu", False):
                raise ModelError(
                    f"{name} was repacked for this CPU by a forward pass, its scales rounded to bfloat16",
                    where="model.id",
                    hint="prepare the model before its first forward pass",
                )
            layer.compute_dtype, layer.compute_type_is_set = compute, True
            found[name] = Nf4Weight(model, info, compute)
            _prove(found[name])
            continue
        if layer.weight.CB is not None:
            layer.init_8bit_state()
        device = layer.weight.device
        layer.state.CB, layer.state.SCB = layer.weight.data, layer.state.SCB.to(device)
        found[name] = Int8Weight(model, info, compute)
    return found


def _prove(weight: QuantizedWeight) -> None:
    """Raise ModelError where bitsandbytes multiplies by other numbers than the codes stand for.

    Up to 0.50 its AVX-512 code takes the scales of the wrong blocks where rows of a multiple of 16 are none of 64.
    """
    index = torch.arange(min(weight.info.numel, _PROVEN), device=weight.parameter.device)
    meant, used = weight.stored(index), weight.values().reshape(-1)[: len(index)].float()
    if not torch.allclose(meant, used, rtol=1 / 64, atol=0):
        raise ModelError(
            f"bitsandbytes' kernel for this processor multiplies {weight.info.name} by other numbers than its codes stand for"
            f" (rows of {weight.info.shape[1]} weights, blocks of {weight.group})",
            where=WHERE,
            hint="--set model.quantization='int8'",
        )


def _require_device(device: torch.device) -> None:
    if device.type not in ("cpu", "cuda"):
        raise ModelError(
            f"'{device.type}': quantised models run on cpu and cuda",
            where="model.device",
            hint="--set model.device='cpu'",
        )
