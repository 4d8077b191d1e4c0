"""What ``--dry-run`` prints: the resolved spec, the passes, the predicted memory, the outputs. Nothing is touched."""

from collections.abc import Sequence
from pathlib import Path

import typer

from esa.artifact.hub import without_network
from esa.artifact.steps import OUTPUTS, STEP_KEYS
from esa.errors import EsaError
from esa.spec import Spec, dump_spec

_GB = 1e9


def print_plan(runs: Sequence[Spec], steps: Sequence[str], out: Path | None) -> None:
    """Print the plan of every run: comments around the resolved spec, so that the whole is TOML."""
    for spec in runs:
        typer.echo(dump_spec(spec).rstrip())
        for line in _plan(spec, steps, out):
            typer.echo(f"# {line}".rstrip())


def print_members(runs: Sequence[Spec], numbers: Sequence[int]) -> None:
    """Print as comments which number of a sweep is which run, and in what the runs differ."""
    from esa.cli.members import member_rows
    from esa.cli.plain import aligned

    typer.echo(f"# {len(numbers)} of {len(runs)} runs\n#")
    for line in aligned(member_rows(runs, numbers), right={0}):
        typer.echo(f"# {line}")
    typer.echo("")


def _plan(spec: Spec, steps: Sequence[str], out: Path | None) -> list[str]:
    from esa.model.footprint import BASE_BYTES, footprint
    from esa.model.loading import choose_device
    from esa.model.room import memory_room

    model = footprint(spec.model)
    room = memory_room(spec.model, choose_device(spec.model.device)[0])
    stages: dict[str, int] = {}
    lines = ["", "passes"]
    if "score" in steps:
        from esa.score.memory import effort_of, passes, strategy_of
        from esa.score.refusals import require_derivatives

        require_derivatives(spec)
        effort = effort_of(spec, model)
        strategy, found = strategy_of(spec, model, effort, room)
        lines += [f"  score: {step}" for step in passes(spec, effort, strategy)]
        stages |= {name if name == "load" else f"score: {name}": size for name, size in found.items()}
    if "perturb" in steps and spec.perturb:
        lines.append(f"  perturb: {_evaluations(spec)}")
    if "eval" in steps:
        from esa.eval.combinations import combinations

        lines += [
            f"  eval: {one.section.source}, {one.section.windows} windows of {one.section.length} tokens, forward"
            for one in combinations(spec)
        ]
    held = {"none": f"{model.item_bytes} bytes each"}.get(
        spec.model.quantization, f"linear maps as {spec.model.quantization}"
    )
    where = ", one block of them in memory at a time" if model.on_disk else ""
    lines += ["", f"memory ({model.num_parameters:,} weights, {held}{where})"]
    if "perturb" in steps or "eval" in steps:
        from esa.eval import memory as eval_memory

        remembers = "perturb" in steps
        stages |= {"load": BASE_BYTES + max(model.load_bytes, model.weight_bytes)}
        stages["perturb" if remembers else "eval"] = eval_memory.predicted_peak(spec, model, room, remembers=remembers)
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


def _evaluations(spec: Spec) -> str:
    groups = {
        "top_k": len(spec.score.metrics),
        "bottom_k": len(spec.score.metrics),
        "matched_k": len(spec.score.metrics),
    }
    groups["random_k"] = spec.rank.draws
    seeds = len(spec.score.seeds) if spec.rank.seeds == "all" else 1
    most = 0
    for section in spec.perturb:
        chosen = section.groups or spec.rank.groups
        sets = max(section.k or spec.rank.k) if section.unit == "single" else len(section.k or spec.rank.k)
        most += sum(groups[group] for group in chosen) * sets * seeds * getattr(section, "repeats", 1)
    return (
        f"the intact model, {spec.eval.rewrites} rewrites for the noise floor, and at most {most} cases,"
        f" each {spec.eval.windows} windows of {spec.eval.length} tokens, from the first block that changed"
    )


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
