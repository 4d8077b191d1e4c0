"""The plain loop: one window after the other through the model's own forward, float64, no batch."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from esa.data import TokenWindows
from esa.model import LoadedModel

LINES = [
    "The cat sat.",
    "A longer line of plain text here",
    "no",
    "Weights, too: 4 of them.",
    "",
    "The dog did not sit!",
    "Now then",
]


def write_lines(folder: Path) -> str:
    """Write lines of unequal lengths and return them as a source."""
    path = folder / "lines.txt"
    path.write_text("\n".join(LINES), encoding="utf-8")
    return f"file:{path}"


def window_logits(loaded: LoadedModel, windows: TokenWindows) -> list[Tensor]:
    """Return the logits of every predicted position, window by window, ``(T, V)`` float64."""
    with torch.no_grad():
        return [
            loaded.model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, :-1].double() for ids in windows.ids
        ]


def token_nlls(loaded: LoadedModel, windows: TokenWindows) -> list[Tensor]:
    """Return every predicted token's NLL in nats, window by window."""
    return [
        -logits.log_softmax(-1)[torch.arange(len(ids) - 1), torch.tensor(ids[1:])]
        for logits, ids in zip(window_logits(loaded, windows), windows.ids, strict=True)
    ]


def pick(windows: Sequence[Tensor]) -> Tensor:
    """Return the first choice at every position, windows joined."""
    return torch.cat([logits.argmax(-1) for logits in windows])
