"""Specialisation of experts: does another text reach other experts than another sample of the same text."""

from collections.abc import Iterator, Sequence
from itertools import combinations
from math import comb

import numpy as np
import polars as pl

from esa.arch.comparison.blocks import Array
from esa.arch.comparison.concentration import jensen_shannon
from esa.arch.comparison.experts import experts_of
from esa.arch.comparison.findings import Found, Options, Row, compared
from esa.arch.comparison.sources import Labelled

QUESTION = "specialisation"
_MOST = 5  # experts named
_NULL = "score seeds exchanged between the texts"
Profiles = list[dict[int, Array]]  # of one text: per score seed, block -> shares of its experts


def compare(runs: Sequence[Labelled], options: Options) -> Found:
    """Return ``comparison/1`` rows: how much further apart experts' shares are between texts than between seeds of one.

    For two runs of one model (equal fingerprints) on different calibration texts, and every metric both scored, of score, and of
    usage once (it is the same whatever is scored): D(x, y), the Jensen-Shannon divergence in bits of two samples' shares over
    the experts of a block, mean over the blocks. ``divergence_between_texts``: its mean over pairs of seeds of different texts;
    ``expected``, within them: over pairs of seeds of one text. p where both have two seeds or more: the excess of one mean over
    the other among all divisions of the seeds into two such groups (``null``), one-sided; with two and two it cannot be under
    1/3.
    Then the experts whose shares differ most, a's less b's. With one text alone: a row that says what is missing.
    Source: Lin, "Divergence measures based on the Shannon entropy", IEEE Trans. Information Theory 37, 1991.
    """
    rows: list[Row] = []
    mixtures = [run for run in runs if any(_profiles(run, metric, "score") for metric in options.metrics)]
    answered: set[str] = set()
    for a, b in combinations(mixtures, 2):
        if a.fingerprint is None or a.fingerprint != b.fingerprint or _text(a) is None or _text(b) in (None, _text(a)):
            continue
        answered |= {a.label, b.label}
        both = [name for name in options.metrics if name in a.metrics and name in b.metrics]
        for metric in both:
            for subject in ("usage", "score") if metric == both[0] else ("score",):
                rows += _specialised(a, b, metric, subject, options)
    rows += [
        compared(
            QUESTION, run.label, None, "usage", "divergence_between_texts",
            why=f"needs runs of this model on two calibration texts; at hand: {_text(run) or 'one that no manifest names'}",
        )
        for run in mixtures if run.label not in answered
    ]  # fmt: skip
    return Found({"comparison/1": rows}, adjust=frozenset({QUESTION}))


def _text(run: Labelled) -> str | None:
    """Return the calibration text of a run, where all its seeds saw the same."""
    found = {run.text(seed) for metric in run.metrics for seed in run.seeds(metric) if seed is not None}
    return found.pop() if len(found) == 1 else None


def _profiles(run: Labelled, metric: str, subject: str) -> Profiles:
    """Return the shares of the experts by block for every score seed that has them."""
    found = []
    for seed in run.seeds(metric):
        frame = experts_of(run, metric, seed)
        if frame is None or frame[subject].null_count():
            continue
        parts = frame.partition_by("block", maintain_order=True)
        found.append({part["block"][0]: _shares(part, subject) for part in parts if part[subject].sum() > 0})
    return found


def _shares(part: pl.DataFrame, subject: str) -> Array:
    values = part.sort("expert")[subject].to_numpy()
    shares: Array = values / values.sum()
    return shares


def _specialised(a: Labelled, b: Labelled, metric: str, subject: str, options: Options) -> Iterator[Row]:
    one, two = _profiles(a, metric, subject), _profiles(b, metric, subject)
    of = metric if subject == "score" else None  # usage is the same whatever is scored
    row = compared(QUESTION, a.label, of, subject, "divergence_between_texts", b=b.label)
    blocks = sorted(set.intersection(*(set(profile) for profile in [*one, *two]))) if one and two else []
    if not blocks:
        yield row | {"why": f"{subject} of experts is not known in both"}
        return
    samples = [*one, *two]
    apart = np.zeros((len(samples), len(samples)))
    for i, j in combinations(range(len(samples)), 2):
        values = [jensen_shannon(samples[i][block], samples[j][block]) for block in blocks]
        apart[i, j] = apart[j, i] = float(np.mean(values))
    between, within = _means(apart, range(len(one)))
    row |= {"value": between, "expected": within, "num": len(samples)}
    if len(one) < 2 or len(two) < 2:
        yield row | {"why": "fewer than 2 score seeds of a text: nothing to tell texts from samples of one"}
    else:
        yield row | _tested(apart, len(one))
    yield from _differing(a, b, of, subject, one, two, blocks)


def _means(apart: Array, first: Sequence[int]) -> tuple[float, float | None]:
    """Return the mean divergence between two groups of samples, and within them; None where neither has a pair."""
    inside = np.isin(np.arange(len(apart)), list(first))
    upper = np.triu(np.ones_like(apart, dtype=bool), 1)
    same = inside[:, None] == inside[None, :]
    within = apart[upper & same]
    return float(apart[upper & ~same].mean()), float(within.mean()) if len(within) else None


def _tested(apart: Array, size: int) -> Row:
    """Return the p value of the excess of the divergence between texts: all divisions of the samples are counted."""

    def excess(first: Sequence[int]) -> float:
        between, within = _means(apart, first)
        return between - (within or 0.0)

    observed = excess(range(size))
    every = [excess(first) for first in combinations(range(len(apart)), size)]
    p = sum(value >= observed - 1e-12 for value in every) / len(every)
    halves = 2 if 2 * size == len(apart) else 1  # a division and its mirror image are the same
    return {"null": _NULL, "p_value": p, "smallest_p": halves / comb(len(apart), size)}


def _differing(
    a: Labelled, b: Labelled, metric: str | None, subject: str, one: Profiles, two: Profiles, blocks: Sequence[int]
) -> Iterator[Row]:
    """Yield the experts whose mean share of their block differs most between the texts."""
    found = []
    for block in blocks:
        difference = np.mean([p[block] for p in one], axis=0) - np.mean([p[block] for p in two], axis=0)
        found += [(float(value), block, expert) for expert, value in enumerate(difference)]
    for value, block, expert in sorted(found, key=lambda row: (-abs(row[0]), row[1:]))[:_MOST]:
        subject_text = f"block {block} expert {expert}"
        yield compared(QUESTION, a.label, metric, subject_text, f"{subject}_share_difference", b=b.label, value=value)
