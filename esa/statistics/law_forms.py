"""How each law is fitted: its coordinates, the part that is linear in them, and a grid over the part that is not."""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import product

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]

_SWING = 12.0  # an exponent, or a ratio of two ends, is sought up to exp(12) over the range of the sizes
_STEEPEST, _FLATTEST = 4.0, 0.02  # of a saturating law: beyond, it is a step behind the first size, or a logarithm


@dataclass(frozen=True)
class Scaling:
    """Where the sizes lie: all coordinates are relative to it, so that parameters of 1e9 weights fit like those of 10."""

    low: float
    high: float
    inner_low: float
    inner_high: float

    @property
    def reach(self) -> float:
        """Return ``ln(high / low)``."""
        return float(np.log(self.high / self.low))

    def log(self, x: Array) -> Array:
        """Return ln x, 0 at the smallest and 1 at the largest size."""
        return np.asarray(np.log(x / self.low) / self.reach)

    def straight(self, x: Array) -> Array:
        """Return x, 0 at the smallest and 1 at the largest size."""
        return np.asarray((x - self.low) / (self.high - self.low))


def scaling_of(x: Array) -> Scaling:
    """Return the scaling of sizes ``(M,)``; the inner ends leave two distinct sizes on either side where there are four."""
    sizes = np.unique(x)
    inner = (sizes[1], sizes[-2]) if len(sizes) >= 4 else (sizes[0], sizes[-1])
    return Scaling(float(sizes[0]), float(sizes[-1]), float(inner[0]), float(inner[1]))


@dataclass(frozen=True)
class Form:
    """The response as ``offset(x; shape) + basis(x; shape) @ linear``, coordinates ``(linear, shape)``.

    ``basis`` takes x ``(M,)`` and shapes ``(R, S)`` and returns ``(R, M, L)``, ``offset`` ``(R, M)``. ``grid`` ``(G, S)``
    holds starting shapes, ``low`` and ``high`` ``(S,)`` their bounds. ``values`` takes coordinates ``(R, L + S)`` to the
    law's parameters ``(R, P)``; ``signs``: of each, 1 where it is above zero, -1 below, 0 either; ends of the first two are
    sought in logs.
    """

    num_linear: int
    basis: Callable[[Array, Array], Array]
    offset: Callable[[Array, Array], Array] | None
    values: Callable[[Array], Array]
    signs: tuple[int, ...]
    grid: Array
    low: Array
    high: Array


def form_of(law: str, response: str, scaling: Scaling) -> Form:
    """Return how the law named is fitted to ln y (``response = "log"``) or to y (``"natural"``).

    Laws that are lines in their response have no shape. ``a + b x``, ``a + b ln x`` and ``c + a x^b`` in ln y are
    written by their values at the smallest and the largest size, y_0 (1 - t) + y_1 t with t from 0 to 1 in between,
    whose ratio is the shape: above zero at every size, as ln y asks. ``a x^b`` in y is a scale times a shape.
    """
    return {"log": _log_form, "natural": _natural_form}[response](law, scaling)


def _log_form(law: str, scaling: Scaling) -> Form:
    """Return the form of a law in ln y."""
    if law == "power":
        return _line(scaling.log, lambda c: _power_values(c, scaling), (1, 0))
    if law == "exponential":
        return _line(scaling.straight, lambda c: _exponential_values(c, scaling), (1, 0))
    if law == "broken_power":
        low, high = scaling.log(np.asarray([scaling.inner_low, scaling.inner_high]))
        return Form(
            3, lambda x, shape: _broken_basis(scaling.log(x), shape), None, lambda c: _broken_values(c, scaling),
            (1, 0, 0, 1), np.linspace(low, high, 81)[:, None], np.asarray([low]), np.asarray([high]),
        )  # fmt: skip
    ratios = np.linspace(-_SWING, _SWING, 97)
    if law == "saturating":
        bends = np.linspace(np.log(_FLATTEST), np.log(_STEEPEST), 31)
        return Form(
            1, _ones, lambda x, shape: _blend(_bent(x, shape[:, 1:], scaling), shape[:, :1]),
            lambda c: _saturating_values(np.exp(c[:, 0]), np.exp(c[:, 0] + c[:, 1]), c[:, 2], scaling),
            (0, 0, -1), np.asarray(list(product(ratios, bends))), np.asarray([-_SWING, bends[0]]),
            np.asarray([_SWING, bends[-1]]),
        )  # fmt: skip
    axis = {"linear": scaling.straight, "logarithmic": scaling.log}[law]
    return Form(
        1, _ones, lambda x, shape: _blend(axis(x), shape),
        lambda c: _line_values(law, np.exp(c[:, 0]), np.exp(c[:, 0] + c[:, 1]), scaling),
        (0, 0), ratios[:, None], np.asarray([-_SWING]), np.asarray([_SWING]),
    )  # fmt: skip


