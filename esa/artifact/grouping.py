"""Tell which runs the arguments of a command are: run folders, and step folders grouped by what they were made from."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from esa.artifact.gather import BETWEEN, STEPS, Gathered, StepFolder, gathered, is_run, step_folders
from esa.errors import ArtifactError

_MOST_NAMES = 72  # characters of several runs' names in one folder's
_SWEPT = re.compile(r"(.+)-\d{2,}")  # the names of a sweep's runs
_LAST = ("perturb", "overlap", "rank", "score", *STEPS)  # whose id tells runs of one name apart, the first found


@dataclass(frozen=True)
class Grouped:
    """The runs in the order of the arguments, and what is of several of them.

    ``between``: overlap steps that compare rankings of several runs, and steps that are made from several (scale, arch).
    ``crossed``: perturb steps that changed one model by the ranking of another, which belong to neither run: each is
    gathered alone.
    """

    runs: list[Gathered]
    between: list[Gathered]
    crossed: list[Gathered] = field(default_factory=list)

    @property
    def lone(self) -> bool:
        """Tell whether this is one run and nothing beside it."""
        return len(self.runs) == 1 and not self.between and not self.crossed


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
    them, as is a scale or arch step beside several runs (alone it is a run of its own), and a perturb step whose model is
    another than its ranking's (by id and fingerprint, as the ranking's score step states them) is ``crossed``. Runs stand
    in the order of their first argument. A folder given as a step that a run holds already counts once.
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
    everything = [one for draft in drafts for one in draft.steps.values()] + [one for _, one in loose]
    crossed = [one for _, one in loose if _of_another_model(one, everything)]
    loose = [(place, one) for place, one in loose if one not in crossed]
    runs, between = _runs(drafts, loose)
    return Grouped(runs, between, [gathered([one]) for one in crossed])


def _runs(drafts: list[_Draft], loose: Sequence[tuple[int, StepFolder]]) -> tuple[list[Gathered], list[Gathered]]:
    """Return the runs that drafts and loose steps make, and the steps between them."""
    every = [one.step for draft in drafts for one in draft.steps.values()] + [one.step for _, one in loose]
    if len(drafts) <= 1 and len(set(every)) == len(every):
        steps = [one for draft in drafts for one in draft.steps.values()] + [one for _, one in loose]
        return [gathered(steps, drafts[0].source if drafts and not loose else None)], []
    between = []
    for place, one in sorted(loose, key=lambda found: STEPS.index(found[1].step)):
        lists = {draft.steps["rank"].id for draft in _upstream_of(one, drafts, "rank")}
        if one.step in BETWEEN or (one.step == "overlap" and len(lists) > 1):
            between.append(gathered([one]))
        else:
            _join(place, one, drafts)
    if not drafts:  # nothing but steps of several runs: each stands for itself
        return between, []
    runs = sorted(drafts, key=lambda draft: draft.place)
    return [gathered(list(draft.steps.values()), draft.source) for draft in runs], between


def _new(loose: Sequence[tuple[int, StepFolder]], drafts: Sequence[_Draft]) -> list[tuple[int, StepFolder]]:
    """Leave out the folders that a run holds already or that were given before."""
    seen = {one.folder.resolve() for draft in drafts for one in draft.steps.values()}
    found = []
    for place, one in loose:
        if one.folder.resolve() not in seen:
            seen.add(one.folder.resolve())
            found.append((place, one))
    return found


def _of_another_model(one: StepFolder, everything: Sequence[StepFolder]) -> bool:
    """Tell whether a perturb step's model is another than the one whose scores its ranking was made from."""
    if one.step != "perturb":
        return False
    ranks = [other for other in everything if other.step == "rank" and one.made_from(other)]
    scores = [other for other in everything if other.step == "score" and any(rank.made_from(other) for rank in ranks)]
    mine = one.manifest.get("model") or {}
    theirs = [score.manifest.get("model") or {} for score in scores]
    # A fingerprint alone also changes with the dtype, an id with where a folder lies.
    return bool(theirs) and all(
        None not in (mine.get(key), their.get(key)) and mine.get(key) != their.get(key)
        for their in theirs
        for key in ("id", "fingerprint")
    )


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


def labels(runs: Sequence[Gathered]) -> list[str]:
    """Return what each run is called among the others: its name; where another has it, ``<name>-<id>`` of its last step."""
    found: list[str] = []
    for run in runs:
        label = run.name
        if label in found:
            label += f"-{run.manifests[next(step for step in _LAST if step in run.manifests)]['run']}"
        number, base = 2, label
        while label in found:
            label, number = f"{base}-{number}", number + 1
        found.append(label)
    return found


def joined(names: Sequence[str], sign: str) -> str:
    """Return names as one for a folder: ``a_b``, ``a_b_2_more`` where they are too long together, ``a_12_runs`` for a sweep's."""
    swept = [match[1] for name in names if (match := _SWEPT.fullmatch(name))]
    if len(swept) == len(names) > 2 and len(set(swept)) == 1:
        return f"{swept[0][:_MOST_NAMES]}_{len(names)}_runs"
    cut = [name[: _MOST_NAMES // 2] for name in names]
    for count in range(len(cut), 0, -1):
        rest = [f"{len(cut) - count}_more"] if count < len(cut) else []
        if len(found := sign.join([*cut[:count], *rest])) <= _MOST_NAMES or count == 1:
            return found
    raise ValueError("there is no run to name")
