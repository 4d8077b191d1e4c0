"""Numbers as LaTeX: rounded to the two significant digits of their interval, or to four significant digits without one."""

import math
from decimal import ROUND_HALF_EVEN, Decimal

MISSING = "--"  # an en dash: no value
_SIGNIFICANT = 4
_DIGITS = 2  # of an interval's width
_PLAIN = (-3, 7)  # powers of ten between which a number is written without an exponent


def number(value: float | None) -> str:
    """Return a number of 4 significant digits, thousands apart; an integer keeps all; null and NaN as an en dash."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return MISSING
    if isinstance(value, int):
        return _sign(f"{value:,}")
    if math.isinf(value):
        return rf"\ensuremath{{{'-' if value < 0 else ''}\infty}}"
    if value == 0:
        return "0"
    power = _power(value)
    if not _PLAIN[0] <= power < _PLAIN[1]:
        return _scientific(_sign(_fixed(value, power - _SIGNIFICANT + 1, power)), power)
    return _sign(_fixed(value, power - _SIGNIFICANT + 1))


def written(shown: str) -> str:
    """Return a number that the report wrote, ``-3.001e-9``, as LaTeX, with the digits it has."""
    mantissa, _, power = shown.partition("e")
    return _scientific(_sign(mantissa), int(power)) if power else _sign(mantissa)


def percent(value: float | None) -> str:
    """Return a share in percent, with 3 significant digits."""
    if value is None or not math.isfinite(value):
        return MISSING
    shown = 100 * value
    if value == 0 or abs(shown) < 1e-3:
        return rf"{number(shown)}\,\%"
    power = math.floor(math.log10(abs(float(f"{shown:.2e}"))))
    return rf"{_sign(_fixed(shown, power - 2))}\,\%"


def spread(mean: float | None, low: float | None, high: float | None) -> str:
    """Return ``mean [smallest, largest]`` of several cases, which is no uncertainty: each with 4 significant digits."""
    if mean is None or low is None or high is None or number(low) == number(high):
        return number(mean)
    return f"{number(mean)} [{number(low)}, {number(high)}]"


def with_interval(value: float | None, low: float | None, high: float | None) -> str:
    """Return ``1.73 [1.38, 2.13]``: all three rounded at the second significant digit of ``high - low``.

    Where they are large or small, they share a power of ten. Without both ends, or with equal ones, it is :func:`number`;
    so is each of the three where they are of one sign and so far apart that one would be rounded to zero.
    """
    shown = rounded(value, low, high)
    if shown is None and _apart(value, low, high):
        return f"{number(value)} [{number(low)}, {number(high)}]"
    if shown is None:
        return number(value)
    (mid, bottom, top), power = shown
    text = f"{mid} [{bottom}, {top}]"
    return text if power is None else rf"{text}\ensuremath{{\times10^{{{power}}}}}"


def ends(value: float | None, low: float | None, high: float | None) -> tuple[str, str, str]:
    """Return estimate, low and high end each on its own, rounded as :func:`with_interval` does."""
    shown = rounded(value, low, high)
    if shown is None:
        return number(value), number(low), number(high)
    parts, power = shown
    mid, bottom, top = (part if power is None else _scientific(part, power) for part in parts)
    return mid, bottom, top


def rounded(
    value: float | None, low: float | None, high: float | None
) -> tuple[tuple[str, str, str], int | None] | None:
    """Return the three as text, and the power of ten they are shown in units of; None where there is no width to round to."""
    if value is None or low is None or high is None or not all(map(math.isfinite, (value, low, high))) or high <= low:
        return None
    width = _power(high - low, _DIGITS)
    place = width - _DIGITS + 1
    if _apart(value, low, high):
        return None
    power = max((_power(one) for one in (value, low, high) if one), default=width)
    if _PLAIN[0] <= power < _PLAIN[1]:
        return (_sign(_fixed(value, place)), _sign(_fixed(low, place)), _sign(_fixed(high, place))), None
    place = min(place, power)
    return (
        _sign(_fixed(value, place, power)),
        _sign(_fixed(low, place, power)),
        _sign(_fixed(high, place, power)),
    ), power


def _apart(value: float | None, low: float | None, high: float | None) -> bool:
    """Tell whether an interval beside zero is so wide that its value or the end near zero would read as zero."""
    if (
        value is None
        or low is None
        or high is None
        or not low * high > 0
        or not math.isfinite(high - low)
        or high <= low
    ):
        return False
    half = 0.5 * 10.0 ** (_power(high - low, _DIGITS) - _DIGITS + 1)
    return min(abs(one) for one in (low, high, value or low)) <= half


def _power(value: float, digits: int = _SIGNIFICANT) -> int:
    """Return the power of ten of the first digit, once rounded to ``digits``."""
    return int(f"{abs(value):.{digits - 1}e}".partition("e")[2])


def _fixed(value: float, place: int, power: int = 0) -> str:
    """Return ``value`` rounded to ``10^place``, in units of ``10^power``, from its shortest exact digits."""
    exact = Decimal(repr(float(value))).quantize(Decimal(1).scaleb(place), rounding=ROUND_HALF_EVEN).scaleb(-power)
    text = f"{exact:,.{max(power - place, 0)}f}"
    return text.lstrip("-") if not exact else text  # no minus before zero


def _sign(text: str) -> str:
    return rf"\ensuremath{{-}}{text[1:]}" if text.startswith("-") else text


def _scientific(mantissa: str, power: int) -> str:
    return rf"{mantissa}\ensuremath{{\times10^{{{power}}}}}"
