"""Language modelling: NLL, perplexity, token accuracy and bits per byte, from logits."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from esa.artifact import finite
from esa.model.precision import wide

_NUMBERS = 1 << 19  # probabilities computed at once: few enough to stay in a processor's cache
_NUMBERS_ON_GPU = 1 << 24  # enough to keep one busy


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
    """The intact model's logits of a batch, ``(batch, T + 1, V)``, with what every comparison needs of them again.

    ``normalizer``, the log of the summed exponentials, and ``choice`` are ``(batch, T)``: of the predicted positions.
    """

    def __init__(self, logits: Tensor) -> None:
        batch, length, _ = logits.shape
        self.logits = logits
        self.normalizer = torch.empty((batch, length - 1), dtype=torch.float32, device=logits.device)
        self.choice = torch.empty((batch, length - 1), dtype=torch.int64, device=logits.device)
        work = _work(logits)
        for part in _parts(logits):
            scores = logits[part].float()
            self.normalizer[part] = _normalizer(scores, work[: len(scores)])
            self.choice[part] = first_choice(scores)


def add_unmeasured(measured: Measured, ids: Tensor) -> None:
    """Count the predicted tokens of a batch of equally long windows, ids ``(batch, T + 1)``, and measure nothing."""
    batch, length = ids.shape
    measured.num_tokens += [length - 1] * batch


def add_batch(measured: Measured, logits: Tensor, ids: Tensor, intact: Reference | None) -> None:
    """Add a batch of equally long windows.

    logits ``(batch, T + 1, V)``; ids ``(batch, T + 1)``; intact: the intact model's, for agreement and KL. All sums over
    positions are float64, probabilities float32. Memory: a few megabytes of probabilities; the logits are not copied.
    """
    add_unmeasured(measured, ids)
    low, high = logits.aminmax()  # NaN comes through both
    if measured.nonfinite or not bool(torch.isfinite(low) and torch.isfinite(high)):
        measured.nonfinite = True
        return
    targets = ids[:, 1:]
    losses, divergences = (torch.zeros(targets.shape, dtype=torch.float32, device=ids.device) for _ in range(2))
    choice = torch.empty_like(targets)
    work = _work(logits)
    gap = torch.empty_like(work) if intact is not None else work
    for part in _parts(logits):
        scores = logits[part].float()
        shifted = work[: len(scores)]
        normalizer = _normalizer(scores, shifted)
        losses[part] = normalizer - scores.gather(1, targets[part][:, None]).squeeze(1)
        choice[part] = first_choice(scores)
        if intact is not None:  # the sum of exp(logq) (logq - logp), q the intact model's probabilities
            logp = torch.sub(scores, normalizer[:, None], out=shifted)
            logq = torch.sub(intact.logits[part].float(), intact.normalizer[part][:, None], out=gap[: len(scores)])
            difference = torch.sub(logq, logp, out=shifted)
            divergences[part] = logq.exp_().mul_(difference).sum(-1)
    nll, divergence = wide(losses), float(wide(divergences).sum())
    if not (torch.isfinite(nll).all() and math.isfinite(divergence)):
        measured.nonfinite = True
        return
    measured.nll += nll.sum(1).tolist()
    measured.num_correct += (choice == targets).sum(1).tolist()
    if intact is not None:
        measured.num_agreeing = (measured.num_agreeing or 0) + int((choice == intact.choice).sum())
        measured.kl_sum = (measured.kl_sum or 0.0) + divergence


def _normalizer(scores: Tensor, work: Tensor) -> Tensor:
    """Return logsumexp over the last axis, the steps of torch's own in memory that is there already."""
    highest = scores.amax(-1, keepdim=True)
    total = torch.sub(scores, highest, out=work).exp_().sum(-1)
    return total.log_().add_(highest.squeeze(-1))


def first_choice(scores: Tensor) -> Tensor:
    """Return argmax over the last axis, the lowest index of equals."""
    if scores.device.type != "cpu":
        return scores.argmax(-1)
    return torch.from_numpy(scores.detach().numpy().argmax(-1))  # torch's own takes twelve times as long


def _work(logits: Tensor) -> Tensor:
    """Return room for the probabilities of the positions of one part, float32."""
    return torch.empty((_num_positions(logits), logits.shape[-1]), dtype=torch.float32, device=logits.device)


def _num_positions(logits: Tensor) -> int:
    """Return how many positions are turned into probabilities at once."""
    number = _NUMBERS if logits.device.type == "cpu" else _NUMBERS_ON_GPU
    return min(max(number // logits.shape[-1], 1), logits.shape[1])


def _parts(logits: Tensor) -> Iterator[tuple[int, slice]]:
    """Yield the predicted positions of a batch of windows, a few neighbours of one window at a time."""
    batch, length, _ = logits.shape
    step = _num_positions(logits)
    for window in range(batch):
        for start in range(0, length - 1, step):
            yield window, slice(start, min(start + step, length - 1))


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
