"""Text to token windows: tokenised once, cut, sampled, hashed."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from esa.data.sources import read_source
from esa.errors import DataError
from esa.progress import Progress, Silent
from esa.spec import generator
from esa.spec.sections import Windows as WindowsSection


@dataclass(frozen=True)
class TokenWindows:
    """Windows of token numbers, each a tuple of at least 2, and where they come from.

    ``bos``: whether each opens with the BOS token. ``available``: how many windows the text holds.
    """

    ids: tuple[tuple[int, ...], ...]
    source: str
    packing: str
    length: int
    bos: bool
    available: int
    num_bytes: int

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
            "sha256": self.sha256,
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
    cut, bos = cut_windows(section, tokenizer)
    _require(section, cut)
    if section.sample == "first":
        return {seed: _pack(section, tokenizer, cut, range(section.windows), bos) for seed in seeds}
    disjoint = section.windows * len(seeds) <= len(cut)
    if not disjoint:
        share = section.windows / len(cut)
        progress.warn(
            f"{section.source} holds {len(cut)} windows of {section.length} tokens, fewer than {len(seeds)} seeds x"
            f" {section.windows}: two seeds share {share:.0%} of their windows on average"
        )
    taken: set[int] = set()
    drawn = {}
    for seed in seeds:
        free = np.array([i for i in range(len(cut)) if i not in taken])
        chosen = generator(seed, "windows").choice(free, section.windows, replace=False)
        if disjoint:
            taken.update(int(i) for i in chosen)
        drawn[seed] = _pack(section, tokenizer, cut, [int(i) for i in chosen], bos)
    return drawn


def eval_windows(section: WindowsSection, tokenizer: Any) -> TokenWindows:
    """Return the evaluation windows: score seeds never move them; ``sample = "random"`` uses seed 0's own stream."""
    cut, bos = cut_windows(section, tokenizer)
    _require(section, cut)
    if section.sample == "first":
        chosen = list(range(section.windows))
    else:
        draw = generator(0, "eval_windows")
        chosen = sorted(int(i) for i in draw.choice(len(cut), section.windows, replace=False))
    return _pack(section, tokenizer, cut, chosen, bos)


def cut_windows(section: WindowsSection, tokenizer: Any) -> tuple[list[tuple[int, ...]], bool]:
    """Return every window that the text holds, and whether each opens with BOS.

    ``stream``: the text is tokenised once, without special tokens, and cut; the ragged tail is dropped. ``lines``: every
    non-empty line, cut at ``length``; those under 2 tokens are left out.
    """
    text = read_source(section.source)
    bos = _wants_bos(section, tokenizer)
    opening = (tokenizer.bos_token_id,) if bos else ()
    body = section.length - len(opening)
    if body < 1:
        raise DataError(f"length = {section.length} leaves no token beside BOS", where=section.source)
    if section.packing == "lines":
        lines = [line for line in text.splitlines() if line.strip()]
        encoded = [opening + tuple(_encode(tokenizer, line)[:body]) for line in lines]
        return [window for window in encoded if len(window) > 1], bos
    ids = _encode(tokenizer, text)
    return [opening + tuple(ids[start : start + body]) for start in range(0, len(ids) - body + 1, body)], bos


def _encode(tokenizer: Any, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])


def _wants_bos(section: WindowsSection, tokenizer: Any) -> bool:
    known = tokenizer.bos_token_id is not None
    if section.bos == "auto":
        return known and list(tokenizer("a")["input_ids"])[:1] == [tokenizer.bos_token_id]
    if section.bos and not known:
        raise DataError("bos = true, but the tokenizer has no BOS token", where=section.source)
    return bool(section.bos)


def _require(section: WindowsSection, cut: list[tuple[int, ...]]) -> None:
    if len(cut) < section.windows:
        what = f"of {section.length} tokens" if section.packing == "stream" else "of one line"
        raise DataError(
            f"is too short: it holds {len(cut)} windows {what}, {section.windows} are needed",
            where=section.source,
            hint="lower windows or length, or give a longer text",
        )


def _pack(
    section: WindowsSection, tokenizer: Any, cut: list[tuple[int, ...]], chosen: Sequence[int], bos: bool
) -> TokenWindows:
    ids = tuple(cut[i] for i in chosen)
    num_bytes = sum(len(tokenizer.decode(list(window[1:])).encode()) for window in ids)
    return TokenWindows(ids, section.source, section.packing, section.length, bos, len(cut), num_bytes)
