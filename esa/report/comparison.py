"""Several runs side by side: what each is called, and which of them hold the same model, texts and addresses."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from esa.artifact.gather import BETWEEN, Gathered
from esa.artifact.grouping import Grouped, joined, labels
from esa.artifact.places import same_places
from esa.spec import Spec


@dataclass(frozen=True)
class Comparison:
    """Runs in the order of the arguments, each with a label of its own, and the steps between them."""

    grouped: Grouped

    @property
    def runs(self) -> list[Gathered]:
        """Return the runs."""
        return self.grouped.runs

    @property
    def between(self) -> list[Gathered]:
        """Return the steps that are of several runs, each as a run of that step alone."""
        return [*self.grouped.between, *self.grouped.crossed]

    @property
    def lone(self) -> bool:
        """Tell whether there is no run here, only steps that were made from several."""
        return all(set(run.folders) <= set(BETWEEN) for run in self.runs)

    @cached_property
    def labels(self) -> list[str]:
        """Return what each run is called."""
        return labels(self.runs)

    @property
    def pairs(self) -> list[tuple[str, Gathered]]:
        """Return the runs with their labels."""
        return list(zip(self.labels, self.runs, strict=True))

    @property
    def name(self) -> str:
        """Return the names of the runs for a folder: ``a+b``, ``a+b+2_more`` where they are too long together."""
        return joined([run.name for run in self.runs], "+")

    @property
    def question(self) -> str | None:
        """Return the runs' question, where they all ask the same one."""
        found = {run.spec.question for run in self.runs}
        return found.pop() if len(found) == 1 else None

    @property
    def spec(self) -> Spec:
        """Return a spec whose name and question are those of the comparison: all that a report's id reads of one."""
        return self.runs[0].spec.model_copy(update={"name": self.name, "question": self.question})

    @property
    def inputs(self) -> dict[str, str]:
        """Map each step of each run, in order, to its id: what the report's own id is made from."""
        found = {f"{n}:{step}": id for n, run in enumerate(self.runs) for step, id in run.inputs.items()}
        return found | {f"between {n}": next(iter(one.inputs.values())) for n, one in enumerate(self.between)}

    @property
    def warnings(self) -> list[str]:
        """Return the warnings of every run, its label before each."""
        return [f"{label}: {text}" for label, run in self.pairs for text in run.warnings]

    @property
    def recorded(self) -> dict[str, Any]:
        """Return what the report's manifest says beyond what every step's does: the resolved spec of each run."""
        specs = {label: run.spec.model_dump(mode="json", exclude_none=True) for label, run in self.pairs}
        asked = {"question": self.question} if self.question else {}
        return {"spec": {"name": self.name, **asked, "runs": specs}}

    @property
    def lines(self) -> list[str]:
        """Return a line per run, and per step between runs: its label and its steps, as folders."""
        named = [*self.pairs, *(("between them", one) for one in self.between)]
        return [f"{label}: {', '.join(map(str, run.folders.values()))}" for label, run in named]

    @cached_property
    def places(self) -> list[list[int]]:
        """Return the runs, by number, in groups within which an address is the same place: see :func:`same_places`."""
        groups: list[list[int]] = []
        for number, run in enumerate(self.runs):
            home = next((one for one in groups if same_places(self.runs[one[0]], run)), None)
            if home is None:
                groups.append([number])
            else:
                home.append(number)
        return groups

    def labelled(self, numbers: Sequence[int]) -> list[tuple[str, Gathered]]:
        """Return some of the runs, by number, with their labels."""
        return [self.pairs[number] for number in numbers]


def windows(run: Gathered, step: str) -> dict[int | None, str]:
    """Map each seed of a step (None where its windows have none) to the sha256 of its token ids."""
    data = run.manifests.get(step, {}).get("data")
    entries = data if isinstance(data, list) else [data]
    return {one.get("seed"): str(one["sha256"]) for one in entries if isinstance(one, dict) and one.get("sha256")}


def alike(pairs: Sequence[tuple[str, Gathered]], of: Callable[[Gathered], Any]) -> dict[Any, list[str]]:
    """Map each value that ``of`` gives to the labels of the runs that have it, in their order; None is left out."""
    found: dict[Any, list[str]] = {}
    for label, run in pairs:
        if (value := of(run)) is not None:
            found.setdefault(value, []).append(label)
    return found
