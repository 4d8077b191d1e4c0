"""What ``--dry-run`` prints: the resolved spec, the passes, the predicted memory, the outputs. Nothing is touched."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from esa.artifact.hub import without_network
from esa.artifact.steps import OUTPUTS, STEP_KEYS
from esa.errors import EsaError
from esa.spec import Spec, dump_spec

if TYPE_CHECKING:
    from esa.model.footprint import Footprint

_GB = 1e9
_COMPARING = (
    "perturb",
    "faults",
    "truth",
    "detector",
)  # steps that remember the intact model and compare changed ones with it


def print_plan(runs: Sequence[Spec], steps: Sequence[str], out: Path | None, num_targets: int | None = None) -> None:
    """Print the plan of every run: comments around the resolved spec, so that the whole is TOML.

    ``num_targets``: of a campaign on addresses instead of a ranking.
    """
    for spec in runs:
        typer.echo(dump_spec(spec).rstrip())
        for line in _plan(spec, steps, out, num_targets):
            typer.echo(f"# {line}".rstrip())


def print_members(runs: Sequence[Spec], numbers: Sequence[int]) -> None:
    """Print as comments which number of a sweep is which run, and in what the runs differ."""
    from esa.cli.members import member_rows
    from esa.cli.plain import aligned

    typer.echo(f"# {len(numbers)} of {len(runs)} runs\n#")
    for line in aligned(member_rows(runs, numbers), right={0}):
        typer.echo(f"# {line}")
    typer.echo("")


def _plan(spec: Spec, steps: Sequence[str], out: Path | None, num_targets: int | None) -> list[str]:
    from esa.model.footprint import BASE_BYTES, footprint
    from esa.model.loading import choose_device
    from esa.model.room import memory_room

    model = footprint(spec.model)
    room = memory_room(spec.model, choose_device(spec.model.device)[0])
    stages: dict[str, int] = {}
    lines = ["", "passes"]
    chances: list[str] = []
    if "score" in steps:
        from esa.score.memory import effort_of, passes, strategy_of
        from esa.score.refusals import require_derivatives

        require_derivatives(spec)
        effort = effort_of(spec, model)
        strategy, found = strategy_of(spec, model, effort, room)
        lines += [f"  score: {step}" for step in passes(spec, effort, strategy)]
        stages |= {name if name == "load" else f"score: {name}": size for name, size in found.items()}
    if "perturb" in steps and spec.perturb:
        from esa.cli.perturb_plan import campaign_lines, num_lists, p_value_lines

        asked = spec, num_targets, num_lists(spec, model.table)
        lines += [f"  perturb: {line}" for line in campaign_lines(*asked)]
        chances = ["", "smallest p", *(f"  {line}" for line in p_value_lines(*asked))]
    if "faults" in steps:
        lines += [f"  faults: {line}" for line in _faults(spec, model)]
    if "truth" in steps:
        lines.append(
            f"  truth: the intact model, {spec.eval.rewrites} rewrites for the noise floor, and at most {spec.truth.weights}"
            f" weights, each {spec.eval.windows} windows of {spec.eval.length} tokens, from the first block that changed"
        )
    if "detector" in steps:
        lines.append(
            f"  detector: each candidate alone, each group together and without one, {spec.eval.windows} windows of"
            f" {spec.eval.length} tokens, from the first block that changed"
        )
    if "eval" in steps:
        lines += [f"  eval: {line}" for line in _measured(spec)]
    held = {"none": f"{model.item_bytes} bytes each"}.get(
        spec.model.quantization, f"linear maps as {spec.model.quantization}"
    )
    lines += chances
    where = ", one block of them in memory at a time" if model.on_disk else ""
    lines += ["", f"memory ({model.num_parameters:,} weights, {held}{where})"]
    comparing = next((step for step in _COMPARING if step in steps), None)
    if comparing or "eval" in steps:
        from esa.eval import memory as eval_memory

        stages |= {"load": BASE_BYTES + max(model.load_bytes, model.weight_bytes)}
        peak = eval_memory.predicted_peak(spec, model, room, remembers=comparing is not None)
        stages[comparing or "eval"] = peak
    lines += [f"  {name:<22}{size / _GB:8.2f} GB" for name, size in stages.items()]
    binding = max(stages, key=lambda name: stages[name])
    lines.append(f"  peak {stages[binding] / _GB:.2f} GB, bound by {binding}")
    whose = "a fifth less than there is" if spec.model.memory_budget is None else "model.memory_budget"
    short = max(0, stages[binding] - room)
    lines += [
        f"  room {room / _GB:.2f} GB, {whose}" + (f": {short / _GB:.2f} GB short" if short else ""),
        "",
        "outputs",
    ]
    for step in steps:
        lines.append(f"  {step}: {_folder(spec, step, out, alone=len(steps) == 1)}")
    return lines


def _measured(spec: Spec) -> list[str]:
    """Return what esa eval runs forward: texts at lengths, of each seed, and the tasks."""
    from esa.eval.combinations import combinations
    from esa.eval.tasks import ON_WINDOWS, reads_windows, sources

    seeds = f" of each of {len(spec.eval.seeds)} seeds" if len(spec.eval.seeds) > 1 else ""
    texts = [
        f"{one.section.source}, {one.section.windows} windows of {one.section.length} tokens{seeds}, forward"
        for one in combinations(spec)
    ]
    again = [f"{name}: on the same windows again" for name in spec.eval.tasks if name in ON_WINDOWS]
    number = "all" if spec.eval.task_items is None else f"the first {spec.eval.task_items:,}"
    items = [f"{name}: {number} items of {source}, forward" for name, (source, _) in sources(spec).items()]
    return [*(texts if reads_windows(spec) else []), *again, *items]


def _faults(spec: Spec, model: "Footprint") -> list[str]:
    """Return the trials of a campaign of random faults, and how many faults each has on average."""
    from esa.perturb.faults.bit_sweep import stored_width
    from esa.perturb.faults.lists import Store, chosen

    rules = spec.faults
    names = chosen(model.table, rules)
    lines = [
        f"the intact model and {rules.trials} trials at each of {len(rules.rates)} rates, each {spec.eval.windows} windows of"
        f" {spec.eval.length} tokens, from the first block that is hit"
    ]
    if spec.model.quantization != "none":
        return [*lines, "how many bits the codes have is known once the model is loaded"]
    width = stored_width(spec.model.dtype, "none")
    total = sum(Store(name, model.table[name].numel, width).num_bits(rules.ecc) for name in names)
    rates = [f"{rate:g}: {rate * total:,.3g} faults a trial" for rate in rules.rates]
    return [*lines, f"{total:,} bits of {len(names)} parameters; rate {'; '.join(rates) or 'none'}"]


def _folder(spec: Spec, step: str, out: Path | None, *, alone: bool) -> str:
    """Return where a step will write; its id where the spec and the files at hand fix it."""
    if alone and out is not None:
        return f"{out}/"
    root = out or OUTPUTS
    if step == "report":
        return f"reports/{spec.name}-<id>/"
    try:
        with without_network():
            if step == "score":
                from esa.score import score_step

                found = score_step(spec, root)
                return f"{found.folder}/{_state(spec, complete=found.complete)}"
            if step == "eval":
                from esa.eval import eval_step

                found = eval_step(spec, root)
                return f"{found.folder}/{_state(spec, complete=found.complete)}"
    except EsaError as error:
        return f"{root / spec.name / step}-<id>/  ({error.what})"
    assert step in STEP_KEYS
    return f"{root / spec.name / step}-<id>/"


def _state(spec: Spec, *, complete: bool) -> str:
    """Return whether the step is there, and on which commit of a hub model its id counts."""
    from esa.model.sources import pinned

    commit = pinned(spec.model.id, spec.model.revision)
    words = ["complete: it will be reused"] if complete else []
    if commit is not None and commit.asked != commit.sha:
        words.append(f"if {commit.asked} of {spec.model.id} is still {commit.sha[:12]}, as in the local cache")
    return f" ({'; '.join(words)})" if words else ""
