"""Attention against MLP, and embedding and head against the blocks: how densely each part carries the score."""

from collections.abc import Iterator, Sequence

import numpy as np

from esa.arch.comparison.blocks import Array, Blocks, blocks_of
from esa.arch.comparison.findings import Found, Options, Row, compared
from esa.arch.comparison.over_blocks import FEWEST, density_ratio_interval
from esa.arch.comparison.sources import Labelled
from esa.statistics.permutation import sign_flip_p, smallest_sign_flip_p

QUESTION, ENDS = "attention against MLP", "embedding and head"
_NULL = "the two parts exchanged within blocks"
_FEW = "fewer than 3 blocks hold both: no interval"


def compare(runs: Sequence[Labelled], options: Options) -> Found:
    """Return ``comparison/1`` rows: density of attention over that of the MLP, of embedding and head over the blocks'.

    With S and n score and weights over all blocks, the mean over score seeds of scores that sum to one per seed::

        density_ratio = (S_attention / n_attention) / (S_mlp / n_mlp)

    the experts of a mixture among the MLP. Interval: Student's t over the blocks of the linearised log ratio
    (:func:`~esa.arch.comparison.over_blocks.density_ratio_interval`). p: sign flips of each block's
    ``(d_a - d_m) / (d_a + d_m)``, its densities, two-sided: no part is denser whatever the block. Expected under the
    null: 1. Embedding and head: their density over that of all blocks together; the interval is over blocks, too.
    Source: Cochran, Sampling Techniques, 1977, section 6; Fisher, The Design of Experiments, 1935, section 21.
    """
    rows: list[Row] = []
    for run in runs:
        for metric in (name for name in options.metrics if name in run.metrics):
            blocks = blocks_of(run, metric)
            if blocks is None:
                rows.append(compared(QUESTION, run.label, metric, "attention / mlp", "density_ratio", why="no scores"))
                continue
            rows.append(_attention(run, metric, blocks, options))
            rows += _ends(run, metric, blocks, options)
    return Found({"comparison/1": rows}, adjust=frozenset({QUESTION}))


def _attention(run: Labelled, metric: str, blocks: Blocks, options: Options) -> Row:
    row = compared(QUESTION, run.label, metric, "attention / mlp", "density_ratio", expected=1.0)
    return row | ratio_of(blocks, ("attention",), ("mlp", "expert"), f"{QUESTION} {run.label} {metric}", options, _NULL)


def ratio_of(
    blocks: Blocks, over: tuple[str, ...], under: tuple[str, ...], name: str, options: Options, null: str
) -> Row:
    """Return value, interval and p of the ratio of two groups of parts' densities, over the blocks that hold both."""
    (s, n), (t, m) = blocks.total(*over), blocks.total(*under)
    both = (n > 0) & (m > 0)
    s, n, t, m = (values[both] for values in (s, n, t, m))
    number = len(s)
    if not number:
        return {"why": f"no block holds both {' or '.join(over)} and {' or '.join(under)}", "num": 0}
    if not t.sum() > 0:
        return {"why": f"{' or '.join(under)}: no score above zero", "num": number}
    value = float(s.sum() / n.sum() / (t.sum() / m.sum()))
    ends = density_ratio_interval(s, n, t, m, options.level)
    contrasts = _contrasts(s / n, t / m)
    p = sign_flip_p(contrasts.tolist(), options.seed, name, options.permutations)
    return {
        "value": value, "low": ends.low, "high": ends.high, "null": null, "p_value": p, "num": number,
        "smallest_p": smallest_sign_flip_p(number, options.permutations), "why": None if number >= FEWEST else _FEW,
    }  # fmt: skip


def _contrasts(a: Array, b: Array) -> Array:
    """Return ``(a - b) / (a + b)``, 0 where both are: what an exchange of the two turns around."""
    total = a + b
    return np.divide(a - b, total, out=np.zeros_like(total), where=total > 0)


def _ends(run: Labelled, metric: str, blocks: Blocks, options: Options) -> Iterator[Row]:
    """Yield the density of embedding and head over that of the blocks."""
    s, n = blocks.total()
    frame = run.tensors(metric, run.seeds(metric)[0])
    tied = frame is not None and bool(frame["tied"].fill_null(False).any())
    for part in ("embedding", "head"):
        row = compared(ENDS, run.label, metric, f"{part} / blocks", "density_ratio", num=len(s))
        if part not in blocks.outside:
            why = (
                "tied to the embedding: one tensor, counted there"
                if tied and part == "head"
                else f"no {part} was scored"
            )
            yield row | {"why": why}
            continue
        if not s.sum() > 0:
            yield row | {"why": "no score above zero in the blocks"}
            continue
        score, weights = blocks.outside[part]
        own = np.full(len(s), score / weights)
        ends = density_ratio_interval(own, np.ones(len(s)), s, n, options.level)
        note = "the head is the same tensor" if tied and part == "embedding" else None
        yield row | {
            "value": float(own[0] / (s.sum() / n.sum())),
            "low": ends.low,
            "high": ends.high,
            "expected": 1.0,
            "why": note,
        }
