"""Tell what became of a training run's critical weights: the rows of ``trajectory/1`` and ``emergence/1``, and a sentence."""

import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from esa.scale.checkpoints import Checkpoint, RankedWeights, Row, Trajectory
from esa.scale.emergence import Address, Course, follow, jaccard, listed, settling
from esa.scale.quantities.measured import Measured, Wanted

SAID = 10  # of which K a summary speaks, if that was ranked


@dataclass(frozen=True)
class Followed:
    """A trajectory's weights by one metric, score seed and K: the checkpoints that rank so far, and each weight's course."""

    model: str
    metric: str
    seed: int | None
    k: int
    checkpoints: tuple[Checkpoint, ...]
    courses: list[Course]

    @property
    def about(self) -> Row:
        """Return the columns that all its rows share."""
        return {"model": self.model, "metric": self.metric, "seed": self.seed, "k": self.k}

    def lists(self) -> list[RankedWeights]:
        """Return the list of each checkpoint."""
        return [one.lists[self.metric, self.seed] for one in self.checkpoints]

    def agreement(self) -> list[tuple[Checkpoint, Measured]]:
        """Return ``final_jaccard`` of every checkpoint but the last, ``consecutive_jaccard`` of every one but the first.

        The Jaccard index of a checkpoint's top K with the last one's, and with the one's before it. What of it is not
        training but the calibration text's noise, ``seed_jaccard`` of the same checkpoint tells.
        """
        tops = [ranked.top(self.k) for ranked in self.lists()]
        found = []
        for place, one in enumerate(self.checkpoints):
            pairs = {"final_jaccard": tops[-1]} if place + 1 < len(tops) else {}
            pairs |= {"consecutive_jaccard": tops[place - 1]} if place else {}
            for quantity, other in pairs.items():
                value = jaccard(tops[place], other)
                found.append((one, Measured(quantity, f"{self.metric}, top {self.k:,}", value, self.seed, self.k)))
        return found


def followed(trajectory: Trajectory, wanted: Wanted) -> list[Followed]:
    """Return what became of the top K weights of one training run, by metric, score seed and K, of those ``wanted``.

    The reference is the last checkpoint; the K are its ``rank.k``, as far as every checkpoint's list is as long. Rankings
    over the whole model alone are followed, where two checkpoints have one. Cost: one read of each ranking.
    """
    found = []
    for (metric, seed), checkpoints in trajectory.rankings().items():
        if not wanted.metric(metric) or len(checkpoints) < 2:
            continue
        lists = [one.lists[metric, seed] for one in checkpoints]
        shortest = min(len(ranked.ranks) for ranked in lists)
        for k in sorted(k for k in checkpoints[-1].member.run.spec.rank.k if k <= shortest and wanted.k(k)):
            courses = follow([ranked.top(k) for ranked in lists])
            found.append(Followed(trajectory.model, metric, seed, k, tuple(checkpoints), courses))
    return found


def gaps(trajectory: Trajectory) -> list[str]:
    """Return a warning for every metric and seed that some checkpoints are not ranked by, and where none is ranked as a whole."""
    rankings, found = trajectory.rankings(), []
    for (metric, seed), ranked in rankings.items():
        steps = {one.step for one in ranked}
        missing = [one.label for one in trajectory.checkpoints if one.step not in steps]
        if missing:
            found.append(
                f"{trajectory.model}: {_by(metric, seed)}: not ranked over the whole model in {', '.join(missing)};"
                f" {'its weights are followed through the others' if len(ranked) > 1 else 'there is nothing to follow'}"
            )
    if not rankings:
        found.append(f"{trajectory.model}: no ranking with rank.mode = 'global': no weights are followed")
    return found


def _by(metric: str, seed: int | None) -> str:
    return metric if seed is None else f"{metric}, seed {seed}"


def trajectory_rows(found: Followed) -> list[Row]:
    """Return ``trajectory/1``: for each listed weight its rank and score at every checkpoint, null outside the ranking.

    Listed are the first :data:`esa.scale.emergence.LISTED` weights of the last top K and as many that vanished. Order: the
    weights as :func:`esa.scale.emergence.follow` orders them, then the steps. ``rank`` counts on beyond K as far as the
    ranking goes.
    """
    places = [{address: place for place, address in enumerate(ranked.ranks)} for ranked in found.lists()]
    rows: list[Row] = []
    for course in listed(found.courses):
        named = _named(course, found, places)
        for one, ranked, at, inside in zip(found.checkpoints, found.lists(), places, course.in_top, strict=True):
            place = at.get(course.address)
            rows.append({
                **found.about, "label": one.label, "step": one.step, "num_tokens": one.num_tokens, **named,
                "rank": ranked.ranks.get(course.address), "score": None if place is None else ranked.scores[place],
                "in_top": inside,
            })  # fmt: skip
    return rows


