"""The small document that shows a paper's parts: it inputs all of them, and compiles with pdflatex and bibtex."""

from collections.abc import Sequence

from esa.report.figures import Figure
from esa.report.paper.escape import escape, sentence
from esa.report.paper.tables import PaperTable

NOTE = "Written by esa report --paper, and written over by the next call: copy what you change."
FLOATS = 8  # that wait for their place at most
_PREAMBLE = r"""\documentclass{article}
\usepackage[T1]{fontenc}
\usepackage[utf8]{inputenc}
\usepackage{lmodern}
\usepackage{textcomp}
\usepackage{booktabs}
\usepackage{graphicx}
\usepackage[margin=25mm]{geometry}
\input{macros}"""


def example(
    name: str,
    question: str | None,
    *,
    findings: bool,
    tables: Sequence[PaperTable],
    figures: Sequence[tuple[str, Figure]],
    cited: bool,
) -> str:
    """Return the document; ``figures`` are the names of their files beside what they show."""
    title = escape(question or name)
    parts = [
        f"% {NOTE}",
        _PREAMBLE,
        rf"\title{{{title}}}",
        r"\author{}",
        r"\date{}",
        r"\begin{document}",
        r"\maketitle",
    ]
    parts += [r"\section{Methods}", r"\input{methods}"]
    parts += [r"\section{Findings}", r"\input{findings}"] if findings else []
    if tables:
        parts += [r"\section{Tables}", *_cleared([rf"\input{{tables/{one.name}}}" for one in tables])]
    if figures:
        parts += [r"\section{Figures}", *_cleared([_float(file, figure) for file, figure in figures])]
    parts += [r"\bibliographystyle{plain}", r"\bibliography{references}"] if cited else []
    return "\n".join([*parts, r"\end{document}", ""])


def _cleared(floats: Sequence[str]) -> list[str]:
    """Return the floats with a new page behind every ``FLOATS``: LaTeX gives up where more of them wait for their place."""
    pages = [floats[start : start + FLOATS] for start in range(0, len(floats), FLOATS)]
    return [line for page in pages for line in (*page, r"\clearpage")]


def _float(file: str, figure: Figure) -> str:
    caption = f"{escape(figure.title)}. {sentence(figure.caption)}"
    return "\n".join([
        r"\begin{figure}[htbp]",
        r"  \centering",
        rf"  \includegraphics[width=\ifdim\linewidth>85mm 85mm\else\linewidth\fi]{{figures/{file}}}",
        rf"  \caption{{{caption}}}",
        rf"  \label{{fig:esa-{file.removesuffix('.pdf').replace('_', '-')}}}",
        r"\end{figure}",
    ])  # fmt: skip
