"""What zeroing a candidate alone and with its group says of it: critical, critical together, harmless, or unclear."""

from collections.abc import Collection
from dataclasses import dataclass

from esa.eval import Measured
from esa.statistics.bootstrap import paired_interval

CRITICAL, TOGETHER, HARMLESS, UNCLEAR = "critical", "critical_together", "harmless", "unclear"
VERDICTS = (CRITICAL, TOGETHER, HARMLESS, UNCLEAR)


@dataclass(frozen=True)
class Damage:
    """A change of the mean NLL (nats per token) with the ends of its interval; all None where the changed model is nonfinite."""

    delta: float | None = None
    low: float | None = None
    high: float | None = None
    nonfinite: bool = False

    def shown(self, bar: float) -> bool:
        """Tell whether it is shown to be more than ``bar`` nats: the whole interval is, or nothing finite is left."""
        return self.nonfinite or (self.low is not None and self.low > bar)

    def excluded(self, bar: float) -> bool:
        """Tell whether more than ``bar`` nats are excluded: the whole interval is below."""
        return self.high is not None and self.high < bar


def damage_of(
    changed: Measured, base: Measured, seed: int, name: str, level: float = 0.95, resamples: int = 1999
) -> Damage:
    """Return the damage of one measurement against another of the same windows, with its paired studentized interval.

    ``name``: of the random stream of the bootstrap. Against a nonfinite base nothing is known, and nothing is said.
    """
    if base.mean_nll is None:
        return Damage()
    if changed.mean_nll is None:
        return Damage(nonfinite=True)
    ends = paired_interval(changed.nll, base.nll, base.num_tokens, seed, name, level, resamples)
    return Damage(changed.mean_nll - base.mean_nll, ends.low, ends.high)


def verdict(alone: Damage, added: Damage | None, rest: Damage | None, mild: Damage | None, bar: float) -> str:
    """Return the verdict on one candidate.

    ``alone``: zeroed by itself. ``added``: what zeroing it adds to the damage of the others of its group, None without a group.
    ``rest``: of zeroing all of its group that are not critical alone, itself among them; None where there are no two of them.
    ``mild``: of zeroing those of its group for which harm is excluded alone, itself among them; None likewise.
    ``bar``: nats from which a change is harm: the margin of no harm (``statistics.margin``), or a larger noise floor.

    ``critical``: alone it does harm. ``critical_together``: alone it is not shown to, and it adds harm to the others, or those
    that are not critical alone do harm together (any two of three may be enough: none of them then adds to the other two).
    ``harmless``: harm is excluded of it alone, of what it adds, and of it with the others that are so. ``unclear``: neither.
    """
    if alone.shown(bar):
        return CRITICAL
    if (added is not None and added.shown(bar)) or (rest is not None and rest.shown(bar)):
        return TOGETHER
    if alone.excluded(bar) and (added is None or added.excluded(bar)) and (mild is None or mild.excluded(bar)):
        return HARMLESS
    return UNCLEAR


def counts(verdicts: Collection[str | None]) -> dict[str, int]:
    """Return how many candidates have each verdict."""
    return {name: sum(one == name for one in verdicts) for name in VERDICTS}
