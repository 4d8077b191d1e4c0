"""What a perturbation does to stored numbers: pure functions from old values to new ones.

Every method has the signature ``method(values, options, place) -> new values``: ``values`` are the touched weights of one
tensor, in the dtype their bits live in, in address order; ``place`` says where they sit and lends the named random stream.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from esa.errors import EsaError
from esa.model import ParameterInfo
from esa.model.precision import wide, wide_mean, wide_norm

INTEGERS = {torch.float32: torch.int32, torch.bfloat16: torch.int16, torch.float16: torch.int16}
MANTISSA_BITS = {torch.float32: 23, torch.bfloat16: 7, torch.float16: 10}


@dataclass
class Place:
    """Where the touched weights sit: the numbers of their tensor on demand, its description, their indices; the case's draws."""

    values: Callable[[], Tensor]
    info: ParameterInfo
    index: Tensor  # (touched,), row-major, ascending
    draw: np.random.Generator


def zero(values: Tensor, options: Mapping[str, Any], place: Place) -> Tensor:
    """Set weights to zero: ``w <- 0``.

    Source: the ablation of Yu et al., The Super Weight in Large Language Models, 2024.
    """
    return torch.zeros_like(values)


def zero_keep_peak(values: Tensor, options: Mapping[str, Any], place: Place) -> Tensor:
    """Set weights to zero, ``w <- 0``, and give their contribution ``w x_j`` back at the peak tokens alone.

    A hook (esa.perturb.hooks) gives it back: per window and touched output i at the token where abs(y_i) is largest, y the
    output of the map with the contributions; an embedding's x is the one-hot token. If the damage of ``zero`` vanishes, the
    massive activation at those tokens mediates it. An int8 map reads x rounded to 8 bits; what is given back is of x itself.
    Raises TargetError, when the cases are planned, for weights of fused experts and of anything but linear maps and embeddings.
    Source: the restored super activation of Yu et al., The Super Weight in Large Language Models, 2024.
    """
    return torch.zeros_like(values)


def mean(values: Tensor, options: Mapping[str, Any], place: Place) -> Tensor:
    """Set weights to the mean of their tensor, input or output: ``w <- mean``, in float64, then rounded to storage.

    ``over = "output"``: the mean of all weights that feed the same output; ``"input"``: of all that read the same input.
    Raises EsaError for a tensor without that axis. Source: mean ablation, as of activations in Wang et al.,
    Interpretability in the Wild, ICLR 2023, applied to weights.
    """
    over, info, weight = options["over"], place.info, place.values()
    if over == "tensor":
        return torch.full_like(values, float(wide_mean(weight)))
    axis = {"output": info.output_axis, "input": info.input_axis}[over]
    other = {"output": info.input_axis, "input": info.output_axis}[over]
    if axis is None or other is None:
        raise EsaError(f"{info.name} has no {over}s; its shape is {info.shape}", where="perturb.over")
    means = wide_mean(weight, other).expand(info.shape)
    picked: Tensor = means[torch.unravel_index(place.index, info.shape)]
    return picked.to(values)


def scale(values: Tensor, options: Mapping[str, Any], place: Place) -> Tensor:
    """Multiply weights: ``w <- factor w``, in float64, then rounded to storage.

    Source: the amplification of super weights in Yu et al., The Super Weight in Large Language Models, 2024.
    """
    return wide(values).mul(options["factor"]).to(values)


def sign_flip(values: Tensor, options: Mapping[str, Any], place: Place) -> Tensor:
    """Turn the sign: ``w <- -factor w``, in float64, then rounded to storage; exact for factor 1.

    Source: the sign bit among the faults of Li et al., Understanding Error Propagation in Deep Learning Neural Network
    Accelerators and Applications, SC 2017.
    """
    return wide(values).mul(-options["factor"]).to(values)


