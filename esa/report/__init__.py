"""Write a run up from its artifacts: Markdown, charts as PNG and SVG, and the charts' data."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from esa.progress import Progress, Silent

__all__ = ["REPORTS", "ReportResult", "run"]

REPORTS = Path("reports")
PAGE = "report.md"


@dataclass(frozen=True)
class ReportResult:
    """A written report: the path of ``report.md``, its folder, its text, and whether it was there before."""

    path: Path
    folder: Path
    markdown: str
    reused: bool = False


def run(
    sources: Sequence[str | Path],
    *,
    out: Path | None = None,
    root: Path = REPORTS,
    force: bool = False,
    progress: Progress | None = None,
) -> ReportResult:
    """Write the report of a run folder, or of any subset of its step folders, and return it.

    The folder is ``out``, else ``root/<name>-<id>``: ``report.md``, ``figures/*.png`` and ``*.svg``, ``data/*.csv`` and, last,
    ``manifest.json``. A complete one is reused unless ``force``. Nothing but the artifacts is read: the same ones give the
    same ``report.md``, byte for byte. Cost: about a second per figure; no torch, no network.
    Raises ArtifactError for sources that are no finished steps, or whose tables are not what their manifests vouch for.
    """
    from esa.artifact import Step
    from esa.report.gather import gather

    progress = progress or Silent()
    found = gather(sources)
    step = Step("report", found.spec, found.inputs)
    step.folder = out if out is not None else root / f"{found.name}-{step.id}"
    path = step.folder / PAGE
    if not force and step.complete:
        progress.note(f"report: {step.folder} is complete")
        return ReportResult(path, step.folder, path.read_text(encoding="utf-8"), reused=True)

    from esa.artifact import replacing, write_text
    from esa.report.figures import figures
    from esa.report.page import page
    from esa.report.theme import render

    for text in found.warnings:
        progress.warn(text)
    drawn = list(figures(found))
    step.begin(force=force)
    kinds = {PAGE: "markdown"}
    progress.start("figures", len(drawn))
    for figure in drawn:
        png, svg = render(figure.chart)
        with replacing(step.folder / f"figures/{figure.name}.png") as temporary:
            temporary.write_bytes(png)
        write_text(step.folder / f"figures/{figure.name}.svg", svg)
        write_text(step.folder / f"data/{figure.name}.csv", figure.data.write_csv(line_terminator="\r\n"))
        kinds |= {f"figures/{figure.name}.{suffix}": suffix for suffix in ("png", "svg")}
        kinds[f"data/{figure.name}.csv"] = "figure data"
        progress.advance()
    progress.finish()
    text = page(found, drawn)
    write_text(path, text)
    step.finish(tables=kinds, warnings=found.warnings)
    return ReportResult(path, step.folder, text)
