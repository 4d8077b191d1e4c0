"""Weights that bitsandbytes holds as codes and scales, read and written as numbers: int8 and NF4."""

from abc import abstractmethod
from collections.abc import Iterator
from typing import Any, ClassVar
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx, once_differentiable
from torch.utils.hooks import RemovableHandle

from esa.errors import EsaError
from esa.model.anatomy import ParameterInfo
from esa.model.input_tap import announce
from esa.model.precision import wide
from esa.model.weights import Weight, flat_pieces

_hooks: WeakKeyDictionary[nn.Module, RemovableHandle] = (
    WeakKeyDictionary()
)  # one per layer, however often it is prepared


class QuantizedWeight(Weight):
    """The weight of a linear map, held as codes: each stands for a level times the scale of its group.

    ``dtype``, of the numbers that ``stored`` tells: float32, level times scale. ``code_bits``: of one code. ``group``: how many
    weights in a row, row-major, share a scale. A number that is written becomes the nearest code of its group; scales stay,
    so that a number beyond them becomes the outermost code. ``held`` gives codes.

    Codes have no gradient. The loss is differentiated by a leaf that takes no memory: while it requires a gradient, the layer
    hands on its output unchanged, and on the way back g^T x, from the output's gradient and the layer's input, in the compute
    dtype. NF4 multiplies x by the dequantised weight: that is its gradient. int8 rounds x first, to 8 bits per token, all
    features apart of which some token of the call has an entry of at least 6, so that tokens and windows of a batch meet in the
    rounding. It passes g on as if it had not rounded: the gradient is that of the same map on x itself.
    """

    kind: ClassVar[str]
    code_bits: ClassVar[int]
    signed: ClassVar[bool]  # whether a code is a number of two's complement

    def __init__(self, model: nn.Module, info: ParameterInfo, compute: torch.dtype) -> None:
        super().__init__(model, info, torch.float32)
        self.compute = compute
        self.layer: Any = self._module
        device = self.parameter.device
        self._leaf = torch.zeros((), dtype=compute, device=device).expand(info.shape).detach()
        if (old := _hooks.pop(self._module, None)) is not None:
            old.remove()
        _hooks[self._module] = self._module.register_forward_hook(self._after)

    @abstractmethod
    def codes(self, index: Tensor) -> Tensor:
        """Return the codes at row-major indices ``(n,)``, int64, from 0 (NF4) or around 0 (int8)."""

    @abstractmethod
    def put(self, index: Tensor, codes: Tensor) -> None:
        """Replace the codes at distinct row-major indices ``(n,)``; the others keep their bits."""

    @abstractmethod
    def decode(self, index: Tensor, codes: Tensor) -> Tensor:
        """Return the numbers that codes stand for at these places, float32."""

    @abstractmethod
    def encode(self, index: Tensor, values: Tensor) -> Tensor:
        """Return the codes nearest to some numbers at these places. Where the scale is zero, the codes that are there.

        Raises EsaError for NaN and infinite numbers: no code is nearest to them.
        """

    @abstractmethod
    def adjacent(self, index: Tensor) -> Tensor:
        """Return the next codes away from zero, and those towards zero for the outermost ones."""

    @property
    @abstractmethod
    def group(self) -> int:
        """Return how many weights, row-major, share a scale."""

    @property
    @abstractmethod
    def scales(self) -> Tensor:
        """Return the scale of every group as it is stored, float32. Raises EsaError where scales are quantised themselves."""

    def source(self) -> Tensor:
        """Return the leaf, of the shape ``info.shape``, by which the loss is differentiated."""
        return self._leaf

    @property
    def requires_grad(self) -> bool:
        """Tell whether the loss is differentiated by it."""
        return self._leaf.requires_grad

    @requires_grad.setter
    def requires_grad(self, wanted: bool) -> None:
        """Let the loss be differentiated by it, or not."""
        self._leaf.requires_grad_(wanted)

    def stored(self, index: Tensor) -> Tensor:
        """Return the numbers that the codes at row-major indices ``(n,)`` stand for, float32."""
        return self.decode(index, self.codes(index))

    def held(self, index: Tensor) -> Tensor:
        """Return the codes at row-major indices ``(n,)``, a copy: what ``restore`` takes."""
        return self.codes(index)

    def write(self, index: Tensor, values: Tensor) -> None:
        """Replace the weights at distinct row-major indices ``(n,)`` by the codes nearest to ``values``."""
        self.put(index, self.encode(index, values))

    def restore(self, index: Tensor, held: Tensor) -> None:
        """Bring back what ``held`` returned, code for code."""
        self.put(index, held)

    def groups_of(self, index: Tensor) -> Tensor:
        """Return the number of the scale that each weight at row-major indices ``(n,)`` shares."""
        return index // self.group

    def _after(self, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor | None:
        announce(args[0], self.parameter)
        if not (self._leaf.requires_grad and torch.is_grad_enabled()):
            return None
        attached: Tensor = _WithWeight.apply(output, args[0], self._leaf)  # type: ignore[no-untyped-call]
        return attached

    def _finite(self, values: Tensor) -> Tensor:
        if not bool(torch.isfinite(values).all()):
            found = values[~torch.isfinite(values)][0]
            raise EsaError(f"{self.info.name}: no {self.kind} code is nearest to {float(found)}", where="perturb")
        return wide(values)


class _WithWeight(torch.autograd.Function):
    """Hand an output on, and its gradient back with that of the weight that made it: g^T x."""

    @staticmethod
    def forward(ctx: FunctionCtx, output: Tensor, inputs: Tensor, leaf: Tensor) -> Tensor:
        ctx.save_for_backward(inputs)
        ctx.dtype = leaf.dtype  # type: ignore[attr-defined]
        return output.view_as(output)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, Tensor]:
        (inputs,) = ctx.saved_tensors
        flat = gradient.reshape(-1, gradient.shape[-1]).to(ctx.dtype)  # (tokens, d_out)
        return gradient, None, flat.T @ inputs.reshape(-1, inputs.shape[-1]).to(ctx.dtype)


