"""The curves that can be fitted to measurements: formula, parameters, where to start."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import product

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Curve:
    """A curve ``y = scale * shape(x; rest)``: every one here is linear in its first parameter.

    ``shape`` takes x ``(N,)`` and the parameters behind the first. ``positive`` says of every parameter whether it is
    above zero (then it is fitted, and its interval sought, on a log scale). ``starts`` gives, for x, starting points
    of the parameters behind the first; the first one starts at its least-squares value there.
    """

    name: str
    formula: str
    parameters: tuple[str, ...]
    positive: tuple[bool, ...]
    shape: Callable[..., Array]
    starts: Callable[[Array], Iterator[tuple[float, ...]]]

    def __call__(self, x: Array, values: Array) -> Array:
        """Return y at x for the parameters' values."""
        return np.asarray(values[0] * self.shape(x, *values[1:]), dtype=float)


def _power(x: Array, exponent: float) -> Array:
    return np.asarray(x**exponent)


def _hill(x: Array, half: float, exponent: float) -> Array:
    return np.asarray(1 / (1 + (half / x) ** exponent))


def _weibull(x: Array, scale: float, exponent: float) -> Array:
    return np.asarray(-np.expm1(-((x / scale) ** exponent)))


def _exponents(x: Array) -> Iterator[tuple[float, ...]]:
    """Start at exponents on either side of proportional."""
    yield from ((exponent,) for exponent in (0.5, 1.0, 2.0, 4.0))


def _saturating(x: Array) -> Iterator[tuple[float, ...]]:
    """Start with the bend below, amid and beyond the measured x."""
    bends = (*np.quantile(x, [0.25, 0.5, 0.75]), float(x.max()), 3 * float(x.max()))
    yield from product((float(bend) for bend in bends), (0.7, 1.5, 3.0, 6.0))


# name -> curve; x is above zero throughout (a dose of zero does nothing)
FITS: dict[str, Curve] = {
    "power": Curve("power", "a x^b", ("a", "b"), (True, False), _power, _exponents),
    "hill": Curve("hill", "ceiling x^b / (c^b + x^b)", ("ceiling", "c", "b"), (True, True, True), _hill, _saturating),
    "weibull": Curve(
        "weibull", "ceiling (1 - exp(-(x / c)^b))", ("ceiling", "c", "b"), (True, True, True), _weibull, _saturating
    ),
}
