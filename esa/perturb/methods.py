"""What a perturbation does to stored numbers: pure functions from old values to new ones.

Every method has the signature ``method(values, options, place) -> new values``: ``values`` are the touched weights of one
tensor, in the dtype their bits live in, in address order; ``place`` says where they sit and lends the named random stream.
Those that need to know more than the weight are in ``esa.perturb.informed``.
"""

from collections.abc import Callable, Mapping
from fractions import Fraction
from math import ceil
from typing import Any

import numpy as np
import torch
from torch import Tensor

from esa.errors import EsaError
from esa.model import ParameterInfo
from esa.model.precision import wide, wide_mean, wide_norm
from esa.perturb.place import Place
from esa.spec import generator

INTEGERS = {torch.float32: torch.int32, torch.bfloat16: torch.int16, torch.float16: torch.int16}
MANTISSA_BITS = {torch.float32: 23, torch.bfloat16: 7, torch.float16: 10}


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


def quantize(values: Tensor, options: Mapping[str, Any], place: Place) -> Tensor:
    """Round weights to few bits: ``w <- s q``, ``q = round(w / s)``, ``s = max |w| of its output / (2^(bits - 1) - 1)``.

    Symmetric: q from -(2^(bits - 1) - 1) to 2^(bits - 1) - 1, zero among them; halves go to the even q. The scale is that of the
    whole output, touched or not, as it is intact: of a fused expert's tensor per expert and output, of an embedding per
    channel over all tokens; a vector is one output. An output of zeros stays. In float64, then rounded to storage.
    Cost: one look at the tensor. Source: symmetric per-channel weights of Krishnamoorthi, Quantizing deep convolutional networks
    for efficient inference, 2018, after Jacob et al., Quantization and Training of Neural Networks for Efficient
    Integer-Arithmetic-Only Inference, CVPR 2018, who let the zero point move.
    """
    info, weight = place.info, place.values()
    apart = () if info.input_axis is None else (info.output_axis,)
    axes = [axis for axis in range(weight.ndim) if axis not in (*apart, info.expert_axis)]
    # As the norm of infinite order: no copy of abs(w) as large as the tensor.
    largest = torch.linalg.vector_norm(weight, ord=torch.inf, dim=axes, keepdim=True).expand(info.shape)
    exact = wide(values)
    step = wide(largest[torch.unravel_index(place.index.to(weight.device), info.shape)]) / (
        2 ** (options["bits"] - 1) - 1
    )
    return torch.where(step == 0, exact, (exact / step).round() * step).to(values)


def clamp(values: Tensor, options: Mapping[str, Any], place: Place) -> Tensor:
    """Cut weights at a quantile of their tensor: ``w <- sign(w) min(|w|, c)``, c the ``quantile`` of |w| over the tensor.

    c is one of the tensor's own |w|: the smallest that at least the share ``quantile`` of them do not exceed (the inverse of the
    empirical distribution), the touched ones among them. Exact, by partial sorting on the CPU: one copy of the tensor.
    Weights within c keep their bits.
    Source: weights held within a range, as against faults in Fuengfusin and Tamukoh, Enhancing Neural Network Robustness
    Against Fault Injection Through Non-linear Weight Transformations, 2024, there smoothly and before training.
    """
    size = place.values().abs().float().cpu().numpy().reshape(-1)
    rank = max(1, ceil(Fraction(str(options["quantile"])) * len(size)))  # the decimal that was written, not its double
    size.partition(rank - 1)
    limit = wide(values).new_tensor(float(size[rank - 1]))
    exact = wide(values)
    return torch.where(exact.abs() > limit, exact.sign() * limit, exact).to(values)


def gauss_noise(values: Tensor, options: Mapping[str, Any], place: Place) -> Tensor:
    """Add noise: ``w <- w + sigma r e``, e standard normal drawn in address order; r = |w|, the tensor's std, or 1.

    Computed in float64, then rounded to storage. The draws depend on the targets and the repeat alone, so that doses share
    them.
    Source: additive weight noise as of analog hardware, Joshi et al., Accurate deep neural network inference using
    computational phase-change memory, Nature Communications 2020.
    """
    return _add_noise(values, torch.from_numpy(place.draw.standard_normal(len(values))), options, place)


