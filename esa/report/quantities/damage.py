"""Quantities of a campaign: how far the top weights stand out, under which methods, doses and architectures."""

import math

from esa.artifact.gather import Gathered
from esa.report.markdown import join, number
from esa.report.quantities.measures import (
    Answer,
    Found,
    Needs,
    Options,
    Runs,
    Subject,
    claims,
    joint,
    of_claim,
    subjects,
)
from esa.report.tables import label

_CAMPAIGN = "a campaign with its claims (esa perturb, which writes tests.csv)"


def top_over_random(run: Gathered, subject: Subject) -> Answer:
    """Return the damage of the top weights over that of random ones, on the conservative end.

    ``ratio`` of ``tests/1``, claim more_than_random: the low end of the top's interval (nats per token) over the largest
    random draw of as many weights, or over the noise floor where that is larger. Infinite where only the top weights leave
    a nonfinite model, 0 where only a random draw does.
    """
    if run.table("perturb", "tests/1") is None:
        return Needs(_CAMPAIGN)
    row = of_claim(run, "more_than_random", subject)
    if row is None:
        return Needs(f"top weights and random draws at {subject}")
    flags = (row["flags"] or "").split(",")
    draws = f"{number(row['num_draws'])} draws"
    if "nonfinite" in flags and (row["p_value"] or 1.0) <= (row["smallest_p"] or 0.0):
        return Found(math.inf, f"the top weights leave NaN or Inf, none of {draws} of random ones does")
    if "nonfinite_draws" in flags:
        return Found(0.0, f"a random draw of {draws} leaves NaN or Inf, the top weights do not")
    if row["ratio"] is None:
        return Needs(f"an interval of the damage and a control above zero at {subject}, has {draws}")
    if not row["ratio"]:
        return Found(0.0, f"the interval of the damage begins at {number(row['low'])} nats per token; {draws}")
    below, floor = row["low"] / row["ratio"], _floor(run)
    what = "the noise floor" if floor is not None and below <= floor * (1 + 1e-9) else f"the largest of {draws}"
    return Found(row["ratio"], f"low end {number(row['low'])} nats per token over {what}, {number(below)}")


def random_over_bottom(run: Gathered, subject: Subject) -> Answer:
    """Return the damage of random weights over that of the bottom ones, on the conservative end.

    Of ``damage/1``, joint: the mean over the draws of random_k of the low ends of their intervals, over the high end of
    bottom_k's interval, or over the noise floor where that is larger; 0 where that low end is not above zero. Infinite
    where a random draw leaves a nonfinite model.
    """
    drawn = joint(run, "random_k", None, subject.method, subject.k)
    bottom = joint(run, "bottom_k", subject.metric, subject.method, subject.k)
    if not drawn or not bottom:
        return Needs(f"random_k and bottom_k at {subject}")
    if any(row["outcome"] == "nonfinite" for row in bottom):
        return Found(0.0, "the bottom weights leave NaN or Inf")
    if any(row["outcome"] == "nonfinite" for row in drawn):
        return Found(math.inf, "random weights leave NaN or Inf, the bottom ones do not")
    lows, highs = [row["delta_low"] for row in drawn], [row["delta_high"] for row in bottom]
    if any(end is None for end in (*lows, *highs)):
        return Needs(f"evaluation windows enough for intervals at {subject}")
    high, floor = max(highs), _floor(run) or 0.0
    below = max(high, floor)
    if below <= 0:
        return Needs("a noise floor (eval.rewrites): the bottom weights' interval is not above zero")
    low = sum(lows) / len(lows)
    what = "the noise floor" if floor > high else "the high end of the bottom ones'"
    return Found(
        max(0.0, low) / below,
        f"mean low end {number(low)} nats per token of {number(len(drawn))} draws over {what}, {number(below)}",
    )


