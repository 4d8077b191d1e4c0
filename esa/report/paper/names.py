"""The macros of a paper: names of letters alone, told apart where they collide, each beside what it is."""

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

from esa.report.paper.escape import comment

PREFIX = "esa"
_ONES = (
    *("Zero", "One", "Two", "Three", "Four", "Five", "Six", "Seven", "Eight", "Nine", "Ten", "Eleven", "Twelve"),
    *("Thirteen", "Fourteen", "Fifteen", "Sixteen", "Seventeen", "Eighteen", "Nineteen"),
)
_TENS = ("", "", "Twenty", "Thirty", "Forty", "Fifty", "Sixty", "Seventy", "Eighty", "Ninety")
_GROUPS = ((10**9, "Billion"), (10**6, "Million"), (1000, "Thousand"), (100, "Hundred"))
_WORD = re.compile(r"(?:(?<![\w.])-)?\d+(?:\.\d+)*(?:e[+-]?\d+)?|[A-Za-z]+")
_MOST = 12  # digits of a number that is spelled as one; longer ones digit by digit


@dataclass(frozen=True)
class Macro:
    """A command of the paper: its name without backslash, its value as LaTeX, what it is, and the table it comes from."""

    name: str
    value: str
    what: str
    source: str

    @property
    def line(self) -> str:
        """Return its definition, and beside it what it is."""
        return rf"\newcommand{{\{self.name}}}{{{self.value}}}% {comment(self.what)} [{comment(self.source)}]"


class Macros:
    """Collect the macros of a paper; the same ones in the same order get the same names.

    One that is asked for again with the same value and meaning is the same macro. Another one of the same name gets the
    name with ``B`` behind it, the next ``C``, and says in its comment whose name it wanted.
    """

    def __init__(self) -> None:
        self._by_name: dict[str, Macro] = {}
        self._same: dict[tuple[str, str, str, str], str] = {}

    def add(self, words: Sequence[object], value: str, what: str, source: str) -> str:
        r"""Define a macro named for ``words`` and return what a text says to use it: ``\esaParameters{}``."""
        wanted = PREFIX + "".join(letters(word) for word in words)
        key = (wanted, value, what, source)
        if key not in self._same:
            name, number = wanted, 1
            while name in self._by_name:
                number += 1
                name = wanted + _ordinal(number)
            note = what if name == wanted else f"{what}; wanted the name {wanted}, which another one has"
            self._by_name[name] = Macro(name, value, note, source)
            self._same[key] = name
        return rf"\{self._same[key]}{{}}"

    @property
    def each(self) -> list[Macro]:
        """Return them in the order they were asked for."""
        return list(self._by_name.values())


def letters(text: object) -> str:
    """Return text as the letters of a name, a capital at the head of each word: ``GradXWeight``, ``TenPointFive``.

    Numbers are spelled; accents fall off, and so does what is no letter and no digit.
    """
    plain = unicodedata.normalize("NFKD", str(text)).encode("ascii", "ignore").decode()
    words = _WORD.findall(plain.replace("_", " ").replace("/", " "))
    return "".join(spelled(word) if word[-1].isdigit() else word[0].upper() + word[1:] for word in words)


def spelled(number: str) -> str:
    """Return a number in words: ``135`` is OneHundredThirtyFive, ``-1.5`` MinusOnePointFive, ``1e-5`` OneEMinusFive."""
    mantissa, _, exponent = number.partition("e")
    minus = "Minus" if mantissa.startswith("-") else ""
    parts = mantissa.lstrip("-").split(".")
    # Behind a point digit by digit; a version has several points.
    words = [_whole(parts[0]), *("Point" + "".join(_ONES[int(digit)] for digit in part) for part in parts[1:])]
    power = f"E{'Minus' if exponent.startswith('-') else ''}{_whole(exponent.lstrip('+-'))}" if exponent else ""
    return minus + "".join(words) + power


def _whole(digits: str) -> str:
    if len(digits) > _MOST or (len(digits) > 1 and digits[0] == "0"):
        return "".join(_ONES[int(digit)] for digit in digits)
    return _cardinal(int(digits))


def _cardinal(number: int) -> str:
    if number < len(_ONES):
        return _ONES[number]
    for size, word in _GROUPS:
        if number >= size:
            rest = number % size
            return _cardinal(number // size) + word + (_cardinal(rest) if rest else "")
    return _TENS[number // 10] + (_ONES[number % 10] if number % 10 else "")


def _ordinal(number: int) -> str:
    """Return the letters that tell the second, third ... of a name apart: B, C, ... Z, BA, BB, ..."""
    found = ""
    while number:
        number, digit = divmod(number - 1, 26)
        found = chr(ord("A") + digit) + found
    return found