def correlated(values: Tensor, options: Mapping[str, Any], place: Place) -> Tensor:
    """Add noise that weights share: ``w <- w + sigma r e``, one standard normal e per row, column, layer or component.

    r as in ``gauss_noise``. Row and column are of the stored tensor, of each expert apart; a vector is one row. A layer is the
    module that owns the tensor, so that its bias moves along; a component goes through all blocks. e depends on the seed, the
    repeat and what shares it, not on the targets: doses share their draws, and so do cases of other weights of the same row.
    In float64, then rounded to storage.
    Source: correlated variation within and among the arrays of a crossbar, as in Truong et al., Comparative Study on
    Statistical-Variation Tolerance Between Complementary Crossbar and Twin Crossbar of Binary Nano-scale Memristors for
    Pattern Recognition, Nanoscale Research Letters 2015.
    """
    info, shared_by = place.info, options["shared_by"]
    assert place.given.stream is not None, "a case names its seed and repeat"
    if shared_by in ("layer", "component"):
        of = {"layer": info.layer, "component": info.component}[shared_by]
        number, count = torch.zeros_like(place.index), 1
    else:
        of, width = info.name, info.shape[-1]
        height = info.numel // width if info.expert_axis is None else info.numel // width // info.shape[0]
        row = place.index // width
        column = row // height * width + place.index % width
        number, count = (row, info.numel // width) if shared_by == "row" else (column, info.numel // height)
    drawn = generator(place.given.stream[0], "correlated", place.given.stream[1], shared_by, of).standard_normal(count)
    return _add_noise(values, torch.from_numpy(drawn)[number.cpu()], options, place)


def _add_noise(values: Tensor, noise: Tensor, options: Mapping[str, Any], place: Place) -> Tensor:
    """Return ``w + sigma r e``, in float64, then rounded to storage."""
    exact = wide(values)
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
    return exact.add(noise.to(exact.device) * relative, alpha=options["sigma"]).to(values)


def swap(values: Tensor, options: Mapping[str, Any], place: Place) -> Tensor:
    """Exchange weights with others of their tensor: ``w_i <-> w_j``, j drawn among the untouched ones, each once.

    Both change: twice as many weights as there are targets (``exchange``). Where fewer are untouched than touched, as of a whole
    tensor, the touched change places among themselves, in a uniformly random order: a few may stay where they are.
    The tensor keeps its numbers, bit for bit where they are floating-point; quantised ones become the nearest codes of their
    new row or block. A weight that is large does its harm at its partner's place, too: ``zero`` on the same targets tells its
    absence from its presence elsewhere. Raises EsaError for a tensor of one weight.
    Source: the shuffle within a layer, which keeps the distribution and breaks the place, of Frankle et al., Pruning Neural
    Networks at Initialization: Why Are We Missing the Mark?, ICLR 2021, there of pruning masks and initial values.
    """
    assert place.exchange is not None
    return values[place.exchange]


def exchange(index: Tensor, info: ParameterInfo, draw: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Return what ``swap`` touches for targets ``(n,)``, ascending, and which of these each takes its number from."""
    mine = index.cpu().numpy()
    number, others = len(mine), info.numel - len(mine)
    require_partner(info, "perturb")
    if others < number:
        return index, torch.from_numpy(draw.permutation(number)).to(index.device)
    ranks = draw.choice(others, number, replace=False)  # among the untouched, ascending
    partners = ranks + np.searchsorted(mine - np.arange(number), ranks, side="right")
    touched, partner = np.concatenate([mine, partners]), np.concatenate([partners, mine])
    order = touched.argsort()
    takes = np.searchsorted(touched[order], partner[order])
    return torch.from_numpy(touched[order]).to(index.device), torch.from_numpy(takes).to(index.device)


def require_partner(info: ParameterInfo, where: str) -> None:
    """Raise EsaError for a tensor of one weight."""
    if info.numel == 1:
        raise EsaError(f"{info.name} has one weight, and none to swap it with", where=where)


# methods that also touch others than the targets -> what they touch, and which of it each takes its number from
REACH: dict[str, Callable[[Tensor, ParameterInfo, np.random.Generator], tuple[Tensor, Tensor]]] = {"swap": exchange}


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