class Scales:
    """The scales of a quantised weight as numbers of their own, each addressed by a weight that shares it.

    ``stored``, ``held``, ``write`` and ``restore`` are a Weight's; writing one changes all weights of its group.
    """

    dtype = torch.float32

    def __init__(self, weight: QuantizedWeight) -> None:
        self.weight = weight

    def first(self, index: Tensor) -> Tensor:
        """Return, of ascending row-major indices, the first of every group."""
        groups = self.weight.groups_of(index)
        return index[torch.cat([groups.new_ones(1, dtype=torch.bool), groups[1:] != groups[:-1]])]

    def stored(self, index: Tensor) -> Tensor:
        """Return the scales of the weights at row-major indices ``(n,)``, float32, a copy."""
        scales = self.weight.scales
        return scales[self.weight.groups_of(index.to(scales.device))]

    held = stored

    def write(self, index: Tensor, values: Tensor) -> None:
        """Replace the scales of the weights at row-major indices, one of each group, bit for bit."""
        scales = self.weight.scales
        scales[self.weight.groups_of(index.to(scales.device))] = values.to(scales)

    restore = write


class Int8Weight(QuantizedWeight):
    """A weight of bitsandbytes' LLM.int8: codes -127 to 127 by row, level code / 127, scale the row's largest abs(w).

    Code -128, which quantising never gives, exists: a flipped bit can make it.
    """

    kind = "int8"
    code_bits = 8
    signed = True

    @property
    def group(self) -> int:
        """Return the length of a row."""
        return self.info.shape[1]

    @property
    def scales(self) -> Tensor:
        """Return the scale of every row, float32."""
        found: Tensor = self.layer.state.SCB
        return found

    def values(self) -> Tensor:
        """Return what the codes stand for, float32: the layer rounds none of it."""
        return _int8_numbers(self._flat().view(self.info.shape), self.scales[:, None])

    def pieces(self) -> Iterator[Tensor]:
        """Yield the codes, then the scales."""
        yield from flat_pieces(self._flat())
        yield from flat_pieces(self.scales)

    def codes(self, index: Tensor) -> Tensor:
        """Return the codes at row-major indices ``(n,)``, int64, from -128 to 127."""
        return self._flat()[index.to(self._flat().device)].long()

    def put(self, index: Tensor, codes: Tensor) -> None:
        """Replace the codes at distinct row-major indices ``(n,)``; the others keep their bits."""
        flat = self._flat()
        flat[index.to(flat.device)] = codes.to(flat)

    def decode(self, index: Tensor, codes: Tensor) -> Tensor:
        """Return the numbers that codes stand for at these places, float32."""
        return _int8_numbers(codes, self.scales[self.groups_of(index.to(self.scales.device))])

    def encode(self, index: Tensor, values: Tensor) -> Tensor:
        """Return the codes nearest to some numbers, ties to even; -127 and 127 are the outermost."""
        there, scale = self.codes(index), wide(self.scales[self.groups_of(index.to(self.scales.device))])
        nearest = (self._finite(values).to(scale.device) / scale * 127).round().clamp(-127, 127)
        return torch.where(scale == 0, there, nearest.nan_to_num().long())

    def adjacent(self, index: Tensor) -> Tensor:
        """Return the next codes away from zero; that of -127 and 127 is the next towards zero."""
        codes = self.codes(index)
        return torch.where(codes.abs() >= 127, codes - codes.sign(), codes + torch.where(codes < 0, -1, 1))

    def _flat(self) -> Tensor:
        found: Tensor = self.layer.state.CB.view(-1)
        return found


