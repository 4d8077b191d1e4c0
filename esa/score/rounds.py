"""Find one super weight after the other: zero the one found and look again, until no block stands out."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from esa.model import LoadedModel, ParameterInfo
from esa.model.addresses import ravel
from esa.progress import Progress
from esa.score.metric import Metric, Peak, Scores, Statistics
from esa.score.peaks import PeakWatch
from esa.score.streaming import Window, forward_pass


@dataclass(frozen=True)
class _Zeroed:
    parameter: str
    place: tuple[int, ...]
    index: Tensor  # (1,), row-major
    held: Tensor  # (1,), what stood there


def look_again(
    loaded: LoadedModel,
    chosen: Mapping[str, ParameterInfo],
    windows: Sequence[Window],
    metric: Metric,
    watch: PeakWatch,
    rounds: int,
    progress: Progress,
) -> tuple[dict[str, list[Peak]], list[dict[str, Any]]]:
    """Return every projection's peaks, one per round, and what each round found.

    ``watch`` has seen the first round. A further one follows while a weight has a positive score and ``rounds`` are not
    done: that weight is zeroed, the windows run again. The model's own bits come back whatever happens.
    Warns where the rounds are used up while the last one still found a weight. Cost: a forward pass per further round.
    """
    peaks = {name: [peak] for name, peak in watch.found.items()}
    found: list[dict[str, Any]] = []
    zeroed: list[_Zeroed] = []
    try:
        while (best := _highest(loaded, chosen, metric, peaks, len(zeroed))) is not None:
            name, place, scores = best
            record = _record(name, place, scores, loaded.weights[name].values(), peaks[name][-1])
            found.append({"round": len(found) + 1, **record})
            if len(found) == rounds:
                if rounds > 1:
                    progress.warn(f"the last of {rounds} rounds still found a weight: there may be more (score.rounds)")
                break
            index = torch.tensor([ravel(place, chosen[name].shape)])
            held = loaded.weights[name].held(index)
            zeroed.append(_Zeroed(name, place, index, held))
            loaded.weights[name].write(index, torch.zeros_like(held))
            again = PeakWatch(loaded, chosen, watch.threshold)
            forward_pass(loaded, windows, None, progress, again)
            for other, peak in again.found.items():
                peaks[other].append(_without(other, peak, zeroed, chosen[other].expert_axis))
        if not found:
            highest = max((peak.ratio for peak in watch.found.values() if peak.ratio is not None), default=None)
            text = "none" if highest is None else f"{highest:.3g}"
            progress.warn(
                f"{metric.name}: no weight stands out: the largest peak_ratio is {text}, {watch.threshold:g} is needed"
                " (score.peak_ratio); every score is zero, and a top_k of it is no choice"
            )
    finally:
        for one in reversed(zeroed):
            loaded.weights[one.parameter].restore(one.index, one.held)
    return peaks, found


def _highest(
    loaded: LoadedModel,
    chosen: Mapping[str, ParameterInfo],
    metric: Metric,
    peaks: Mapping[str, list[Peak]],
    number: int,
) -> tuple[str, tuple[int, ...], Scores] | None:
    """Return parameter, place and scores of the highest positive score of round ``number``, the first where several tie."""
    best, highest = None, 0.0
    for name in chosen:
        if name not in peaks or not peaks[name][number].candidate:
            continue
        weight = loaded.weights[name].values()
        scores = metric.score(weight, Statistics(peaks=[peaks[name][number]]))
        index = scores.score.argmax()
        if float(scores.score.max()) > highest:
            highest = float(scores.score.max())
            best = name, tuple(int(i) for i in torch.unravel_index(index, weight.shape)), scores
    return best


def _record(name: str, place: tuple[int, ...], scores: Scores, weight: Tensor, peak: Peak) -> dict[str, Any]:
    """Return what a manifest says of the weight that a round found: the peak's place by window and token, and its size."""
    return {
        "address": f"{name}:{','.join(map(str, place))}",
        "weight": float(weight[place]),
        "score": float(scores.score[place]),
        "window": peak.window,
        "token": peak.token,
        "hidden": peak.hidden,
        "median": peak.median,
        "peak": peak.value,
        "peak_ratio": peak.ratio,
    }


def _without(name: str, peak: Peak, zeroed: Sequence[_Zeroed], expert_axis: int | None) -> Peak:
    """Return the peak without what the zeroed weights read: in this round they contribute nothing."""
    inputs = {expert: values.clone() for expert, values in peak.inputs.items()}
    output_axis, input_axis = peak.axes
    for one in zeroed:
        expert = None if expert_axis is None else one.place[expert_axis]
        if one.parameter == name and one.place[output_axis] == peak.row and expert in inputs:
            inputs[expert][one.place[input_axis]] = 0
    return replace(peak, inputs=inputs)
