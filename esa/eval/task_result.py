"""What a task found: its figures, and the values of its items from which differences are paired."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from esa.artifact import finite

ItemValue = tuple[int, int | None, str, float | None]  # item, choice, metric, value
Figure = tuple[str, float | None, float | None]  # metric, value, standard error


@dataclass
class TaskResult:
    """One task on one variant of the model.

    ``figures``: metric, value, standard error. ``items``: item, choice (None: of the whole item), metric, value. ``tokens``:
    per prompt the tokens of its continuation (generation alone). ``nonfinite``: a logit was NaN or infinite; every figure
    that it reaches is None, never zero.
    """

    figures: list[Figure]
    items: list[ItemValue]
    num_items: int
    num_tokens: int
    nonfinite: bool = False
    tokens: list[list[int]] = field(default_factory=list)

    def record(self) -> dict[str, Any]:
        """Return the result as JSON."""
        return asdict(self)

    @classmethod
    def from_record(cls, record: dict[str, Any]) -> "TaskResult":
        """Return the result that ``record`` gave."""
        figures = [(name, value, error) for name, value, error in record["figures"]]
        items = [(item, choice, name, value) for item, choice, name, value in record["items"]]
        return cls(**{**record, "figures": figures, "items": items})

    def per_item(self, metric: str) -> dict[int, float | None]:
        """Return a metric's value by item, for metrics that items as a whole have."""
        return {item: value for item, choice, name, value in self.items if choice is None and name == metric}

    def figure(self, metric: str) -> float | None:
        """Return a figure's value."""
        return next(value for name, value, _ in self.figures if name == metric)


def mean_figure(metric: str, values: Sequence[float | None]) -> Figure:
    """Return the mean over N items and its standard error, ``s / sqrt(N)``, s with N - 1; None where any item has none."""
    known = [value for value in values if value is not None]
    if len(known) < len(values) or not known:
        return metric, None, None
    mean = math.fsum(known) / len(known)
    return metric, mean, standard_error(known)


def standard_error(values: Sequence[float]) -> float | None:
    """Return the standard error of a mean, or None under two values."""
    number = len(values)
    if number < 2:
        return None
    mean = math.fsum(values) / number
    return finite(math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (number - 1) / number))
