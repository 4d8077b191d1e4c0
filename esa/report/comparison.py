"""Several runs side by side: what each is called, and which of them hold the same model, texts and addresses."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from esa.artifact.gather import STEPS, Gathered
from esa.artifact.grouping import Grouped
from esa.spec import Spec

_MOST_NAMES = 72  # characters of the names in the report's folder
_LAST = ("perturb", "overlap", "rank", "score", *STEPS)


@dataclass(frozen=True)
class Comparison:
    """Runs in the order of the arguments, each with a label of its own, and the overlap steps between them."""

    grouped: Grouped

    @property
    def runs(self) -> list[Gathered]:
        """Return the runs."""
        return self.grouped.runs

    @property
    def between(self) -> list[Gathered]:
        """Return the overlap steps of rankings of several runs, each as a run of that step alone."""
        return self.grouped.between

    @cached_property
    def labels(self) -> list[str]:
        """Return what each run is called: its name; where another has it already, ``<name>-<id>`` of its last step."""
        found: list[str] = []
        for run in self.runs:
            label = run.name
            if label in found:
                label += f"-{run.manifests[next(step for step in _LAST if step in run.manifests)]['run']}"
            number, base = 2, label
            while label in found:
                label, number = f"{base}-{number}", number + 1
            found.append(label)
        return found

    @property
    def pairs(self) -> list[tuple[str, Gathered]]:
        """Return the runs with their labels."""
        return list(zip(self.labels, self.runs, strict=True))

    @property
    def name(self) -> str:
        """Return the names of the runs for a folder: ``a+b``, ``a+b+2_more`` where they are too long together."""
        names = [run.name[: _MOST_NAMES // 2] for run in self.runs]
        for count in range(len(names), 0, -1):
            rest = [f"{len(names) - count}_more"] if count < len(names) else []
            if len(found := "+".join([*names[:count], *rest])) <= _MOST_NAMES or count == 1:
                return found
        raise AssertionError("there is no run to name")

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
        return found | {f"between {n}": one.inputs["overlap"] for n, one in enumerate(self.between)}

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


def same_places(a: Gathered, b: Gathered) -> bool:
    """Tell whether an address names the same place in the models of two runs.

    It does in one model (equal fingerprints), and in models with as many weights whose tensors, those that both runs
    scored, have the same names and shapes. Where the manifests and tables cannot tell, it does not.
    """
    if (mark := fingerprint(a)) is not None and mark == fingerprint(b):
        return True
    if a.num_parameters is None or a.num_parameters != b.num_parameters:
        return False
    one, two = _shapes(a), _shapes(b)
    shared = one.keys() & two.keys()
    return bool(shared) and all(one[name] == two[name] for name in shared)


def _shapes(run: Gathered) -> dict[str, tuple[Any, ...]]:
    if run.tensors is None:
        return {}
    rows = run.tensors.select("parameter", "shape", "numel").unique("parameter").iter_rows()
    return {name: tuple(rest) for name, *rest in rows}


def fingerprint(run: Gathered) -> str | None:
    """Return the fingerprint of the run's model; None where no step says it, or the steps disagree."""
    found = {model.get("fingerprint") for model in models(run)} - {None}
    return str(found.pop()) if len(found) == 1 else None


def models(run: Gathered) -> list[dict[str, Any]]:
    """Return what each step says of its model."""
    return [manifest["model"] for manifest in run.manifests.values() if isinstance(manifest.get("model"), dict)]


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
