"""Order the runs of a training run's checkpoints in time, and follow their critical weights: ``esa scale --over checkpoints``."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import PurePosixPath

import polars as pl

from esa.errors import ArtifactError
from esa.scale.emergence import Address
from esa.scale.models import Member, home

LEAST_CHECKPOINTS = 3
Row = dict[str, object]


@dataclass(frozen=True)
class Checkpoint:
    """A run whose model is a checkpoint: ``step`` of optimisation, ``num_tokens`` seen until then where that is known."""

    member: Member
    step: int
    num_tokens: int | None

    @property
    def label(self) -> str:
        """Return the run's name among the others."""
        return self.member.label

    @cached_property
    def lists(self) -> dict[tuple[str, int | None], "RankedWeights"]:
        """Return the ranked top weights by metric and score seed, of rankings over the whole model; read once."""
        ranking = self.member.run.ranking
        if ranking is None:
            return {}
        top = ranking.filter((pl.col("group") == "top_k") & (pl.col("mode") == "global"))
        return {
            (str(metric), seed): RankedWeights.of(part)
            for (metric, seed), part in top.partition_by("metric", "seed", as_dict=True, maintain_order=True).items()
        }


@dataclass(frozen=True)
class RankedWeights:
    """One list: rank (from 1) by address in order, and the other columns of ``ranking/1`` at the same places."""

    ranks: dict[Address, int]
    indices: list[int | None]
    scores: list[float | None]

    @classmethod
    def of(cls, frame: pl.DataFrame) -> "RankedWeights":
        """Return the list that the rows of one metric and seed hold."""
        frame = frame.sort("rank", maintain_order=True)
        addresses = zip(frame["parameter"].to_list(), frame["indices"].to_list(), strict=True)
        ranks = dict(zip(addresses, frame["rank"].to_list(), strict=True))
        return cls(ranks, frame["index"].to_list(), frame["score"].to_list())

    def top(self, k: int) -> dict[Address, int]:
        """Return the first k."""
        return {address: rank for address, rank in self.ranks.items() if rank <= k}


@dataclass(frozen=True)
class Trajectory:
    """One training run: its name and its checkpoints in the order of their steps."""

    model: str
    checkpoints: tuple[Checkpoint, ...]

    @property
    def x_name(self) -> str:
        """Return what stands on its axis: ``num_tokens``, or ``step`` where the tokens of a checkpoint are unknown."""
        return "step" if any(one.num_tokens is None for one in self.checkpoints) else "num_tokens"

    @property
    def words(self) -> str:
        """Return the training run in a line: its checkpoints, from which step to which, and its axis."""
        first, last = self.checkpoints[0].step, self.checkpoints[-1].step
        axis = "tokens seen" if self.x_name == "num_tokens" else "steps, as the tokens of a checkpoint are unknown"
        return (
            f"training run {self.model}: {len(self.checkpoints)} checkpoints, step {first:,} to {last:,}, over {axis}"
        )

    def rankings(self) -> dict[tuple[str, int | None], list[Checkpoint]]:
        """Return by metric and score seed the checkpoints that rank by them, in order."""
        pairs = dict.fromkeys(pair for one in self.checkpoints for pair in one.lists)
        return {pair: [one for one in self.checkpoints if pair in one.lists] for pair in pairs}


def trajectories(found: Sequence[Member]) -> list[Trajectory]:
    """Return the training runs that members are checkpoints of, in the order in which they first appear.

    Two checkpoints are of one training run where their models have the same shape (the architecture's numbers in the
    manifest), the same training seed and the same home: the model's id, without a last part that names the step itself, as
    in ``llama-1.3m-seed0/checkpoint-000175`` beside the finished ``llama-1.3m-seed0``, or a hub model's id, whose revisions
    are the steps. The name is the home's last part, or all of it where two training runs end alike. Excluded members are
    left out.
    Raises ArtifactError, naming the run, where a manifest has no training step, where a training run has the same step
    twice, and where it has fewer than three checkpoints; and where no member is left.
    """
    grouped: dict[tuple[str, str, str], list[Checkpoint]] = {}
    for one in found:
        if one.excluded is None:
            made = _checkpoint(one)
            facts = one.run.model
            shape = json.dumps([one.num_parameters, facts.get("shape")], sort_keys=True)
            key = home(str(facts.get("id")), made.step), json.dumps(one.training_seed), shape
            grouped.setdefault(key, []).append(made)
    if not grouped:
        out = "; ".join(f"{one.label}: {one.excluded}" for one in found)
        raise ArtifactError(
            f"no run is left{f' ({out})' if out else ''}; checkpoints of a training run are needed", where="RUN"
        )
    names = _names(list(grouped))
    training_runs = [
        Trajectory(name, tuple(sorted(checkpoints, key=lambda one: one.step)))
        for name, checkpoints in zip(names, grouped.values(), strict=True)
    ]
    for trajectory in training_runs:
        _require_steps(trajectory)
    return training_runs


def _checkpoint(member: Member) -> Checkpoint:
    if member.step is None:
        raise ArtifactError(
            f"'{member.run.model.get('id')}' has no training step in the run's manifests: it cannot be placed among"
            " checkpoints",
            where=member.label,
            hint="the step is read when a model is loaded, from training.json or trainer_state.json beside its weights, or"
            " from a revision named step1000; a run of older days is scored again with --force",
        )
    return Checkpoint(member, member.step, 0 if member.step == 0 else member.num_tokens)


def _names(keys: Sequence[tuple[str, str, str]]) -> list[str]:
    """Return a name for each training run: as little of its home, seed and place as tells it from the others."""
    for make in (
        lambda key: PurePosixPath(key[0]).name,
        lambda key: key[0],
        lambda key: f"{key[0]} seed {key[1]}",
        lambda key: f"{key[0]} seed {key[1]} #{keys.index(key) + 1}",  # two shapes in one folder
    ):
        names = [make(key) for key in keys]
        if len(set(names)) == len(names):
            break
    return names


def _require_steps(trajectory: Trajectory) -> None:
    """Refuse a training run that has too few steps, or one of them twice."""
    for one, other in zip(trajectory.checkpoints, trajectory.checkpoints[1:], strict=False):
        if one.step == other.step:
            raise ArtifactError(
                f"{one.label} and {other.label} are both step {one.step:,}; a training run has each step once",
                where=trajectory.model,
                hint="name one of the two, or score seeds as score.seeds of one run",
            )
    if len(trajectory.checkpoints) < LEAST_CHECKPOINTS:
        steps = ", ".join(f"{one.step:,}" for one in trajectory.checkpoints)
        raise ArtifactError(
            f"has {len(trajectory.checkpoints)} checkpoints (step {steps}); at least {LEAST_CHECKPOINTS} are needed",
            where=trajectory.model,
            hint="name more of its runs, or leave it out",
        )