def delta_perplexity(run: Gathered, subject: Subject) -> Answer:
    """Return by how much the top weights raise the perplexity, with its interval.

    ``ppl_base (exp(d) - 1)`` with d the estimate and the ends of the claim ``hurts`` in ``tests/1``. Infinite where the
    model is nonfinite or exp overflows.
    """
    if run.table("perturb", "tests/1") is None or run.damage is None:
        return Needs(_CAMPAIGN)
    row = of_claim(run, "hurts", subject)
    if row is None:
        return Needs(f"top weights at {subject}")
    base = run.damage["ppl_base"][0]
    if row["estimate"] is None:
        return Found(math.inf, f"perplexity {number(base)} intact, NaN or Inf in the logits after")
    value, low, high = (_rise(base, end) for end in (row["estimate"], row["low"], row["high"]))
    assert value is not None
    few = f"; {number(row['num_windows'])} windows" + (", few" if "few_windows" in (row["flags"] or "") else "")
    return Found(value, f"perplexity {number(base)} intact, {number(base + value)} after{few}", low, high)


def _rise(base: float, delta: float | None) -> float | None:
    if delta is None:
        return None
    return base * math.expm1(delta) if delta < 700 else math.inf


def confirmatory_p(runs: Runs, wanted: Options) -> list[tuple[str, Answer]]:
    """Return the p value of each run's one confirmatory test, Holm-adjusted over the runs.

    Of ``tests/1``, phase confirmatory: ``(1 + #{draws >= top}) / (R + 1)``. No p of R draws is below ``1 / (R + 1)``.
    """
    from esa.statistics.multiplicity import holm

    rows = {
        name: next((row for row in claims(run, "more_than_random") if row["phase"] == "confirmatory"), None)
        for name, run in runs
    }
    present = {name: row for name, row in rows.items() if row is not None}
    adjusted = dict(zip(present, holm([row["p_value"] for row in present.values()]), strict=True))
    found: list[tuple[str, Answer]] = []
    for name, row in rows.items():
        of, p = name if len(runs) > 1 else "", adjusted.get(name)
        if row is None or p is None:
            found.append((of, Needs("a confirmatory test: confirm.metric, and its top_k and random_k perturbed")))
            continue
        draws, subject = f"{number(row['num_draws'])} draws", Subject(row["metric"], row["method"], row["k"])
        why = f"{subject}: against {draws} of random_k"
        if len(present) > 1:
            why += f", Holm-adjusted over {number(len(present))} runs from {number(row['p_value'])}"
        limit = f"{number(row['smallest_p'])} ({draws} of random_k)"
        found.append((of, Found(p, why, best=row["smallest_p"], needs="as smallest attainable p", has=limit)))
    return found


def methods_with_advantage(run: Gathered, subject: Subject) -> Answer:
    """Return the share of the methods, each with its options, under which the top weights do more harm than random ones.

    Of ``tests/1``: ``holds`` of the claims more_than_random on a metric's joint top weights at one k.
    """
    rows = [
        row
        for row in claims(run, "more_than_random")
        if (row["metric"], row["k"]) == (subject.metric, subject.k) and row["holds"] is not None
    ]
    methods = list(dict.fromkeys(row["method"] for row in rows))
    if len(methods) < 2:
        return Needs(
            f"two methods or more against random draws ({subject.metric}, k = {subject.k:,}), has {join(methods) or 'none'}"
        )
    lost = [label(row["method"], row["options"]) for row in rows if not row["holds"]]
    held = len(rows) - len(lost)
    names = f"; not under {'; '.join(lost[:4])}{' and others' if len(lost) > 4 else ''}" if lost else ""
    return Found(held / len(rows), f"{number(held)} of {number(len(rows))} methods and options{names}")


