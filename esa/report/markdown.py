"""Markdown as text: numbers, escapes, tables. Nothing in here knows what a number means."""

import math
import re
from collections.abc import Iterable, Sequence

MISSING = "–"  # noqa: RUF001, an en dash reads as "no value" in a table
_SIGNIFICANT = 4
_PLAIN = (1e-3, 1e7)  # outside of this range a number is written with an exponent
_SPECIAL = re.compile(r"([\\`*\[\]|~])")
_EDGE_UNDERSCORE = re.compile(r"(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])")
_BLOCK_START = re.compile(r"^([#+-]|\d+(?=[.)](?:\s|$)))")


def number(value: float | None) -> str:
    """Return ``value`` for a reader: 4 significant digits, thousands apart; null and what is not finite as a dash.

    An integer keeps all its digits. Trailing zeros stay (``19.50``): they are significant.
    """
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return MISSING
    if isinstance(value, int):
        return f"{value:,}"
    if value == 0:
        return "0"
    rounded = float(f"{value:.{_SIGNIFICANT - 1}e}")
    if not _PLAIN[0] <= abs(rounded) < _PLAIN[1]:
        mantissa, exponent = f"{rounded:.{_SIGNIFICANT - 1}e}".split("e")
        return f"{mantissa}e{int(exponent)}"
    digits = _SIGNIFICANT - 1 - math.floor(math.log10(abs(rounded)))
    return f"{rounded:,.{max(digits, 0)}f}"


def spread(mean: float | None, low: float | None, high: float | None) -> str:
    """Return ``mean [min, max]``, or the mean alone where they agree to the digits shown."""
    if low is None or high is None or number(low) == number(high):
        return number(mean)
    return f"{number(mean)} [{number(low)}, {number(high)}]"


def percent(value: float | None) -> str:
    """Return a share as a percentage of 3 significant digits at most."""
    if value is None or not math.isfinite(value):
        return MISSING
    if value == 0:
        return "0 %"
    shown = 100 * value
    digits = min(max(2 - math.floor(math.log10(abs(shown))), 0), 6)
    return f"{shown:.{digits}f} %" if abs(shown) >= 1e-6 else f"{number(shown)} %"


def size(num_bytes: float | None) -> str:
    """Return bytes as GiB or MiB."""
    if num_bytes is None:
        return MISSING
    mib = num_bytes / 2**20
    return f"{number(mib / 1024)} GiB" if mib >= 1024 else f"{number(mib)} MiB"


def escape(text: object) -> str:
    """Return text from a file so that Markdown and HTML show it as it is, on one line, also in a table's cell."""
    if text is None:
        return MISSING
    flat = " ".join(str(text).split())
    flat = _SPECIAL.sub(r"\\\1", flat)
    flat = _EDGE_UNDERSCORE.sub(r"\\_", flat)
    flat = flat.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return _BLOCK_START.sub(lambda match: f"{match[0]}\\" if match[0].isdigit() else f"\\{match[0]}", flat)


def code(text: object, *, cell: bool = True) -> str:
    """Return text from a file as a code span; ``cell`` also escapes the ``|`` that would end a table's cell."""
    if text is None:
        return MISSING
    flat = " ".join(str(text).split())
    if not flat:
        return MISSING
    fence = "`" * (_longest_run(flat) + 1)
    pad = " " if flat[0] == "`" or flat[-1] == "`" else ""
    flat = flat.replace("|", "\\|") if cell else flat
    return f"{fence}{pad}{flat}{pad}{fence}"


def block(lines: Iterable[str], language: str = "") -> str:
    """Return lines as a fenced block that nothing inside can end."""
    text = "\n".join(lines)
    fence = "`" * max(3, _longest_run(text) + 1)
    return f"{fence}{language}\n{text}\n{fence}"


def table(header: Sequence[str], rows: Iterable[Sequence[str]], align: str = "") -> str:
    """Return a pipe table of cells that are escaped already; ``align`` holds ``l`` or ``r`` per column."""
    marks = {"l": ":--", "r": "--:"}
    ruler = [marks[align[i] if i < len(align) else "l"] for i in range(len(header))]
    lines = [header, ruler, *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def bullets(lines: Sequence[str]) -> str:
    """Return a list with an entry per line."""
    return "\n".join(f"- {line}" for line in lines)


def join(words: Sequence[str], last: str = "and") -> str:
    """Return ``a, b and c``."""
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} {last} {words[-1]}" if words else ""


def _longest_run(text: str) -> int:
    return max((len(run) for run in re.findall(r"`+", text)), default=0)
