"""Predict what a score step holds at its peak, term by term."""

from collections.abc import Mapping

from esa.model.anatomy import ParameterInfo, eligible
from esa.model.footprint import Footprint
from esa.score.engine import load_metrics
from esa.score.metric import Needs
from esa.spec import Spec

_ROW_BYTES = 100  # of one kept row in memory
_FLOAT = 4
_ARRAYS = 14  # of the largest tensor while it is reduced: statistics, scores, bins, sorts, counted on a real run


def passes(spec: Spec) -> list[str]:
    """Return what the step does, in words."""
    needs = {metric.needs for metric in load_metrics(spec.score.metrics)}
    texts = spec.calibration.windows
    steps = []
    if Needs.WEIGHTS in needs:
        steps.append("read the weights once")
    per_seed = []
    if Needs.DOUBLE_BACKWARD in needs:
        per_seed.append(f"{texts} forward and backward passes with a graph, each with {spec.score.probes} probes")
    if Needs.BACKWARD in needs:
        per_seed.append(f"{texts} forward passes, then {texts} forward and backward passes block by block")
    elif Needs.FORWARD in needs:
        per_seed.append(f"{texts} forward passes")
    steps += [f"per seed ({len(spec.score.seeds)}): {step}, of {spec.calibration.length} tokens" for step in per_seed]
    return steps


def memory_terms(spec: Spec, model: Footprint) -> dict[str, int]:
    """Return the bytes of every stage beyond the base and the weights; they do not occur together.

    head: logits in three float32 copies, gradients and accumulators of what lies outside the blocks; block: gradients,
    accumulators and activations of the largest block; reduction: the arrays of the largest tensor; curvature: the
    accumulators, probes and products of every weight to score, and one window's graph with eager attention. ``boundaries``
    (states between the blocks, all windows) and ``rows`` (what is kept) are added to each.
    """
    metrics = load_metrics(spec.score.metrics)
    needs = {metric.needs for metric in metrics}
    chosen = eligible(model.table, spec.score.include, spec.score.exclude)
    num_sums = len({name for metric in metrics for name in metric.gradients})
    length, count = spec.calibration.length, spec.calibration.windows
    outside, block = _sizes(chosen)
    rows = sum(min(4 * spec.score.keep, info.numel) for info in chosen.values()) * _ROW_BYTES
    terms = {"rows": rows * len(metrics) * len(spec.score.seeds)}
    reduction = max(info.numel for info in chosen.values()) * _FLOAT * _ARRAYS
    terms["reduction"] = reduction
    if Needs.BACKWARD in needs:
        terms["boundaries"] = count * length * model.hidden_size * (model.num_blocks + 2) * model.item_bytes
        logits = length * model.vocabulary * (model.item_bytes + 3 * _FLOAT)
        sums = outside * (model.item_bytes + num_sums * _FLOAT)
        terms["head"] = logits + sums + reduction
        terms["block"] = block * (model.item_bytes + num_sums * _FLOAT) + _activations(model, length) + reduction
    elif Needs.FORWARD in needs:
        terms["logits"] = length * model.vocabulary * model.item_bytes
    if Needs.DOUBLE_BACKWARD in needs:
        weights = sum(info.numel for info in chosen.values())
        graph = model.num_blocks * _activations(model, length) * 3 + length * model.vocabulary * _FLOAT * 6
        terms["curvature"] = weights * (4 * _FLOAT + 3 * model.item_bytes) + graph
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
