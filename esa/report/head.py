"""What stands above and below the page: the run's name and question, a few facts from the manifests, who wrote it."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from esa import __version__
from esa.artifact.gather import BETWEEN, STEPS, Gathered
from esa.report.markdown import join, number

_EVALUATED = ("perturb", "truth", "detector", "faults", "eval")  # the steps that measure on evaluation windows


@dataclass(frozen=True)
class Head:
    """What stands above the sections, as plain text: the page's name, its question, a line on what is absent, a few facts."""

    name: str
    question: str | None
    note: str
    facts: Mapping[str, str]


def head(run: Gathered) -> Head:
    """Return the head of a run's page; a fact that no manifest states is left out."""
    return Head(run.name, run.spec.question, made_from(run), facts([run]))


def facts(runs: Sequence[Gathered]) -> dict[str, str]:
    """Return what the manifests of one or several runs say of model and texts, each different answer once."""
    manifests = [manifest for run in runs for manifest in run.manifests.values()]
    models = [manifest["model"] for manifest in manifests if isinstance(manifest.get("model"), dict)]
    warnings = sum(len(run.warnings) for run in runs) + sum(len(one.get("warnings") or []) for one in manifests)
    found = {
        "Model": _distinct(model.get("id") for model in models),
        "Parameters": _distinct(number(run.num_parameters) for run in runs if run.num_parameters is not None),
        "Stored as": _distinct(_stored(model) for model in models),
        "Calibration": _distinct(windows_text(run, "score") for run in runs),
        "Evaluation": _distinct(windows_text(run, step) for run in runs for step in _EVALUATED),
        "Warnings": f"{warnings} (see Provenance)" if warnings else "",
        "Finished (UTC)": max((str(one.get("created") or "") for one in manifests), default="")[:10],
    }
    return {name: value for name, value in found.items() if value}


def windows_text(run: Gathered, step: str) -> str:
    """Return the token windows of a step in words: ``builtin:prose, 8 windows of 256 tokens, 3 seeds``."""
    return _text(run.manifests.get(step, {}).get("data"))


def made_from(run: Gathered) -> str:
    """Say which steps the report was made from, where any is absent."""
    if not run.absent or set(run.folders) <= set(BETWEEN):  # a step of several runs lacks nothing
        return ""
    present = [step for step in STEPS if step in run.folders]
    absent = f"{'steps' if len(run.absent) > 1 else 'step'} {join(run.absent)}"
    return f"Made from {join(present)}. Absent, with the sections that need them: the {absent}."


def generator(run: Gathered) -> str:
    """Say which esa wrote the page, from which steps."""
    steps = ", ".join(f"{manifest['step']}-{manifest['run']}" for manifest in run.manifests.values())
    return f"Written by esa {__version__} from {steps}. This file is complete in itself: it loads nothing."


def _stored(model: Mapping[str, Any]) -> str:
    words = [model.get("dtype"), model.get("quantization")]
    return ", ".join(str(word) for word in words if word not in (None, "none"))


def _text(data: Any) -> str:
    """Return ``builtin:prose, 8 windows of 256 tokens, 3 seeds``, of the first entry where all are alike."""
    entries = [one for one in (data if isinstance(data, list) else [data]) if isinstance(one, dict)]
    entries = [entry for entry in entries if entry.get("windows") is not None]  # a task's items are none
    found = _distinct(
        f"{entry.get('source')}, {number(entry.get('windows'))} windows of {number(entry.get('length'))} tokens"
        for entry in entries
    )
    seeds = len({entry.get("seed") for entry in entries} - {None})
    return f"{found}, {seeds} seeds" if seeds > 1 else found


def _distinct(values: Iterable[Any]) -> str:
    return "; ".join(dict.fromkeys(str(value) for value in values if value))
