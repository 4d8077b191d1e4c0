"""Write runs up for a paper: a folder that a LaTeX document inputs."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from esa.errors import ArtifactError
from esa.progress import Progress, Silent

if TYPE_CHECKING:
    from esa.artifact.gather import Gathered

__all__ = ["PaperResult", "plan", "write"]

MACROS, METHODS, FINDINGS, REFERENCES, EXAMPLE = (
    "macros.tex", "methods.tex", "findings.tex", "references.bib", "example.tex",
)  # fmt: skip


@dataclass(frozen=True)
class PaperResult:
    """A written folder, its files, and the names of its macros without backslash beside their values."""

    folder: Path
    files: tuple[Path, ...]
    macros: dict[str, str]


def write(
    sources: Sequence[str | Path], folder: Path, *, criteria: Path | None = None, progress: Progress | None = None
) -> PaperResult:
    """Write what a LaTeX document inputs about runs into ``folder``, and return what was written.

    ``sources`` and ``criteria`` are those of :func:`esa.report.run`; the numbers are those of its page. The folder gets
    ``figures/*.pdf`` (the page's figures, fonts embedded), ``tables/*.tex`` (booktabs, with caption and label; a number with
    an interval is rounded at the second significant digit of the interval's width, one without to 4 digits; an en dash where
    there is none), ``macros.tex`` (every number of tables, methods and findings, beside it what it is and its source),
    ``methods.tex`` (a paragraph computed from the manifests), ``findings.tex`` (the page's sentences), ``references.bib``
    (what the methods cite) and ``example.tex``, which inputs it all and compiles with pdflatex and bibtex. Everything is
    computed before the first file is written, and each is written whole; other files in the folder stay. The same artifacts
    give the same bytes, also of the figures. Cost: that of the page, and 0.3 s per figure.
    Raises ArtifactError as :func:`esa.report.run` does, and where the folder or a file of it is in the way of another kind.
    """
    progress = progress or Silent()
    _require_room(folder)
    found, contents, figures, macros = _composed(sources, criteria, progress)
    for text in found:
        progress.warn(text)
    files = {folder / name: text.encode() for name, text in contents.items()}
    files |= {folder / "figures" / name: drawn for name, drawn in figures.items()}
    for path in files:
        _require_free(path)
    from esa.artifact import replacing

    for path, content in files.items():
        with replacing(path) as temporary:
            temporary.write_bytes(content)
    return PaperResult(folder, tuple(files), macros)


def plan(sources: Sequence[str | Path], folder: Path, *, criteria: Path | None = None) -> list[str]:
    """Return what :func:`write` would read, a line per run, and touch nothing. Raises what it raises before it draws."""
    from esa.report.opening import opened

    _require_room(folder)
    found, held = opened(sources, criteria)
    return [*found.lines, f"{len(held.each)} criteria: {held.path}"]


def _composed(
    sources: Sequence[str | Path], criteria: Path | None, progress: Progress
) -> tuple[list[str], dict[str, str], dict[str, bytes], dict[str, str]]:
    """Return warnings, text files by name, figures by name, and macros by name."""
    from esa.artifact.gather import Gathered
    from esa.report.opening import content_of, opened
    from esa.report.paper.document import NOTE, example
    from esa.report.paper.drawing import to_pdf
    from esa.report.paper.figure_files import figure_files
    from esa.report.paper.findings import findings_tex
    from esa.report.paper.methods import APART, sentences, spent
    from esa.report.paper.names import Macros
    from esa.report.paper.pieces import rendered
    from esa.report.paper.references import Citations
    from esa.report.paper.tables import paper_tables
    from esa.report.verdicts import judge

    found, held = opened(sources, criteria)
    judged = judge(held, found.pairs)
    page = content_of(found, judged)
    macros, citations = Macros(), Citations()
    between = [] if isinstance(found, Gathered) else _labelled(found.between, taken=found.labels)
    runs = [*found.pairs, *between]
    said = [*rendered([(label, sentences(run)) for label, run in found.pairs], macros, citations, apart=APART)]
    for label, run in between:
        said += rendered([(label, sentences(run, between=True))], macros, citations)
    methods = "\n".join(one for one in [*said, spent(runs, macros)] if one)
    findings = findings_tex(page.sections, macros)
    tables = list(paper_tables(runs, judged, macros))
    files = figure_files(page.figures)
    drawn = {}
    progress.start("figures", len(files))
    for name, figure in files:
        drawn[name] = to_pdf(figure.chart)
        progress.advance()
    progress.finish()
    contents = {
        MACROS: "\n".join([f"% {NOTE}", *(one.line for one in macros.each), ""]),
        METHODS: f"% {NOTE}\n{methods}\n",
        **({FINDINGS: f"% {NOTE}\n{findings}"} if findings else {}),
        REFERENCES: citations.bibtex,
        **{f"tables/{one.name}.tex": one.tex for one in tables},
        EXAMPLE: example(
            page.head.name, page.head.question, findings=bool(findings), tables=tables, figures=files,
            cited=bool(citations.bibtex),
        ),
    }  # fmt: skip
    return found.warnings, contents, drawn, {one.name: one.value for one in macros.each}


def _labelled(between: "Sequence[Gathered]", taken: Sequence[str]) -> list[tuple[str, "Gathered"]]:
    """Return the steps that are of several runs, each called what it is: ``scale``, the second one ``scale 2``."""
    found: dict[str, Gathered] = {}
    for one in between:
        step = next(iter(one.folders))
        name, count = step, 1
        while name in found or name in taken:
            count += 1
            name = f"{step} {count}"
        found[name] = one
    return list(found.items())


def _require_room(folder: Path) -> None:
    """Refuse a folder that is a file."""
    for one in (folder, *folder.parents):
        if one.exists() and not one.is_dir():
            raise ArtifactError(
                "is a file; a paper is a folder", where=str(one), hint="name another folder with --paper"
            )


def _require_free(path: Path) -> None:
    """Refuse a path that is a folder, or that goes through a file."""
    if path.is_dir():
        raise ArtifactError(
            "is a folder, where a file of the paper belongs", where=str(path), hint="name another folder"
        )
    _require_room(path.parent)
