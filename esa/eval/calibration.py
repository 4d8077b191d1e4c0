"""Expected calibration error: how far the confidence of next-token predictions is from their accuracy."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import groupby

import torch
from torch import Tensor

from esa.artifact import finite
from esa.data import TokenWindows
from esa.eval.language_modeling import first_choice
from esa.eval.task_result import Figure, ItemValue, TaskResult, mean_figure
from esa.eval.variants import Variant, variant_logits
from esa.model import LoadedModel

NUM_BINS = 15
_ROWS = 64  # positions turned into probabilities at once


@dataclass
class Bins:
    """Per window and bin of confidence: how many predictions, how many of them correct, the sum of their confidences."""

    count: list[list[int]] = field(default_factory=list)
    correct: list[list[int]] = field(default_factory=list)
    confidence: list[list[float]] = field(default_factory=list)

    def add(self, confidence: Tensor, correct: Tensor) -> None:
        """Add a window: float32 confidences ``(T,)``, and whether each first choice was the next token ``(T,)``."""
        # (0, 1/15], (1/15, 2/15], ...: Guo et al. close the bins above.
        place = (torch.ceil(confidence.double() * NUM_BINS) - 1).clamp(0, NUM_BINS - 1).long()
        count = torch.bincount(place, minlength=NUM_BINS)
        hits = torch.bincount(place, weights=correct.double(), minlength=NUM_BINS)
        sums = torch.bincount(place, weights=confidence.double(), minlength=NUM_BINS)
        self.count.append(count.tolist())
        self.correct.append([int(hit) for hit in hits.tolist()])
        self.confidence.append(sums.tolist())


def calibration_error(count: Sequence[float], correct: Sequence[float], confidence: Sequence[float]) -> float:
    """Return ``sum_b |correct_b - confidence_b| / sum_b count_b``, which is ``sum_b (n_b / n) |acc_b - conf_b|``."""
    gaps = (abs(hits - sums) for hits, sums in zip(correct, confidence, strict=True))
    return math.fsum(gaps) / sum(count)


def evaluate(bins: Bins) -> TaskResult:
    """Return the expected calibration error: ``sum_b (n_b / n) |acc_b - conf_b|`` over 15 equal bins of confidence.

    The confidence of a prediction is the largest probability of the next token; acc_b the share of bin b's predictions whose
    first choice was the next token, conf_b their mean confidence. Standard error: jackknife over the N windows. Items are
    windows: their jackknife pseudo-values ``N e - (N - 1) e_(without n)``, whose differences are paired. Also the mean
    ``confidence``, and ``overconfidence``, confidence minus accuracy, signed. The error is biased upwards in small samples.
    Source: Guo et al., On Calibration of Modern Neural Networks, ICML 2017.
    """
    number, columns = len(bins.count), range(NUM_BINS)
    counts, hits = ([sum(row[b] for row in rows) for b in columns] for rows in (bins.count, bins.correct))
    sums = [math.fsum(row[b] for row in bins.confidence) for b in columns]
    total, value = sum(counts), calibration_error(counts, hits, sums)
    pseudo = []
    for n in range(number if number > 1 else 0):
        rest = (
            [all_b - own_b for all_b, own_b in zip(whole, rows[n], strict=True)]
            for whole, rows in ((counts, bins.count), (hits, bins.correct), (sums, bins.confidence))
        )
        pseudo.append(number * value - (number - 1) * calibration_error(*rest))
    _, _, error = mean_figure("", pseudo)
    sure = [math.fsum(row) / sum(size) for row, size in zip(bins.confidence, bins.count, strict=True)]
    over = [own - sum(row) / sum(size) for own, row, size in zip(sure, bins.correct, bins.count, strict=True)]
    mean, accuracy = math.fsum(sums) / total, sum(hits) / total
    figures: list[Figure] = [
        ("calibration_error", value, error),
        ("confidence", mean, mean_figure("", sure)[2]),
        ("overconfidence", mean - accuracy, mean_figure("", over)[2]),
    ]
    items: list[ItemValue] = [
        (n, None, name, finite(found[n]))
        for n in range(number)
        for name, found in (("calibration_error", pseudo), ("confidence", sure), ("overconfidence", over))
        if found
    ]
    return TaskResult(figures, items, number, total)


def measure(
    loaded: LoadedModel, windows: TokenWindows, variants: Sequence[Variant], batch_tokens: int
) -> list[TaskResult]:
    """Return the calibration error of each variant on the windows; None for all of a variant whose logits are not finite.

    Cost and memory: as ``variant_logits``, on batches of equally long windows, logits of every position among them.
    """
    found = [Bins() for _ in variants]
    broken = [False] * len(variants)
    with torch.no_grad():
        for batch in equal_batches(windows.ids, batch_tokens):
            ids = torch.tensor(batch, device=loaded.device)
            for number, logits in enumerate(variant_logits(loaded, ids, variants, ids.shape[1])):
                broken[number] = broken[number] or not bool(torch.isfinite(logits).all())
                for row in range(0 if broken[number] else len(ids)):
                    confidence, choice = _first(logits[row, :-1])
                    found[number].add(confidence, choice == ids[row, 1:])
    size, tokens = len(windows.ids), windows.num_predicted
    empty: list[Figure] = [(name, None, None) for name in ("calibration_error", "confidence", "overconfidence")]
    nothing = TaskResult(empty, [], size, tokens, nonfinite=True)
    return [nothing if bad else evaluate(bins) for bad, bins in zip(broken, found, strict=True)]


def equal_batches(ids: Sequence[tuple[int, ...]], batch_tokens: int) -> list[list[tuple[int, ...]]]:
    """Return runs of neighbouring windows of equal length, at most ``batch_tokens`` tokens together."""
    batches = []
    for length, group in groupby(ids, key=len):
        windows = list(group)
        size = max(1, batch_tokens // length)
        batches += [windows[start : start + size] for start in range(0, len(windows), size)]
    return batches


def _first(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Return the largest probability at every position ``(T,)``, float32, and which token has it."""
    sure, choice = [], []
    for start in range(0, len(logits), _ROWS):
        scores = logits[start : start + _ROWS].float()
        sure.append((scores.amax(-1) - scores.logsumexp(-1)).exp())
        choice.append(first_choice(scores))
    return torch.cat(sure), torch.cat(choice)
