"""Run a campaign a few cases at a time: change, evaluate, restore, note down; a killed one goes on where it was."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from esa.artifact import Journal
from esa.eval import INTACT, Edit, Evaluator, Measured, case_id
from esa.eval.harness import HarnessTask
from esa.model import LoadedModel
from esa.model.addresses import unravel
from esa.perturb.apply import Change, applied, fault_rows, neighbours, plan_changes, same_bits
from esa.perturb.cases import Case, Plan
from esa.perturb.groups import Group
from esa.perturb.hooks import hooked
from esa.perturb.integrity import remember_intact
from esa.perturb.targets import Region, Target, addressed, by_tensor, names_of
from esa.progress import Progress
from esa.spec import generator

_POOL = 1000
Gradients = Mapping[str, tuple[Tensor, Tensor]]  # per parameter indices, ascending, and the gradient there
TakeGradients = Callable[[Mapping[str, Tensor]], Gradients]


@dataclass(frozen=True)
class _Planned:
    """A case of the plan, or a rewrite of the noise floor, with the values it writes."""

    key: str
    method: str  # none for a rewrite
    changes: Sequence[Change]


@dataclass
class Campaign:
    """The evaluations of one perturb step: the intact model, the noise floor, and every case of the plan.

    ``take_gradients``: returns the calibration loss's gradient at indices per parameter; asked once, where a case needs it.
    ``harness``: tasks of lm-evaluation-harness that every case is measured on, too.
    """

    run: str
    loaded: LoadedModel
    evaluator: Evaluator
    journal: Journal
    seed: int
    progress: Progress
    take_gradients: TakeGradients | None = None
    harness: Sequence[HarnessTask] = ()
    rows: dict[str, dict[str, object]] = field(
        default_factory=dict, init=False, repr=False
    )  # what tables say of a case
    _gradients: Gradients | None = field(default=None, init=False, repr=False)

    def evaluate(self, plan: Plan, floor_targets: Sequence[Target]) -> None:
        """Evaluate what the journal does not hold yet, in the order of the first block that changes.

        A few cases run together (``Evaluator.together``); each finished one is a flushed line, and a kill loses those alone.
        Raises ModelError for an intact model without finite logits, ArtifactError if it measures other than the journal says.
        """
        floor = {f"floor-{case_id('neighbour', {}, [addressed(t, self.loaded.table)], 0)}": t for t in floor_targets}
        touched = {key: [target[0]] for key, target in floor.items()}
        touched |= {key: names_of(case.targets) for key, case in plan.cases.items()}
        starts = {
            key: self.evaluator.first_block(names) for key, names in touched.items() if key not in self.journal.done
        }
        self._find_gradients([case for key, case in plan.cases.items() if key in starts])
        self.progress.start("cases", 1 + len(touched))
        self.progress.advance(len(touched) - len(starts))
        if starts or INTACT not in self.journal.done:
            remember_intact(self.evaluator, self.journal, set(starts.values()))
        self.progress.advance()
        waiting: list[_Planned] = []
        for key in sorted(starts, key=lambda key: starts[key]):  # of one first block, in the plan's order
            planned = self._planned(key, plan.cases.get(key), floor)
            if all(same_bits(change.before, change.after) for change in planned.changes):
                intact = self.measured(INTACT)
                self._finish(planned, replace(intact, num_agreeing=intact.total_tokens, kl_sum=0.0))
                continue
            if not waiting:
                self.evaluator.forget_below(starts[key])
            waiting.append(planned)
            if len(waiting) == self.evaluator.together:
                self._compare(waiting)
                waiting = []
        self._compare(waiting)
        self.progress.finish()

    def _find_gradients(self, cases: Sequence[Case]) -> None:
        """Take the gradient at all that the unfinished cases of the method gradient touch, while the model is intact."""
        targets = dict.fromkeys(target for case in cases if case.method == "gradient" for target in case.targets)
        if targets:
            assert self.take_gradients is not None, "a plan with gradient cases comes with what takes gradients"
            self._gradients = self.take_gradients(by_tensor(self.loaded, targets))

    def _planned(self, key: str, case: Case | None, floor: Mapping[str, Target]) -> _Planned:
        if case is None:
            return _Planned(key, "", neighbours(self.loaded, floor[key]))
        return _Planned(key, case.method, self._changes(case))

    def _compare(self, waiting: Sequence[_Planned]) -> None:
        """Evaluate cases together and note them down."""
        if waiting:
            edits = [self._edit(planned) for planned in waiting]
            for planned, measured in zip(waiting, self.evaluator.compare(edits), strict=True):
                self._finish(planned, measured)

    def edits(self, cases: Sequence[Case]) -> Iterator[Edit]:
        """Yield cases as the evaluator makes them, to be looked at in another way than by their loss.

        The model is intact as each is asked for; the gradients that some need are taken with the first one.
        """
        self._find_gradients(cases)
        for case in cases:
            yield self._edit(_Planned(case.id, case.method, self._changes(case)))

    def _edit(self, planned: _Planned) -> Edit:
        """Return a case as the evaluator makes it: part by part, hooks included."""

        @contextmanager
        def make(names: frozenset[str]) -> Iterator[None]:
            changes = [change for change in planned.changes if change.name in names]
            with applied(self.loaded, changes), hooked(self.loaded, planned.method, changes):
                yield

        return Edit(frozenset(change.name for change in planned.changes), make)

    def _finish(self, planned: _Planned, measured: Measured) -> None:
        faults = fault_rows(self.run, planned.key, planned.changes) if planned.method == "bit_flip" else []
        self.journal.append(planned.key, {"measured": measured.record(), "faults": faults})
        self.progress.advance()

    def _changes(self, case: Case) -> list[Change]:
        names = case_id("targets", {}, [addressed(target, self.loaded.table) for target in case.targets], 0)
        draw = generator(self.seed, case.method, case.repeat, names)
        given = replace(case.given, gradients=self._gradients, stream=(self.seed, case.repeat))
        return plan_changes(self.loaded, case.targets, case.method, case.options, draw, given)

    def measured(self, key: str) -> Measured:
        """Return a finished case's measurement."""
        return Measured(**self.journal.done[key]["measured"])

    def noise_floor(self) -> float | None:
        """Return the largest abs(delta_nll) over the rewrites, or None where there were none or one gave no number."""
        base = self.measured(INTACT).mean_nll
        values = [self.measured(key).mean_nll for key in self.journal.done if key.startswith("floor-")]
        if base is None or not values or any(value is None for value in values):
            return None
        return max(abs(value - base) for value in values if value is not None)


