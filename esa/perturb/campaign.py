"""Run a campaign case by case: change, evaluate, restore, note down; a killed one goes on at the next case."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from esa.artifact import Journal
from esa.errors import ModelError
from esa.eval import INTACT, Evaluator, Measured, case_id, window_rows
from esa.eval.language_modeling import perplexity
from esa.model import LoadedModel
from esa.perturb.apply import Change, Target, applied, fault_rows, neighbours, plan_changes, same_bits
from esa.perturb.cases import Case, Group, Plan, Use, addressed, dose_of, options_text
from esa.perturb.hooks import hooked
from esa.perturb.interval import paired_interval
from esa.progress import Progress
from esa.spec import generator

_POOL = 1000


@dataclass
class Campaign:
    """The evaluations of one perturb step: the intact model, the noise floor, and every case of the plan."""

    run: str
    loaded: LoadedModel
    evaluator: Evaluator
    journal: Journal
    seed: int
    progress: Progress

    def evaluate(self, plan: Plan, floor_targets: Sequence[Target]) -> None:
        """Evaluate what the journal does not hold yet. Every finished case is a flushed line."""
        floor = {f"floor-{case_id('neighbour', {}, [addressed(t, self.loaded.table)], 0)}": t for t in floor_targets}
        todo = [key for key in [*floor, *plan.cases] if key not in self.journal.done]
        self.progress.start("cases", 1 + len(floor) + len(plan.cases))
        self.progress.advance(1 + len(floor) + len(plan.cases) - len(todo) - 1)
        if todo or INTACT not in self.journal.done:
            intact = self.evaluator.remember()
            if intact.nonfinite:
                raise ModelError(
                    "the intact model gives NaN or infinite logits on the evaluation text: no damage can be measured",
                    hint="try dtype = 'float32'",
                )
            if INTACT not in self.journal.done:
                self.journal.append(INTACT, {"measured": intact.record()})
        self.progress.advance()
        for key in todo:
            case = plan.cases.get(key)
            changes = neighbours(self.loaded, floor[key]) if case is None else self._changes(case)
            measured = self._evaluated(changes, "" if case is None else case.method)
            faults = fault_rows(self.run, key, changes) if case is not None and case.method == "bit_flip" else []
            self.journal.append(key, {"measured": measured.record(), "faults": faults})
            self.progress.advance()
        self.progress.finish()

    def _evaluated(self, changes: Sequence[Change], method: str) -> Measured:
        """Return what the changed model measures; changes that change no bit leave the intact model's measurement."""
        if all(same_bits(change.before, change.after) for change in changes):
            intact = self.measured(INTACT)
            return replace(intact, num_agreeing=intact.total_tokens, kl_sum=0.0)
        start = self.evaluator.first_block({change.name for change in changes})
        with applied(self.loaded, changes), hooked(self.loaded, method, changes):
            return self.evaluator.compare(start)

    def _changes(self, case: Case) -> list[Change]:
        names = case_id("targets", {}, [addressed(target, self.loaded.table) for target in case.targets], 0)
        draw = generator(self.seed, case.method, case.repeat, names)
        return plan_changes(self.loaded, case.targets, case.method, case.options, draw)

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

    def damage_rows(self, plan: Plan) -> list[dict[str, object]]:
        """Return the rows of ``damage/1`` in the plan's order."""
        base, floor = self.measured(INTACT), self.noise_floor()
        return [self._row(use, plan.cases[use.case], base, floor) for use in plan.uses]

    def _row(self, use: Use, case: Case, base: Measured, floor: float | None) -> dict[str, object]:
        found = self.measured(use.case)
        nll, nll_base = found.mean_nll, base.mean_nll
        delta = None if nll is None or nll_base is None else nll - nll_base
        low: float | None = None
        high: float | None = None
        if delta is not None:
            low, high = paired_interval(found.nll, base.nll, base.num_tokens, self.seed, use.case)
        return {
            "run": self.run, "case": use.case, "metric": use.group.metric, "seed": use.group.seed,
            "group": use.group.name, "draw": use.group.draw, "method": case.method,
            "options": options_text(case.options), "dose": dose_of(case.options), "repeat": use.repeat,
            "unit": use.section.unit, "k": use.k, "nll": nll, "nll_base": nll_base, "delta_nll": delta,
            "delta_low": low, "delta_high": high, "noise_floor": floor,
            "below_floor": None if delta is None or floor is None else abs(delta) <= floor,
            "ppl": perplexity(nll), "ppl_base": base.perplexity, "accuracy": found.accuracy,
            "accuracy_base": base.accuracy, "agreement": found.agreement, "kl": found.kl,
            "outcome": found.outcome(self.evaluator.vocabulary),
            "target": addressed(case.targets[0], self.loaded.table) if len(case.targets) == 1 else None,
        }  # fmt: skip

    def window_rows(self, plan: Plan) -> list[dict[str, object]]:
        """Return the rows of ``windows/1``: the intact model first, then every case."""
        return [row for key in [INTACT, *plan.cases] for row in window_rows(self.run, key, self.measured(key))]

    def fault_rows(self, plan: Plan) -> list[dict[str, object]]:
        """Return the rows of ``faults/1``."""
        return [row for key in plan.cases for row in self.journal.done[key].get("faults", [])]


def floor_targets(
    groups: Sequence[Group], loaded: LoadedModel, chosen: Sequence[str], seed: int, number: int
) -> list[Target]:
    """Return ``number`` low-score weights for the noise floor, in address order.

    They are drawn from the ranking's bottom groups, of those whose score and value are not zero: rewriting a weight that
    nothing reads, or a zero, would measure nothing. Where those are too few, weights drawn uniformly from ``chosen`` fill the
    rest, top groups left out: nearly every weight is one of low score.
    """
    draw = generator(seed, "noise_floor")
    parameters = loaded.parameters()
    bottom = list(
        dict.fromkeys(
            target
            for group in groups
            if group.name == "bottom_k"
            for target, score in zip(group.targets, group.scores, strict=False)
            if score and _value(parameters, target) != 0
        )
    )
    picks = [bottom[i] for i in draw.permutation(len(bottom))[:number]]
    taken = {target for group in groups if group.name != "random_k" for target in group.targets} | set(picks)
    sizes = np.cumsum([loaded.table[name].numel for name in chosen])
    for position in draw.integers(0, int(sizes[-1]), _POOL).tolist():
        if len(picks) == number:
            break
        place = int(np.searchsorted(sizes, position, side="right"))
        target = (chosen[place], position - (int(sizes[place - 1]) if place else 0))
        if target not in taken and _value(parameters, target) != 0:
            taken.add(target)
            picks.append(target)
    order = {name: number for number, name in enumerate(loaded.table)}
    return sorted(picks, key=lambda target: (order[target[0]], target[1]))


def _value(parameters: Mapping[str, Tensor], target: Target) -> float:
    """Return a weight's value; 0 where it is not finite, since it has no neighbour to be rewritten to."""
    name, index = target
    weight = parameters[name].detach()
    value = float(weight[torch.unravel_index(torch.tensor(index), weight.shape)])
    return value if math.isfinite(value) else 0.0
