"""From runs to points: every quantity of every run beside its model's size, and the series that laws are fitted to."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from esa.scale.models import Member
from esa.scale.quantities import Measured, Wanted, measure
from esa.statistics.laws import Points, response_of

OVER = {"parameters": "num_parameters", "active": "active_parameters"}  # --over -> the column of points/1

Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Point:
    """A value of one run at its x; ``excluded`` says why it stands in no fit."""

    member: Member
    x: float | None
    measured: Measured
    excluded: str | None

    @property
    def row(self) -> dict[str, Any]:
        """Return the row of ``points/1``, without its run."""
        one = self.measured
        return {
            **self.member.about, "seed": one.seed, "quantity": one.quantity, "subject": one.subject, "k": one.k,
            "value": one.value, "low": one.low, "high": one.high, "excluded": self.excluded,
        }  # fmt: skip


def points_of(found: Sequence[Member], over: str, wanted: Wanted) -> list[Point]:
    """Return every value of every run, run by run, with the reason where it stands in no fit.

    ``over``: ``parameters`` (all weights) or ``active`` (those that a token uses). A run that is excluded as a whole keeps
    its values, for a table that hides nothing.
    """
    made = []
    for member in found:
        x = x_of(member, over)
        lacks = None if x is not None else f"its manifests do not say how many weights are {over}"
        for one in measure(member.run, replace(wanted, num_parameters=member.num_parameters)):
            made.append(Point(member, x, one, member.excluded or lacks or one.excluded))
    return made


def x_of(member: Member, over: str) -> float | None:
    """Return where a run stands on the axis of sizes."""
    value = getattr(member, OVER[over])
    return None if value is None else float(value)


@dataclass(frozen=True)
class Series:
    """The values of one quantity and subject that a law may be fitted to, and the values that were left out, with reasons.

    ``x``, ``y`` ``(N,)``; ``models``: the name of the model of each, whose points share one x. ``below_floor``: how many lie
    under their run's noise floor; ``unclear``: how many are damages whose own interval holds 0.
    """

    quantity: str
    subject: str
    x: Array
    y: Array
    models: tuple[str, ...]
    left_out: tuple[tuple[str, str], ...]  # label, reason
    below_floor: int = 0
    unclear: int = 0

    @property
    def name(self) -> str:
        """Return quantity and subject, as ``fits/1`` names them."""
        return f"{self.quantity}: {self.subject}"

    @property
    def num_models(self) -> int:
        """Return how many models have a value."""
        return len(set(self.models))

    @property
    def points(self) -> Points:
        """Return the values as the fits take them: in logs where all are above zero."""
        order = {model: number for number, model in enumerate(dict.fromkeys(self.models))}
        cluster = np.asarray([order[model] for model in self.models], dtype=np.int64)
        return Points(self.x, self.y, cluster, response_of(self.y))


def by_series(points: Sequence[Point]) -> dict[tuple[str, str], list[Point]]:
    """Return the points by quantity and subject: quantities in the order of their first point, subjects within likewise."""
    grouped: dict[str, dict[str, list[Point]]] = {}
    for point in points:
        grouped.setdefault(point.measured.quantity, {}).setdefault(point.measured.subject, []).append(point)
    return {(quantity, subject): rows for quantity, subjects in grouped.items() for subject, rows in subjects.items()}


def series_of(points: Sequence[Point]) -> Iterator[Series]:
    """Yield the series of every quantity and subject, in the order of :func:`by_series`."""
    for (quantity, subject), rows in by_series(points).items():
        kept = [(one.x, one.measured.value, one.member.model) for one in rows if one.excluded is None]
        yield Series(
            quantity, subject,
            np.asarray([x for x, _, _ in kept], dtype=float), np.asarray([y for _, y, _ in kept], dtype=float),
            tuple(model for _, _, model in kept),
            tuple(dict.fromkeys((one.member.label, one.excluded) for one in rows if one.excluded is not None)),
            sum(one.measured.below_floor for one in rows if one.excluded is None),
            sum(one.measured.unclear for one in rows if one.excluded is None),
        )  # fmt: skip
