"""What weights do together beyond what each does alone: joint damage minus the sum of the single ones."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from esa.artifact import Table, make_table
from esa.eval import INTACT
from esa.perturb.campaign import Campaign
from esa.perturb.cases import Plan, options_text
from esa.perturb.targets import addressed
from esa.spec import Spec
from esa.statistics.bootstrap import RESAMPLES, Interval, paired_interval

TOGETHER = (
    "joint",
    "cumulative",
    "pairs",
)  # the units that change several targets at once, each target alone in another case
ALIKE = ("metric", "seed", "group", "draw", "method", "options")  # what the single cases share with the joint one

Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Changed:
    """Targets that were changed together, and what that did.

    ``about``: the columns of ``damage/1`` by name. ``targets``: their addresses, in order. ``cases``: the repeats, which name
    the random stream of the interval. ``differences``: per window the NLL sum under the change minus the intact one, nats, mean
    over the repeats, ``(N,)``; None where a repeat left NaN or infinite logits.
    """

    about: Mapping[str, Any]
    targets: tuple[str, ...]
    cases: tuple[str, ...]
    differences: Array | None


def interactions_table(campaign: Campaign, plan: Plan, spec: Spec) -> Table | None:
    """Return ``interactions/1`` of a finished campaign; None where no set of targets has all its single changes."""
    intact = campaign.measured(INTACT)
    level, resamples = spec.statistics.level, spec.statistics.resamples
    changed = changed_sets(campaign, plan, np.asarray(intact.nll))
    rows = interaction_rows(campaign.run, changed, intact.num_tokens, campaign.seed, level, resamples)
    return make_table("interactions/1", rows) if rows else None


def changed_sets(campaign: Campaign, plan: Plan, base: Array) -> list[Changed]:
    """Return what the plan's rows changed, repeats averaged, in the order of their first ones; base: the intact sums ``(N,)``."""
    by_set: dict[tuple[Any, ...], dict[str, None]] = {}
    for use in plan.uses:
        if use.unit in (*TOGETHER, "single"):
            case, group = plan.cases[use.case], use.group
            about = (group.metric, group.seed, group.name, group.draw, case.method, options_text(case.options))
            by_set.setdefault((*about, use.unit, use.k, case.targets), {}).setdefault(use.case)
    found = []
    for (*known, targets), repeats in by_set.items():
        measured = [campaign.measured(case) for case in repeats]
        whole = not any(one.nonfinite for one in measured)
        mean = np.mean([one.nll for one in measured], axis=0) - base if whole else None
        texts = tuple(addressed(target, campaign.loaded.table) for target in targets)
        found.append(Changed(dict(zip((*ALIKE, "unit", "k"), known, strict=True)), texts, tuple(repeats), mean))
    return found


def interaction_rows(
    run: str,
    changed: Sequence[Changed],
    num_tokens: Sequence[int],
    seed: int,
    level: float = 0.95,
    resamples: int = RESAMPLES,
) -> list[dict[str, object]]:
    """Return the rows of ``interactions/1``: a row per set of two targets or more whose targets were all changed alone too.

    With d_S,n the change of window n's NLL sum when the set S is changed, T_n its predicted tokens::

        joint = sum_n d_S,n / sum T      sum_of_singles = sum_{i in S} sum_n d_i,n / sum T
        interaction = joint - sum_of_singles      (nats per token; above 0: worse together than one by one)

    The interval is the studentized bootstrap of the interaction over windows, which all the cases share (paired). ``unit``:
    ``joint``, ``cumulative`` or ``pairs``; of pairs ``target_a`` and ``target_b`` are the two. A set without all its singles
    gives no row; one with a nonfinite case has a row of nulls. Order: that of ``changed``. A method that draws its noise per
    set of targets draws anew for the set and for each single one: both are means over the repeats, whose spread the interval
    leaves out.
    Cost: one bootstrap per row, 2 ms at 64 windows.
    Source: the non-additivity of knock-outs, epistasis as in Fisher, The correlation between relatives, 1918; of weights, the
    super weights that are harmless one by one in Yu et al., The Super Weight in Large Language Models, 2024.
    """
    alone = {
        (*_alike(one), one.targets[0]): one
        for one in changed
        if one.about["unit"] == "single" and len(one.targets) == 1
    }
    return [_row(run, one, singles, num_tokens, seed, level, resamples) for one, singles in _sets(changed, alone)]


def _sets(
    changed: Sequence[Changed], alone: Mapping[tuple[Any, ...], Changed]
) -> Iterator[tuple[Changed, list[Changed]]]:
    """Yield the sets of several targets with the single changes of each."""
    for one in changed:
        if one.about["unit"] in TOGETHER and len(one.targets) > 1:
            singles = [alone.get((*_alike(one), target)) for target in one.targets]
            found = [single for single in singles if single is not None]
            if len(found) == len(singles):
                yield one, found


def _alike(one: Changed) -> tuple[Any, ...]:
    return tuple(one.about[key] for key in ALIKE)


def _row(
    run: str,
    one: Changed,
    singles: Sequence[Changed],
    num_tokens: Sequence[int],
    seed: int,
    level: float,
    resamples: int,
) -> dict[str, object]:
    pair = one.about["unit"] == "pairs"
    row: dict[str, object] = {
        "run": run, **{key: one.about[key] for key in (*ALIKE, "unit", "k")},
        "target_a": one.targets[0] if pair else None, "target_b": one.targets[1] if pair else None,
        "num_windows": len(num_tokens),
    }  # fmt: skip
    parts = [single.differences for single in singles]
    known = [part for part in parts if part is not None]
    if one.differences is None or len(known) < len(parts):
        return row
    together, apart = one.differences, np.sum(known, axis=0)
    total = float(np.sum(num_tokens))
    name = "+".join(["interaction", *one.cases])
    interval: Interval = paired_interval(
        together.tolist(), apart.tolist(), list(num_tokens), seed, name, level, resamples
    )
    return {
        **row, "joint": float(together.sum()) / total, "sum_of_singles": float(apart.sum()) / total,
        "interaction": float((together - apart).sum()) / total, "low": interval.low, "high": interval.high,
    }  # fmt: skip
