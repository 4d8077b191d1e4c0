"""What an entry of the log says of a run: computed from its steps, with headings that a person fills in."""

import hashlib
import json
import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import date
from pathlib import Path
from typing import Any

from esa.artifact.gather import STEPS, Gathered, is_run
from esa.artifact.runs import StepState, read_steps, run_file
from esa.artifact.steps import result_hash
from esa.errors import ArtifactError
from esa.report.evidence.claims import confirmatory_sentences
from esa.report.findings import against_random
from esa.report.markdown import block, bullets, code, escape, number
from esa.report.tables import label

_RECORD = re.compile(r"^<!-- esa:entry (.*) -->$", re.MULTILINE)
_KINDS = tuple(dict.fromkeys(step.partition(" ")[0] for step in STEPS))
_WORDS = {"warnings": "complete, with warnings"}
_SHOWN = 10  # warnings


@dataclass(frozen=True)
class Record:
    """What a program reads of an entry, kept in a comment above it.

    ``status``: complete, warnings, stale, incomplete or failed. ``verdicts``: how many criteria of each. ``confirmed``: how
    many confirmatory tests hold, of how many. ``margin``: by how many nats per token the top weights' damage is above
    the largest random draw's, at most over the run's comparisons, and of which (``what``); null where there is none.
    """

    id: str
    day: str
    runs: list[str]
    status: str
    seconds: float
    num_warnings: int = 0
    verdicts: dict[str, int] = field(default_factory=dict)
    confirmed: list[int] = field(default_factory=lambda: [0, 0])
    margin: float | None = None
    what: str = ""

    def require_kinds(self) -> None:
        """Raise TypeError where a field that is counted is of another kind, as only somebody's edit makes it."""
        counted = [self.seconds, self.margin or 0.0, *self.verdicts.values(), *self.confirmed]
        known = all(isinstance(one, int | float) for one in counted)
        if not (known and isinstance(self.runs, list) and len(self.confirmed) == 2):
            raise TypeError("runs, seconds, verdicts, confirmed or margin is not as it was written")

    @property
    def line(self) -> str:
        """Return the comment: on one line, and nothing in it can end it."""
        text = json.dumps(asdict(self), allow_nan=False)
        for mark, safe in (("<", r"\u003c"), (">", r"\u003e"), ("--", r"-\u002d")):
            text = text.replace(mark, safe)
        return f"<!-- esa:entry {text} -->"


@dataclass(frozen=True)
class Found:
    """The steps that an entry is about, as they lie on the disk, and what is made of the finished ones, where there are any."""

    states: list[StepState]
    finished: list[Path]


def look(sources: Sequence[str | Path]) -> Found:
    """Return the steps that ``sources`` name: those of ``run.json`` and later ones that failed, or all in a folder without it.

    Raises ArtifactError where there are none.
    """
    states: list[StepState] = []
    finished: list[Path] = []
    for source in map(Path, sources):
        every = [one for one in read_steps(source) if one.step in _KINDS]
        if is_run(source):
            named = set((run_file(source).get("steps") or {}).values())
            own = [one for one in every if one.folder.name in named]
            last = max((one.when for one in own), default="")
            own += [
                one for one in every if one not in own and one.status in ("failed", "incomplete") and one.when > last
            ]
        else:
            own = every
        if not own:
            raise ArtifactError("holds no step of a run", where=str(source))
        done = [one for one in own if one.manifest and one.status != "failed"]
        states += [one for one in own if one.folder not in {other.folder for other in states}]
        finished += [source] if is_run(source) and len(done) == len(own) else [one.folder for one in done]
    return Found(states, list(dict.fromkeys(finished)))


def identity(states: Iterable[StepState]) -> str:
    """Return 12 hex that are the same for the same steps with the same results, and others once one of them changes."""
    parts = sorted(
        f"{one.step}-{one.id} {result_hash(one.manifest) if one.manifest else one.status + one.when}" for one in states
    )
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:12]


def status_of(states: Sequence[StepState]) -> str:
    """Return the worst status of a run's steps: failed, incomplete, stale, warnings or complete."""
    found = {one.status for one in states}
    for name in ("failed", "incomplete", "stale"):
        if name in found:
            return name
    return "warnings" if any(one.manifest.get("warnings") for one in states) else "complete"


def margin(runs: Iterable[tuple[str, Gathered]]) -> tuple[float | None, str]:
    """Return by how many nats per token the top weights do more harm than the worst random draw, at most, and which do.

    Over the joint comparisons of all methods, metrics and K that are finite on both sides.
    """
    best: tuple[float | None, str] = (None, "")
    for name, run in runs:
        for method, options, pairs in [] if run.plain_damage is None else against_random(run.plain_damage):
            for top, random in pairs:
                found = top["delta_nll"] - random["delta_max"]
                if best[0] is None or found > best[0]:
                    best = found, f"top {top['k']} by {top['metric']}, {label(method, options)}, in {name}"
    return best


