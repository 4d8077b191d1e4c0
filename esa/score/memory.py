"""Predict what a score step holds at its peak, term by term, and choose how it goes about its passes."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import ceil
from pathlib import Path

from esa.artifact.space import size_text
from esa.errors import SpecError
from esa.model.anatomy import ParameterInfo, eligible
from esa.model.footprint import BASE_BYTES, Footprint
from esa.score.engine import Effort, load_metrics
from esa.score.ensemble import table_bytes
from esa.score.gradients import SAMPLED
from esa.score.metric import Needs
from esa.score.peaks import require_projections
from esa.score.probe_groups import max_groups, probe_groups
from esa.score.strategy import Strategy
from esa.score.streaming import in_waves
from esa.spec import Spec

_ROW_BYTES = 60  # of one kept row in memory
_FLOAT = 4


def effort_of(spec: Spec, model: Footprint) -> Effort:
    """Return how much each estimate takes, with as few probe groups as ``model.memory_budget`` allows where they are auto.

    Raises SpecError where not even a group per block fits, for more groups than there can be, and for super_activation without
    a weight that it scores.
    """
    score, number = spec.score, spec.score.probe_groups
    curved = any(metric.needs == Needs.DOUBLE_BACKWARD for metric in load_metrics(score.metrics))
    chosen = eligible(model.table, score.include, score.exclude)
    require_projections(score.metrics, chosen)
    if curved and number != "auto":
        probe_groups(chosen, number)
    if number == "auto":
        number = 1
        if curved and (budget := spec.model.memory_budget) is not None:
            most = max_groups(chosen)
            sizes = {groups: _Load(spec, model).curvature_peak(groups) for groups in range(1, most + 1)}
            fitting = [groups for groups, size in sizes.items() if size <= budget]
            if not fitting:
                raise SpecError(
                    [
                        f"model.memory_budget: {size_text(budget)}; curvature needs {size_text(min(sizes.values()))}"
                        f" even in {most} probe groups"
                    ],
                    hint="shorter calibration windows, fewer weights (score.include) or a larger budget",
                )
            number = fitting[0]
    return Effort(score.probes, number, score.resamples, score.rounds, score.peak_ratio)


def strategy_of(
    spec: Spec, model: Footprint, effort: Effort, room: int, folder: Path | None = None
) -> tuple[Strategy, dict[str, int]]:
    """Return how the passes go so that they fit into ``room`` bytes, the fastest way first, and the bytes of every stage.

    Graphs kept; forward twice with the states between the blocks of all windows; large accumulators mapped from files in
    ``folder``; waves of windows with all accumulators in files. Where nothing fits it is the last.
    """
    load = _Load(spec, model)
    for strategy in load.strategies(folder):
        stages = load.stages(effort.probe_groups, strategy)
        if max(stages.values()) <= room:
            break
    return strategy, stages


def passes(spec: Spec, effort: Effort, strategy: Strategy) -> list[str]:
    """Return what the step does, in words."""
    metrics = load_metrics(spec.score.metrics, spec.score.reduction)
    needs = {metric.needs for metric in metrics}
    wanted = {name for metric in metrics if metric.needs == Needs.BACKWARD for name in metric.gradients}
    texts = spec.calibration.windows
    steps = []
    if Needs.WEIGHTS in needs:
        steps.append("read the weights once")
    per_seed = []
    if Needs.DOUBLE_BACKWARD in needs:
        times = "" if effort.probe_groups == 1 else f", in each of {effort.probe_groups} probe groups"
        per_seed.append(f"{texts} forward and backward passes with a graph, each with {effort.probes} probes{times}")
    if Needs.BACKWARD in needs:
        draws = (effort.resamples if SAMPLED in wanted else 0) + bool(wanted - {SAMPLED})
        if strategy.keep_graphs:
            backward = "a backward pass" if draws == 1 else f"{draws} backward passes"
            per_seed.append(f"{texts} forward passes with {backward} each, a window's graph kept")
        else:
            backward = (
                "forward and backward passes" if draws == 1 else f"forward passes with {draws} backward passes each"
            )
            waves = "" if strategy.waves == 1 else f", in {strategy.waves} waves"
            per_seed.append(f"{texts} forward passes, then {texts} {backward} block by block{waves}")
        if strategy.in_files is not None:
            which = "all sums" if strategy.in_files <= 1 else "the sums of tensors outside the blocks"
            per_seed[-1] += f", {which} mapped from files"
    elif Needs.FORWARD in needs:
        per_seed.append(f"{texts} forward passes")
    if "super_activation" in spec.score.metrics and effort.rounds > 1:
        per_seed.append(f"at most {effort.rounds - 1} times {texts} further forward passes")
    steps += [f"per seed ({len(spec.score.seeds)}): {step}, of {spec.calibration.length} tokens" for step in per_seed]
    if combined := spec.score.ensemble.metrics:
        steps.append(
            f"per seed ({len(spec.score.seeds)}): {spec.score.ensemble.rule} of {', '.join(combined)}, from files"
        )
    return steps


@dataclass(frozen=True)
class _Load:
    """What a spec asks of a model, in bytes."""

    spec: Spec
    model: Footprint

    @property
    def chosen(self) -> dict[str, ParameterInfo]:
        """Return the parameters to score."""
        return eligible(self.model.table, self.spec.score.include, self.spec.score.exclude)

    @property
    def metrics(self) -> tuple[str, ...]:
        """Return the metrics by name."""
        return self.spec.score.metrics

    @property
    def needs(self) -> set[Needs]:
        """Return what the metrics need."""
        return {metric.needs for metric in load_metrics(self.spec.score.metrics)}

    @property
    def num_sums(self) -> int:
        """Return how many accumulators a parameter has; from two draws of labels on also a variance and a window's two."""
        metrics = load_metrics(self.spec.score.metrics, self.spec.score.reduction)
        sums = {name for metric in metrics if metric.needs == Needs.BACKWARD for name in metric.gradients}
        return len(sums) + (3 if SAMPLED in sums and self.spec.score.resamples > 1 else 0)

    @property
    def rows(self) -> int:
        """Return the bytes of what is kept of one seed's scores."""
        kept = sum(min(4 * self.spec.score.keep, info.numel) for info in self.chosen.values())
        return kept * _ROW_BYTES * (len(self.spec.score.metrics) + bool(self.spec.score.ensemble.metrics))

    def strategies(self, folder: Path | None) -> Iterator[Strategy]:
        """Yield the ways to go about the passes, the fastest first."""
        waves, windows = [], self.spec.calibration.windows
        for power in range(1, windows.bit_length() + 1):
            waves.append(len(in_waves(range(windows), min(1 << power, windows))))
        if Needs.BACKWARD not in self.needs:
            yield Strategy()
            yield from (
                Strategy(waves=number) for number in dict.fromkeys(waves) if "super_activation" not in self.metrics
            )
            return
        # A watch sees all windows pass a block before the next: with graphs kept it needs a forward pass of its own.
        if not self.model.on_disk and "super_activation" not in self.metrics:
            yield Strategy(keep_graphs=True)
        yield Strategy()
        block = max((info.numel for info in self.chosen.values() if info.block is not None), default=0)
        yield Strategy(in_files=block + 1, folder=folder)
        yield from (Strategy(waves=number, in_files=1, folder=folder) for number in dict.fromkeys([1, *waves]))

    def stages(self, groups: int, strategy: Strategy) -> dict[str, int]:
        """Return the bytes that the process has in memory at each stage's peak, the program's and the weights' included.

        Stages do not occur together; weights count where they are only mapped from their files, too. load: the files'
        numbers as they become the model's; weights: nothing but the weights and the rows that are kept; forward; peaks:
        the states that super_activation compares, of all windows; ensemble: the ranks of its members; head: a window's
        logits, gradient and accumulators of the largest tensor outside the blocks; block: activations, gradients and
        accumulators of the largest block; embedding: gradient and accumulators of the largest tensor outside, last of
        all; window: a whole window's graph, with every accumulator, before any row is kept; curvature: accumulators,
        probes and products of a probe group, and one window's graph above it.
        """
        spec, model = self.spec, self.model
        length, needs = spec.calibration.length, self.needs
        held = BASE_BYTES + model.weight_bytes
        terms = {"weights": self.rows}
        if Needs.FORWARD in needs and Needs.BACKWARD not in needs:
            wave = ceil(spec.calibration.windows / strategy.waves)
            terms["forward"] = self.rows + self._boundaries(wave, 2) + length * model.vocabulary * model.item_bytes
        if members := spec.score.ensemble.metrics:
            terms["ensemble"] = self.rows + table_bytes(len(members))
        if "super_activation" in self.metrics:
            terms["peaks"] = self._boundaries(spec.calibration.windows, 3) + self.rows
        if Needs.BACKWARD in needs:
            _, block = model.sizes(self.chosen)
            wave = self._boundaries(ceil(spec.calibration.windows / strategy.waves), model.num_blocks + 2)
            logits = length * model.vocabulary * (2 * model.item_bytes + 3 * _FLOAT)
            outer = {name: info for name, info in self.chosen.items() if info.block is None}
            name = max(outer, key=lambda name: outer[name].numel, default=None)
            gradient = 0 if name is None else outer[name].numel * model.item_bytes
            outer_sums = 0 if name is None else self._sums(strategy, {name: outer[name]})
            late = self._boundaries(spec.calibration.windows, 1) if outer else 0  # rows of the embedding, for the end
            if strategy.keep_graphs:
                graph = model.num_blocks * _activations(model, length)
                terms["window"] = graph + logits + gradient + late + self._sums(strategy, self.chosen)
            else:
                terms["head"] = wave + late + logits + gradient + outer_sums
                inner = self._sums(strategy, self._largest_block())
                terms["block"] = (
                    wave + late + _activations(model, length) + block * model.item_bytes + inner + self.rows
                )
                terms["embedding"] = late + gradient + outer_sums + self.rows
        if Needs.DOUBLE_BACKWARD in needs:
            terms["curvature"] = self.curvature_peak(groups) - held
        stages = {"load": BASE_BYTES + max(model.load_bytes, model.weight_bytes)}
        return stages | {stage: held + size for stage, size in terms.items()}

    def curvature_peak(self, groups: int) -> int:
        """Return the bytes of the curvature stage with so many probe groups: a graph reaches down to a group's lowest block."""
        model, length = self.model, self.spec.calibration.length
        floats = 8 if self.spec.score.probes > 1 else 5  # with one probe there is no variance; counted on real runs
        sizes = []
        for group in probe_groups(self.chosen, groups):
            lowest = min(0 if info.block is None else info.block for info in group.values())
            graph = (model.num_blocks - lowest) * _activations(model, length) * 3
            weights = sum(info.numel for info in group.values())
            sizes.append(weights * (floats * _FLOAT + 3 * model.item_bytes) + graph)
        logits = length * model.vocabulary * _FLOAT * 6
        return BASE_BYTES + model.weight_bytes + self.rows + max(sizes) + logits

    def _boundaries(self, windows: int, states: int) -> int:
        return windows * self.spec.calibration.length * self.model.hidden_size * states * self.model.item_bytes

    def _sums(self, strategy: Strategy, infos: Mapping[str, ParameterInfo]) -> int:
        held = [info.numel for info in infos.values() if strategy.in_files is None or info.numel < strategy.in_files]
        return sum(held) * self.num_sums * _FLOAT

    def _largest_block(self) -> dict[str, ParameterInfo]:
        blocks: dict[int, dict[str, ParameterInfo]] = {}
        for name, info in self.chosen.items():
            if info.block is not None:
                blocks.setdefault(info.block, {})[name] = info
        return max(blocks.values(), key=lambda infos: sum(info.numel for info in infos.values()), default={})


def _activations(model: Footprint, length: int) -> int:
    """Return the bytes of one block's saved activations for one window, attention weights in float32 included."""
    linear = length * (8 * model.hidden_size + 4 * model.intermediate_size) * model.item_bytes
    return linear + 2 * model.num_heads * length**2 * _FLOAT