def _natural_form(law: str, scaling: Scaling) -> Form:
    """Return the form of a law in y itself."""
    if law in ("linear", "logarithmic"):
        axis = {"linear": scaling.straight, "logarithmic": scaling.log}[law]
        return _line(axis, lambda c: _line_values(law, c[:, 0], c[:, 0] + c[:, 1], scaling), (0, 0))
    if law == "saturating":
        bends = np.linspace(np.log(_FLATTEST), np.log(_STEEPEST), 61)
        return Form(
            2, lambda x, shape: _with_one(_bent(x, shape, scaling)), None,
            lambda c: _saturating_values(c[:, 0], c[:, 0] + c[:, 1], c[:, 2], scaling),
            (0, 0, -1), bends[:, None], bends[:1], bends[-1:],
        )  # fmt: skip
    slopes = np.linspace(-_SWING, _SWING, 97)
    if law == "broken_power":
        low, high = scaling.log(np.asarray([scaling.inner_low, scaling.inner_high]))
        coarse, breaks = np.linspace(-8, 8, 17), np.linspace(low, high, 13)
        return Form(
            1, lambda x, shape: _broken_scale(scaling.log(x), shape), None,
            lambda c: _signed_broken_values(c, scaling), (0, 0, 0, 1),
            np.asarray(list(product(coarse, coarse, breaks))), np.asarray([-_SWING, -_SWING, low]),
            np.asarray([_SWING, _SWING, high]),
        )  # fmt: skip
    axis = {"power": scaling.log, "exponential": scaling.straight}[law]
    values = {"power": _power_values, "exponential": _exponential_values}[law]

    def signed(coordinates: Array) -> Array:
        found = values(np.column_stack([np.zeros(len(coordinates)), coordinates[:, 1]]), scaling)
        found[:, 0] *= coordinates[:, 0]
        return found

    return Form(
        1, lambda x, shape: np.exp(shape * axis(x))[:, :, None], None, signed, (0, 0), slopes[:, None],
        np.asarray([-_SWING]), np.asarray([_SWING]),
    )  # fmt: skip


def _line(axis: Callable[[Array], Array], values: Callable[[Array], Array], signs: tuple[int, ...]) -> Form:
    """Return the form of a straight line over an axis: no shape at all."""
    return Form(
        2, lambda x, shape: _with_one(np.broadcast_to(axis(x), (len(shape), len(x)))), None, values, signs,
        np.empty((1, 0)), np.empty(0), np.empty(0),
    )  # fmt: skip


def _ones(x: Array, shape: Array) -> Array:
    """Return the basis of a mere scale in logs."""
    return np.ones((len(shape), len(x), 1))


def _with_one(axis: Array) -> Array:
    """Return the basis of a line: a constant and the axis."""
    return np.stack([np.ones_like(axis), axis], axis=-1)


def _blend(t: Array, ratio: Array) -> Array:
    """Return ``ln((1 - t) + exp(ratio) t)``; not a number where a line beyond the sizes has fallen below zero."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(np.log((1 - t) + np.exp(ratio) * t))


def _bent(x: Array, bend: Array, scaling: Scaling) -> Array:
    """Return ``(1 - (x / low)^b) / (1 - (high / low)^b)`` with ``b = -exp(bend)``."""
    exponent = -np.exp(bend)
    return np.asarray(np.expm1(exponent * np.log(x / scaling.low)) / np.expm1(exponent * scaling.reach))


def _broken_basis(u: Array, shape: Array) -> Array:
    """Return the basis of two lines that meet at the break."""
    away = u - shape
    return np.stack([np.ones_like(away), np.minimum(away, 0), np.maximum(away, 0)], axis=-1)


def _broken_scale(u: Array, shape: Array) -> Array:
    """Return ``exp`` of two lines that meet at the break, 1 there."""
    away = u - shape[:, 2:]
    return np.exp(shape[:, :1] * np.minimum(away, 0) + shape[:, 1:2] * np.maximum(away, 0))[:, :, None]


def _power_values(c: Array, scaling: Scaling) -> Array:
    """Return a and b of ``a x^b`` from ln y at the smallest size and the rise to the largest."""
    exponent = c[:, 1] / scaling.reach
    return np.column_stack([np.exp(c[:, 0] - exponent * np.log(scaling.low)), exponent])


def _exponential_values(c: Array, scaling: Scaling) -> Array:
    """Return a and b of ``a exp(b x)`` from ln y at the smallest size and the rise to the largest."""
    rate = c[:, 1] / (scaling.high - scaling.low)
    return np.column_stack([np.exp(c[:, 0] - rate * scaling.low), rate])


def _line_values(law: str, first: Array, last: Array, scaling: Scaling) -> Array:
    """Return a and b of ``a + b x`` or ``a + b ln x`` from y at the smallest and at the largest size."""
    straight = law == "linear"
    origin, width = (scaling.low, scaling.high - scaling.low) if straight else (np.log(scaling.low), scaling.reach)
    slope = (last - first) / width
    return np.column_stack([first - slope * origin, slope])


def _saturating_values(first: Array, last: Array, bend: Array, scaling: Scaling) -> Array:
    """Return c, a and b of ``c + a x^b`` from y at the smallest and at the largest size and ``b = -exp(bend)``."""
    exponent = -np.exp(bend)
    swing = (last - first) / -np.expm1(exponent * scaling.reach)
    return np.column_stack([first + swing, -swing * scaling.low**-exponent, exponent])


def _broken_values(c: Array, scaling: Scaling) -> Array:
    """Return a, b1, b2 and x0 from ln y at the break, the two rises and the break."""
    below, above = c[:, 1] / scaling.reach, c[:, 2] / scaling.reach
    at = np.log(scaling.low) + c[:, 3] * scaling.reach
    return np.column_stack([np.exp(c[:, 0] - below * at), below, above, np.exp(at)])


def _signed_broken_values(c: Array, scaling: Scaling) -> Array:
    """Return a, b1, b2 and x0 from y at the break, the two rises and the break."""
    found = _broken_values(np.column_stack([np.zeros(len(c)), c[:, 1:]]), scaling)
    found[:, 0] *= c[:, 0]
    return found