def architectures_with_advantage(runs: Runs, wanted: Options) -> list[tuple[str, Answer]]:
    """Return in how many architectures the top weights do more harm than random ones.

    An architecture (of the models' configurations) counts where the claim more_than_random of ``tests/1`` ``holds`` for every
    subject of every run on it.
    """
    held: dict[str, list[bool]] = {}
    for _, run in runs:
        names = {model.get("architecture") for model in _models(run)} - {None}
        rows = [of_claim(run, "more_than_random", one) for one in subjects(run, wanted)]
        known = [bool(row["holds"]) for row in rows if row is not None and row["holds"] is not None]
        if len(names) == 1 and known:
            held.setdefault(str(names.pop()), []).extend(known)
    if not held:
        return [("", Needs("campaigns with random draws, on models whose architecture is recorded"))]
    good = [name for name, some in held.items() if all(some)]
    why = f"{join(good) or 'none'} of {number(len(held))} architectures"
    has = f"{number(len(held))} ({join(list(held))})"
    return [("", Found(float(len(good)), why, best=float(len(held)), needs="architectures", has=has))]


def rising_doses(run: Gathered, subject: Subject) -> Answer:
    """Return the smallest share of rising steps over the dose-responses of a metric's top weights.

    ``rising`` of ``dose/1``, any method and option: the share of steps between neighbouring doses at which the damage does
    not fall by more than the noise floor. 1: monotone.
    """
    table = run.table("perturb", "dose/1")
    rows = [] if table is None else [
        row for row in table.iter_rows(named=True)
        if (row["metric"], row["group"]) == (subject.metric, "top_k") and row["rising"] is not None
    ]  # fmt: skip
    if not rows:
        return Needs(
            f"a list of three doses or more of an option for {subject.metric}, such as sigma = [0.05, 0.1, 0.2]"
        )
    worst = min(rows, key=lambda row: row["rising"])
    others = f", the least monotone of {number(len(rows))}" if len(rows) > 1 else ""
    broken = f"; {number(worst['num_broken'])} doses broke the model" if worst["num_broken"] else ""
    why = f"{worst['method']} by {worst['option']} at {worst['doses']}{others}{broken}"
    return Found(worst["rising"], why)


def pruning_gain(run: Gathered, subject: Subject) -> Answer:
    """Return how much less pruning by the metric costs than pruning by magnitude, on the conservative ends.

    ``1 - high / low`` of ``damage/1``, method zero, the bottom_k of each at the largest common k: high, the upper end of
    the metric's damage (at least 0); low, the lower end of magnitude's, which must be above the noise floor.
    """
    if subject.metric == "magnitude":
        return Needs("a metric other than magnitude, which is what it is held against")
    ks = [] if run.damage is None else sorted(run.damage["k"].drop_nulls().unique().to_list(), reverse=True)
    for k in ks:
        mine = joint(run, "bottom_k", subject.metric, "zero", k)
        theirs = joint(run, "bottom_k", "magnitude", "zero", k)
        if mine and theirs:
            break
    else:
        return Needs(f"bottom_k of {subject.metric} and of magnitude set to zero at the same k")
    low, high = theirs[0]["delta_low"], mine[0]["delta_high"]
    if low is None or low <= (_floor(run) or 0.0):
        return Needs(
            f"a k at which pruning by magnitude does harm; at {number(k)} the low end is {number(low)} nats per token"
        )
    if high is None:
        return Found(-math.inf, f"pruning {number(k)} weights by {subject.metric} leaves no finite damage")
    why = f"{number(k)} weights set to zero: {number(high)} nats per token at most, by magnitude {number(low)} at least"
    return Found(1 - max(high, 0.0) / low, why)


def _floor(run: Gathered) -> float | None:
    """Return the noise floor of the campaign."""
    found = None if run.damage is None else run.damage["noise_floor"].drop_nulls().max()
    return None if found is None else float(found)  # type: ignore[arg-type]


def _models(run: Gathered) -> list[dict[str, object]]:
    return [manifest["model"] for manifest in run.manifests.values() if isinstance(manifest.get("model"), dict)]
