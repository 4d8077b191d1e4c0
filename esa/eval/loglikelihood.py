"""Log-likelihoods of continuations behind contexts, tokenised, cut and summed as lm-evaluation-harness does."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import torch

from esa.errors import DataError
from esa.eval.language_modeling import first_choice
from esa.eval.variants import Variant, variant_logits
from esa.model import LoadedModel
from esa.model.anatomy import text_config
from esa.progress import Progress

_LENGTH_KEYS = ("n_positions", "max_position_embeddings", "n_ctx")
_NO_LENGTH = 2048  # of a model that states none
_UNSET = int(1e29)  # tokenizers say 1e30 where they know no length


@dataclass(frozen=True)
class Request:
    """What is scored: the tokens of a continuation behind those of a context, neither of them empty."""

    context: tuple[int, ...]
    continuation: tuple[int, ...]

    def inputs(self, longest: int) -> tuple[int, ...]:
        """Return the tokens that the model reads: all but the last one, of which the right end where they are too many."""
        return (self.context + self.continuation)[-(longest + 1) :][:-1]


@dataclass(frozen=True)
class Answer:
    """The summed log-likelihood of a continuation (nats; None where logits are not finite) and whether it is greedy's."""

    loglik: float | None
    greedy: bool


def longest_input(loaded: LoadedModel) -> int:
    """Return how many tokens the model reads: its configuration's word, else the tokenizer's, else 2,048."""
    config = text_config(loaded.model)
    for key in _LENGTH_KEYS:
        if getattr(config, key, None) is not None:
            return int(getattr(config, key))
    stated = getattr(loaded.tokenizer, "model_max_length", None)
    return int(stated) if stated is not None and stated < _UNSET else _NO_LENGTH


def encode_pair(tokenizer: Any, context: str, continuation: str, bos: bool | str, where: str) -> Request:
    """Return a context and its continuation as tokens.

    Spaces at the end of the context move to the continuation; both are tokenised together, and what is longer than the
    context's own tokens is the continuation. ``bos = "auto"``: the tokenizer's special tokens, unless the text opens with the
    prefix token, which is BOS, else EOS. true or false: BOS before the text, or no special token. An empty context is the
    prefix token alone. Raises DataError, naming ``where``, if either has no token.
    Source: lm-evaluation-harness (Gao et al. 2021), ``TemplateLM._encode_pair`` and ``HFLM.tok_encode``.
    """
    prefix = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    if context == "":
        if prefix is None:
            raise DataError("has an empty context, and the tokenizer neither BOS nor EOS to stand for it", where=where)
        tokens = tuple(tokenizer.encode(continuation, add_special_tokens=False))
        opened = tokens[:1] == (prefix,)
        request = Request(tokens[:1], tokens[1:]) if opened else Request((prefix,), tokens)
    else:
        bare = context.rstrip()
        whole = _encode(tokenizer, context + continuation, bos, prefix)
        context_tokens = _encode(tokenizer, bare, bos, prefix)
        request = Request(context_tokens, whole[len(context_tokens) :])
    if not request.context or not request.continuation:
        empty = "continuation" if request.context else "context"
        raise DataError(f"has a {empty} of no token: {context[-40:]!r} + {continuation[:40]!r}", where=where)
    return request


def _encode(tokenizer: Any, text: str, bos: bool | str, prefix: int | None) -> tuple[int, ...]:
    if bos == "auto":
        opened = prefix is not None and text.startswith(tokenizer.decode(prefix))
        return tuple(tokenizer.encode(text, add_special_tokens=False) if opened else tokenizer.encode(text))
    tokens = tuple(tokenizer.encode(text, add_special_tokens=False))
    if not bos:
        return tokens
    if tokenizer.bos_token_id is None:
        raise DataError("true, but the tokenizer has no BOS token", where="eval.bos")
    return tokens if tokens[:1] == (tokenizer.bos_token_id,) else (tokenizer.bos_token_id, *tokens)


def loglikelihoods(
    loaded: LoadedModel,
    requests: Sequence[Request],
    variants: Sequence[Variant],
    batch_tokens: int,
    progress: Progress | None = None,
) -> list[list[Answer]]:
    """Return, per variant, the answer to every request: ``sum_t log p(y_t | context, y_<t)`` and whether all y_t are argmax.

    Requests of equal length share a batch of at most ``batch_tokens`` tokens; nothing is padded, so that no number depends on
    its neighbours but in the last bits, and hooks see no token that is none. Probabilities are float32 whatever the compute
    dtype (the harness takes the logits' dtype), sums float64. Inputs longer than the model reads lose their left end.
    Cost: a forward pass over all requests, of each further variant the blocks from its first change on. Memory: a batch's
    hidden states and the logits of its continuations.
    """
    longest = longest_input(loaded)
    inputs = [request.inputs(longest) for request in requests]
    answers: list[list[Answer]] = [[Answer(None, False)] * len(requests) for _ in variants]
    with torch.no_grad():
        for batch in _batches(inputs, batch_tokens):
            ids = torch.tensor([inputs[place] for place in batch], device=loaded.device)
            last = max(len(requests[place].continuation) for place in batch)
            for number, logits in enumerate(variant_logits(loaded, ids, variants, last)):
                for row, place in enumerate(batch):
                    target = torch.tensor(requests[place].continuation, device=loaded.device)
                    answers[number][place] = _answer(logits[row, -len(target) :], target)
            if progress is not None:
                progress.advance(len(batch))
    return answers


def require_room(requests: Sequence[Request], loaded: LoadedModel, where: str) -> None:
    """Raise DataError for a continuation that is longer than what the model reads at once."""
    longest = longest_input(loaded)
    for number, request in enumerate(requests):
        if len(request.continuation) > longest:
            raise DataError(
                f"a continuation has {len(request.continuation):,} tokens; the model reads {longest:,}",
                where=f"{where}, request {number}",
            )


def num_cut(requests: Sequence[Request], loaded: LoadedModel) -> int:
    """Return how many requests lose tokens at their left end."""
    longest = longest_input(loaded)
    return sum(len(one.context) + len(one.continuation) > longest + 1 for one in requests)


def _answer(logits: torch.Tensor, target: torch.Tensor) -> Answer:
    """Return the answer from logits ``(T, V)`` and target ``(T,)``."""
    scores = logits.float()
    chosen = scores.log_softmax(-1).gather(1, target[:, None]).double().sum()
    loglik = float(chosen)
    if not (math.isfinite(loglik) and bool(torch.isfinite(scores).all())):
        return Answer(None, False)
    return Answer(loglik, bool((first_choice(scores) == target).all()))


def _batches(inputs: Sequence[tuple[int, ...]], batch_tokens: int) -> Iterator[list[int]]:
    """Yield places of inputs of equal length, the longest first, at most ``batch_tokens`` tokens together."""
    order = sorted(range(len(inputs)), key=lambda place: -len(inputs[place]))
    for length, group in groupby(order, key=lambda place: len(inputs[place])):
        places = list(group)
        size = max(1, batch_tokens // length)
        for start in range(0, len(places), size):
            yield places[start : start + size]
