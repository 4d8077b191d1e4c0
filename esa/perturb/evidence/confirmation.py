"""The one confirmatory test of a run: which table, group and draws it compares, and the cases that it alone needs."""

from collections.abc import Sequence

from esa.errors import SpecError
from esa.model import LoadedModel
from esa.perturb.cases import Plan, plan_cases
from esa.perturb.groups import Group
from esa.progress import Progress
from esa.spec import Spec
from esa.spec.methods import Perturb


def confirmed_table(spec: Spec) -> Perturb | None:
    """Return the table of the confirmed method with its first options, joint at ``confirm.k``; None where no test is named.

    Raises SpecError for a method that no ``[[perturb]]`` table has.
    """
    confirm = spec.confirm
    if confirm.metric is None:
        return None
    for section in spec.perturb:
        if section.model_dump()["method"] == confirm.method:
            return section.expanded()[0].model_copy(
                update={"unit": ("joint",), "k": (confirm.k,), "groups": None, "propagation": False}
            )
    given = ", ".join(dict.fromkeys(str(section.model_dump()["method"]) for section in spec.perturb))
    raise SpecError(
        [f"confirm.method: '{confirm.method}' is not among the methods of [[perturb]]: {given}"],
        hint="add such a table, or set confirm.method",
    )


def screened_draws(spec: Spec) -> int | None:
    """Return how many draws of random_k the screen uses: ``rank.draws``, or all (None) where no test has draws of its own."""
    return None if spec.confirm.metric is None else spec.rank.draws


def plan_campaign(
    spec: Spec, groups: Sequence[Group], ks: Sequence[int], loaded: LoadedModel, progress: Progress
) -> Plan:
    """Return the cases of a campaign: every table on every group, and behind them what the confirmatory test adds.

    Draws of random_k beyond ``rank.draws`` are changed for that test alone; so are its top group and the other draws where no
    table has them. They are followed through no blocks, and run on no tasks.
    Raises what ``plan_cases`` raises, and SpecError for a test whose method or top group there is not.
    """
    table = confirmed_table(spec)
    if table is None:
        return plan_cases(spec.perturb, groups, ks, loaded, progress)
    ordinary = [group for group in groups if not (group.name == "random_k" and (group.draw or 0) >= spec.rank.draws)]
    plan = plan_cases(spec.perturb, ordinary, ks, loaded, progress)
    compared = [group for group in groups if _is_compared(group, spec)]
    for name in ("top_k", "random_k"):
        sizes = [group.size for group in compared if group.name == name]
        if not sizes or min(sizes) < spec.confirm.k:
            raise SpecError(
                [
                    f"confirm: compares the {spec.confirm.k} first of {spec.confirm.metric}'s top_k with random_k; the ranking"
                    f" has {f'{min(sizes)} weights of its {name}' if sizes else f'no {name}'}"
                ],
                hint="rank with rank.groups, rank.k and score.metrics that hold them, or leave confirm.metric out",
            )
    added = plan_cases([table], compared, (spec.confirm.k,), loaded, progress)
    known = {(use.case, use.group.name, use.group.metric, use.group.draw, use.unit, use.repeat) for use in plan.uses}
    plan.tested = frozenset(added.cases.keys() - plan.cases.keys())
    plan.cases |= {key: added.cases[key] for key in added.cases if key in plan.tested}
    plan.uses += [
        use
        for use in added.uses
        if (use.case, use.group.name, use.group.metric, use.group.draw, use.unit, use.repeat) not in known
    ]
    return plan


def _is_compared(group: Group, spec: Spec) -> bool:
    if group.seed not in (None, spec.score.seeds[0]):
        return False
    return group.name == "random_k" or (group.name, group.metric) == ("top_k", spec.confirm.metric)
