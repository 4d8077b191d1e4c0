"""The weekly summary: what the log's entries and the steps in outputs/ of one ISO week add up to."""

from collections.abc import Sequence
from datetime import date, timedelta
from pathlib import Path

from esa.artifact.runs import StepState, read_steps
from esa.report.log_entry import Record, counts, duration
from esa.report.markdown import bullets, code, escape, join, number
from esa.report.verdicts import VERDICTS

_DAYS = 7


def monday(day: date) -> date:
    """Return the first day of the ISO week that ``day`` is in."""
    return day - timedelta(days=day.weekday())


def week_text(first: date, known: Sequence[Record], outputs: Path) -> str:
    """Return the summary of the week that begins on ``first`` as Markdown; ``known`` are the log's records.

    A run that was entered again counts once, as it was entered last.
    """
    last = first + timedelta(days=_DAYS - 1)
    entries = list({one.id: one for one in known if first <= date.fromisoformat(one.day) <= last}.values())
    states = read_steps(outputs) if outputs.is_dir() else []
    during = [one for one in states if first.isoformat() <= one.when[:10] <= last.isoformat()]
    year, week, _ = first.isocalendar()
    absent = f"There is no folder {code(str(outputs), cell=False)} here: no step is counted"
    lines = [
        *([] if outputs.is_dir() else [absent]),
        _runs(during),
        _time(during),
        *_entered(entries),
        *_verdicts(entries),
        *_margins(entries),
        *_warnings(during),
        *_listed("Failed", [one for one in during if one.status == "failed"]),
        *_listed("Stale now", [one for one in states if one.status == "stale"]),
        *_listed("Incomplete now", [one for one in states if one.status == "incomplete"]),
    ]
    return f"## Week {year}-W{week:02}: {first.isoformat()} to {last.isoformat()}\n\n{bullets(lines)}\n"


def _runs(states: Sequence[StepState]) -> str:
    """Say which runs finished: every step of theirs that the week saw is finished."""
    homes: dict[Path, list[StepState]] = {}
    for one in states:
        homes.setdefault(one.home, []).append(one)
    done = [code(home.name, cell=False) for home, own in homes.items() if all(map(_finished, own))]
    return f"Runs finished: {number(len(done))}" + (f" ({join(done)})" if done else "")


def _finished(one: StepState) -> bool:
    """Tell whether a step reached its end and holds: one that left the weights changed has a manifest, and failed."""
    return bool(one.manifest) and one.status != "failed"


def _time(states: Sequence[StepState]) -> str:
    finished = [one for one in states if _finished(one) and one.seconds is not None]
    total = duration(sum(one.seconds or 0.0 for one in finished))
    return f"Time: {total} in {number(len(finished))} finished step{'' if len(finished) == 1 else 's'}"


def _entered(entries: Sequence[Record]) -> list[str]:
    if not entries:
        return ["Entries in the log: none of this week"]
    kinds = counts({one.status: 1} for one in entries)
    told = join([f"{number(count)} {'with warnings' if name == 'warnings' else name}" for name, count in kinds.items()])
    return [f"Entries in the log: {number(len(entries))} ({told})"]


def _verdicts(entries: Sequence[Record]) -> list[str]:
    found = []
    total = counts(one.verdicts for one in entries)
    if any(total.values()):
        found.append("Verdicts: " + ", ".join(f"{number(total[name])} {name}" for name in VERDICTS if name in total))
    held, tests = (sum(one.confirmed[place] for one in entries) for place in (0, 1))
    if tests:
        found.append(f"Confirmatory tests that hold: {number(held)} of {number(tests)}")
    return found


def _margins(entries: Sequence[Record]) -> list[str]:
    """Name the run whose top weights stand out most from random ones, and the one whose stand out least."""
    known = sorted((one for one in entries if one.margin is not None), key=lambda one: -(one.margin or 0.0))
    words = [f"{number(one.margin)} nats per token above the largest random draw ({escape(one.what)})" for one in known]
    if not words:
        return []
    return [f"Best: {words[0]}", *([f"Worst: {words[-1]}"] if len(words) > 1 else [])]


def _warnings(states: Sequence[StepState]) -> list[str]:
    """Say each warning once, with the steps that gave it: the runs of a sweep all give the same."""
    steps: dict[str, list[str]] = {}
    for one in states:
        for text in one.manifest.get("warnings") or []:
            steps.setdefault(text, []).append(_name(one))
    return [
        f"Warning from {names[0]}{f' and {len(names) - 1} more' if len(names) > 1 else ''}: {escape(text)}"
        for text, names in steps.items()
    ]


def _listed(head: str, states: Sequence[StepState]) -> list[str]:
    return [f"{head}: {_name(one)}: {escape(one.why)}" for one in states]


def _name(one: StepState) -> str:
    return code(one.folder.name if one.home == one.folder else f"{one.home.name}/{one.folder.name}", cell=False)
