"""Where the touched weights of a tensor sit, and what a method is given to know beside their values."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch import Tensor

from esa.model import ParameterInfo, Weight


@dataclass(frozen=True)
class Given:
    """What a case knows beside its targets: what some methods ask for, and the others leave alone.

    ``metric`` and ``scores``: of the group that the targets are of, every target of the whole group, not of the case alone
    (``adaptive``). ``gradients``: per parameter the touched indices, ascending, and the gradient of the calibration loss there,
    float32 (``gradient``); those of more weights than the case touches serve as well. ``stream``: seed and repeat, which name
    the draws that several cases share (``correlated``).
    """

    metric: str | None = None
    scores: Mapping[Any, float | None] = field(default_factory=dict)
    gradients: Mapping[str, tuple[Tensor, Tensor]] | None = None
    stream: tuple[int, int] | None = None
    medians: dict[str, float] = field(default_factory=dict, repr=False, compare=False)  # of these scores, by metric


@dataclass
class Place:
    """Where the touched weights sit: the numbers of their tensor on demand, its description, their indices; the case's draws.

    ``weights``: of the whole model, to be read alone. ``exchange``: of a method that moves numbers about, which of the touched
    ones each of them takes.
    """

    values: Callable[[], Tensor]
    info: ParameterInfo
    index: Tensor  # (touched,), row-major, ascending
    draw: np.random.Generator
    weights: Mapping[str, Weight] = field(default_factory=dict)
    given: Given = field(default_factory=Given)
    exchange: Tensor | None = None  # (touched,), positions in ``index``