def gauss_noise(values: Tensor, options: Mapping[str, Any], place: Place) -> Tensor:
    """Add noise: ``w <- w + sigma r e``, e standard normal drawn in address order; r = |w|, the tensor's std, or 1.

    Computed in float64, then rounded to storage. The draws depend on the targets and the repeat alone, so that doses share
    them.
    Source: additive weight noise as of analog hardware, Joshi et al., Accurate deep neural network inference using
    computational phase-change memory, Nature Communications 2020.
    """
    exact = wide(values)
    noise = torch.from_numpy(place.draw.standard_normal(len(values))).to(exact.device)
    relative: Tensor | float
    if options["relative_to"] == "weight":
        relative = exact.abs()
    elif options["relative_to"] == "tensor_std":
        weight = place.values()
        center = float(wide_mean(weight))
        square = float(wide_norm(weight)) ** 2 / weight.numel()
        relative = max(0.0, square - center**2) ** 0.5
    else:
        relative = 1.0
    return exact.add(noise * relative, alpha=options["sigma"]).to(values)


def bit_flip(values: Tensor, options: Mapping[str, Any], place: Place) -> Tensor:
    """Flip real bits of the stored numbers: XOR with one mask per weight on the integer view; bit 0 is the least significant.

    ``prob``: each bit with that probability; ``bits``: that many distinct random ones; ``bit``: that position.
    Of quantised weights the codes' bits (``flip_codes``), or with ``of = "scale"`` those of the float32 scale that a row (int8)
    or block (nf4) shares. Raises EsaError for a dtype without an integer view here, or a bit that it does not have.
    Source: Rakin et al., Bit-Flip Attack, ICCV 2019; Reagen et al., Ares, DAC 2018.
    """
    width = bit_width(values.dtype, place.info.name)
    numbers = int_view(values) ^ flip_masks(len(values), width, options, place.draw).to(
        values.device, INTEGERS[values.dtype]
    )
    return numbers.view(values.dtype)


def flip_codes(
    codes: Tensor, width: int, signed: bool, options: Mapping[str, Any], draw: np.random.Generator
) -> Tensor:
    """Flip bits of integers of ``width`` bits, ``(count,)`` int64, as ``bit_flip`` does; ``signed``: two's complement."""
    flipped = codes ^ flip_masks(len(codes), width, options, draw).to(codes.device)
    return flipped if signed else flipped & ((1 << width) - 1)


def flip_masks(count: int, width: int, options: Mapping[str, Any], draw: np.random.Generator) -> Tensor:
    """Return one XOR mask per weight, ``(count,)`` int64 in two's complement of ``width`` bits."""
    if options.get("bit") is not None:
        chosen = np.zeros((count, width), dtype=bool)
        chosen[:, options["bit"]] = True
    elif options.get("bits") is not None:
        ranks = draw.random((count, width)).argsort(axis=1).argsort(axis=1)
        chosen = ranks < options["bits"]
    else:
        chosen = draw.random((count, width)) < options["prob"]
    masks = (chosen * (1 << np.arange(width, dtype=np.int64))).sum(axis=1)
    masks = np.where(masks >= 1 << (width - 1), masks - (1 << width), masks)
    return torch.from_numpy(masks)


def bit_width(dtype: torch.dtype, name: str) -> int:
    """Return the number of bits of a stored number. Raises EsaError where bits of that dtype cannot be flipped."""
    if dtype not in INTEGERS:
        raise EsaError(
            f"{name} is stored as {dtype}; bits of float32, bfloat16 and float16 can be flipped", where="perturb"
        )
    return dtype.itemsize * 8


def int_view(values: Tensor) -> Tensor:
    """Return the integers with the same bits."""
    return values.contiguous().view(INTEGERS[values.dtype])


def bit_field(bit: int, dtype: torch.dtype) -> str:
    """Return ``sign``, ``exponent`` or ``mantissa``: where a bit sits in a stored number."""
    if bit == dtype.itemsize * 8 - 1:
        return "sign"
    return "mantissa" if bit < MANTISSA_BITS[dtype] else "exponent"
