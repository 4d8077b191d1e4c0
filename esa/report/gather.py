"""Collect what a report is made from: the finished steps of one run, their manifests and tables, checked."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import polars as pl

from esa.artifact import Table, find_table, read_manifest, sha256_of
from esa.errors import ArtifactError
from esa.spec import Spec, spec_from_dict

RUN_FILE = "run.json"
STEPS = ("score", "rank", "perturb", "overlap")
STABILITY = "stability_summary.json"
_UPSTREAM = {"rank": "score", "perturb": "rank", "overlap": "rank"}
_UNREAD = frozenset({"scores/1", "margins/1", "windows/1"})  # a report does without them: they are large


@dataclass(frozen=True)
class Gathered:
    """The steps of one run by name (a missing one is not in ``folders``), and the spec that the last of them ran under."""

    spec: Spec
    folders: dict[str, Path]
    manifests: dict[str, dict[str, Any]]
    warnings: list[str] = field(default_factory=list)

    @property
    def name(self) -> str:
        """Return the run's name."""
        return self.spec.name

    @property
    def absent(self) -> list[str]:
        """Name the steps that there are none of."""
        return [step for step in STEPS if step not in self.folders]

    @property
    def inputs(self) -> dict[str, str]:
        """Map each step to its id: what the report's own id is made from."""
        return {step: str(manifest["run"]) for step, manifest in self.manifests.items()}

    def shown(self, step: str) -> str:
        """Return the step's folder as a command names it, without the part that depends on the machine."""
        folder = self.folders[step]
        standard = folder.name == f"{step}-{self.manifests[step]['run']}"
        return f"outputs/{self.name}/{folder.name}" if standard else folder.name

    def _frame(self, step: str, kind: str) -> pl.DataFrame | None:
        if step not in self.folders or kind not in self.manifests[step].get("kinds", {}).values():
            return None
        table: Table = find_table(self.folders[step], kind)
        return table.frame if table.frame.height else None

    @cached_property
    def tensors(self) -> pl.DataFrame | None:
        """Return ``tensors/1`` of the score step."""
        return self._frame("score", "tensors/1")

    @cached_property
    def histogram(self) -> pl.DataFrame | None:
        """Return ``histogram/1`` of the score step."""
        return self._frame("score", "histogram/1")

    @cached_property
    def ranking(self) -> pl.DataFrame | None:
        """Return ``ranking/1`` of the rank step."""
        return self._frame("rank", "ranking/1")

    @cached_property
    def damage(self) -> pl.DataFrame | None:
        """Return ``damage/1`` of the perturb step."""
        return self._frame("perturb", "damage/1")

    @cached_property
    def faults(self) -> pl.DataFrame | None:
        """Return ``faults/1`` of the perturb step, where bits were flipped."""
        return self._frame("perturb", "faults/1")

    @cached_property
    def overlap(self) -> pl.DataFrame | None:
        """Return ``overlap/1`` of the overlap step."""
        return self._frame("overlap", "overlap/1")

    @cached_property
    def stability(self) -> dict[str, Any] | None:
        """Return the stability summary of the overlap step, where several seeds gave one."""
        if "overlap" not in self.folders or not (path := self.folders["overlap"] / STABILITY).exists():
            return None
        content = _json(path)
        return content or None

    @property
    def num_parameters(self) -> int | None:
        """Return how many weights the model has, as the score or perturb step counted them."""
        for step in ("perturb", "score"):
            model = self.manifests.get(step, {}).get("model") or {}
            if isinstance(model.get("num_parameters"), int):
                return int(model["num_parameters"])
        return None


def gather(sources: Sequence[str | Path]) -> Gathered:
    """Return the steps that ``sources`` name: a run folder with ``run.json``, or step folders, any subset of the four.

    Raises ArtifactError for a folder that is neither, a step given twice, a step that a report has no use for, or a
    table whose bytes are no longer those that its manifest vouches for.
    """
    folders: dict[str, Path] = {}
    manifests: dict[str, dict[str, Any]] = {}
    for source in map(Path, sources):
        for folder in _expand(source):
            manifest = read_manifest(folder)
            step = str(manifest["step"])
            if step not in STEPS:
                raise ArtifactError(f"is a step '{step}'; a report takes {', '.join(STEPS)}", where=str(folder))
            if step in folders and folders[step] != folder:
                raise ArtifactError(f"is a second {step} step, beside {folders[step]}", where=str(folder))
            _verify(folder, manifest)
            folders[step], manifests[step] = folder, manifest
    if not folders:
        raise ArtifactError("names no finished step", where=", ".join(map(str, sources)) or "report")
    ordered = [step for step in STEPS if step in folders]
    chosen = next(step for step in ("perturb", "score", "rank", "overlap") if step in folders)
    spec = spec_from_dict(manifests[chosen]["spec"], where=str(folders[chosen] / "manifest.json"))
    return Gathered(
        spec,
        {step: folders[step] for step in ordered},
        {step: manifests[step] for step in ordered},
        _strangers(manifests),
    )


def _expand(source: Path) -> list[Path]:
    """Return the step folders that a run folder names, or the one folder that it is."""
    if (source / RUN_FILE).is_file():
        content = _json(source / RUN_FILE)
        steps = content.get("steps")
        if not isinstance(steps, dict) or not all(isinstance(value, str) for value in steps.values()):
            raise ArtifactError("steps: maps a step's name to its folder", where=str(source / RUN_FILE))
        return [source / folder for step, folder in steps.items() if step in STEPS]
    if source.is_dir() and not (source / "manifest.json").exists():
        raise ArtifactError(
            f"holds neither {RUN_FILE} nor manifest.json: it is no run and no finished step",
            where=str(source),
            hint="esa report takes a folder outputs/<name>, or step folders such as outputs/<name>/perturb-<id>",
        )
    return [source]


def _json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ArtifactError(f"cannot be read: {error}", where=str(path)) from None
    if not isinstance(content, dict):
        raise ArtifactError("is not a JSON object", where=str(path))
    return content


def _verify(folder: Path, manifest: dict[str, Any]) -> None:
    """Hold the tables that the report reads to the sha256 in the step's manifest."""
    kinds = manifest.get("kinds", {})
    for name, expected in manifest.get("outputs", {}).items():
        if kinds.get(name) in _UNREAD:
            continue
        path = folder / name
        if not path.exists():
            raise ArtifactError("is named in manifest.json and missing", where=str(path))
        if sha256_of(path) != expected:
            raise ArtifactError(
                f"is not the file that the step wrote: its sha256 is no longer {expected[:12]}...",
                where=str(path),
                hint="run the step again with --force, or report on a folder that nobody edited",
            )


def _strangers(manifests: dict[str, dict[str, Any]]) -> list[str]:
    """Return a warning for every step that was made from another upstream step than the one at hand."""
    warnings = []
    for step, upstream in _UPSTREAM.items():
        if step not in manifests or upstream not in manifests:
            continue
        known = {manifests[upstream]["run"], *manifests[upstream].get("outputs", {}).values()}
        given = set(manifests[step].get("inputs", {}).values())
        if not known & given:
            warnings.append(
                f"{step}-{manifests[step]['run']} was not made from {upstream}-{manifests[upstream]['run']}:"
                " what the report says of one need not hold for the other"
            )
    return warnings
