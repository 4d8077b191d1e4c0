"""How a score pass runs: how much it holds at once, and where. No score depends on it."""

import math
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from esa.artifact.space import require_space
from esa.score.gradients import in_memory

_FLOAT = 4


@dataclass(frozen=True)
class Strategy:
    """What a pass does to stay within memory.

    ``keep_graphs``: each window goes forward once and back at once, and all accumulators exist; else every block's forward runs
    twice, and one block's accumulators exist. ``waves``: windows whose boundary activations exist together are so many
    parts. ``in_files``: accumulators of at least so many numbers are mapped from files in ``folder`` and not held.
    """

    keep_graphs: bool = False
    waves: int = 1
    in_files: int | None = None
    folder: Path | None = None

    def zeros(self, shape: Sequence[int], device: torch.device) -> Tensor:
        """Return float32 zeros: in memory on ``device``, or mapped from a file that is gone with the tensor, on the CPU.

        Raises EsaError where the disk has no room; the room is taken at once, so that no later write finds it gone.
        """
        number = math.prod(shape)
        if self.in_files is None or number < self.in_files:
            return in_memory(shape, device)
        assert self.folder is not None
        self.folder.mkdir(parents=True, exist_ok=True)
        require_space(self.folder, number * _FLOAT, "accumulators of one tensor")
        with tempfile.NamedTemporaryFile(dir=self.folder, prefix=".sums-") as file:  # mapped, it outlives its name
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(file.fileno(), 0, number * _FLOAT)
            else:  # macOS
                file.truncate(number * _FLOAT)
            return torch.from_file(file.name, shared=True, size=number, dtype=torch.float32).view(tuple(shape))
