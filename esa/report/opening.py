"""What every way of writing runs up begins with: which runs there are, the criteria they are held to, and their page."""

from collections.abc import Sequence
from pathlib import Path

from esa.artifact.gather import Gathered
from esa.artifact.grouping import group
from esa.report.comparison import Comparison
from esa.report.criteria import Criteria, load_criteria
from esa.report.page import Content, content
from esa.report.verdicts import Judged


def opened(sources: Sequence[str | Path], criteria: Path | None) -> tuple[Gathered | Comparison, Criteria]:
    """Return the run that ``sources`` name, or several as a comparison, and the criteria of a file, by default esa's own.

    Raises ArtifactError for sources that are no finished steps, SpecError for criteria that do not hold.
    """
    grouped = group(sources)
    found = grouped.runs[0] if grouped.lone else Comparison(grouped)
    return found, load_criteria(criteria)


def content_of(found: Gathered | Comparison, judged: Sequence[Judged]) -> Content:
    """Return the page: what one run was found to hold, or how several compare."""
    if isinstance(found, Gathered):
        return content(found, judged)
    from esa.report.compare_page import compared

    return compared(found, judged)
