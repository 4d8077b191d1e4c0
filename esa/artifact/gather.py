"""Collect the finished steps of a run for whoever reads runs as a whole: their manifests and tables, checked."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import polars as pl

from esa.artifact import Table, find_table, read_json, read_manifest, sha256_of
from esa.errors import ArtifactError
from esa.spec import Spec, spec_from_dict

RUN_FILE = "run.json"
CHAIN = ("score", "rank", "perturb", "overlap")  # what esa run chains
CURVES = ("curve k", "curve windows", "curve seeds")  # a run may have one of each
BETWEEN = ("scale", "arch")  # what is made from several runs and stands for none of them
STEPS = (*CHAIN, *CURVES, "truth", "detector", "faults", "eval", *BETWEEN)
STABILITY = "stability_summary.json"
CURVE_SUMMARY = "curve_summary.json"
_UPSTREAM = {"rank": "score", "perturb": "rank", "overlap": "rank", "truth": "score", "detector": "score"}
_SPEAKS = ("perturb", "score", "rank", "overlap", *STEPS)  # whose spec is the run's, first found
# A report does without them: they are large, or other tables hold what they say.
_UNREAD = frozenset({
    "scores/1", "margins/1", "windows/1", "items/1", "continuations/1", "truth_weights/1", "fault_list/1", "fault_trials/1",
})  # fmt: skip


@dataclass(frozen=True)
class Gathered:
    """The steps of one run by name (a missing one is not in ``folders``), and the spec that the last of them ran under.

    ``source`` is the run's folder, where it was given as one.
    """

    spec: Spec
    folders: dict[str, Path]
    manifests: dict[str, dict[str, Any]]
    warnings: list[str] = field(default_factory=list)
    source: Path | None = None

    @property
    def name(self) -> str:
        """Return the run's name."""
        return self.spec.name

    @property
    def absent(self) -> list[str]:
        """Name the steps of a chain that there are none of."""
        return [step for step in CHAIN if step not in self.folders]

    @property
    def inputs(self) -> dict[str, str]:
        """Map each step to its id: what the report's own id is made from."""
        return {step: str(manifest["run"]) for step, manifest in self.manifests.items()}

    @property
    def recorded(self) -> dict[str, Any]:
        """Return what the report's manifest says of it beyond what every step's does."""
        return {}

    @property
    def pairs(self) -> list[tuple[str, "Gathered"]]:
        """Return the run with its name, as the only one."""
        return [(self.name, self)]

    @property
    def lines(self) -> list[str]:
        """Return the run in a line: its name and its steps, as folders."""
        return [f"{self.name}: {', '.join(str(folder) for folder in self.folders.values())}"]

    def shown(self, step: str) -> str:
        """Return the step's folder as a command names it: as it was asked for with ``-o``, else below ``outputs/``."""
        folder, manifest = self.folders[step].name, self.manifests[step]
        standard = folder == f"{manifest['step']}-{manifest['run']}"
        argv = manifest.get("argv") or []
        given = _given_out(argv)
        if given is not None and standard and argv[1:2] == ["run"]:
            return f"{given}/{self.name}/{folder}"
        if given is not None and given.rpartition("/")[2] == folder:
            return given
        return f"outputs/{self.name}/{folder}" if standard else folder

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
    def plain_damage(self) -> pl.DataFrame | None:
        """Return the damage without dose-responses and swept bits, which have sections of their own; None where none is left."""
        damage, doses, bits = self.damage, self.table("perturb", "dose/1"), self.table("perturb", "bits/1")
        if damage is not None and doses is not None:
            dosed = doses.filter(pl.col("option") != "k").select("method", "unit").unique()
            damage = damage.join(dosed, on=["method", "unit"], how="anti", maintain_order="left")
        if damage is not None and bits is not None:
            damage = damage.filter(~pl.col("case").is_in(bits["case"].to_list()))
        return damage if damage is not None and damage.height else None

    @cached_property
    def faults(self) -> pl.DataFrame | None:
        """Return ``faults/1`` of the perturb step, where bits were flipped."""
        return self._frame("perturb", "faults/1")

    @cached_property
    def overlap(self) -> pl.DataFrame | None:
        """Return ``overlap/1`` of the overlap step."""
        return self._frame("overlap", "overlap/1")

    @cached_property
    def _tables(self) -> dict[tuple[str, str], pl.DataFrame | None]:
        return {}

    def table(self, step: str, kind: str) -> pl.DataFrame | None:
        """Return a step's table of ``kind``, None where there is none or it has no rows; it is read once."""
        if (step, kind) not in self._tables:
            self._tables[step, kind] = self._frame(step, kind)
        return self._tables[step, kind]

    @cached_property
    def curves(self) -> dict[str, dict[str, Any]]:
        """Return the summary of each curve by its name: ``k``, ``windows``, ``seeds``."""
        steps = [step for step in CURVES if step in self.folders]
        return {step.partition(" ")[2]: read_json(self.folders[step] / CURVE_SUMMARY) for step in steps}

    @cached_property
    def stability(self) -> dict[str, Any] | None:
        """Return the stability summary of the overlap step, where several seeds gave one."""
        if "overlap" not in self.folders or not (path := self.folders["overlap"] / STABILITY).exists():
            return None
        content = read_json(path)
        return content or None

    @cached_property
    def model(self) -> dict[str, Any]:
        """Return what the steps' manifests say of the model, each fact by the first step that states it."""
        facts: dict[str, Any] = {}
        for step in (one for one in STEPS if one in self.manifests):
            stated = self.manifests[step].get("model")
            for key, value in (stated if isinstance(stated, dict) else {}).items():
                if facts.get(key) is None:
                    facts[key] = value
        return facts

    @property
    def num_parameters(self) -> int | None:
        """Return how many weights the model has, as the score or perturb step counted them."""
        for step in _SPEAKS:
            model = self.manifests.get(step, {}).get("model") or {}
            if isinstance(model.get("num_parameters"), int):
                return int(model["num_parameters"])
        return None


