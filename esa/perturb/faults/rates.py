"""What trials of random faults add up to: outcomes with their intervals, and how often a single flip is fatal, and where."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from esa.eval import Measured
from esa.model import ParameterInfo
from esa.model.anatomy import COMPONENTS
from esa.perturb.faults.changes import Counts

FATAL = ("collapsed", "uniform", "nonfinite")
OUTCOMES = ("masked", "ok", "degraded", *FATAL, "detected")


@dataclass(frozen=True)
class Trial:
    """One finished trial: of which rate and number, what became of its faults, and how it ended."""

    rate: float
    number: int
    counts: Counts
    outcome: str


def outcome_of(counts: Counts, measured: Measured | None, intact: Measured, vocabulary: int, harm: float) -> str:
    """Return how a trial ended.

    ``detected``: the code stopped it, ``measured`` is None. ``masked``: no stored bit differs, or no window's NLL and no first
    choice does, to the last bit. ``collapsed``, ``uniform``, ``nonfinite``: as everywhere. ``degraded``: the mean NLL rose by
    at least ``harm`` nats. Else ``ok``.
    """
    if measured is None:
        return "detected"
    if counts.num_flips == 0:
        return "masked"
    state = measured.outcome(vocabulary)
    if state == "nonfinite":
        return state
    if measured.nll == intact.nll and measured.num_agreeing == intact.total_tokens:
        return "masked"
    if state != "ok":
        return state
    return "degraded" if rise(measured, intact) >= harm else "ok"


def rise(measured: Measured, intact: Measured) -> float:
    """Return the rise in mean NLL per predicted token, nats, of finite models."""
    nll, base = measured.mean_nll, intact.mean_nll
    assert nll is not None, "a finite model has an NLL"
    assert base is not None, "the intact model is finite"
    return nll - base


def rate_rows(
    run: str, trials: Sequence[Trial], table: Mapping[str, ParameterInfo], level: float
) -> list[dict[str, object]]:
    """Return the rows of ``fault_rates/1``: shares of trials with Wilson intervals at ``level``.

    ``by = "all"``: per rate, as listed, every outcome in the order of ``OUTCOMES``, then ``fatal``, which is the three of
    ``FATAL`` together. ``by = "bit"``, ``"block"``, ``"component"``: how often ``fatal``, of the trials in which exactly one
    stored bit differs, but for those that the code stopped: with more flips nobody can tell which was it, and what is not
    measured tells nothing. Where a single flip sits does not depend on the rate,
    so that the trials of all rates count together and ``rate`` is null. ``value``: the bit, with ``width``, the bits of its
    number; the block, ``outside`` for none; the component. Where no trial has a single flip there is no such row.
    Source of the interval: Wilson, Probable Inference, the Law of Succession, and Statistical Inference, Journal of the
    American Statistical Association 1927.
    """
    rows = []
    for rate in dict.fromkeys(trial.rate for trial in trials):
        found = [trial.outcome for trial in trials if trial.rate == rate]
        for outcome in (*OUTCOMES, "fatal"):
            rows.append(_row(run, rate, "all", None, None, outcome, _count(found, outcome), len(found), level))
    told = [trial for trial in trials if trial.outcome != "detected"]
    singles = [(trial.counts.flip, trial.outcome) for trial in told if trial.counts.flip is not None]
    places: dict[str, dict[tuple[int, int, str], list[str]]] = {"bit": {}, "block": {}, "component": {}}
    for (name, _, bit, width), outcome in singles:
        info = table[name]
        block = "outside" if info.block is None else str(info.block)
        for by, key in (
            ("bit", (width, bit, str(bit))),
            ("block", (0, len(table) if info.block is None else info.block, block)),
            ("component", (0, COMPONENTS.index(info.component), info.component)),
        ):
            places[by].setdefault(key, []).append(outcome)
    for by, groups in places.items():
        for (width, _, value), found in sorted(groups.items()):
            bits = width if by == "bit" else None
            rows.append(_row(run, None, by, value, bits, "fatal", _count(found, "fatal"), len(found), level))
    return rows


def _count(found: Sequence[str], outcome: str) -> int:
    counter = Counter(found)
    return sum(counter[name] for name in (FATAL if outcome == "fatal" else (outcome,)))


def _row(
    run: str, rate: float | None, by: str, value: str | None, width: int | None, outcome: str, count: int, trials: int,
    level: float,
) -> dict[str, object]:  # fmt: skip
    from esa.statistics.proportions import wilson_interval

    low, high = wilson_interval(count, trials, level)
    return {
        "run": run, "rate": rate, "by": by, "value": value, "width": width, "outcome": outcome, "count": count,
        "trials": trials, "share": count / trials, "low": low, "high": high,
    }  # fmt: skip
