"""The cases of a detector step: each candidate alone, each group together and without one, and what they say of each."""

from collections.abc import Sequence

import torch

from esa.eval import INTACT, Measured, case_id
from esa.model import eligible
from esa.perturb.campaign import Campaign, floor_targets
from esa.perturb.cases import Case, Plan
from esa.perturb.detector.candidates import WRITER, Candidate, coordinates, groups_of
from esa.perturb.detector.verdicts import Damage, damage_of, verdict
from esa.perturb.groups import Group
from esa.perturb.targets import Target, addressed
from esa.spec import Spec

METRIC = "super_activation"


class CandidateCases:
    """Plan, evaluate and read the cases of one detector step; all of them zero some candidates.

    ``touched``: the parameters that a case or a rewrite of the noise floor changes. ``plan``: every case.
    """

    def __init__(self, campaign: Campaign, spec: Spec, candidates: Sequence[Candidate]) -> None:
        self.campaign, self.candidates, self.rules = campaign, candidates, spec.statistics
        self.table = campaign.loaded.table
        self.groups = groups_of(candidates, self.table)
        self.group_of = {target: name for name, members in self.groups.items() for target in members}
        self.writers = [one.target for one in candidates if one.role == WRITER]
        self.plan = Plan()
        for one in candidates:
            self._case([one.target])
        for members in self.groups.values():
            self._case(members)
            for target in members:
                self._case(_without(members, target))
        if len(self.writers) > 1:
            self._case(self.writers)
        self.floors = self._floors(spec.eval.rewrites) if candidates else []
        self.touched = {name for name, _ in [*(one.target for one in candidates), *self.floors]}
        self.rest: dict[str, list[Target]] = {}  # by group those that are not critical alone
        self.mild: dict[str, list[Target]] = {}  # and those of which harm is excluded alone
        self.bar = self.rules.margin

    def evaluate(self) -> None:
        """Evaluate each candidate, each group, each group without one; then of each group those not critical alone."""
        if not self.candidates:
            return
        self.campaign.evaluate(self.plan, self.floors)
        self.bar = max(self.rules.margin, self.campaign.noise_floor() or 0.0)
        for name, members in self.groups.items():
            alone = {target: self._damage(self._case([target])) for target in members}
            self.rest[name] = [target for target in members if not alone[target].shown(self.bar)]
            self.mild[name] = [target for target in members if alone[target].excluded(self.bar)]
        parts = [*self.rest.values(), *self.mild.values()]
        keys = [self._case(members) for members in parts if len(members) > 1]
        again = Plan({key: self.plan.cases[key] for key in keys if key not in self.campaign.journal.done})
        if again.cases:
            self.campaign.evaluate(again, [])

    def rows(self) -> list[dict[str, object]]:
        """Return the rows of ``detector/1``, a candidate each, in their order."""
        return [self._row(rank, one) for rank, one in enumerate(self.candidates, start=1)]

    def _case(self, targets: Sequence[Target]) -> str:
        """Plan to zero some weights together, once, and return the case's key."""
        key = case_id("zero", {}, [addressed(target, self.table) for target in targets], 0)
        self.plan.cases.setdefault(key, Case(key, "zero", {}, 0, tuple(targets)))
        return key

    def _damage(self, key: str, base: str = INTACT) -> Damage:
        """Return the damage of a case against another, the intact model by default."""
        name = key if base == INTACT else f"{key}-{base}"
        changed, against = self.campaign.measured(key), self.campaign.measured(base)
        return damage_of(changed, against, self.campaign.seed, name, self.rules.level, self.rules.resamples)

    def _row(self, rank: int, one: Candidate) -> dict[str, object]:
        """Return a candidate's row of ``detector/1``."""
        name, index = one.target
        alone, found = self._damage(key := self._case([one.target])), self.campaign.measured(key)
        group, floor = self.group_of.get(one.target), self.campaign.noise_floor()
        joint = added = rest = mild = None
        together: Measured | None = None
        if group is not None:
            members = self.groups[group]
            joint, together = self._damage(whole := self._case(members)), self.campaign.measured(whole)
            added = self._damage(whole, self._case(_without(members, one.target)))
            rest, mild = (self._with(one.target, part[group]) for part in (self.rest, self.mild))
        expert, row, column = coordinates(one.target, self.table)
        vocabulary = self.campaign.evaluator.vocabulary
        weight = self.campaign.loaded.weights[name].stored(torch.tensor([index]))
        return {
            "run": self.campaign.run, "rank": rank, "parameter": name, "index": index,
            "target": addressed(one.target, self.table), "block": self.table[name].block, "expert": expert, "row": row,
            "column": column, "weight": float(weight), "growth": one.growth, "peak_ratio": one.peak_ratio,
            "num_seeds": one.num_seeds, "role": one.role, "published": one.published, "group": group,
            "noise_floor": floor, "ppl_base": self.campaign.measured(INTACT).perplexity, "delta_nll": alone.delta,
            "delta_low": alone.low, "delta_high": alone.high,
            "below_floor": None if alone.delta is None or floor is None else abs(alone.delta) <= floor,
            "ppl": found.perplexity, "outcome": found.outcome(vocabulary),
            "group_delta_nll": joint and joint.delta, "group_delta_low": joint and joint.low,
            "group_delta_high": joint and joint.high, "group_ppl": together and together.perplexity,
            "group_outcome": together and together.outcome(vocabulary), "added_nll": added and added.delta,
            "added_low": added and added.low, "added_high": added and added.high,
            "verdict": verdict(alone, added, rest, mild, self.bar),
        }  # fmt: skip

    def _with(self, target: Target, members: Sequence[Target]) -> Damage | None:
        """Return the damage of several members together, None where ``target`` is not among them or there is no other."""
        return self._damage(self._case(members)) if target in members and len(members) > 1 else None

    def _floors(self, rewrites: int) -> list[Target]:
        """Return the weights of the noise floor, no candidate among them."""
        targets = tuple(one.target for one in self.candidates)
        group = Group(METRIC, None, "top_k", None, targets, tuple(range(1, len(targets) + 1)))
        loaded = self.campaign.loaded
        return floor_targets([group], loaded, list(eligible(loaded.table)), self.campaign.seed, rewrites)

    def all_writers(self) -> dict[str, object] | None:
        """Return the damage of all writers together, None where there are no two of them."""
        if len(self.writers) < 2:
            return None
        key = self._case(self.writers)
        found, damage = self.campaign.measured(key), self._damage(key)
        return {
            "num_weights": len(self.writers), "delta_nll": damage.delta, "delta_low": damage.low,
            "delta_high": damage.high, "ppl": found.perplexity,
            "outcome": found.outcome(self.campaign.evaluator.vocabulary),
        }  # fmt: skip


def _without(members: Sequence[Target], target: Target) -> list[Target]:
    return [one for one in members if one != target]