def _given_out(argv: Sequence[str]) -> str | None:
    """Return the value of ``-o`` in the words of a command, without a slash at its end."""
    for word, following in zip(argv, [*argv[1:], ""], strict=True):
        name, equals, value = word.partition("=")
        if name in ("-o", "--out"):
            return (value if equals else following).rstrip("/") or None
    return None


@dataclass(frozen=True)
class StepFolder:
    """A finished step that a report can be made from: its name, its folder, its manifest, its tables checked.

    The name of a curve's step says which: ``curve k``.
    """

    step: str
    folder: Path
    manifest: dict[str, Any]

    @property
    def id(self) -> str:
        """Return the step's id."""
        return str(self.manifest["run"])

    def made_from(self, other: "StepFolder") -> bool:
        """Tell whether this step names another, or a file that it wrote, among its inputs."""
        known = {other.manifest["run"], *other.manifest.get("outputs", {}).values()}
        return bool(known & set(self.manifest.get("inputs", {}).values()))


def step_folders(source: Path) -> list[StepFolder]:
    """Return the steps that a run folder with ``run.json`` names, or the one step whose folder ``source`` is.

    Raises ArtifactError for a folder that is neither, a step that a report has no use for, or a table whose bytes are no
    longer those that its manifest vouches for. Cost: one read of every table that a report reads.
    """
    found = []
    for folder in _expand(source):
        manifest = read_manifest(folder)
        step = str(manifest["step"])
        step += f" {manifest.get('curve')}" if step == "curve" else ""
        if step not in STEPS:
            known = dict.fromkeys(name.partition(" ")[0] for name in STEPS)
            raise ArtifactError(f"is a step '{step}'; what is read here: {', '.join(known)}", where=str(folder))
        _verify(folder, manifest)
        found.append(StepFolder(step, folder, manifest))
    return found


def gathered(steps: Sequence[StepFolder], source: Path | None = None) -> Gathered:
    """Return one run of at most one step of a kind; ``source`` is the run's folder, where it was given as one."""
    known = {one.step: one for one in steps}
    chosen = known[next(step for step in _SPEAKS if step in known)]
    spec = spec_from_dict(chosen.manifest["spec"], where=str(chosen.folder / "manifest.json"))
    ordered = [known[step] for step in STEPS if step in known]
    return Gathered(
        spec,
        {one.step: one.folder for one in ordered},
        {one.step: one.manifest for one in ordered},
        _strangers(known),
        source,
    )


def is_run(source: Path) -> bool:
    """Tell whether a folder is a run's: whether it holds ``run.json``."""
    return (source / RUN_FILE).is_file()


def _expand(source: Path) -> list[Path]:
    """Return the step folders that a run folder names, or the one folder that it is."""
    if is_run(source):
        content = read_json(source / RUN_FILE)
        steps = content.get("steps")
        if not isinstance(steps, dict) or not all(isinstance(value, str) for value in steps.values()):
            raise ArtifactError("steps: maps a step's name to its folder", where=str(source / RUN_FILE))
        kinds = {name.partition(" ")[0] for name in STEPS}
        return [source / folder for step, folder in steps.items() if step.partition(" ")[0] in kinds]
    if source.is_dir() and not (source / "manifest.json").exists():
        raise ArtifactError(
            f"holds neither {RUN_FILE} nor manifest.json: it is no run and no finished step",
            where=str(source),
            hint="name a folder outputs/<name>, or step folders such as outputs/<name>/perturb-<id>",
        )
    return [source]


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


def _strangers(steps: Mapping[str, StepFolder]) -> list[str]:
    """Return a warning for every step that was made from another upstream step than the one at hand."""
    return [
        f"{step}-{steps[step].id} was not made from {upstream}-{steps[upstream].id}:"
        " what is said of one need not hold for the other"
        for step, upstream in _UPSTREAM.items()
        if step in steps and upstream in steps and not steps[step].made_from(steps[upstream])
    ]
