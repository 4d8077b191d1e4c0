"""Find one super weight after the other: zero the one found and look again, until no block stands out."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from esa.model import LoadedModel, ParameterInfo
from esa.model.addresses import ravel
from esa.progress import Progress
from esa.score.metric import Metric, Peak, Statistics
from esa.score.peaks import PeakWatch
from esa.score.streaming import Window, forward_pass


@dataclass(frozen=True)
class _Zeroed:
    parameter: str
    place: tuple[int, ...]
    index: Tensor  # (1,), row-major
    held: Tensor  # (1,), what stood there


@dataclass(frozen=True)
class Found:
    """What the rounds of a search found.

    ``peaks``: every projection's, one per round. ``super_weights``: the weight that each round found. ``candidates``: of every
    block that stood out in any round the weight of the largest absolute growth in its peak's output, negative for one that
    erases, and the weights that the rounds found; each as it was when it first appeared.
    """

    peaks: dict[str, list[Peak]]
    super_weights: list[dict[str, Any]]
    candidates: list[dict[str, Any]]


def look_again(
    loaded: LoadedModel,
    chosen: Mapping[str, ParameterInfo],
    windows: Sequence[Window],
    metric: Metric,
    watch: PeakWatch,
    rounds: int,
    progress: Progress,
) -> Found:
    """Return every projection's peaks, one per round, what each round found, and what stood out.

    ``watch`` has seen the first round. A further one follows while a weight has a positive score and ``rounds`` are not
    done: that weight is zeroed, the windows run again. The model's own bits come back whatever happens.
    Warns where the rounds are used up while the last one still found a weight. Cost: a forward pass per further round.
    """
    peaks = {name: [peak] for name, peak in watch.found.items()}
    found: list[dict[str, Any]] = []
    candidates: dict[str, dict[str, Any]] = {}
    zeroed: list[_Zeroed] = []
    try:
        while True:
            highest, strongest = _look(loaded, chosen, metric, peaks, len(zeroed))
            for one in [*strongest, *([highest] if highest else [])]:
                record = one.record(loaded.weights[one.name].values(), peaks[one.name][-1])
                candidates.setdefault(record["address"], {"round": len(zeroed) + 1, "growth": one.growth, **record})
            if highest is None:
                break
            name, place = highest.name, highest.place
            record = highest.record(loaded.weights[name].values(), peaks[name][-1])
            found.append({"round": len(found) + 1, "score": highest.growth, **record})
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
            ratio = max((peak.ratio for peak in watch.found.values() if peak.ratio is not None), default=None)
            text = "none" if ratio is None else f"{ratio:.3g}"
            progress.warn(
                f"{metric.name}: no weight stands out: the largest peak_ratio is {text}, {watch.threshold:g} is needed"
                " (score.peak_ratio); every score is zero, and a top_k of it is no choice"
            )
    finally:
        for gone in reversed(zeroed):
            loaded.weights[gone.parameter].restore(gone.index, gone.held)
    return Found(peaks, found, list(candidates.values()))


@dataclass(frozen=True)
class _Seen:
    """One weight of a block that stands out, with its signed growth."""

    name: str
    place: tuple[int, ...]
    growth: float

    def record(self, weight: Tensor, peak: Peak) -> dict[str, Any]:
        """Return what a manifest says of the weight: its value, and its block's peak by window and token, and by size."""
        return {
            "address": f"{self.name}:{','.join(map(str, self.place))}",
            "weight": float(weight[self.place]),
            "window": peak.window,
            "token": peak.token,
            "hidden": peak.hidden,
            "median": peak.median,
            "peak": peak.value,
            "peak_ratio": peak.ratio,
        }


def _look(
    loaded: LoadedModel,
    chosen: Mapping[str, ParameterInfo],
    metric: Metric,
    peaks: Mapping[str, list[Peak]],
    number: int,
) -> tuple[_Seen | None, list[_Seen]]:
    """Return the weight of the highest positive score of round ``number``, and of each candidate block the strongest.

    The strongest is of the largest absolute growth; the first where several tie.
    """
    best: _Seen | None = None
    strongest = []
    for name in chosen:
        if name not in peaks or not peaks[name][number].candidate:
            continue
        weight = loaded.weights[name].values()
        signed = metric.score(weight, Statistics(peaks=[peaks[name][number]])).signed
        assert signed is not None
        writer, own = (_seen(name, signed, values) for values in (signed, signed.abs()))
        if own.growth != 0:
            strongest.append(own)
        if writer.growth > (best.growth if best else 0.0):
            best = writer
    return best, strongest


def _seen(name: str, signed: Tensor, values: Tensor) -> _Seen:
    """Return the weight of the largest of ``values``, the first where several tie."""
    place = tuple(int(i) for i in torch.unravel_index(values.argmax(), signed.shape))
    return _Seen(name, place, float(signed[place]))


def _without(name: str, peak: Peak, zeroed: Sequence[_Zeroed], expert_axis: int | None) -> Peak:
    """Return the peak without what the zeroed weights read: in this round they contribute nothing."""
    inputs = {expert: values.clone() for expert, values in peak.inputs.items()}
    output_axis, input_axis = peak.axes
    for one in zeroed:
        expert = None if expert_axis is None else one.place[expert_axis]
        if one.parameter == name and one.place[output_axis] == peak.row and expert in inputs:
            inputs[expert][one.place[input_axis]] = 0
    return replace(peak, inputs=inputs)
