"""The tables of a campaign: damage and windows from the journal, and what other questions add beside them."""

from collections.abc import Callable

from esa.artifact import Table, make_table
from esa.eval import INTACT, Measured, window_rows
from esa.eval.language_modeling import perplexity
from esa.perturb.campaign import Campaign
from esa.perturb.case_tasks import task_tables
from esa.perturb.cases import Case, Plan, Use, dose_of, options_text
from esa.perturb.evidence.interactions import interactions_table
from esa.perturb.faults.bit_sweep import bit_rows
from esa.perturb.propagation import propagation_table
from esa.spec import Spec
from esa.statistics.bootstrap import UNKNOWN, Interval, paired_interval

Row = dict[str, object]
Further = Callable[[Campaign, Plan, Spec], Table | None]


def further_tables(campaign: Campaign, plan: Plan, spec: Spec) -> dict[str, Table]:
    """Return by file name the tables beside damage and windows that a finished campaign's spec asks for, in a fixed order.

    The cases are evaluated and the model is intact; what a table evaluates beyond them goes through ``campaign``: its
    ``loaded``, ``evaluator`` and ``journal``.
    """
    tables = {name: make(campaign, plan, spec) for name, make in _FURTHER.items()}
    return {name: table for name, table in tables.items() if table is not None} | task_tables(campaign, plan, spec)


def damage_table(campaign: Campaign, plan: Plan, spec: Spec, meta: dict[str, str]) -> Table:
    """Return ``damage/1``: a row per use, in the plan's order; interval and text are worked out once per case."""
    base, floor = campaign.measured(INTACT), campaign.noise_floor()
    known, rows = campaign.rows, []
    for use in plan.uses:
        if use.case not in known:
            known[use.case] = _of_case(campaign, plan.cases[use.case], base, floor, spec)
        rows.append({**_of_use(campaign.run, use), **known[use.case]})
    return make_table("damage/1", rows, meta)


def windows_table(campaign: Campaign, plan: Plan) -> Table:
    """Return ``windows/1``: the intact model first, then every case."""
    keys = [INTACT, *plan.cases]
    return make_table(
        "windows/1", [row for key in keys for row in window_rows(campaign.run, key, campaign.measured(key))]
    )


def _of_use(run: str, use: Use) -> Row:
    """Return what a row says of the group that its case is seen as."""
    return {
        "run": run, "case": use.case, "metric": use.group.metric, "seed": use.group.seed, "group": use.group.name,
        "draw": use.group.draw, "repeat": use.repeat, "unit": use.unit, "k": use.k, "target": use.target,
    }  # fmt: skip


def _of_case(campaign: Campaign, case: Case, base: Measured, floor: float | None, spec: Spec) -> Row:
    """Return what every row of a case says."""
    found = campaign.measured(case.id)
    nll, nll_base = found.mean_nll, base.mean_nll
    delta = None if nll is None or nll_base is None else nll - nll_base
    ends: Interval = UNKNOWN
    if delta is not None:
        level, resamples = spec.statistics.level, spec.statistics.resamples
        ends = paired_interval(found.nll, base.nll, base.num_tokens, campaign.seed, case.id, level, resamples)
    return {
        "method": case.method, "options": options_text(case.options), "dose": dose_of(case.options), "nll": nll,
        "nll_base": nll_base, "delta_nll": delta, "delta_low": ends.low, "delta_high": ends.high, "noise_floor": floor,
        "below_floor": None if delta is None or floor is None else abs(delta) <= floor,
        "ppl": perplexity(nll), "ppl_base": base.perplexity, "accuracy": found.accuracy,
        "accuracy_base": base.accuracy, "agreement": found.agreement, "kl": found.kl,
        "outcome": found.outcome(campaign.evaluator.vocabulary),
    }  # fmt: skip


def _faults(campaign: Campaign, plan: Plan, spec: Spec) -> Table | None:
    """Return every flipped bit, where bits were flipped."""
    if not any(case.method == "bit_flip" for case in plan.cases.values()):
        return None
    return make_table("faults/1", _fault_rows(campaign, plan))


def _fault_rows(campaign: Campaign, plan: Plan) -> list[Row]:
    return [row for key in plan.cases for row in campaign.journal.done[key].get("faults", [])]


def _bits(campaign: Campaign, plan: Plan, spec: Spec) -> Table | None:
    """Return every single flipped bit of one weight with its damage, where there are such cases."""
    flips = Plan(plan.cases, [use for use in plan.uses if plan.cases[use.case].method == "bit_flip"])
    rows = bit_rows(damage_table(campaign, flips, spec, {}).frame.to_dicts(), _fault_rows(campaign, plan))
    return make_table("bits/1", rows) if rows else None


# file name -> what makes its table, None where the campaign has nothing for it
_FURTHER: dict[str, Further] = {
    "faults.csv": _faults,
    "bits.csv": _bits,
    "interactions.csv": interactions_table,
    "propagation.csv": propagation_table,
}
