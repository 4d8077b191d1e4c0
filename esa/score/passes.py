"""Run the passes of a score step, one per seed, and leave each one's kept rows on disk."""

from collections.abc import Mapping, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from esa.artifact import Step
from esa.data import TokenWindows
from esa.errors import EsaError
from esa.model import LoadedModel, ParameterInfo
from esa.progress import Recording
from esa.score.collect import Collector
from esa.score.engine import Effort, Engine
from esa.score.exchange import gather_rows
from esa.score.metric import Metric
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

    def score(self, seed: int | None, metrics: Sequence[Metric]) -> dict[str, Any]:
        """Score by one seed (None: what needs no data), leave the parts, and return what is to be said of it.

        Raises EsaError for scores that are no numbers; where no pass is finished, the step is then as if never begun.
        """
        known = len(self.progress.warnings)
        order = {name: i for i, name in enumerate(self.chosen)}
        collectors = {metric.name: Collector(self.step.id, metric.name, seed, order) for metric in metrics}
        score, first = self.step.spec.score, self.ranks.first
        try:
            dense = (
                DenseMaps(self.parts, self.step, metrics, seed, self.chosen) if score.dense and first else nullcontext()
            )
            with dense as maps:

                def emit(
                    metric: Metric, info: ParameterInfo, _: Tensor, scores: ScoredTensor, __: Tensor | None
                ) -> None:
                    reduced = reduce_scores(scores, score.keep, seed or 0, self.large.get(info.name))
                    if "large" in reduced.strata:
                        self.large[info.name] = reduced.strata["large"]
                    collectors[metric.name].add(info, reduced)
                    if maps is not None:
                        maps.write(metric.name, info.name, scores)

                # One process writes the dense maps: it scores every tensor.
                owners = {} if score.dense else self.ranks.owners(self.chosen)
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
        said = {"warnings": self.progress.warnings[known:], "super_weights": engine.super_weights}
        if first:
            self.parts.write(seed, collectors, **said)
        return said
