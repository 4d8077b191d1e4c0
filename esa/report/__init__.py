"""Write runs up from their artifacts: one HTML page and Markdown, charts as PNG and SVG, and the charts' data."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from esa.artifact import marking_failures
from esa.progress import Progress, Silent

if TYPE_CHECKING:
    from esa.artifact import Step
    from esa.artifact.gather import Gathered
    from esa.report.comparison import Comparison
    from esa.report.criteria import Criteria
    from esa.report.page import Content
    from esa.report.verdicts import Judged

__all__ = ["REPORTS", "ReportResult", "plan", "run"]

REPORTS = Path("reports")
PAGE, TEXT, CRITERIA = "report.html", "report.md", "criteria.csv"


@dataclass(frozen=True)
class ReportResult:
    """A written report: the path of ``report.html``, its folder, its text as Markdown, and whether it was there before."""

    path: Path
    folder: Path
    markdown: str
    reused: bool = False


@marking_failures()
def run(
    sources: Sequence[str | Path],
    *,
    out: Path | None = None,
    root: Path = REPORTS,
    criteria: Path | None = None,
    force: bool = False,
    progress: Progress | None = None,
) -> ReportResult:
    """Write the report of a run, or of several side by side, and return it.

    ``sources``: run folders, or any subset of their step folders; :func:`esa.artifact.grouping.group` tells which runs they
    are. ``criteria``: a file of criteria, for None those that ship with esa. The folder is ``out``, else ``root/<name>-<id>``,
    of several runs ``root/<name>+<name>-<id>``: ``report.html`` (one file that holds everything), ``report.md``,
    ``criteria.csv`` (a verdict per criterion), ``figures/*.png`` and ``*.svg``, ``data/*.csv`` and, last, ``manifest.json``.
    A complete one is reused unless ``force``. Nothing but the artifacts and the criteria is read: the same ones, in the same
    order, give the same pages, byte for byte. Cost: a second, and a third of a second per figure; no torch, no network.
    Raises ArtifactError for sources that are no finished steps, or whose tables are not what their manifests vouch for;
    SpecError for criteria that do not hold.
    """
    progress = progress or Silent()
    found, step, held = _opened(sources, out, root, criteria)
    path, text_path = step.folder / PAGE, step.folder / TEXT
    if not force and step.complete and path.exists():  # a report of an esa that knew no page is written again
        progress.note(f"report: {step.folder} is complete")
        return ReportResult(path, step.folder, text_path.read_text(encoding="utf-8"), reused=True)
    for text in found.warnings:
        progress.warn(text)
    from esa.report.opening import content_of
    from esa.report.verdicts import judge

    judged = judge(held, found.pairs)
    return _write(step, found, judged, content_of(found, judged), progress)


def plan(
    sources: Sequence[str | Path], *, out: Path | None = None, root: Path = REPORTS, criteria: Path | None = None
) -> tuple[list[str], Path]:
    """Return what :func:`run` would do, and touch nothing: a line per run with the steps it reads, and the report's folder.

    The last line says which criteria they are held to.

    Raises what :func:`run` raises for its sources.
    """
    found, step, held = _opened(sources, out, root, criteria)
    return [*found.lines, f"{len(held.each)} criteria: {held.path}"], step.folder


def _opened(
    sources: Sequence[str | Path], out: Path | None, root: Path, criteria: Path | None
) -> tuple["Gathered | Comparison", "Step", "Criteria"]:
    from esa.artifact import Step
    from esa.report.opening import opened

    found, held = opened(sources, criteria)
    step = Step("report", found.spec, {**found.inputs, "criteria": held.sha256})
    step.folder = out if out is not None else root / f"{found.name}-{step.id}"
    return found, step, held


def _write(
    step: "Step", found: "Gathered | Comparison", judged: "Sequence[Judged]", content: "Content", progress: Progress
) -> ReportResult:
    """Write every file of a report, its manifest last."""
    import tomli_w

    from esa.artifact import replacing, write_text
    from esa.report.html import html_page
    from esa.report.page import page
    from esa.report.theme import render
    from esa.report.verdicts import criteria_table

    step.begin(force=True)  # one that another process finished meanwhile is written again: it is seconds of work
    if "spec" in found.recorded:  # several runs have a spec each
        write_text(step.folder / "spec.toml", f"# report-{step.id}\n{tomli_w.dumps(found.recorded['spec'])}")
    table = criteria_table(step.id, judged, step.meta())
    step.write(table, CRITERIA)
    kinds, pictures = {PAGE: "html", TEXT: "markdown", CRITERIA: table.kind}, {}
    progress.start("figures", len(content.figures))
    for figure in content.figures:
        png, svg = render(figure.chart)
        pictures[figure.name] = svg
        with replacing(step.folder / f"figures/{figure.name}.png") as temporary:
            temporary.write_bytes(png)
        write_text(step.folder / f"figures/{figure.name}.svg", svg)
        write_text(step.folder / f"data/{figure.name}.csv", figure.data.write_csv(line_terminator="\r\n"))
        kinds |= {f"figures/{figure.name}.{suffix}": suffix for suffix in ("png", "svg")}
        kinds[f"data/{figure.name}.csv"] = "figure data"
        progress.advance()
    progress.finish()
    head = content.head
    text = page(head.name, head.question, head.note, content.sections)
    write_text(step.folder / TEXT, text)
    write_text(
        step.folder / PAGE,
        html_page(head, content.sections, pictures, generator=content.generator, styles=content.styles),
    )
    step.finish(tables=kinds, warnings=found.warnings, **found.recorded)
    return ReportResult(step.folder / PAGE, step.folder, text)
