"""Score a model: one shared pass per seed feeds every metric, tensor by tensor, and only what is kept remains."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
from torch import Tensor

from esa.data import TokenWindows
from esa.model import LoadedModel, ParameterInfo
from esa.model.input_tap import InputStatistics, InputTap
from esa.progress import Progress
from esa.registry import load
from esa.score.curvature import hutchinson
from esa.score.exchange import add_inputs
from esa.score.gradients import SAMPLED, UPDATES, GradientSums
from esa.score.labels import Labels
from esa.score.metric import Metric, Needs, Statistics
from esa.score.peaks import PeakWatch
from esa.score.probe_groups import probe_groups
from esa.score.ranks import ALONE, Ranks
from esa.score.rounds import look_again
from esa.score.scored import ScoredTensor
from esa.score.strategy import Strategy
from esa.score.streaming import Window, backward_pass, forward_pass, in_waves

Emit = Callable[[Metric, ParameterInfo, Tensor, ScoredTensor, Tensor | None], None]
_PEAKS = "super_activation"


@dataclass(frozen=True)
class Effort:
    """How much each estimate takes: the keys of ``[score]`` by their names."""

    probes: int = 16
    probe_groups: int = 1
    resamples: int = 1
    rounds: int = 1
    peak_ratio: float = 20.0


@dataclass
class Engine:
    """Drive the passes that a set of metrics needs over one seed's windows.

    ``emit(metric, info, weight, scores, usage)`` is called once per metric and parameter, as soon as the parameter's
    statistics are complete; nothing is kept afterwards. ``strategy`` says how much is held at once, and changes no score.
    ``super_weights`` tells what each round of super_activation found, ``candidates`` what stood out (``rounds.Found``).
    ``ranks``: several processes share the windows; each emits the tensors that ``owners`` gives it, the first those that
    nobody has, and all of super_activation, whose peaks are found among all windows at once.
    """

    loaded: LoadedModel
    chosen: Mapping[str, ParameterInfo]
    metrics: Sequence[Metric]
    emit: Emit
    progress: Progress
    effort: Effort = field(default_factory=Effort)
    strategy: Strategy = field(default_factory=Strategy)
    ranks: Ranks = ALONE
    owners: Mapping[str, int] = field(default_factory=dict)
    super_weights: list[dict[str, Any]] = field(init=False, default_factory=list)
    candidates: list[dict[str, Any]] = field(init=False, default_factory=list)
    _without: dict[str, list[str]] = field(init=False, default_factory=dict)  # metric -> tensors it has no meaning for

    def run(self, windows: TokenWindows | None, seed: int) -> None:
        """Score every chosen parameter by every metric; metrics that read no data need no windows."""
        needs = {metric.needs for metric in self.metrics}
        if needs <= {Needs.WEIGHTS}:
            for name in self.chosen:
                if self._owner(name) == self.ranks.rank:
                    self._score(name, Statistics(), self.metrics)
            return
        assert windows is not None
        cut = [Window(n, torch.tensor([ids], device=self.loaded.device)) for n, ids in enumerate(windows.ids)]
        self._curvature(cut, seed, [m for m in self.metrics if m.needs == Needs.DOUBLE_BACKWARD])
        self._shared_pass(cut, seed, [m for m in self.metrics if m.needs != Needs.DOUBLE_BACKWARD])
        for metric in self.metrics:
            without = self.ranks.union(self._without.get(metric.name, []), list(self.chosen))
            if names := [name for name in self.chosen if name in without]:
                text = f"{metric.name} scores {len(self.chosen) - len(names)} of {len(self.chosen)} tensors"
                if metric.partial:
                    self.progress.note(text)
                else:
                    self.progress.warn(f"{text}; it has no meaning for the others, such as {names[0]}")

    def _curvature(self, windows: Sequence[Window], seed: int, metrics: Sequence[Metric]) -> None:
        """Probe group by group; a group's scores are handed out before the next one's accumulators are made."""
        if not metrics:
            return
        groups = probe_groups(self.chosen, self.effort.probe_groups)
        for number, group in enumerate(groups):
            label = "curvature" if len(groups) == 1 else f"curvature {number + 1}/{len(groups)}"
            found = hutchinson(
                self.loaded, windows, group, self.effort.probes, seed, self.progress, label, self.ranks, self.owners
            )
            for name in [name for name in group if name in found]:
                curvature = found.pop(name)
                statistics = Statistics(
                    gradients={"mean_gradient": curvature.gradient},
                    hessian_diagonal=curvature.diagonal,
                    hessian_stderr=curvature.stderr,
                )
                self._score(name, statistics, metrics)

    def _shared_pass(self, windows: Sequence[Window], seed: int, metrics: Sequence[Metric]) -> None:
        """Feed the metrics of activations and gradients from one pass over this process's share of the windows.

        Peaks have one of their own where that goes in waves, or where it does not see all windows.
        """
        strategy, ranks = self.strategy, self.ranks
        mine = ranks.share(windows)
        streamed = [metric for metric in metrics if metric.name != _PEAKS]
        peaks = [metric for metric in metrics if metric.name == _PEAKS]
        watch = PeakWatch(self.loaded, self.chosen, self.effort.peak_ratio) if peaks and ranks.first else None
        if self.loaded.disk is not None:
            self.loaded.disk.leave()  # what stays in memory throughout is not of a block
        parameters = self.loaded.parameters()
        reads_inputs = any(metric.needs == Needs.FORWARD for metric in streamed)
        tap = InputTap({name: parameters[name] for name in self.chosen}) if reads_inputs else None
        if tap is not None:
            tap.num_tokens = sum(window.ids.numel() for window in windows)
        wanted = [name for metric in streamed for name in metric.gradients]
        resamples = self.effort.resamples if SAMPLED in wanted else 0
        labels = Labels(any(name in UPDATES for name in wanted), resamples, seed)
        sums = GradientSums(wanted, [window.ids.numel() - 1 for window in windows], labels, strategy.zeros)

        @cache
        def add_up_inputs() -> None:
            if tap is not None:  # it saw all it will see when the first parameter is done
                add_inputs(ranks, tap, self.loaded.device)

        def on_done(names: Sequence[str]) -> None:
            add_up_inputs()
            for name in names:
                owner, shape = self._owner(name), self.chosen[name].shape
                gradients = sums.take(name, shape, self.loaded.device, ranks, owner) if wanted else {}
                if owner == ranks.rank:
                    statistics = self._inputs(name, tap)
                    statistics.gradients = gradients
                    self._score(name, statistics, streamed)

        def on_gradient(name: str, window: int, draw: int, gradient: Tensor, rows: Tensor | None) -> None:
            sums.add(name, window, draw, gradient, rows, self.chosen[name].shape)

        with self.loaded.disk.telling(tap.look_at) if tap is not None and self.loaded.disk else nullcontext():
            waits = bool(wanted) and (strategy.keep_graphs or strategy.waves > 1)
            apart = watch is not None and (waits or ranks.size > 1)
            if apart:
                forward_pass(self.loaded, windows, None, self.progress, watch)
                watched = None
            else:
                watched = watch
            if wanted:
                backward_pass(
                    self.loaded, mine, self.chosen, tap, on_gradient, on_done, self.progress, labels,
                    watched, waves=strategy.waves, keep_graphs=strategy.keep_graphs,
                    agree=lambda reached: ranks.union(reached, list(self.chosen)),
                )  # fmt: skip
            else:
                if tap is not None or watched is not None:
                    for part in [mine] if watched is not None else in_waves(mine, strategy.waves):
                        forward_pass(self.loaded, part, tap, self.progress, watched)
                on_done(list(self.chosen))
        if watch is not None:
            found = look_again(self.loaded, self.chosen, windows, peaks[0], watch, self.effort.rounds, self.progress)
            self.super_weights, self.candidates = found.super_weights, found.candidates
            for name in self.chosen:
                self._score(name, Statistics(peaks=found.peaks.get(name, [])), peaks)

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

    def _owner(self, name: str) -> int:
        return self.owners.get(name, 0)

    def _score(self, name: str, statistics: Statistics, metrics: Sequence[Metric]) -> None:
        weight = self.loaded.weights[name].values()
        for metric in metrics:
            if not metric.applies(statistics):
                self._without.setdefault(metric.name, []).append(name)
                continue
            tensor = ScoredTensor(metric, self.chosen[name], weight, statistics)
            self.emit(metric, self.chosen[name], weight, tensor, statistics.usage)


def load_metrics(names: Sequence[str], reduction: str = "window") -> list[Metric]:
    """Return the registered metrics in the order of ``names``, each under ``reduction`` where it knows it."""
    metrics: list[Metric] = [load("metric", name) for name in names]
    return [metric.reductions.get(reduction, metric) for metric in metrics]


def _along(use: InputStatistics, values: Tensor, shape: Sequence[int], device: torch.device) -> Tensor:
    """Return per-input values, float32, ready to broadcast over a tensor of ``shape``."""
    return use.along(values.float(), shape).to(device)


def _add(values: Sequence[Tensor]) -> Tensor:
    total = values[0]
    for value in values[1:]:
        total = total + value
    return total
