"""Predict what a score step holds at its peak, term by term."""

from collections.abc import Mapping

from esa.artifact.space import size_text
from esa.errors import SpecError
from esa.model.anatomy import ParameterInfo, eligible
from esa.model.footprint import BASE_BYTES, Footprint
from esa.score.engine import Effort, load_metrics
from esa.score.gradients import SAMPLED
from esa.score.metric import Needs
from esa.score.peaks import require_projections
from esa.score.probe_groups import largest_group, max_groups, probe_groups
from esa.spec import Spec

_ROW_BYTES = 100  # of one kept row in memory
_FLOAT = 4
_ARRAYS = 14  # of the largest tensor while it is reduced: statistics, scores, bins, sorts, counted on a real run


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
            sizes = {groups: _curvature_peak(spec, model, groups) for groups in range(1, most + 1)}
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


def predicted_peak(spec: Spec, model: Footprint, effort: Effort) -> tuple[str, int]:
    """Return the stage that holds the most beside the loaded model, and its bytes with the model's and the program's."""
    terms = memory_terms(spec, model, effort.probe_groups)
    rows = terms.pop("rows")
    shared = BASE_BYTES + model.weight_bytes + rows // len(spec.score.seeds) + terms.pop("boundaries", 0)
    stage = max(terms, key=lambda name: terms[name])
    return stage, shared + terms[stage]


def _curvature_peak(spec: Spec, model: Footprint, groups: int) -> int:
    terms = memory_terms(spec, model, groups)
    return BASE_BYTES + model.weight_bytes + terms["rows"] // len(spec.score.seeds) + terms["curvature"]


def passes(spec: Spec, effort: Effort) -> list[str]:
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
        backward = "forward and backward passes" if draws == 1 else f"forward passes with {draws} backward passes each"
        per_seed.append(f"{texts} forward passes, then {texts} {backward} block by block")
    elif Needs.FORWARD in needs:
        per_seed.append(f"{texts} forward passes")
    if "super_activation" in spec.score.metrics and effort.rounds > 1:
        per_seed.append(f"at most {effort.rounds - 1} times {texts} further forward passes")
    steps += [f"per seed ({len(spec.score.seeds)}): {step}, of {spec.calibration.length} tokens" for step in per_seed]
    return steps


def memory_terms(spec: Spec, model: Footprint, probe_groups: int) -> dict[str, int]:
    """Return the bytes of every stage beyond the base and the weights; they do not occur together.

    head: logits in three float32 copies, gradients and accumulators of what lies outside the blocks; block: gradients,
    accumulators and activations of the largest block; reduction: the arrays of the largest tensor; curvature: the
    accumulators, probes and products of the largest probe group, and one window's graph with eager attention.
    ``boundaries`` (states between the blocks, all windows) and ``rows`` (what is kept) are added to each.
    """
    metrics = load_metrics(spec.score.metrics, spec.score.reduction)
    needs = {metric.needs for metric in metrics}
    chosen = eligible(model.table, spec.score.include, spec.score.exclude)
    sums = {name for metric in metrics if metric.needs == Needs.BACKWARD for name in metric.gradients}
    # With two draws or more: their mean, its variance, and a window's sum and sum of squares.
    num_sums = len(sums) + (3 if SAMPLED in sums and spec.score.resamples > 1 else 0)
    length, count = spec.calibration.length, spec.calibration.windows
    outside, block = _sizes(chosen)
    rows = sum(min(4 * spec.score.keep, info.numel) for info in chosen.values()) * _ROW_BYTES
    terms = {"rows": rows * len(metrics) * len(spec.score.seeds)}
    reduction = max(info.numel for info in chosen.values()) * _FLOAT * _ARRAYS
    terms["reduction"] = reduction
    if Needs.BACKWARD in needs:
        terms["boundaries"] = count * length * model.hidden_size * (model.num_blocks + 2) * model.item_bytes
        logits = length * model.vocabulary * (model.item_bytes + 3 * _FLOAT)
        terms["head"] = logits + outside * (model.item_bytes + num_sums * _FLOAT) + reduction
        terms["block"] = block * (model.item_bytes + num_sums * _FLOAT) + _activations(model, length) + reduction
    elif Needs.FORWARD in needs:
        terms["boundaries"] = count * length * model.hidden_size * 2 * model.item_bytes
        terms["logits"] = length * model.vocabulary * model.item_bytes
    if Needs.DOUBLE_BACKWARD in needs:
        weights = largest_group(chosen, probe_groups)
        graph = model.num_blocks * _activations(model, length) * 3 + length * model.vocabulary * _FLOAT * 6
        terms["curvature"] = weights * (8 * _FLOAT + 3 * model.item_bytes) + graph  # counted on real runs
    return terms


def _sizes(chosen: Mapping[str, ParameterInfo]) -> tuple[int, int]:
    """Return the weights to score outside the blocks, and of the largest block."""
    blocks: dict[int | None, int] = {}
    for info in chosen.values():
        blocks[info.block] = blocks.get(info.block, 0) + info.numel
    return blocks.pop(None, 0), max(blocks.values(), default=0)


def _activations(model: Footprint, length: int) -> int:
    """Return the bytes of one block's saved activations for one window, attention weights in float32 included."""
    linear = length * (8 * model.hidden_size + 4 * model.intermediate_size) * model.item_bytes
    return linear + 2 * model.num_heads * length**2 * _FLOAT