class Nf4Weight(QuantizedWeight):
    """A weight of bitsandbytes' NF4: two codes in a byte, 16 levels from -1 to 1, scale the block's largest abs(w).

    A block is 64 weights, row-major. With double quantisation the scales are 8-bit codes themselves: they are read, not flipped.
    """

    kind = "nf4"
    code_bits = 4
    signed = False

    @property
    def group(self) -> int:
        """Return the size of a block."""
        return int(self._state.blocksize)

    @property
    def scales(self) -> Tensor:
        """Return the scale of every block, float32. Raises EsaError with double quantisation, where they are 8-bit codes."""
        if self._state.nested:
            raise EsaError(
                f"the scales of {self.info.name} are quantised themselves, with others of its tensor",
                where="perturb.of",
            )
        found: Tensor = self._state.absmax
        return found

    def values(self) -> Tensor:
        """Return what the codes stand for, rounded to the compute dtype, as the layer multiplies by it."""
        found: Tensor = torch.ops.bitsandbytes.dequantize_4bit.default(
            self._packed(), self._absmax(), self.group, "nf4", self._state.shape, self.compute
        )
        return found.view(self.info.shape)

    def pieces(self) -> Iterator[Tensor]:
        """Yield the bytes of codes, then the scales; of double quantisation their codes and what those stand for."""
        yield from flat_pieces(self._packed())
        yield from flat_pieces(self._state.absmax)
        if self._state.nested:
            yield from flat_pieces(self._state.state2.absmax)
            yield from flat_pieces(self._state.offset)

    def codes(self, index: Tensor) -> Tensor:
        """Return the codes at row-major indices ``(n,)``, int64, from 0 (level -1) over 7 (level 0) to 15 (level 1)."""
        packed, index = self._packed(), index.to(self._packed().device)
        return (packed[index // 2] >> _shift(index) & 15).long()

    def put(self, index: Tensor, codes: Tensor) -> None:
        """Replace the codes at distinct row-major indices ``(n,)``; the other half of a byte keeps its bits."""
        packed, index = self._packed(), index.to(self._packed().device)
        codes = codes.to(packed)
        for half in (0, 1):  # the two weights of a byte one after the other
            mine = index % 2 == half
            place, shift = index[mine] // 2, _shift(index[mine])
            packed[place] = packed[place] & ~(15 << shift) | codes[mine] << shift

    def decode(self, index: Tensor, codes: Tensor) -> Tensor:
        """Return the numbers that codes stand for at these places, float32."""
        scales = self._absmax()
        found: Tensor = self._levels[codes.to(scales.device)] * scales[self.groups_of(index.to(scales.device))]
        return found

    def encode(self, index: Tensor, values: Tensor) -> Tensor:
        """Return the codes nearest to some numbers; 0 and 15 are the outermost."""
        scale = wide(self._absmax()[self.groups_of(index.to(self._absmax().device))])
        levels = wide(self._levels)
        between = (levels[1:] + levels[:-1]) / 2
        nearest = torch.bucketize(self._finite(values).to(scale.device) / scale, between)
        return torch.where(scale == 0, self.codes(index), nearest)

    def adjacent(self, index: Tensor) -> Tensor:
        """Return the next codes away from zero; that of 0 and 15 is the next towards zero."""
        codes = self.codes(index)
        away = torch.where(codes < 7, codes - 1, codes + 1)
        return torch.where(codes == 0, 1, torch.where(codes == 15, 14, away))

    @property
    def _state(self) -> Any:
        return self.layer.weight.quant_state

    @property
    def _levels(self) -> Tensor:
        found: Tensor = self._state.code
        return found

    def _packed(self) -> Tensor:
        found: Tensor = self.layer.weight.detach().view(-1).view(torch.uint8)
        return found

    def _absmax(self) -> Tensor:
        """Return the scale of every block, float32, dequantised where it is a code."""
        state = self._state
        if not state.nested:
            return self.scales
        found: Tensor = torch.ops.bitsandbytes.dequantize_blockwise.default(
            state.absmax, state.state2.absmax, state.state2.code, state.state2.blocksize, torch.float32
        )
        whole: Tensor = found + state.offset
        return whole


def _int8_numbers(codes: Tensor, scales: Tensor) -> Tensor:
    return codes.float() * scales * (1 / 127)


def _shift(index: Tensor) -> Tensor:
    """Return by how many bits a code is shifted in its byte: the first of two has the upper half."""
    return (4 * (1 - index % 2)).to(torch.uint8)
