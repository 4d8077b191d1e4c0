"""Language modelling: NLL, perplexity, token accuracy and bits per byte, from logits."""

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from esa.artifact import finite
from esa.model.precision import wide, wide_device

_CHUNK = 32  # positions turned into probabilities at once: few enough to stay in the cache


@dataclass
class Measured:
    """What an evaluation found. Per window: NLL sums (nats), predicted tokens, correct ones; over all: agreement and KL.

    ``nonfinite``: NaN or infinity among the logits, or finite ones further apart than float32 holds; every metric is then
    None, never zero.
    """

    nll: list[float] = field(default_factory=list)
    num_tokens: list[int] = field(default_factory=list)
    num_correct: list[int] = field(default_factory=list)
    num_agreeing: int | None = None
    kl_sum: float | None = None
    nonfinite: bool = False

    @property
    def total_tokens(self) -> int:
        """Return the predicted tokens of all windows."""
        return sum(self.num_tokens)

    @property
    def mean_nll(self) -> float | None:
        """Return the mean NLL per predicted token, nats."""
        return None if self.nonfinite else math.fsum(self.nll) / self.total_tokens

    @property
    def perplexity(self) -> float | None:
        """Return exp of the mean NLL, or None where that overflows."""
        return perplexity(self.mean_nll)

    @property
    def accuracy(self) -> float | None:
        """Return the share of predicted tokens that are the model's first choice."""
        return None if self.nonfinite else sum(self.num_correct) / self.total_tokens

    @property
    def agreement(self) -> float | None:
        """Return the share of positions whose first choice is the intact model's."""
        return None if self.nonfinite or self.num_agreeing is None else self.num_agreeing / self.total_tokens

    @property
    def kl(self) -> float | None:
        """Return the mean over predicted positions of KL(intact || this), nats."""
        return None if self.nonfinite or self.kl_sum is None else finite(self.kl_sum / self.total_tokens)

    def bits_per_byte(self, num_bytes: int) -> float | None:
        """Return the NLL in bits over the UTF-8 bytes of the text that the predicted tokens stand for (``esa.data.cut``)."""
        return None if self.nonfinite or not num_bytes else math.fsum(self.nll) / math.log(2) / num_bytes

    def outcome(self, vocabulary: int) -> str:
        """Return ``ok``, ``collapsed``, ``uniform`` or ``nonfinite``.

        ``collapsed``: perplexity over half the vocabulary; ``uniform``: a collapse with NLL within .05 of ln V.
        """
        nll = self.mean_nll
        if nll is None:
            return "nonfinite"
        if abs(nll - math.log(vocabulary)) < 0.05:
            return "uniform"
        return "collapsed" if nll > math.log(vocabulary / 2) else "ok"

    def record(self) -> dict[str, Any]:
        """Return the measurement as JSON."""
        return {
            "nll": [] if self.nonfinite else self.nll, "num_tokens": self.num_tokens, "num_correct": self.num_correct,
            "num_agreeing": self.num_agreeing, "kl_sum": self.kl_sum, "nonfinite": self.nonfinite,
        }  # fmt: skip


def perplexity(nll: float | None) -> float | None:
    """Return exp(nll), or None where it overflows or there is no NLL."""
    if nll is None:
        return None
    try:
        return math.exp(nll)
    except OverflowError:
        return None


class Reference:
    """The intact model's logits of a batch, with what every comparison needs of them again."""

    def __init__(self, logits: Tensor) -> None:
        self.logits = logits[:, :-1].reshape(-1, logits.shape[-1])  # (positions, V)
        parts = [self.logits[start : start + _CHUNK] for start in range(0, len(self.logits), _CHUNK)]
        self.normalizer = torch.cat([part.float().logsumexp(-1) for part in parts])  # (positions,)
        self.choice = torch.cat([part.argmax(-1) for part in parts])


def add_batch(measured: Measured, logits: Tensor, ids: Tensor, intact: Reference | None) -> None:
    """Add a batch of equally long windows.

    logits ``(batch, T + 1, V)``; ids ``(batch, T + 1)``; intact: the intact model's, for agreement and KL. All sums over
    positions are float64, probabilities float32.
    """
    batch, length = ids.shape
    measured.num_tokens += [length - 1] * batch
    low, high = logits.aminmax()  # NaN comes through both
    if measured.nonfinite or not bool(torch.isfinite(low) and torch.isfinite(high)):
        measured.nonfinite = True
        return
    targets = ids[:, 1:].reshape(-1)
    predictions = logits[:, :-1].reshape(-1, logits.shape[-1])
    nll = torch.empty(len(targets), dtype=torch.float64, device=wide_device(ids.device))
    correct = torch.empty(len(targets), dtype=torch.bool, device=ids.device)
    agreeing, divergence = 0, 0.0
    for start in range(0, len(targets), _CHUNK):
        part = slice(start, start + _CHUNK)
        scores = predictions[part].float()
        normalizer = scores.logsumexp(-1)
        nll[part] = wide(normalizer - scores.gather(1, targets[part, None]).squeeze(1))
        choice = scores.argmax(-1)
        correct[part] = choice == targets[part]
        if intact is not None:
            agreeing += int((choice == intact.choice[part]).sum())
            logq = intact.logits[part].float() - intact.normalizer[part, None]
            gap = logq - (scores - normalizer[:, None])
            divergence += float(wide((logq.exp() * gap).sum(-1)).sum())
    if not (torch.isfinite(nll).all() and math.isfinite(divergence)):
        measured.nonfinite = True
        return
    measured.nll += nll.view(batch, -1).sum(1).tolist()
    measured.num_correct += correct.view(batch, -1).sum(1).tolist()
    if intact is not None:
        measured.num_agreeing = (measured.num_agreeing or 0) + agreeing
        measured.kl_sum = (measured.kl_sum or 0.0) + divergence


def evaluate(measured: Measured, num_bytes: int) -> list[tuple[str, float | None, float | None]]:
    """Return the task's metrics as (name, value, standard error over windows).

    The standard error of a ratio of sums over N windows, linearised: ``sqrt(N / (N - 1) * sum (a_n - r T_n)^2) / sum T``;
    of the perplexity by the delta method; None under two windows.
    """
    nll_error = ratio_error(measured.nll, measured.num_tokens) if not measured.nonfinite else None
    hits = [float(n) for n in measured.num_correct]
    accuracy_error = ratio_error(hits, measured.num_tokens) if not measured.nonfinite else None
    ppl, bits, nll = measured.perplexity, measured.bits_per_byte(num_bytes), measured.mean_nll
    return [
        ("nll", nll, nll_error),
        ("perplexity", ppl, None if ppl is None or nll_error is None else finite(ppl * nll_error)),
        ("bits_per_byte", bits, None if bits is None or not nll or nll_error is None else bits * nll_error / nll),
        ("accuracy", measured.accuracy, accuracy_error),
    ]


def ratio_error(values: list[float], sizes: list[int]) -> float | None:
    """Return the standard error of ``sum values / sum sizes`` over independent windows, or None under two."""
    number, total = len(values), sum(sizes)
    if number < 2:
        return None
    ratio = math.fsum(values) / total
    spread = math.fsum((v - ratio * t) ** 2 for v, t in zip(values, sizes, strict=True))
    return math.sqrt(number / (number - 1) * spread) / total