def confirmed(runs: Iterable[tuple[str, Gathered]]) -> list[int]:
    """Return how many confirmatory tests hold, and how many there are."""
    tables = [run.table("perturb", "tests/1") for _, run in runs]
    holds = [
        row["holds"] for one in tables if one is not None for row in one.to_dicts() if row["phase"] == "confirmatory"
    ]
    return [sum(bool(one) for one in holds), len(holds)]


def entry(
    record: Record,
    found: Found,
    *,
    commands: Sequence[str],
    findings: Sequence[str],
    verdict: Sequence[str],
    today: date,
) -> str:
    """Return the entry as Markdown, its record above it."""
    called = [shlex.join(argv) for one in found.states if (argv := one.manifest.get("argv"))]
    lines = list(dict.fromkeys([*(" ".join(one.split()) for one in commands), *called]))
    results = [*findings, *_failures(found.states)]
    parts = [
        record.line,
        f"## {record.day}: {', '.join(escape(name) for name in record.runs)}",
        "### Objectives", "### Plan", "### Run",
        bullets(_facts(record, found.states, today)),
        *([block(lines, "sh")] if lines else []),
        "### Key results", bullets(results) if results else "None: no step is finished.",
        "### Verdict", "\n\n".join(verdict) or "None: there is nothing to judge.",
    ]  # fmt: skip
    return "\n\n".join(parts) + "\n"


def confirmatory_verdict(runs: Iterable[tuple[str, Gathered]], *, several: bool) -> list[str]:
    """Return each run's confirmatory test in a sentence."""
    return [
        f"{code(name, cell=False)}: {text}" if several else text
        for name, run in runs
        for text in confirmatory_sentences(run.table("perturb", "tests/1"))
    ]


def records(text: str, where: str) -> list[Record]:
    """Return the records of a log, in their order. Raises ArtifactError for one that somebody edited."""
    found = []
    for mark in _RECORD.finditer(text):
        try:
            found.append(Record(**json.loads(mark[1])))
            date.fromisoformat(found[-1].day)
            found[-1].require_kinds()
        except (ValueError, TypeError, AttributeError) as error:
            line = text.count("\n", 0, mark.start()) + 1
            raise ArtifactError(
                f"is not a record of the log: {error}",
                where=f"{where}:{line}",
                hint="write below the comment, not in it",
            ) from None
    return found


def duration(seconds: float) -> str:
    """Return a time as a reader says it: ``42.1 s``, ``7 min 22 s``, ``3 h 5 min``."""
    if seconds < 60:
        return f"{number(float(seconds))} s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600:,} h {whole % 3600 // 60} min"


def _facts(record: Record, states: Sequence[StepState], today: date) -> list[str]:
    by_step: dict[str, float] = {}
    for one in states:
        if one.seconds is not None:
            by_step[one.step] = by_step.get(one.step, 0.0) + one.seconds
    each = [f"{step} {duration(seconds)}" for step, seconds in by_step.items()]
    warnings = [(one, text) for one in states for text in one.manifest.get("warnings") or []]
    said = [f"Warning from {one.step}: {escape(text)}" for one, text in warnings[:_SHOWN]]
    left = len(warnings) - len(said)
    finished = max((one.when for one in states if one.manifest), default="")
    when = f"Finished: {finished[:16].replace('T', ' ')} UTC" if finished else f"Last written to: {record.day}"
    return [
        f"{when}; entered {today.isoformat()}",
        f"Status: {_WORDS.get(record.status, record.status)}",
        f"Duration: {duration(record.seconds)}" + (f" ({', '.join(each)})" if each else ""),
        f"Steps: {', '.join(code(f'{one.step}-{one.id}', cell=False) for one in states)}",
        *said,
        *([f"{number(left)} more warnings are in the manifests"] if left > 0 else []),
    ]


def _failures(states: Sequence[StepState]) -> list[str]:
    """Return what is wrong with each step that is not complete."""
    return [
        f"{code(f'{one.step}-{one.id}', cell=False)} is {one.status}: {escape(one.why)}"
        for one in states
        if one.status != "complete"
    ]


def counts(of: Iterable[Mapping[str, int]]) -> dict[str, int]:
    """Add up counts by name, in the order in which the names come."""
    total: dict[str, Any] = {}
    for one in of:
        for name, number_ in one.items():
            total[name] = total.get(name, 0) + number_
    return total
