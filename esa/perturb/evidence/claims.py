"""What a campaign's damage shows: does it hurt, more than random or matched weights, or not at all; with p and interval."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from esa.perturb.cases import options_text
from esa.perturb.evidence.confirmation import confirmed_table, screened_draws
from esa.perturb.evidence.effects import Effect, Together
from esa.spec import Spec
from esa.statistics.bootstrap import BCA_WINDOWS, Interval, paired_bca_interval, paired_interval
from esa.statistics.effects import cliffs_delta, conservative_ratio, z_score
from esa.statistics.equivalence import tost
from esa.statistics.multiplicity import benjamini_hochberg
from esa.statistics.permutation import monte_carlo_p, sign_flip_p, smallest_monte_carlo_p, smallest_sign_flip_p

Row = dict[str, Any]
_CONTROLS = {"bottom_k": "more_than_bottom", "matched_k": "more_than_matched"}


def claim_rows(run: str, found: Sequence[Effect], spec: Spec, floor: float | None) -> list[Row]:
    """Return the rows of ``tests/1``: every claim that the effects allow, in the order of the effects.

    With d_n an effect's NLL difference in window n (nats, repeats averaged) and T_n its tokens, ``estimate = sum d / sum T``:

    - ``hurts`` (every group but random_k): estimate > 0. p: one-sided sign flips of the d_n.
    - ``more_than_random`` (joint): estimate against the R draws of random_k under the same method, options and k.
      p: ``(1 + #{draws >= estimate}) / (R + 1)``; z and Cliff's delta (its windows against all windows of the draws) beside.
    - ``more_than_bottom``, ``more_than_matched`` (joint): paired differences of the two groups' windows. p: sign flips.
    - ``no_harm`` (joint; controls, targets that a person named, and random_k, its draws averaged): abs(estimate) <
      ``statistics.margin``. p: TOST.

    ``low``, ``high``: studentized bootstrap over windows, BCa beside from 100 windows on. ``ratio``: the low end over the
    control's high end (of random_k: its largest draw), or over the noise floor where that is larger.
    One claim is ``confirmatory``: the ``more_than_random`` that ``[confirm]`` names, level ``confirm.alpha``, not adjusted. All
    others are a screen: Benjamini-Hochberg within each claim at ``statistics.fdr``. ``holds``: the (adjusted) p is at most
    that, the estimate is above the noise floor (of ``no_harm``: p alone). A nonfinite effect has no interval; against random
    draws it counts as infinite.
    ``flags``: ``few_windows``, ``below_floor``, ``nonfinite``, ``nonfinite_draws`` and ``nonfinite_control`` (of what it is held
    against), ``unattainable`` (no p of this rule can be small enough).
    """
    about = _Settings(run, spec, floor)
    together = Together(found)
    rows = [row for effect in found for row in _of_effect(about, effect, together)]
    rows += list(_harmless_random(about, found))
    _adjust(rows, spec)
    return rows


class _Settings:
    """What every claim of a run shares."""

    def __init__(self, run: str, spec: Spec, floor: float | None) -> None:
        self.run, self.spec, self.floor = run, spec, floor
        self.seed = spec.score.seeds[0]
        self.level, self.resamples = spec.statistics.level, spec.statistics.resamples
        self.permutations = spec.statistics.permutations
        self.draws = screened_draws(spec)

    def screens(self, draw: Effect) -> bool:
        """Tell whether the screen uses a random draw."""
        return self.draws is None or (draw.about["draw"] or 0) < self.draws

    def interval(self, differences: np.ndarray, effect: Effect, name: str) -> tuple[Interval, Interval]:
        """Return the studentized interval, and the BCa one where there are windows enough."""
        base, tokens = [0.0] * len(differences), effect.num_tokens.astype(int).tolist()
        given = (differences.tolist(), base, tokens, self.seed, name, self.level, self.resamples)
        bca = paired_bca_interval(*given) if len(differences) >= BCA_WINDOWS else Interval(None, None)
        return paired_interval(*given), bca

    def is_below(self, estimate: float | None) -> bool:
        """Tell whether an estimate cannot be told from a rewrite by the noise floor."""
        return self.floor is not None and estimate is not None and abs(estimate) <= self.floor

    def row(self, claim: str, effect: Effect, **more: Any) -> Row:
        """Return a row with what the effect says of itself; ``more`` fills the rest."""
        flags = []
        if len(effect.num_tokens) < self.spec.statistics.few_windows:
            flags.append("few_windows")
        if effect.differences is None:
            flags.append("nonfinite")
        elif self.is_below(effect.estimate):
            flags.append("below_floor")
        row = dict.fromkeys(
            ("against", "estimate", "low", "high", "bca_low", "bca_high", "rule", "p_value", "smallest_p", "p_adjusted")
        )
        row |= dict.fromkeys(("adjustment", "num_draws", "z", "cliffs_delta", "ratio"))
        return {
            "run": self.run, "claim": claim, "phase": "screen", **effect.about, "dose": effect.dose, **row,
            "estimate": effect.estimate, "num_windows": len(effect.num_tokens), "flags": flags, **more,
        }  # fmt: skip


def _of_effect(about: _Settings, effect: Effect, together: Together) -> Iterable[Row]:
    """Yield the claims on one effect."""
    group = effect.about["group"]
    if group == "random_k":
        return
    yield _hurts(about, effect)
    if effect.about["unit"] != "joint":
        return
    if group in (*_CONTROLS, "targets"):
        yield _no_harm(about, effect)
        return
    if draws := together.others(effect, "random_k"):
        yield from _more_than_random(about, effect, draws)
    for control, claim in _CONTROLS.items():
        for other in together.others(effect, control):
            yield _more_than(about, effect, other, claim)


def _hurts(about: _Settings, effect: Effect) -> Row:
    row = about.row("hurts", effect, against="intact")
    if effect.differences is None:
        return row
    interval, bca = about.interval(effect.differences, effect, effect.name)
    return row | _intervals(interval, bca) | _sign_flips(about, effect.differences, effect.name)


def _intervals(interval: Interval, bca: Interval) -> Row:
    return {"low": interval.low, "high": interval.high, "bca_low": bca.low, "bca_high": bca.high}


def _sign_flips(about: _Settings, differences: np.ndarray, name: str) -> Row:
    return {
        "rule": "sign_flip",
        "p_value": sign_flip_p(differences.tolist(), about.seed, name, about.permutations, "greater"),
        "smallest_p": smallest_sign_flip_p(len(differences), about.permutations, "greater"),
    }


def _more_than_random(about: _Settings, effect: Effect, draws: Sequence[Effect]) -> Iterable[Row]:
    """Yield the claim on the draws of the screen, and on all of them where it is the confirmatory one."""
    confirm = about.spec.confirm
    screened = [one for one in draws if about.screens(one)]
    if is_confirmed(effect, about.spec):
        row = _against_draws(about, effect, draws)
        yield row | {
            "phase": "confirmatory",
            "adjustment": "none",
            "p_adjusted": row["p_value"],
            "level": confirm.alpha,
        }
    elif screened:
        yield _against_draws(about, effect, screened)


def is_confirmed(effect: Effect, spec: Spec) -> bool:
    """Tell whether an effect is the one that ``[confirm]`` names: its metric's top_k, method with its first options, and K."""
    confirm = spec.confirm
    if confirm.metric is None or effect.about["group"] != "top_k" or effect.about["unit"] != "joint":
        return False
    if effect.where("metric", "method", "k") != (confirm.metric, confirm.method, confirm.k):
        return False
    if effect.about["seed"] not in (None, spec.score.seeds[0]):
        return False
    table = confirmed_table(spec)
    return table is not None and effect.about["options"] == options_text(table.options())


def _against_draws(about: _Settings, effect: Effect, draws: Sequence[Effect]) -> Row:
    values = [one.order for one in draws]
    row = about.row("more_than_random", effect, against="random_k", num_draws=len(draws))
    row |= {
        "rule": "monte_carlo",
        "p_value": monte_carlo_p(effect.order, values, "greater"),
        "smallest_p": smallest_monte_carlo_p(len(draws)),
    }
    if effect.differences is None:
        return row
    interval, bca = about.interval(effect.differences, effect, effect.name)
    row |= _intervals(interval, bca)
    finite = [one for one in draws if one.differences is not None]
    if len(finite) < len(draws):
        return row | {"flags": [*row["flags"], "nonfinite_draws"]}
    tokens = effect.num_tokens
    windows = np.concatenate([one.differences / tokens for one in finite if one.differences is not None])
    dominance = cliffs_delta(effect.differences / tokens, windows)
    return row | {
        "z": z_score(float(effect.estimate or 0.0), values),
        "cliffs_delta": None if dominance is None else dominance.value,
        "ratio": conservative_ratio(interval.low, max(values), about.floor),
    }


def _more_than(about: _Settings, effect: Effect, other: Effect, claim: str) -> Row:
    row = about.row(claim, effect, against=other.about["group"], estimate=None)
    flags = [flag for flag in row["flags"] if flag != "below_floor"]  # of the difference, not of the effect
    if effect.differences is None or other.differences is None:
        return row | {"flags": flags if other.differences is not None else [*flags, "nonfinite_control"]}
    apart = effect.differences - other.differences
    name = f"{effect.name}-{other.name}"
    interval, bca = about.interval(apart, effect, name)
    own, _ = about.interval(effect.differences, effect, effect.name)
    theirs, _ = about.interval(other.differences, other, other.name)
    ratio = None if theirs.high is None else conservative_ratio(own.low, theirs.high, about.floor)
    estimate = float(apart.sum() / effect.num_tokens.sum())
    if about.is_below(estimate):
        flags.append("below_floor")
    row |= {"estimate": estimate, "ratio": ratio, "flags": flags}
    return row | _intervals(interval, bca) | _sign_flips(about, apart, name)


def _no_harm(about: _Settings, effect: Effect) -> Row:
    row = about.row("no_harm", effect, against="intact")
    row["flags"] = [flag for flag in row["flags"] if flag != "below_floor"]  # that is what it says
    if effect.differences is None:
        return row
    interval, bca = about.interval(effect.differences, effect, effect.name)
    margin = about.spec.statistics.margin
    shown = tost(effect.differences.tolist(), effect.num_tokens.astype(int).tolist(), margin)
    return row | _intervals(interval, bca) | {"rule": "tost", "p_value": None if shown is None else shown.p_value}


def _harmless_random(about: _Settings, found: Sequence[Effect]) -> Iterable[Row]:
    """Yield the claim that random weights do no harm: per method, options and k the mean of the draws of the screen."""
    groups: dict[tuple[Any, ...], list[Effect]] = {}
    for one in found:
        if one.where("group", "unit") == ("random_k", "joint") and about.screens(one):
            groups.setdefault(one.where("seed", "method", "options", "k"), []).append(one)
    for draws in groups.values():
        parts = [one.differences for one in draws]
        known = [part for part in parts if part is not None]
        mean = np.mean(known, axis=0) if len(known) == len(parts) else None
        first = draws[0]
        cases = tuple(case for one in draws for case in one.cases)
        mean_effect = Effect({**first.about, "draw": None, "target": None}, cases, first.dose, mean, first.num_tokens)
        yield _no_harm(about, mean_effect) | {"num_draws": len(draws)}


def _adjust(rows: list[Row], spec: Spec) -> None:
    """Adjust the screen's p values within each claim, say what holds, and join the flags."""
    for claim in dict.fromkeys(row["claim"] for row in rows):
        family = [row for row in rows if row["claim"] == claim and row["phase"] == "screen"]
        for row, adjusted in zip(family, benjamini_hochberg([row["p_value"] for row in family]), strict=True):
            row |= {"p_adjusted": adjusted, "adjustment": "benjamini_hochberg", "level": spec.statistics.fdr}
    for row in rows:
        row["holds"] = _holds(row)
        smallest = row["smallest_p"]
        if smallest is not None and smallest > row["level"]:
            row["flags"].append("unattainable")
        row["flags"] = ",".join(row["flags"]) or None


def _holds(row: Row) -> bool | None:
    if row["p_adjusted"] is None:
        return None
    significant = bool(row["p_adjusted"] <= row["level"])
    if row["claim"] == "no_harm":
        return significant
    return significant and "below_floor" not in row["flags"]
