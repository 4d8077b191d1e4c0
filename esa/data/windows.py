"""Text to token windows: sampled, counted, hashed."""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from esa.artifact.hub import Commit
from esa.data.cut import Cut, Tokens, cut_windows
from esa.errors import DataError
from esa.progress import Progress, Silent
from esa.spec import generator
from esa.spec.sections import Windows as WindowsSection


@dataclass(frozen=True)
class TokenWindows:
    """Windows of token numbers, each a tuple of at least 2, and where they come from.

    ``bos``: whether each opens with the BOS token. ``available``: how many windows the text holds. ``num_bytes``: the UTF-8
    bytes of the text that the predicted tokens stand for (``Cut``); 0 where the tokenizer does not tell. ``text_facts``:
    what a manifest says of a dataset's text.
    """

    ids: tuple[tuple[int, ...], ...]
    source: str
    packing: str
    length: int
    bos: bool
    available: int
    num_bytes: int
    text_facts: Mapping[str, Any] = field(default_factory=dict)

    @property
    def longest(self) -> int:
        """Return the tokens of the longest window; lines may all be shorter than ``length``."""
        return max(len(window) for window in self.ids)

    @property
    def num_tokens(self) -> int:
        """Return all tokens, the first of each window included."""
        return sum(len(window) for window in self.ids)

    @property
    def num_predicted(self) -> int:
        """Return the predicted tokens: each window's but its first."""
        return sum(len(window) - 1 for window in self.ids)

    @property
    def sha256(self) -> str:
        """Return the sha256 of the token numbers, windows apart by a newline."""
        text = "\n".join(" ".join(map(str, window)) for window in self.ids)
        return hashlib.sha256(text.encode()).hexdigest()

    def facts(self, seed: int | None = None) -> dict[str, Any]:
        """Return what a manifest says of the windows."""
        seeded = {} if seed is None else {"seed": seed}
        return {
            **seeded, "source": self.source, "packing": self.packing, "length": self.length, "bos": self.bos,
            "windows": len(self.ids), "tokens": self.num_tokens, "predicted_tokens": self.num_predicted,
            "sha256": self.sha256, **self.text_facts,
        }  # fmt: skip


def calibration_windows(
    section: WindowsSection, tokenizer: Any, seeds: Sequence[int], progress: Progress | None = None
) -> dict[int, TokenWindows]:
    """Return each seed's windows.

    ``sample = "random"`` draws without replacement, the seeds disjoint while the text allows; each draws
    from what the seeds before it in the list left over. Beyond that, each seed draws from the whole text and
    a warning tells the expected share in common. ``sample = "first"`` gives every seed the same.
    """
    progress = progress or Silent()
    cut = cut_windows(section, tokenizer)
    _require(section, cut)
    _note(section, cut, progress)
    if section.sample == "first":
        return {seed: _pack(section, cut, range(section.windows)) for seed in seeds}
    return {seed: _pack(section, cut, chosen) for seed, chosen in _draws(section, cut, seeds, "windows", progress)}


def _draws(
    section: WindowsSection, cut: Cut, seeds: Sequence[int], stream: str, progress: Progress
) -> Iterator[tuple[int, list[int]]]:
    """Yield each seed's windows, disjoint while the text allows; warn where it does not."""
    available = len(cut.ids)
    disjoint = section.windows * len(seeds) <= available
    if not disjoint:
        share = section.windows / available
        progress.warn(
            f"{section.source} holds {available} windows of {section.length} tokens, fewer than {len(seeds)} seeds x"
            f" {section.windows}: two seeds share {share:.0%} of their windows on average"
        )
    taken: set[int] = set()
    for seed in seeds:
        free = np.array([i for i in range(available) if i not in taken])
        chosen = [int(i) for i in generator(seed, stream).choice(free, section.windows, replace=False)]
        if disjoint:
            taken.update(chosen)
        yield seed, chosen


def eval_windows(
    section: WindowsSection,
    tokenizer: Any,
    key: str | None = None,
    tokens: Tokens | None = None,
    progress: Progress | None = None,
) -> TokenWindows:
    """Return the evaluation windows: score seeds never move them; ``sample = "random"`` uses seed 0's own stream.

    ``key`` and ``tokens``: as ``cut_windows`` takes them. Raises DataError for a text that cannot be read or is too short.
    """
    return seeded_eval_windows(section, tokenizer, (0,), key, tokens, progress)[0]


def seeded_eval_windows(
    section: WindowsSection,
    tokenizer: Any,
    seeds: Sequence[int],
    key: str | None = None,
    tokens: Tokens | None = None,
    progress: Progress | None = None,
) -> dict[int, TokenWindows]:
    """Return the evaluation windows of each seed, in the order of the text.

    ``sample = "random"``: each seed draws from its own stream without replacement, from what the seeds before it in the list
    left over while the text allows; beyond that from the whole text, with a warning. ``sample = "first"``: all get the same.
    Raises as ``eval_windows``.
    """
    progress = progress or Silent()
    cut = cut_windows(section, tokenizer, key, tokens)
    _require(section, cut, key)
    _note(section, cut, progress)
    if section.sample == "first":
        return {seed: _pack(section, cut, range(section.windows)) for seed in seeds}
    return {
        seed: _pack(section, cut, sorted(chosen))
        for seed, chosen in _draws(section, cut, seeds, "eval_windows", progress)
    }


def _require(section: WindowsSection, cut: Cut, key: str | None = None) -> None:
    if len(cut.ids) < section.windows:
        what = f"of {section.length} tokens" if section.packing == "stream" else "of one line"
        raise DataError(
            f"is too short: it holds {len(cut.ids)} windows {what}, {section.windows} are needed",
            where=f"{key or f'{section.key}.source'}: {section.source}",
            hint="lower windows or length, or give a longer text",
        )


def _note(section: WindowsSection, cut: Cut, progress: Progress) -> None:
    """Say which commit a dataset's text is of, and whether the hub was asked."""
    facts = cut.text_facts
    if "revision" in facts:
        commit = Commit(facts["revision"], facts["revision_asked"], facts["without_hub"])
        progress.note(f"{section.source}: {commit.words()}")


def _pack(section: WindowsSection, cut: Cut, chosen: Sequence[int]) -> TokenWindows:
    ids = tuple(cut.ids[i] for i in chosen)
    num_bytes = sum(map(cut.num_bytes, chosen)) if cut.num_bytes is not None else 0
    return TokenWindows(
        ids, section.source, section.packing, section.length, cut.bos, len(cut.ids), num_bytes, cut.text_facts
    )
