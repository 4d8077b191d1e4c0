"""Watch the output projections of the MLPs: where each peaks, what it read there, and what the residual stream became."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from esa.errors import ModelError, SpecError
from esa.model import LoadedModel, ParameterInfo
from esa.model.addresses import ravel
from esa.model.input_tap import operands
from esa.model.precision import wide
from esa.score.metric import Peak

PROJECTIONS = ("mlp.down", "expert.down")
_POINTS = 16  # amounts of each kind at which a response is measured


@dataclass
class _Seen:
    """What one projection showed so far: each channel's maximum of abs(y), and the largest of them all."""

    channels: Tensor | None = None  # (d_out,), float32
    value: float = 0.0  # y at the peak
    at: tuple[int, int, int] = (0, 0, 0)  # window, token, channel
    rows: int = 0  # of the output at the peak's window: its tokens
    inputs: tuple[Any, ...] = ()  # of the projection's module at the peak's token


@dataclass
class PeakWatch:
    """Find, block by block, the peak of every output projection among ``chosen``; ``found`` holds them by parameter."""

    loaded: LoadedModel
    chosen: Mapping[str, ParameterInfo]
    threshold: float
    found: dict[str, Peak] = field(default_factory=dict)
    _seen: dict[str, _Seen] = field(default_factory=dict)

    @contextmanager
    def watching(self, block: int) -> Iterator[None]:
        """Hook the block's output projections while it runs its windows, in their order."""
        self._seen = {name: _Seen() for name, info in self._projections().items() if info.block == block}
        with ExitStack() as hooks:
            for name in self._seen:
                module = self.loaded.model.get_submodule(self.chosen[name].layer)
                hooks.callback(module.register_forward_hook(self._hook(name), with_kwargs=True).remove)
            yield

    def finish_block(self, block: int, outputs: Sequence[Tensor], again: Callable[[int], Tensor]) -> None:
        """Turn what was seen into peaks; ``outputs`` are the residual stream behind the block, one per window."""
        if not self._seen:
            return
        median = float(torch.cat([output.detach().reshape(-1) for output in outputs]).float().abs().median())
        for name, seen in self._seen.items():
            assert seen.channels is not None
            window, token, channel = seen.at
            if seen.rows != outputs[window].shape[1] or not seen.inputs:
                raise self._untold(name)
            hidden, middle, highest = (
                float(outputs[window][0, token, channel]), float(seen.channels.median()), float(seen.channels.max())
            )  # fmt: skip
            if not all(map(math.isfinite, (hidden, middle, highest, median))):
                raise ModelError(
                    f"the output of {name} or the hidden state behind block {block} is NaN or infinite on this text",
                    where="score.metrics",
                    hint="the model itself may give NaN, or its dtype overflow: try dtype = 'float32'",
                )
            ratio = highest / middle if middle > 0 else None
            peak = Peak(
                inputs=self._inputs(name, seen),
                axes=_axes(self.chosen[name]),
                row=channel,
                window=window,
                token=token,
                value=seen.value,
                hidden=hidden,
                median=median,
                ratio=ratio,
                # A projection that writes one channel alone has no median to stand above.
                candidate=median > 0 and highest > 0 and (ratio is None or ratio >= self.threshold),
            )
            self.found[name] = replace(peak, response=self._response(name, peak, again))
        self._seen = {}

    def _response(self, name: str, peak: Peak, again: Callable[[int], Tensor]) -> tuple[Tensor, Tensor] | None:
        """Measure what the residual stream becomes as the projection's output loses something, or None where it loses just that.

        The strongest weight of the peak's output is zeroed: if the residual stream falls by what it contributed, the
        projection writes into it unchanged. Else that weight is given values at which it loses as much as each of the
        strongest weights would take away, and points between. Its own value comes back.
        """
        weight = self.loaded.weights[name]
        parts = contributions(weight.values(), peak)
        expert, column = max(
            ((expert, int(values.abs().argmax())) for expert, values in parts.items()),
            key=lambda place: float(parts[place[0]][place[1]].abs()),
        )
        most = float(parts[expert][column])
        place = _place(peak, expert, column)
        values = weight.values()
        value = float(values[place])
        if most == 0:
            return None
        index = torch.tensor([ravel(place, weight.info.shape)])
        saved = weight.held(index)

        def hidden_at(number: float) -> tuple[float, float]:
            """Return what the projection loses at another value of the weight, and the residual stream then."""
            weight.write(index, values.new_tensor([number]))
            rounded = float(weight.values()[place])  # as the dtype rounds it, or its codes
            return most * (1 - rounded / value), float(again(peak.window)[0, peak.token, peak.row])

        with torch.no_grad():
            try:
                _, without = hidden_at(0.0)
                rounding = 8 * torch.finfo(values.dtype).eps * abs(peak.hidden)
                if abs(peak.hidden - most - without) <= 0.01 * abs(most) + rounding:
                    return None
                every = torch.cat([values.cpu() for values in parts.values()])
                strong = every[every.abs().argsort(descending=True)[:_POINTS]].tolist()
                low, high = min(0.0, float(every.min())), max(0.0, float(every.max()))
                lost = [*strong, *np.linspace(low, high, _POINTS).tolist()]
                found = sorted({hidden_at(value * (1 - one / most)) for one in lost} | {(0.0, peak.hidden)})
            finally:
                weight.restore(index, saved)
        lost_then, hidden_then = torch.tensor(found, dtype=torch.float64).T.contiguous()
        return lost_then, hidden_then

    def _projections(self) -> dict[str, ParameterInfo]:
        return {
            name: info
            for name, info in self.chosen.items()
            if info.component in PROJECTIONS and info.input_axis is not None  # the experts' biases read nothing
        }

    def _hook(self, name: str) -> Callable[..., None]:
        seen, count = self._seen[name], iter(range(1 << 62))

        def note(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> None:
            window = next(count)
            flat = output.detach().reshape(-1, output.shape[-1]).abs()  # (tokens, d_out)
            channels = flat.amax(0).float()
            if seen.channels is None or float(channels.max()) > float(seen.channels.max()):
                place = int(flat.argmax())
                token, channel = divmod(place, flat.shape[1])
                seen.at, seen.rows = (window, token, channel), len(flat)
                seen.value = float(output.detach().reshape(-1, output.shape[-1])[token, channel])
                given = [*args, *kwargs.values()]
                rows = [value.detach().reshape(-1, value.shape[-1]) for value in given]
                seen.inputs = tuple(value[token : token + 1] for value in rows if len(value) == len(flat))
            seen.channels = channels if seen.channels is None else torch.maximum(seen.channels, channels)

        return note

    def _inputs(self, name: str, seen: _Seen) -> dict[int | None, Tensor]:
        """Return what the projection read at its peak: x, or per expert x times its routing weight."""
        info = self.chosen[name]
        if info.expert_axis is None:
            return {None: seen.inputs[0][0].float()}
        if len(seen.inputs) != 3 or seen.inputs[1].shape != seen.inputs[2].shape:
            raise self._untold(name)
        hidden, index, weights = seen.inputs
        module = self.loaded.model.get_submodule(info.layer)
        with torch.no_grad(), _ExpertInputs(self.loaded.weights[name].parameter) as tap:
            module(hidden, index, weights)
        shares = {expert: float(weights[0][index[0] == expert].sum()) for expert in tap.seen}
        return {expert: inputs.float() * shares[expert] for expert, inputs in tap.seen.items()}

    def _untold(self, name: str) -> ModelError:
        module = type(self.loaded.model.get_submodule(self.chosen[name].layer)).__name__
        return ModelError(
            f"{module} does not tell which tokens its experts see: super_activation has no value for {name}",
            where="score.metrics",
            hint="leave super_activation out, or these experts with score.exclude",
        )


class _ExpertInputs(TorchFunctionMode):
    """Note the input of every product with a slice of the fused experts, of one token."""

    def __init__(self, parameter: nn.Parameter) -> None:
        super().__init__()
        self.parameter = parameter
        self.seen: dict[int, Tensor] = {}  # expert -> (d_in,)

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        found = operands(func, args, kwargs or {})
        if found is not None:
            inputs, weight, _ = found
            same = weight.untyped_storage().data_ptr() == self.parameter.untyped_storage().data_ptr()
            if same and weight.numel() * self.parameter.shape[0] == self.parameter.numel():
                expert = (weight.storage_offset() - self.parameter.storage_offset()) // self.parameter.stride(0)
                self.seen[expert] = inputs.reshape(-1, inputs.shape[-1])[0].clone()
        return func(*args, **(kwargs or {}))


def contributions(weight: Tensor, peak: Peak) -> dict[int | None, Tensor]:
    """Return what each weight of the peak's output contributes there, per expert, ``w_j x_j``, float64."""
    found = {}
    for expert, inputs in peak.inputs.items():
        matrix, axis = (weight, peak.axes[0]) if expert is None else (weight[expert], peak.axes[0] - 1)
        found[expert] = wide(matrix.select(axis, peak.row)) * wide(inputs)
    return found


def _place(peak: Peak, expert: int | None, column: int) -> tuple[int, ...]:
    """Return the coordinates of a weight of the peak's output in the stored tensor."""
    place = [0] * (2 if expert is None else 3)
    if expert is not None:
        place[0] = expert
    place[peak.axes[0]], place[peak.axes[1]] = peak.row, column
    return tuple(place)


def require_projections(metrics: Sequence[str], chosen: Mapping[str, ParameterInfo]) -> None:
    """Raise SpecError if super_activation is asked for and no output projection of an MLP is among ``chosen``."""
    if "super_activation" in metrics and not any(info.component in PROJECTIONS for info in chosen.values()):
        raise SpecError(
            [
                f"score.metrics: super_activation scores {' and '.join(PROJECTIONS)}; none of them is among the weights to"
                " score"
            ]
        )


def _axes(info: ParameterInfo) -> tuple[int, int]:
    assert info.output_axis is not None
    assert info.input_axis is not None
    return info.output_axis, info.input_axis
