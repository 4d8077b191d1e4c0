"""What differs between runs: the keys of their resolved specs that their steps read, and the facts of their manifests."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from esa.artifact.gather import CHAIN, STEPS, Gathered
from esa.artifact.places import models
from esa.artifact.steps import readers
from esa.report.comparison import Comparison, windows

UNSET = "unset"
_NAMES = ("name", "question")  # every run has its own: they stand in the table of the runs
_MODEL = ("fingerprint", "revision", "architecture", "compute", "device", "threads", "accelerator", "num_parameters")


@dataclass(frozen=True)
class Difference:
    """A key, the steps that read it (empty for a fact of the manifests), and its value in each run, None where it has none."""

    key: str
    steps: tuple[str, ...]
    values: tuple[str | None, ...]


def differing_keys(comparison: Comparison) -> list[Difference]:
    """Return the keys of the resolved specs whose values differ between runs, in the order of the specs.

    A key counts in a run as the steps at hand that read it have it (``unset`` where they have none); a run without such
    a step has no value and differs from none. ``name`` and ``question`` are left out.
    """
    read = [_read_keys(run) for run in comparison.runs]
    keys = dict.fromkeys(key for found in read for key in found)
    present = [{step.partition(" ")[0] for step in run.manifests} for run in comparison.runs]
    known = dict.fromkeys(step.partition(" ")[0] for step in STEPS)
    shown = [step for step in known if step in CHAIN or any(step in here for here in present)]
    found = []
    for key in sorted(keys, key=_order):
        steps = tuple(step for step in shown if step in readers(key))
        values = tuple(
            one.get(key, UNSET if here & set(steps) else None) for one, here in zip(read, present, strict=True)
        )
        if len(set(values) - {None}) > 1:
            found.append(Difference(key, steps, values))
    return found


def differing_facts(comparison: Comparison) -> list[Difference]:
    """Return what the manifests say of model, texts, versions, hardware and code, where it differs between runs.

    A run that says nothing of a fact differs from none.
    """
    facts = [_facts(run) for run in comparison.runs]
    found = []
    for key in dict.fromkeys(key for one in facts for key in one):
        values = tuple(one.get(key) for one in facts)
        if len(set(values) - {None}) > 1:
            found.append(Difference(key, (), values))
    return found


_SECTIONS = ("model", "calibration", "eval", "score", "rank", "perturb", "overlap")


def _order(key: str) -> int:
    """Return the place of a key's section in a spec; within a section the keys keep the order they came in."""
    section = key.partition(".")[0]
    return _SECTIONS.index(section) if section in _SECTIONS else len(_SECTIONS)


def _read_keys(run: Gathered) -> dict[str, str]:
    """Return the keys that the run's steps read, with their values as text: more than one where the steps disagree."""
    found: dict[str, list[str]] = {}
    for step, manifest in run.manifests.items():
        spec = manifest.get("spec")
        for key, value in _flat(spec).items() if isinstance(spec, dict) else ():
            if key not in _NAMES and step.partition(" ")[0] in readers(key):
                found.setdefault(key, []).append(shown(value))
    return {key: "; ".join(dict.fromkeys(values)) for key, values in found.items()}


def _flat(tree: Mapping[str, Any], before: str = "") -> dict[str, Any]:
    """Return ``{"rank.k": [1, 10]}`` of nested tables; a list of tables stays a value."""
    found: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            found |= _flat(value, f"{before}{key}.")
        else:
            found[before + str(key)] = value
    return found


def shown(value: Any) -> str:
    """Return a value of a spec as one reads it: ``1, 10, 100``; ``zero, unit single; scale, factor 1.2``."""
    if isinstance(value, dict):
        method = [str(value["method"])] if "method" in value else []
        return ", ".join([*method, *(f"{key} {shown(one)}" for key, one in value.items() if key != "method")])
    if isinstance(value, list):
        inner = [shown(one) for one in value]
        return ("; " if any(isinstance(one, dict) for one in value) else ", ").join(inner) or "none"
    return str(value).lower() if isinstance(value, bool) else str(value)


def _facts(run: Gathered) -> dict[str, str]:
    """Return the facts of the manifests by name, several values of one fact joined."""
    found: dict[str, list[str]] = {}
    for model in models(run):
        for key in _MODEL:
            if model.get(key) is not None:
                found.setdefault(f"model {key.removeprefix('num_')}", []).append(str(model[key]))
    for step, use in (("perturb", "evaluation"), ("score", "calibration")):
        for seed, digest in windows(run, step).items():
            found[f"{use} windows{'' if seed is None else f', seed {seed}'}"] = [digest]
    for manifest in run.manifests.values():
        git = manifest.get("git")
        git = git if isinstance(git, dict) else {}
        commit = git.get("commit")
        facts = {
            "esa": manifest.get("esa"),
            "python": manifest.get("python"),
            **_pairs(manifest.get("packages")),
            **_pairs(manifest.get("hardware")),
            "commit": f"{commit}{', with uncommitted changes' if git.get('dirty') else ''}" if commit else None,
        }
        for key, value in facts.items():
            if value is not None:
                found.setdefault(key, []).append(str(value))
    return {key: "; ".join(dict.fromkeys(values)) for key, values in found.items()}


def _pairs(facts: Any) -> dict[str, Any]:
    return facts if isinstance(facts, dict) else {}
