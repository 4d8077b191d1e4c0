"""Numbers of weights as people write them: 350M, 7B, 1.3e9."""

import math
import re
from collections.abc import Sequence

from esa.errors import EsaError

SUFFIXES = {"": 1.0, "K": 1e3, "M": 1e6, "B": 1e9, "T": 1e12}
_SIZE = re.compile(r"([0-9]*\.?[0-9]+(?:e[+-]?[0-9]+)?)\s*([kmbt]?)", re.IGNORECASE)


def parse_size(text: str, where: str = "--to") -> float:
    """Return a number of weights or tokens from ``7B``: a number, and K, M, B or T for 1e3, 1e6, 1e9 and 1e12.

    Raises EsaError, naming ``where``, for anything else, and for a number that is not above zero.
    """
    found = _SIZE.fullmatch(text.strip())
    value = float(found[1]) * SUFFIXES[found[2].upper()] if found else math.nan
    if not (math.isfinite(value) and value > 0):
        raise EsaError(
            f"'{text}' is no size; allowed: a number above zero, K, M, B or T behind it, as 350M or 7B", where=where
        )
    return value


def parse_sizes(texts: Sequence[str], where: str = "--to") -> tuple[float, ...]:
    """Return the sizes, each once, in the order given; a text may name several, set apart by commas."""
    return tuple(dict.fromkeys(parse_size(part, where) for text in texts for part in text.split(",")))


def size_words(value: float | None) -> str:
    """Return a size in three digits: ``7.00B``, ``134M``, ``672``."""
    if value is None:
        return "-"
    for suffix, unit in reversed(SUFFIXES.items()):
        if value >= unit > 1:
            return f"{value / unit:.3g}{suffix}"
    return f"{value:.3g}"
