"""Plan a campaign: which sets of targets are changed how, and which damage rows each case serves."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from esa.artifact import to_json
from esa.errors import EsaError
from esa.eval import case_id
from esa.model import LoadedModel
from esa.perturb.checks import check_possible
from esa.perturb.groups import Group
from esa.perturb.informed import known_by
from esa.perturb.place import Given
from esa.perturb.targets import AnyTarget, addressed
from esa.perturb.units import Part, parts_of
from esa.progress import Progress
from esa.spec.methods import BitFlip, Drawing, Perturb

DOSES = ("factor", "sigma", "prob", "bits", "epsilon", "strength", "quantile")  # a bit's position is none


@dataclass
class Case:
    """One evaluation: a method with its options and repeat, on a set of targets.

    ``given``: what of its group the method asks for; of most nothing.
    """

    id: str
    method: str
    options: dict[str, Any]
    repeat: int
    targets: tuple[AnyTarget, ...]
    given: Given = field(default_factory=Given)


@dataclass(frozen=True)
class Use:
    """One row of ``damage/1``: a case seen as a group's part.

    ``section``: the ``[[perturb]]`` table, one of its options where they are lists. ``target``: what the row names.
    """

    case: str
    section: Perturb
    group: Group
    unit: str
    k: int
    repeat: int | None
    target: str | None


@dataclass
class Plan:
    """The distinct cases in order, and the damage rows they give, in order; ``tested``: those for the confirmatory test alone."""

    cases: dict[str, Case] = field(default_factory=dict)
    uses: list[Use] = field(default_factory=list)
    tested: frozenset[str] = frozenset()


def plan_cases(
    sections: Sequence[Perturb], groups: Sequence[Group], ks: Sequence[int], loaded: LoadedModel, progress: Progress
) -> Plan:
    """Return every case of the sections on the groups. K larger than a group is the whole group, once, with a note.

    Order: sections; within one its options that are lists, the last varying fastest; groups; units; parts; repeats.
    Raises EsaError for a group that no ranking row has, for what a method cannot do to its targets, and for a unit that a group
    does not have.
    """
    plan = Plan()
    names = [[addressed(target, loaded.table) for target in group.targets] for group in groups]
    limited: dict[str, None] = {}
    for number, section in enumerate(sections):
        where = f"perturb.{number}"
        chosen = [
            (group, texts)
            for group, texts in zip(groups, names, strict=True)
            if section.groups is None or group.name in section.groups or group.name == "targets"
        ]
        if not chosen:
            known = ", ".join(dict.fromkeys(group.name for group in groups))
            raise EsaError(
                f"the ranking has none of {list(section.groups or ())}; it has {known}", where=f"{where}.groups"
            )
        for table in section.expanded():
            for group, texts in chosen:
                method = str(table.model_dump()["method"])
                check_possible(table, method, group, loaded, where)
                wanted = table.k or ks
                if max(wanted) > group.size:
                    limited.setdefault(
                        f"{group.metric or 'all'} {group.name}: K is limited to the {group.size} weights at hand"
                    )
                sizes = sorted({min(k, group.size) for k in wanted})
                _Planner(plan, table, method, group, texts).add(sizes, where)
    for note in limited:
        progress.note(note)
    return plan


class _Planner:
    """Adds the cases of one table, without lists, on one group."""

    def __init__(self, plan: Plan, table: Perturb, method: str, group: Group, texts: Sequence[str]) -> None:
        self.plan, self.table, self.method, self.group, self.texts = plan, table, method, group, texts
        self.options = table.options()
        self.given = Given()
        if method == "adaptive":
            self.given = Given(group.metric, dict(zip(group.targets, group.scores, strict=True)))
        self.known_by = {**self.options, **known_by(method, self.given)}  # what tells its cases apart
        self.repeats = _repeats(table)

    def add(self, sizes: Sequence[int], where: str) -> None:
        """Add every unit's parts, with every repeat."""
        for unit in self.table.unit:
            for part in parts_of(unit, self.group, sizes, where):
                self._add(part)

    def _add(self, part: Part) -> None:
        texts = [self.texts[position] for position in part.members]
        target = " + ".join(self.texts[position] for position in part.named) or None
        for repeat in self.repeats:
            key = case_id(self.method, self.known_by, texts, repeat or 0)
            if key not in self.plan.cases:
                targets = tuple(self.group.targets[position] for position in part.members)
                self.plan.cases[key] = Case(key, self.method, self.options, repeat or 0, targets, self.given)
            self.plan.uses.append(Use(key, self.table, self.group, part.unit, part.k, repeat, target))


def _repeats(table: Perturb) -> list[int | None]:
    if isinstance(table, Drawing) and not (isinstance(table, BitFlip) and not table.draws):
        return list(range(table.repeats))
    return [None]


def dose_of(options: Mapping[str, Any]) -> float | None:
    """Return a method's strength: its factor, sigma, prob, bits, epsilon, strength or quantile."""
    return next((float(options[key]) for key in DOSES if options.get(key) is not None), None)


def options_text(options: Mapping[str, Any]) -> str:
    """Return options as one line of JSON."""
    return to_json(dict(options))
