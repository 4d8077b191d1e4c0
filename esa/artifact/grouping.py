"""Tell which runs the arguments of a command are: run folders, and step folders grouped by what they were made from."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from esa.artifact.gather import STEPS, Gathered, StepFolder, gathered, is_run, step_folders
from esa.errors import ArtifactError


@dataclass(frozen=True)
class Grouped:
    """The runs in the order of the arguments, and the overlap steps that compare rankings of several of them."""

    runs: list[Gathered]
    between: list[Gathered]


@dataclass
class _Draft:
    """A run that is being put together: its steps by kind, and the place of the first argument that it holds."""

    place: int
    steps: dict[str, StepFolder]
    source: Path | None = None


def group(sources: Sequence[str | Path]) -> Grouped:
    """Return the runs that ``sources`` name: run folders with ``run.json``, and step folders.

    Each run folder is a run. Step folders, at most one of a kind and beside at most one run folder, are a run too, or
    belong to it. Otherwise a step joins every run that holds a step it was made from (``inputs`` of its manifest) and
    none of its own kind; where all of those have one, it begins another run with the steps that it was made from; a step
    whose upstream steps are not at hand is a run of its own. An overlap step of rankings of several runs is ``between``
    them. Runs stand in the order of their first argument. A folder given as a step that a run holds already counts once.
    Raises ArtifactError where there is nothing, or :func:`esa.artifact.gather.step_folders` does.
    """
    drafts: list[_Draft] = []
    loose: list[tuple[int, StepFolder]] = []
    for place, source in enumerate(map(Path, sources)):
        found = step_folders(source)
        if not is_run(source):
            loose += [(place, one) for one in found]
        elif found:
            drafts.append(_Draft(place, {one.step: one for one in found}, source))
    loose = _new(loose, drafts)
    if not drafts and not loose:
        raise ArtifactError("names no finished step", where=", ".join(map(str, sources)) or "report")
    every = [one.step for draft in drafts for one in draft.steps.values()] + [one.step for _, one in loose]
    if len(drafts) <= 1 and len(set(every)) == len(every):
        steps = [one for draft in drafts for one in draft.steps.values()] + [one for _, one in loose]
        return Grouped([gathered(steps, drafts[0].source if drafts and not loose else None)], [])
    between = []
    for place, one in sorted(loose, key=lambda found: STEPS.index(found[1].step)):
        if one.step == "overlap" and len({draft.steps["rank"].id for draft in _upstream_of(one, drafts, "rank")}) > 1:
            between.append(gathered([one]))
        else:
            _join(place, one, drafts)
    runs = sorted(drafts, key=lambda draft: draft.place)
    return Grouped([gathered(list(draft.steps.values()), draft.source) for draft in runs], between)


def _new(loose: Sequence[tuple[int, StepFolder]], drafts: Sequence[_Draft]) -> list[tuple[int, StepFolder]]:
    """Leave out the folders that a run holds already or that were given before."""
    seen = {one.folder.resolve() for draft in drafts for one in draft.steps.values()}
    found = []
    for place, one in loose:
        if one.folder.resolve() not in seen:
            seen.add(one.folder.resolve())
            found.append((place, one))
    return found


def _upstream_of(one: StepFolder, drafts: Sequence[_Draft], step: str | None = None) -> list[_Draft]:
    """Return the runs that hold a step, of one kind or any, that ``one`` was made from."""
    return [
        draft
        for draft in drafts
        if any(one.made_from(other) for other in draft.steps.values() if step in (None, other.step))
    ]


def _join(place: int, one: StepFolder, drafts: list[_Draft]) -> None:
    """Put a step into the runs that it belongs to, or begin a run with it."""
    holders = _upstream_of(one, drafts)
    free = [draft for draft in holders if one.step not in draft.steps]
    for draft in free:
        draft.steps[one.step] = one
        draft.place = min(draft.place, place)
        draft.source = None  # no longer what run.json says: a command names its steps
    if not free:
        steps = {one.step: one}
        if holders:
            steps |= _chain(one, holders[0])
        drafts.append(_Draft(place, steps))


def _chain(one: StepFolder, draft: _Draft) -> dict[str, StepFolder]:
    """Return the steps of a run that ``one`` was made from, directly or through others."""
    found = {other.step: other for other in draft.steps.values() if one.made_from(other)}
    for other in list(found.values()):
        found |= _chain(other, draft)
    return found
