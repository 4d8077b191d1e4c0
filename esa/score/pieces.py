"""Go through a tensor in pieces along its first axis, small enough for the processor's cache."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

# Numbers of a piece. On a CPU it stays in the cache; a GPU has more lanes to fill than cache to miss.
_CPU, _GPU = 1 << 17, 1 << 25


@dataclass(frozen=True)
class Piece:
    """A run of neighbouring weights in row-major order: where it starts, and its coordinates along the leading axes."""

    start: int
    stop: int
    at: tuple[slice, ...]
    expert: int | None = None


def num_rows(shape: Sequence[int], device: torch.device) -> int:
    """Return how many rows of a tensor make a piece, at least one."""
    return max(1, (_CPU if device.type == "cpu" else _GPU) // max(1, math.prod(shape[1:])))


def pieces(shape: Sequence[int], device: torch.device, *, experts: bool = False) -> Iterator[Piece]:
    """Yield a tensor's pieces in order; with ``experts`` none holds weights of two, first axis the expert."""
    if experts:
        size = math.prod(shape[1:])
        for expert in range(shape[0]):
            for piece in pieces(shape[1:], device):
                at = (slice(expert, expert + 1), *piece.at)
                yield Piece(expert * size + piece.start, expert * size + piece.stop, at, expert)
        return
    row, step = math.prod(shape[1:]), num_rows(shape, device)
    for first in range(0, shape[0], step):
        last = min(first + step, shape[0])
        yield Piece(first * row, last * row, (slice(first, last),))
