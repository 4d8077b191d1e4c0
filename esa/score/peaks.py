"""Watch the output projections of the MLPs: where each peaks, what it read there, and what the residual stream became."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from esa.errors import ModelError
from esa.model import LoadedModel, ParameterInfo
from esa.model.input_tap import operands
from esa.score.metric import Peak

PROJECTIONS = ("mlp.down", "expert.down")


@dataclass
class _Seen:
    """What one projection showed so far: each channel's maximum of abs(y), and the largest of them all."""

    channels: Tensor | None = None  # (d_out,), float32
    value: float = 0.0  # y at the peak
    at: tuple[int, int, int] = (0, 0, 0)  # window, token, channel
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

    def finish_block(self, block: int, outputs: Sequence[Tensor]) -> None:
        """Turn what was seen into peaks; ``outputs`` are the residual stream behind the block, one per window."""
        if not self._seen:
            return
        median = float(torch.cat([output.detach().reshape(-1) for output in outputs]).float().abs().median())
        for name, seen in self._seen.items():
            assert seen.channels is not None
            window, token, channel = seen.at
            middle = float(seen.channels.median())
            ratio = float(seen.channels.max()) / middle if middle > 0 else None
            self.found[name] = Peak(
                inputs=self._inputs(name, seen),
                axes=_axes(self.chosen[name]),
                row=channel,
                token=token,
                value=seen.value,
                hidden=float(outputs[window][0, token, channel]),
                median=median,
                ratio=ratio,
                candidate=median > 0 and ratio is not None and ratio >= self.threshold,
            )
        self._seen = {}

    def _projections(self) -> dict[str, ParameterInfo]:
        return {name: info for name, info in self.chosen.items() if info.component in PROJECTIONS}

    def _hook(self, name: str) -> Callable[..., None]:
        seen, count = self._seen[name], iter(range(1 << 62))

        def note(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> None:
            window = next(count)
            flat = output.detach().reshape(-1, output.shape[-1]).abs()  # (tokens, d_out)
            channels = flat.amax(0).float()
            if seen.channels is None or float(channels.max()) > float(seen.channels.max()):
                place = int(flat.argmax())
                token, channel = divmod(place, flat.shape[1])
                seen.at = window, token, channel
                seen.value = float(output.detach().reshape(-1, output.shape[-1])[token, channel])
                given = [*args, *kwargs.values()]
                seen.inputs = tuple(value.detach().reshape(-1, value.shape[-1])[token : token + 1] for value in given)
            seen.channels = channels if seen.channels is None else torch.maximum(seen.channels, channels)

        return note

    def _inputs(self, name: str, seen: _Seen) -> dict[int | None, Tensor]:
        """Return what the projection read at its peak: x, or per expert x times its routing weight."""
        info = self.chosen[name]
        if info.expert_axis is None:
            return {None: seen.inputs[0][0].float()}
        hidden, index, weights = seen.inputs
        module = self.loaded.model.get_submodule(info.layer)
        with torch.no_grad(), _ExpertInputs(self.loaded.parameters()[name]) as tap:
            total = module(hidden, index, weights)[0]
        found: dict[int | None, Tensor] = {}
        explained = torch.zeros((), dtype=torch.float64)
        for expert, (inputs, output) in tap.seen.items():
            share = float(weights[0][index[0] == expert].sum())
            found[expert] = inputs.float() * share
            explained += float(output[seen.at[2]]) * share
        peak = float(total[seen.at[2]])
        if not found or abs(float(explained) - peak) > 0.02 * abs(peak):
            raise ModelError(
                f"the experts of {info.layer} do not add up to its output: {float(explained):.4g} against {peak:.4g}",
                where="score.metrics",
                hint="leave super_activation out, or these experts with score.exclude",
            )
        return found


class _ExpertInputs(TorchFunctionMode):
    """Note input and output of every product with a slice of the fused experts, one token at a time."""

    def __init__(self, parameter: nn.Parameter) -> None:
        super().__init__()
        self.parameter = parameter
        self.seen: dict[int, tuple[Tensor, Tensor]] = {}  # expert -> (d_in,), (d_out,)

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        found = operands(func, args, kwargs or {})
        if found is not None:
            inputs, weight, _ = found
            same = weight.untyped_storage().data_ptr() == self.parameter.untyped_storage().data_ptr()
            if same and weight.numel() * self.parameter.shape[0] == self.parameter.numel():
                expert = (weight.storage_offset() - self.parameter.storage_offset()) // self.parameter.stride(0)
                self.seen[expert] = inputs.reshape(-1, inputs.shape[-1])[0], result.reshape(-1, result.shape[-1])[0]
        return result


def _axes(info: ParameterInfo) -> tuple[int, int]:
    assert info.output_axis is not None
    assert info.input_axis is not None
    return info.output_axis, info.input_axis
