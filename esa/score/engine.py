"""Score a model: one shared pass per seed feeds every metric, tensor by tensor, and only what is kept remains."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from esa.data import TokenWindows
from esa.model import LoadedModel, ParameterInfo
from esa.model.input_tap import InputStatistics, InputTap
from esa.model.precision import wide_device
from esa.progress import Progress
from esa.registry import load
from esa.score.curvature import hutchinson
from esa.score.gradients import GradientSums
from esa.score.metric import Metric, Needs, Scores, Statistics
from esa.score.streaming import backward_pass, forward_pass

Emit = Callable[[Metric, ParameterInfo, Tensor, Scores, Tensor | None], None]


@dataclass
class Engine:
    """Drive the passes that a set of metrics needs over one seed's windows.

    ``emit(metric, info, weight, scores, usage)`` is called once per metric and parameter, as soon as the parameter's
    statistics are complete; nothing is kept afterwards.
    """

    loaded: LoadedModel
    chosen: Mapping[str, ParameterInfo]
    metrics: Sequence[Metric]
    emit: Emit
    progress: Progress
    probes: int = 16
    _sums: GradientSums = field(init=False)

    def run(self, windows: TokenWindows | None, seed: int) -> None:
        """Score every chosen parameter by every metric; metrics that read no data need no windows."""
        needs = {metric.needs for metric in self.metrics}
        if needs <= {Needs.WEIGHTS}:
            for name in self.chosen:
                self._score(name, Statistics())
            return
        assert windows is not None
        batches = [torch.tensor([ids], device=self.loaded.device) for ids in windows.ids]
        curvature: dict[str, tuple[Tensor, Tensor | None]] = {}
        if Needs.DOUBLE_BACKWARD in needs:
            curvature = hutchinson(self.loaded, batches, self.chosen, self.probes, seed, self.progress)
        parameters = self.loaded.parameters()
        tap = InputTap({name: parameters[name] for name in self.chosen}) if Needs.FORWARD in needs else None
        wanted = [name for metric in self.metrics for name in metric.gradients]
        self._sums = GradientSums(wanted, [batch.numel() - 1 for batch in batches])

        def on_done(names: Sequence[str]) -> None:
            for name in names:
                statistics = self._inputs(name, tap)
                statistics.gradients = self._sums.take(name) if wanted else {}
                if name in curvature:
                    statistics.hessian_diagonal, statistics.hessian_stderr = curvature.pop(name)
                self._score(name, statistics)

        def on_gradient(name: str, window: int, gradient: Tensor, rows: Tensor | None) -> None:
            self._sums.add(name, window, gradient, rows, self.chosen[name].shape)

        if wanted:
            backward_pass(self.loaded, batches, self.chosen, tap, on_gradient, on_done, self.progress)
            return
        if tap is not None:
            forward_pass(self.loaded, batches, tap, self.progress)
        on_done(list(self.chosen))

    def _inputs(self, name: str, tap: InputTap | None) -> Statistics:
        """Return the activation statistics of a parameter: broadcast along each use's input axis, added over the uses."""
        statistics = Statistics()
        if tap is None or name not in tap.statistics:
            return statistics
        shape, device = self.chosen[name].shape, self.loaded.device
        mean_abs = [_along(use, use.sum_abs / tap.num_tokens, shape, device) for use in tap.statistics[name].values()]
        rms = [
            _along(use, (use.sum_square / tap.num_tokens).sqrt(), shape, device)
            for use in tap.statistics[name].values()
        ]
        statistics.mean_abs_input = _add(mean_abs)
        statistics.rms_input = _add(rms)
        statistics.usage = next(iter(tap.statistics[name].values())).rows / tap.num_tokens
        return statistics

    def _score(self, name: str, statistics: Statistics) -> None:
        weight = self.loaded.parameters()[name].detach()
        for metric in self.metrics:
            if metric.needs == Needs.FORWARD and statistics.mean_abs_input is None:
                self.progress.warn(f"{metric.name} has no meaning for {name}: no product of it with an input was seen")
                continue
            scores = metric.score(weight, statistics)
            device = wide_device(weight.device)
            self.emit(metric, self.chosen[name], weight.to(device), scores.to(device), statistics.usage)


def load_metrics(names: Sequence[str]) -> list[Metric]:
    """Return the registered metrics in the order of ``names``."""
    return [load("metric", name) for name in names]


def _along(use: InputStatistics, values: Tensor, shape: Sequence[int], device: torch.device) -> Tensor:
    """Return per-input values, ``(d_in,)`` or ``(experts, d_in)``, float32, ready to broadcast over a tensor of ``shape``."""
    view = [1] * len(shape)
    view[use.axis] = shape[use.axis]
    if values.ndim == 2:
        view[0] = shape[0]
    return values.float().view(view).to(device)


def _add(values: Sequence[Tensor]) -> Tensor:
    total = values[0]
    for value in values[1:]:
        total = total + value
    return total
