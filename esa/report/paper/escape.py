"""Text from files as LaTeX that shows it as it is: for plain pdflatex with T1 fonts, UTF-8 input and textcomp."""

import re
import unicodedata
from collections.abc import Callable

from markdown_it import MarkdownIt
from markdown_it.token import Token

_SPECIAL = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "$": r"\$", "&": r"\&", "%": r"\%", "#": r"\#", "_": r"\_",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}",
    "|": r"\textbar{}", '"': r"\textquotedbl{}", "'": r"\textquotesingle{}", "`": r"\textasciigrave{}",
}  # fmt: skip
# Letters that T1 fonts have, and punctuation that the kernel knows: written as they are.
_KNOWN = frozenset(
    "¡£«»¿ÀÁÂÃÄÅÆÇÈÉÊËÌÍÎÏÐÑÒÓÔÕÖØÙÚÛÜÝÞßàáâãäåæçèéêëìíîïðñòóôõöøùúûüýþÿĂăĄąĆćČčĎďĐđĘęĚěĞğĹĺĽľŁłŃńŇňŌōŐőŒœŔŕŘřŚśŞşŠšŢţŤťŮůŰűŸŹźŻżŽž"
    "§¶©®°µ‘’“”„†‡•…"  # noqa: RUF001
)
_MATH = {
    "×": r"\times", "÷": r"\div", "±": r"\pm", "−": "-", "·": r"\cdot", "≤": r"\leq", "≥": r"\geq", "≠": r"\neq",  # noqa: RUF001
    "≈": r"\approx", "≡": r"\equiv", "∝": r"\propto", "∞": r"\infty", "∈": r"\in", "∑": r"\sum", "√": r"\surd", "∂": r"\partial",
    "∇": r"\nabla", "→": r"\rightarrow", "←": r"\leftarrow", "↑": r"\uparrow", "↓": r"\downarrow", "⇒": r"\Rightarrow",
    "²": "^2", "³": "^3", "¹": "^1", "Γ": r"\Gamma", "Δ": r"\Delta", "∆": r"\Delta", "Θ": r"\Theta", "Λ": r"\Lambda",
    "Ξ": r"\Xi", "Π": r"\Pi", "Σ": r"\Sigma", "Φ": r"\Phi", "Ψ": r"\Psi", "Ω": r"\Omega", "α": r"\alpha", "β": r"\beta",  # noqa: RUF001
    "γ": r"\gamma", "δ": r"\delta", "ε": r"\varepsilon", "ζ": r"\zeta", "η": r"\eta", "θ": r"\theta", "κ": r"\kappa",  # noqa: RUF001
    "λ": r"\lambda", "μ": r"\mu", "ν": r"\nu", "ξ": r"\xi", "π": r"\pi", "ρ": r"\rho", "σ": r"\sigma", "τ": r"\tau",  # noqa: RUF001
    "φ": r"\varphi", "χ": r"\chi", "ψ": r"\psi", "ω": r"\omega",
}  # fmt: skip
_DASHES = {"–": r"\textendash{}", "—": r"\textemdash{}", "‐": "-", "‑": "-"}  # noqa: RUF001
_LIGATURES = re.compile(r"(?<=[-,])(?=[-,])")  # T1 fonts make one sign of two hyphens, and of two commas
_BREAK = r"\allowbreak{}"
_BREAKS = re.compile(r"(?<=[./:,])(?=\w)|(?<=_)(?=\w)")
_NUMBER = re.compile(r"(?<![\w.-])-?\d+(?:,\d{3})*(?:\.\d+)?(?:e-?\d+)?(?![\w]|\.\d|,\d)")  # as the report writes them
_TEXT = MarkdownIt("commonmark").disable(["link", "image", "autolink", "html_inline"])


def escape(text: object) -> str:
    """Return text from a file as LaTeX that shows it literally, on one line.

    A character that the fonts of pdflatex do not have is shown by its number, ``U+4E2D``: nothing is left out.
    """
    flat = unicodedata.normalize("NFC", " ".join(str(text).split()))
    return "".join(_character(one) for one in _split(flat))


def code(text: object) -> str:
    """Return text from a file in typewriter type, which may go on in the next line behind a dot, slash, colon or underscore."""
    flat = unicodedata.normalize("NFC", " ".join(str(text).split()))
    parts = ("".join(_character(one) for one in _split(part)) for part in _BREAKS.split(flat))
    return rf"\texttt{{{_BREAK.join(parts)}}}"


def comment(text: object) -> str:
    """Return text from a file as what may stand behind a ``%``: one line."""
    return " ".join("".join(one if one.isprintable() else " " for one in str(text)).split())


def sentence(markdown: str, put: Callable[[str], str] | None = None) -> str:
    """Return a part of the report, Markdown whose text from files is escaped, as LaTeX: strong, code and lists stay.

    ``put`` gives the LaTeX of each number that stands in the text, outside of code; by default the number itself.
    """
    return _blocks(_TEXT.parse(markdown), put or escape).strip()


def _split(text: str) -> list[str]:
    """Return the characters, with an empty group where two of them would make a ligature."""
    found: list[str] = []
    for part in _LIGATURES.split(text):
        found += [*([""] if found else []), *part]
    return found


def _character(one: str) -> str:
    if one == "":
        return "{}"
    if one in _SPECIAL:
        return _SPECIAL[one]
    if one in _MATH:
        return rf"\ensuremath{{{_MATH[one]}}}"
    if one in _DASHES:
        return _DASHES[one]
    if 32 <= ord(one) < 127 or one in _KNOWN:
        return one
    if one == "\N{NO-BREAK SPACE}":
        return "~"
    return rf"\texttt{{U+{ord(one):04X}}}"


def _blocks(tokens: list[Token], put: Callable[[str], str]) -> str:
    marks = {
        "bullet_list_open": "\n\\begin{itemize}\n", "bullet_list_close": "\\end{itemize}\n", "list_item_open": "\\item ",
        "list_item_close": "\n",
    }  # fmt: skip
    return "".join(
        _inline(one.children or [], put) if one.type == "inline" else marks.get(one.type, "") for one in tokens
    )


def _inline(tokens: list[Token], put: Callable[[str], str]) -> str:
    marks = {"strong_open": r"\textbf{", "strong_close": "}", "em_open": r"\emph{", "em_close": "}", "softbreak": " "}
    found = []
    for one in tokens:
        if one.type == "code_inline":
            found.append(code(one.content))
        elif one.type in ("text", "text_special"):
            found.append(_numbered(one.content, put))
        else:
            found.append(marks.get(one.type, ""))
    return "".join(found)


def _numbered(text: str, put: Callable[[str], str]) -> str:
    """Return text with its numbers as ``put`` gives them."""
    found, start = [], 0
    for number in _NUMBER.finditer(text):
        found += [_padded(text[start : number.start()]), put(number[0])]
        start = number.end()
    return "".join([*found, _padded(text[start:])])


def _padded(text: str) -> str:
    """Return text with the spaces at its ends, which part it from what stands beside it."""
    before = " " if text[:1].isspace() else ""
    after = " " if text[-1:].isspace() and text.strip() else ""
    return before + escape(text) + after
