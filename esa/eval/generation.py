"""Greedy continuations: how much they repeat themselves, and how far they agree with the intact model's."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import groupby
from typing import Any

import torch
from torch import Tensor

from esa.eval.task_result import Figure, ItemValue, TaskResult, mean_figure
from esa.eval.variants import Variant
from esa.model import LoadedModel

_ORDERS = (1, 2, 3, 4)
_REPETITION = tuple(f"rep_{n}" for n in _ORDERS)


def ngrams(tokens: Sequence[int], n: int) -> list[tuple[int, ...]]:
    """Return every run of ``n`` neighbouring tokens."""
    return [tuple(tokens[start : start + n]) for start in range(len(tokens) - n + 1)]


def repetition(tokens: Sequence[int], n: int) -> float | None:
    """Return rep-n: ``1 - distinct n-grams / n-grams``; None for a text of fewer than ``n`` tokens."""
    found = ngrams(tokens, n)
    return 1 - len(set(found)) / len(found) if found else None


def agreement(tokens: Sequence[int], intact: Sequence[int]) -> float:
    """Return the share of positions with equal tokens, over the longer of the two continuations."""
    longer = max(len(tokens), len(intact))
    return sum(a == b for a, b in zip(tokens, intact, strict=False)) / longer if longer else 1.0


def first_difference(tokens: Sequence[int], intact: Sequence[int]) -> int:
    """Return the position, from 0, of the first token that differs; the shared length where none does."""
    return next(
        (n for n, (a, b) in enumerate(zip(tokens, intact, strict=False)) if a != b), min(len(tokens), len(intact))
    )


def evaluate(tokens: list[list[int]], intact: list[list[int]] | None = None) -> TaskResult:
    """Return what greedy continuations tell: ``rep_n = 1 - distinct n-grams / n-grams``, n = 1 to 4, and more.

    rep_n is of each continuation, averaged over those of n tokens or more (Welleck et al. 2020); ``distinct_n``: the distinct
    n-grams of all continuations together over their number (Li et al. 2016), without a standard error. Against the intact
    model's continuations of the same prompts: ``agreement``, the share of positions with equal tokens, over the longer one,
    and ``first_difference``, the position of the first token that differs (its length where none does), both averaged;
    1 and the length for the intact model. Items are prompts. A continuation ends at, and holds, the first EOS.
    Source: Welleck et al., Neural Text Generation with Unlikelihood Training, ICLR 2020; Li et al., A Diversity-Promoting
    Objective Function for Neural Conversation Models, NAACL 2016.
    """
    base = tokens if intact is None else intact
    values: dict[str, list[float | None]] = {
        name: [repetition(one, n) for one in tokens] for name, n in zip(_REPETITION, _ORDERS, strict=True)
    }
    values["agreement"] = [agreement(one, other) for one, other in zip(tokens, base, strict=True)]
    values["first_difference"] = [float(first_difference(one, other)) for one, other in zip(tokens, base, strict=True)]
    figures: list[Figure] = [mean_figure(name, [v for v in found if v is not None]) for name, found in values.items()]
    together: list[Figure] = []
    for n in _ORDERS:
        every = [gram for one in tokens for gram in ngrams(one, n)]
        together.append((f"distinct_{n}", len(set(every)) / len(every) if every else None, None))
    items: list[ItemValue] = [
        (item, None, name, found[item]) for item in range(len(tokens)) for name, found in values.items()
    ]
    num_tokens = sum(map(len, tokens))
    return TaskResult(figures[:4] + together + figures[4:], items, len(tokens), num_tokens, tokens=tokens)


def measure(
    loaded: LoadedModel,
    prompts: Sequence[tuple[int, ...]],
    new_tokens: int,
    variants: Sequence[Variant],
    batch_tokens: int,
    intact: list[list[int]] | None,
) -> list[TaskResult]:
    """Return each variant's continuations of the prompts, against ``intact``'s; None where logits are not finite.

    Where the intact model's own are not finite there is nothing to compare with, and nothing is told.
    Cost: per variant a forward pass over the prompts and one step per new token, on cached keys and values; a hooked change
    sees whole windows, and so runs without that cache, a whole pass per token.
    """
    results = []
    for variant in variants:
        with variant.make(), torch.no_grad():
            tokens = continuations(loaded, prompts, new_tokens, batch_tokens, cached=not variant.hooked)
        results.append(_broken(len(prompts)) if tokens is None else evaluate(tokens, intact))
    return results


def continuations(
    loaded: LoadedModel, prompts: Sequence[tuple[int, ...]], new_tokens: int, batch_tokens: int, *, cached: bool = True
) -> list[list[int]] | None:
    """Return the greedy continuation of each prompt by the model's own ``generate``; None for NaN or infinite logits.

    Greedy means the plain argmax: the defaults that a model ships for chat (temperature, repetition penalty) are put aside.
    Prompts of equal length run together, none is padded.
    """
    found: list[list[int]] = [[] for _ in prompts]
    order = sorted(range(len(prompts)), key=lambda place: len(prompts[place]))
    with _plain(loaded.model) as ends:
        for length, group in groupby(order, key=lambda place: len(prompts[place])):
            places = list(group)
            size = max(1, batch_tokens // (length + new_tokens))
            for start in range(0, len(places), size):
                batch = places[start : start + size]
                ids = torch.tensor([prompts[place] for place in batch], device=loaded.device)
                watch = _Watch()
                made = loaded.model.generate(
                    ids,
                    attention_mask=torch.ones_like(ids),
                    max_new_tokens=new_tokens,
                    do_sample=False,
                    use_cache=cached,
                    logits_processor=[watch],
                )
                if not watch.finite:
                    return None
                for place, row in zip(batch, made[:, length:].tolist(), strict=True):
                    found[place] = _ended(row, ends)
    return found


class _Watch:
    """Look at the logits of every step and change nothing."""

    def __init__(self) -> None:
        self.finite = True

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        self.finite = self.finite and bool(torch.isfinite(scores).all())
        return scores


@contextmanager
def _plain(model: Any) -> Iterator[set[int]]:
    """Set the model's own defaults for generation aside but for its special tokens; yield those that end a text."""
    from transformers import GenerationConfig

    before = model.generation_config
    stated = before.eos_token_id
    ends = set(stated) if isinstance(stated, list | tuple) else {stated} - {None}
    pad = before.pad_token_id if before.pad_token_id is not None else next(iter(sorted(ends)), 0)
    model.generation_config = GenerationConfig(bos_token_id=before.bos_token_id, eos_token_id=stated, pad_token_id=pad)
    try:
        yield ends
    finally:
        model.generation_config = before


def _ended(tokens: list[int], ends: set[int]) -> list[int]:
    """Return the tokens up to the first that ends the text, which a batch pads from there on."""
    last = next((place for place, token in enumerate(tokens) if token in ends), len(tokens) - 1)
    return tokens[: last + 1]


def _broken(num_prompts: int) -> TaskResult:
    names = [*_REPETITION, *(f"distinct_{n}" for n in _ORDERS), "agreement", "first_difference"]
    return TaskResult([(name, None, None) for name in names], [], num_prompts, 0, nonfinite=True)
