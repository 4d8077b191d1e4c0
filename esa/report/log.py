"""The log of a project, ``reports/LOG.md``: dated entries that ``esa report --log`` appends and nobody's program rewrites."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from pathlib import Path

from esa.artifact.gather import Gathered
from esa.artifact.steps import OUTPUTS
from esa.errors import ArtifactError
from esa.report import REPORTS
from esa.report.log_entry import (
    Found,
    Record,
    confirmatory_verdict,
    confirmed,
    entry,
    identity,
    look,
    margin,
    records,
    status_of,
)
from esa.report.log_week import monday, week_text

LOG = REPORTS / "LOG.md"
_HEAD = (
    "# Log\n\nAn entry per run, the newest last. Objectives and Plan are for a person to fill in; nothing here is"
    " rewritten.\n"
)


@dataclass(frozen=True)
class LogResult:
    """The log's path, the entry's id and Markdown, and whether it was added: False where the run is in the log already."""

    path: Path
    id: str
    text: str
    added: bool


def append(
    sources: Sequence[str | Path],
    *,
    path: Path = LOG,
    commands: Sequence[str] = (),
    criteria: Path | None = None,
    force: bool = False,
    dry_run: bool = False,
    today: date | None = None,
) -> LogResult:
    """Append a dated entry on runs to the log, and return it.

    ``sources``: as :func:`esa.report.run` takes them, and the folders of runs that failed. ``commands``: what a person
    typed, beside the commands that the manifests hold. The entry says when the run finished and was entered (UTC), its
    commands, the seconds of its steps together, its status as :func:`esa.artifact.runs.read_steps` tells it, the page's
    findings, the verdicts of its criteria and of its confirmatory test; Objectives and Plan are left empty. The file is only
    ever appended to, by one write. Steps with the same results are entered once, unless ``force``; ``dry_run`` writes nothing.
    Raises ArtifactError where there is no step, a table is not what its manifest vouches for, or the log cannot be written.
    """
    found = look(sources)
    now = today or datetime.now(UTC).date()
    id = identity(found.states)
    known = {one.id for one in records(_read(path), str(path))}
    text = _entry(id, found, commands, criteria, now)
    add = force or id not in known
    if add and not dry_run:
        _append(path, text)
    return LogResult(path, id, text, added=add)


def week(
    day: date | None = None, *, path: Path = LOG, outputs: Path = OUTPUTS, add: bool = False
) -> str:  # fmt: skip
    """Return the summary of an ISO week as Markdown, that of ``day`` (today, UTC, by default); ``add`` appends it to the log.

    What was entered in the log in that week by the day its run finished, and the steps in ``outputs`` that finished or
    failed in it; stale and incomplete ones as they are now. A log or a folder that is not there has nothing to say.
    Raises ArtifactError for a log whose records somebody edited, or that cannot be read or written.
    """
    first = monday(day or datetime.now(UTC).date())
    text = week_text(first, records(_read(path), str(path)), outputs)
    if add:
        _append(path, text)
    return text


def _entry(id: str, found: Found, commands: Sequence[str], criteria: Path | None, today: date) -> str:
    """Return the entry on the steps that were found, with what the page says of the finished ones."""
    finished = max((one.when for one in found.states if one.manifest), default=max(one.when for one in found.states))
    names = list(dict.fromkeys(one.folder.absolute().parent.name for one in found.states))
    findings: list[str] = []
    verdict: list[str] = []
    facts: dict[str, object] = {}
    if found.finished:
        from esa.report.criteria_section import criteria_sentence
        from esa.report.opening import content_of, opened
        from esa.report.page import applicable
        from esa.report.paper.findings import findings_of
        from esa.report.verdicts import VERDICTS, judge

        runs, held = opened(found.finished, criteria)
        judged = applicable(runs.pairs, judge(held, runs.pairs))
        findings = findings_of(content_of(runs, judged).sections)
        names = [runs.name] if isinstance(runs, Gathered) else runs.labels or names
        several = len(runs.pairs) > 1
        verdict = [*confirmatory_verdict(runs.pairs, several=several), *([criteria_sentence(judged)] if judged else [])]
        most, what = margin(runs.pairs)
        facts = {
            "verdicts": {name: sum(one.verdict == name for one in judged) for name in VERDICTS},
            "confirmed": confirmed(runs.pairs), "margin": most, "what": what,
        }  # fmt: skip
    record = Record(
        id=id,
        day=finished[:10],
        runs=names,
        status=status_of(found.states),
        seconds=round(sum(one.seconds or 0.0 for one in found.states), 3),
        num_warnings=sum(len(one.manifest.get("warnings") or []) for one in found.states),
        **facts,  # type: ignore[arg-type]
    )
    return entry(record, found, commands=commands, findings=findings, verdict=verdict, today=today)


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return ""
    except (OSError, UnicodeDecodeError) as error:
        raise ArtifactError(f"cannot be read: {error}", where=str(path)) from None


def _append(path: Path, text: str) -> None:
    """Add text at the end by one write, or leave the file as it was."""
    before = _read(path)
    gap = "" if before.endswith("\n\n") else "\n" if before.endswith("\n") else "\n\n"
    data = ((gap if before else f"{_HEAD}\n") + text).encode()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
        try:
            size = os.fstat(handle).st_size
            if os.write(handle, data) < len(data):  # a full disk
                os.ftruncate(handle, size)
                raise ArtifactError("cannot be written whole: the disk is full", where=str(path))
        finally:
            os.close(handle)
    except OSError as error:
        raise ArtifactError(f"cannot be written: {error.strerror}", where=str(path)) from None