def floor_targets(
    groups: Sequence[Group], loaded: LoadedModel, chosen: Sequence[str], seed: int, number: int
) -> list[Target]:
    """Return ``number`` low-score weights for the noise floor, in address order.

    They are drawn from the ranking's bottom groups, of those whose score and value are not zero: rewriting a weight that
    nothing reads, or a zero, would measure nothing. Where those are too few, weights drawn uniformly from ``chosen`` fill the
    rest, top groups left out: nearly every weight is one of low score.
    """
    draw = generator(seed, "noise_floor")
    bottom = list(
        dict.fromkeys(
            target
            for group in groups
            if group.name == "bottom_k"
            for target, score in zip(group.targets, group.scores, strict=False)
            if score and not isinstance(target, Region) and _value(loaded, target) != 0
        )
    )
    picks = [bottom[i] for i in draw.permutation(len(bottom))[:number]]
    named = [target for group in groups if group.name != "random_k" for target in group.targets]
    taken = {target for target in named if not isinstance(target, Region)} | set(picks)
    regions = {target for target in named if isinstance(target, Region)}
    sizes = np.cumsum([loaded.table[name].numel for name in chosen])
    for position in draw.integers(0, int(sizes[-1]), _POOL).tolist():
        if len(picks) == number:
            break
        place = int(np.searchsorted(sizes, position, side="right"))
        target = (chosen[place], position - (int(sizes[place - 1]) if place else 0))
        place_in = unravel(target[1], loaded.table[target[0]].shape)
        inside = any(region.holds(target[0], place_in) for region in regions)
        if target not in taken and not inside and _value(loaded, target) != 0:
            taken.add(target)
            picks.append(target)
    order = {name: number for number, name in enumerate(loaded.table)}
    return sorted(picks, key=lambda target: (order[target[0]], target[1]))


def _value(loaded: LoadedModel, target: Target) -> float:
    """Return a weight's value; 0 where it is not finite, since it has no neighbour to be rewritten to."""
    weight = loaded.weights[target[0]]
    value = float(weight.stored(torch.tensor([target[1]])))
    return value if math.isfinite(value) else 0.0