def emergence_rows(found: Followed) -> list[Row]:
    """Return ``emergence/1``: a row per listed weight, in the order of ``trajectory_rows``.

    ``first_in_top`` is the first step whose top K has it; ``stays_from`` the first step from which on every later
    checkpoint, the last included, has it; null for a weight that is not in the last top K.
    """
    places = [{address: place for place, address in enumerate(ranked.ranks)} for ranked in found.lists()]
    steps = [one.step for one in found.checkpoints]
    return [
        {
            **found.about, **_named(course, found, places), "final_rank": course.final_rank, "num_checkpoints": len(steps),
            "num_in_top": course.num_in_top, "first_in_top": steps[course.first],
            "stays_from": None if course.stays_from is None else steps[course.stays_from], "num_exits": course.num_exits,
        }
        for course in listed(found.courses)
    ]  # fmt: skip


def _named(course: Course, found: Followed, places: Sequence[Mapping[Address, int]]) -> Row:
    """Return parameter, index and target of a weight, from the first ranking that has it."""
    parameter, indices = course.address
    ranked, at = found.lists()[course.first], places[course.first]
    at_text = re.sub(r"[()\s]", "", indices).removesuffix(",")
    return {"parameter": parameter, "index": ranked.indices[at[course.address]], "target": f"{parameter}:{at_text}"}


def num_unlisted(found: Sequence[Followed]) -> int:
    """Return how many weights the tables leave out, over all that was followed."""
    return sum(len(one.courses) - len(listed(one.courses)) for one in found)


def universe(found: Followed) -> int | None:
    """Return how many weights the last checkpoint's ranking was chosen from; None where its scores do not say.

    A ranking of whole rows or columns has no such number.
    """
    last = found.checkpoints[-1]
    eligible = (last.member.run.manifests.get("score", {}).get("model") or {}).get("num_eligible")
    single = all(index is not None for index in found.lists()[-1].indices)
    return eligible if isinstance(eligible, int) and single else None


def sentence(found: Sequence[Followed]) -> str:
    """Say of one metric and K when the last top K came together, what vanished, and what random lists would share.

    ``found``: the same of each score seed; numbers that differ between seeds are given from the smallest to the largest.
    "For good" counts weights that are in the top K of a checkpoint and of every later one. What "stays" is worth two
    numbers say: score seeds of the last checkpoint share so much of their lists (the mean over pairs; the rest is noise of
    the calibration text), and two random lists of K of N weights ``K / N``.
    """
    one, told = found[0], [settling(each.courses) for each in found]
    steps = [checkpoint.step for checkpoint in one.checkpoints]
    by = _span([each.by[0] for each in told])
    parts = [f"{by} {'is' if by == '1' else 'are'} there for good from the first checkpoint (step {steps[0]:,}) on"]
    if any(each.by[0] < each.num_weights for each in told):
        halves = [each.half() for each in told]
        late = min(halves) == len(steps) - 1
        parts.append("half only at the last" if late else f"half by step {_span([steps[half] for half in halves])}")
        parts.append(f"{_span([each.by[-2] for each in told])} by step {steps[-2]:,}, the last but one")
    seeds = f" ({len(found)} score seeds)" if len(found) > 1 else ""
    text = f"{one.model}: {one.metric}{seeds}: of the top {one.k:,} at step {steps[-1]:,}, {', '.join(parts)};"
    text += f" {_span([each.num_vanished for each in told])} other weights came and went"
    if len(found) > 1:
        tops = [each.lists()[-1].top(one.k).keys() for each in found]
        shared = [len(a & b) / one.k for a, b in itertools.combinations(tops, 2)]
        text += f"; score seeds share {100 * sum(shared) / len(shared):.0f} % of their lists at the last"
    if (size := universe(one)) is not None:
        text += f"; two random lists share {one.k / size:.2g} of their weights"
    return text


def _span(values: Sequence[int]) -> str:
    low, high = min(values), max(values)
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


def summary(found: Sequence[Followed]) -> list[str]:
    """Return a sentence per trajectory and metric, of one K: 10, else the next, else the largest."""
    by_k: dict[tuple[object, ...], dict[int, list[Followed]]] = {}
    for one in found:
        steps = tuple(checkpoint.step for checkpoint in one.checkpoints)
        by_k.setdefault((one.model, one.metric, steps), {}).setdefault(one.k, []).append(one)
    return [sentence(ks[min((k for k in ks if k >= SAID), default=max(ks))]) for ks in by_k.values()]
