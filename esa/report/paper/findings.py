"""What the report found, in its own sentences, as LaTeX whose numbers are macros."""

from collections.abc import Sequence

from esa.report.figures import Figure
from esa.report.page import Section
from esa.report.paper.escape import sentence
from esa.report.paper.names import Macros
from esa.report.paper.rounding import written

FINDING = "Finding"  # the section of the page


def findings_of(sections: Sequence[Section]) -> list[str]:
    """Return the sentences of the page's findings as Markdown, an entry each; none where the page has no such section."""
    parts = [part for one in sections if one.title == FINDING for part in one.parts if not isinstance(part, Figure)]
    found: list[str] = []
    for line in "\n".join(parts).splitlines():
        if line.startswith("- ") or not found:
            found.append(line.removeprefix("- "))
        else:
            found[-1] += f"\n{line}"
    return [one for one in found if one.strip()]


def findings_tex(sections: Sequence[Section], macros: Macros) -> str:
    r"""Return the findings as a list of LaTeX, empty where there are none; each number is ``\esaFindingOneNumberTwo``."""
    lines = []
    for place, markdown in enumerate(findings_of(sections), start=1):
        count = 0

        def put(shown: str, place: int = place, markdown: str = markdown) -> str:
            nonlocal count
            count += 1
            what = f"number {count} of finding {place}: {markdown}"
            return macros.add(["finding", place, "number", count], written(shown), what, "the report's findings")

        lines.append(rf"\item {sentence(markdown, put)}")
    return "\n".join([r"\begin{itemize}", *lines, r"\end{itemize}", ""]) if lines else ""
