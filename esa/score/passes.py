"""Run the passes of a score step, one per seed, and leave each one's kept rows on disk."""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from esa.artifact import Step
from esa.data import TokenWindows
from esa.errors import EsaError
from esa.model import LoadedModel, ParameterInfo
from esa.progress import Recording
from esa.score.collect import Collector
from esa.score.engine import Effort, Engine
from esa.score.ensemble import NAME, MemberMaps, left_out
from esa.score.exchange import gather_rows
from esa.score.metric import Metric, Statistics
from esa.score.parts import DenseMaps, Parts
from esa.score.ranks import Ranks
from esa.score.reduce import Indices, reduce_scores
from esa.score.scored import ScoredTensor
from esa.score.strategy import Strategy


@dataclass
class Passes:
    """What the passes of one step share; ``large`` keeps the largest weights of each tensor, the same in every pass."""

    step: Step
    loaded: LoadedModel
    chosen: Mapping[str, ParameterInfo]
    windows: Mapping[int, TokenWindows]
    effort: Effort
    strategy: Strategy
    parts: Parts
    progress: Recording
    ranks: Ranks
    large: dict[str, Indices] = field(init=False, default_factory=dict)

    @property
    def dense(self) -> tuple[str, ...]:
        """Return the metrics whose every score goes to a file: all of them, or those that an ensemble reads."""
        score = self.step.spec.score
        return (*score.metrics, NAME) if score.dense else score.ensemble.metrics

    def score(self, seed: int | None, metrics: Sequence[Metric]) -> dict[str, Any]:
        """Score by one seed (None: what needs no data), leave the parts, and return what is to be said of it.

        Raises EsaError for scores that are no numbers; where no pass is finished, the step is then as if never begun.
        """
        known = len(self.progress.warnings)
        collectors = self._collectors(seed, metrics)
        first = self.ranks.first
        try:
            with self._maps(seed, metrics) as maps:

                def emit(
                    metric: Metric, info: ParameterInfo, _: Tensor, scores: ScoredTensor, __: Tensor | None
                ) -> None:
                    self._keep(seed, info, scores, collectors[metric.name], maps)

                # One process writes the dense maps: it scores every tensor.
                owners = {} if self.dense else self.ranks.owners(self.chosen)
                engine = Engine(
                    self.loaded,
                    self.chosen,
                    metrics,
                    emit,
                    self.progress,
                    self.effort,
                    self.strategy,
                    self.ranks,
                    owners,
                )
                engine.run(None if seed is None else self.windows[seed], seed or 0)
            gather_rows(self.ranks, collectors)
        except EsaError:
            if first:
                with suppress(OSError):  # finished passes lie in it
                    self.parts.folder.rmdir()
                self.step.abandon(unless=self.parts.folder)
            raise
        said: dict[str, Any] = {
            "warnings": self.progress.warnings[known:],
            "super_weights": engine.super_weights,
            "candidates": engine.candidates,
        }
        if first:
            self.parts.write(seed, collectors, **said)
        return said

    def combine(self, seed: int | None, members: Mapping[str, Path]) -> dict[str, Any]:
        """Score by the ensemble of what the dense maps ``members`` hold, leave its parts, and return what is to be said of it.

        Raises EsaError where no tensor is scored by all of them.
        """
        known = len(self.progress.warnings)
        with MemberMaps(members) as found:
            ranked = found.ranked(self.chosen)
            metric = ranked.metric(self.step.spec.score.ensemble)
            if (text := left_out(ranked, self.chosen)) is not None:
                self.progress.warn(text)
            collectors = self._collectors(seed, [metric])
            self.progress.start(f"{NAME}, seed {seed}", len(ranked.names))
            with self._maps(seed, [metric]) as maps:
                for name in ranked.names:
                    info, weight = self.chosen[name], self.loaded.weights[name].values()
                    scores = ScoredTensor(metric, info, weight, Statistics(members=found.of(name)))
                    self._keep(seed, info, scores, collectors[NAME], maps)
                    self.progress.advance()
            self.progress.finish()
        said: dict[str, Any] = {"warnings": self.progress.warnings[known:], "num_weights": ranked.number}
        self.parts.write(seed, collectors, of=NAME, **said)
        return said

    def _collectors(self, seed: int | None, metrics: Sequence[Metric]) -> dict[str, Collector]:
        order = {name: i for i, name in enumerate(self.chosen)}
        return {metric.name: Collector(self.step.id, metric.name, seed, order) for metric in metrics}

    def _maps(self, seed: int | None, metrics: Sequence[Metric]) -> AbstractContextManager[DenseMaps | None]:
        wanted = [metric for metric in metrics if metric.name in self.dense]
        if not wanted or not self.ranks.first:
            return nullcontext()
        return DenseMaps(self.parts, self.step, wanted, seed, self.chosen)

    def _keep(
        self, seed: int | None, info: ParameterInfo, scores: ScoredTensor, collector: Collector, maps: DenseMaps | None
    ) -> None:
        """Reduce one tensor's scores, and write all of them where a map is kept."""
        reduced = reduce_scores(scores, self.step.spec.score.keep, seed or 0, self.large.get(info.name))
        if "large" in reduced.strata:
            self.large[info.name] = reduced.strata["large"]
        collector.add(info, reduced)
        if maps is not None and collector.metric in self.dense:
            maps.write(collector.metric, info.name, scores)
