"""The tables that a campaign's conclusions stand on: claims, dose-response, discrimination, reliability."""

import numpy as np

from esa.artifact import Table, make_table
from esa.eval import INTACT
from esa.perturb.campaign import Campaign
from esa.perturb.cases import Plan, dose_of, options_text
from esa.perturb.evidence.claims import claim_rows
from esa.perturb.evidence.doses import discrimination_rows, dose_rows
from esa.perturb.evidence.effects import Effect, Windows, effects
from esa.perturb.evidence.retest import reliability_rows
from esa.spec import Spec


def evidence_tables(campaign: Campaign, plan: Plan, spec: Spec) -> dict[str, Table]:
    """Return the tables by file name: ``tests/1`` always, the others where the campaign has rows for them."""
    found, windows = measured_effects(campaign, plan)
    floor, level = campaign.noise_floor(), spec.statistics.level
    doses, fits = dose_rows(campaign.run, found, spec, floor)
    rows = {
        "tests": claim_rows(campaign.run, found, spec, floor),
        "dose": doses,
        "fits": fits,
        "discrimination": discrimination_rows(campaign.run, found, windows, spec),
        "reliability": reliability_rows(campaign.run, found, windows, level),
    }
    return {f"{name}.csv": make_table(f"{name}/1", some) for name, some in rows.items() if some or name == "tests"}


def measured_effects(campaign: Campaign, plan: Plan) -> tuple[list[Effect], Windows]:
    """Return the effects of a finished campaign, and its windows."""
    base = campaign.measured(INTACT)
    cases = {key: campaign.measured(key) for key in plan.cases}
    nll = {key: None if one.nonfinite else one.nll for key, one in cases.items()}
    windows = Windows(np.asarray(base.nll), np.asarray(base.num_tokens, dtype=np.float64), nll)
    rows = []
    for use in plan.uses:
        case = plan.cases[use.case]
        rows.append({
            "case": use.case, "metric": use.group.metric, "seed": use.group.seed, "group": use.group.name,
            "draw": use.group.draw, "method": case.method, "options": options_text(case.options),
            "dose": dose_of(case.options), "unit": use.unit, "k": use.k, "target": use.target,
        })  # fmt: skip
    return effects(rows, windows), windows
