"""The groups of a ranking: which K weights of each unit, by definition."""

from dataclasses import dataclass

import numpy as np
import polars as pl

from esa.errors import SelectionError
from esa.rank.order import Array, draw, highest, lowest, nearest_unused, split
from esa.rank.scores import STRATA, Pool
from esa.rank.units import enough, make_units, require
from esa.spec import generator
from esa.spec.sections import Rank

WORST_MATCH = 1.25
# The strata that each group reads; every one needs ``all``, which stands for the small tensors.
READS: dict[str, tuple[str, ...]] = {
    "top_k": ("top", "all"),
    "bottom_k": ("bottom", "all"),
    "random_k": (),
    "matched_k": STRATA,
}
CHOSEN: dict[str, type[pl.DataType]] = {
    "unit": pl.Int64, "draw": pl.Int64, "rank": pl.Int64, "tensor": pl.Int64, "index": pl.Int64, "expert": pl.Int64,
    "score": pl.Float64, "signed": pl.Float64, "weight": pl.Float64, "match_ratio": pl.Float64,
}  # fmt: skip


@dataclass(frozen=True)
class Selection:
    """What a group holds for one metric and seed (columns of ``CHOSEN``), and what must be said of it."""

    frame: pl.DataFrame
    notes: tuple[str, ...] = ()


def top_k(pool: Pool, rank: Rank) -> Selection:
    """Select the K highest scores of each unit, K the largest of ``rank.k``; a smaller K is the prefix ``rank <= K``.

    Order: score descending, then (named_parameters order, index). Exact: a weight among the K highest of its unit is
    among the K highest of its tensor, and those are kept. Cost: one partition per unit, no sort of what is not chosen.
    Raises SelectionError where K exceeds the unit's weights, or the rows kept of one of its tensors.
    """
    k, units = max(rank.k), make_units(pool.tensors, rank.mode)
    require(pool, units, k, "top")
    rows = _of_strata(pool, "top")
    score, tensor, index = pool.column("score"), pool.column("tensor"), pool.column("index")
    chosen = [
        (unit, rows[at][highest(score[rows[at]], tensor[rows[at]], index[rows[at]], k)])
        for unit, at in split(units.of[tensor[rows]], len(units.names))
    ]
    return Selection(_gather(pool, chosen))


def bottom_k(pool: Pool, rank: Rank) -> Selection:
    """Select the K lowest scores of each unit, K the largest of ``rank.k``; a smaller K is the prefix ``rank <= K``.

    Order: score ascending; equal scores in a uniformly random order, drawn by the seed, so that every prefix is a
    uniform draw from what ties at its cut. A tensor with more zero scores than it keeps contributes its reservoir,
    weighted by its number of zeros: how many of the K each tensor gives is multivariate hypergeometric
    (``order.lowest``). Outside a score folder the number of zeros is unknown, and the kept ones stand for it. How many
    tie at the cut is noted. Raises SelectionError as ``top_k`` does.
    """
    k, units = max(rank.k), make_units(pool.tensors, rank.mode)
    require(pool, units, k, "bottom")
    rows = _of_strata(pool, "bottom")
    score, tensor, index = pool.column("score"), pool.column("tensor"), pool.column("index")
    chosen, ties = [], []
    for unit, at in split(units.of[tensor[rows]], len(units.names)):
        mine = rows[at]
        rng = generator(pool.seed or 0, "bottom_k", str(pool.metric), rank.mode, units.names[unit])
        zeros = {number: total for number, total in (pool.num_zero or {}).items() if units.of[number] == unit}
        found, cut, tied, taken = lowest(score[mine], tensor[mine], index[mine], k, num_zero=zeros, rng=rng)
        chosen.append((unit, mine[found]))
        if tied > taken:
            known = (cut == 0 and pool.num_zero is not None) or bool((pool.rows["stratum"][mine] == "all").all())
            ties.append((tied, f"{'' if known else 'at least '}{tied:,}", taken, cut, units.names[unit]))
    return Selection(_gather(pool, chosen), _tie_notes(pool, ties, len(chosen)))


def random_k(pool: Pool, rank: Rank) -> Selection:
    """Draw K weights of each unit uniformly without replacement from all its weights, ``rank.draws`` times.

    The universe is every eligible weight, scored or not kept; it is never listed. The quota per unit is that of the
    other groups. Shared by all metrics: metric, score and weight are null. A larger K begins with the same weights.
    Source: each draw has its own stream, ``generator(seed, "random_k", mode, unit, draw)``.
    Raises SelectionError where K exceeds the unit's weights.
    """
    k, units = max(rank.k), make_units(pool.tensors, rank.mode)
    numel = np.array([tensor.numel for tensor in pool.tensors])
    enough(units, numel, k, "weights")
    frames = []
    members = [np.flatnonzero(units.of == unit) for unit in range(len(units.names))]
    ends = [np.cumsum(numel[tensors]) for tensors in members]
    for number in range(rank.draws):
        for unit, name in enumerate(units.names):
            drawn = draw(int(units.numel[unit]), k, generator(pool.seed or 0, "random_k", rank.mode, name, number))
            place = np.searchsorted(ends[unit], drawn, side="right")
            starts = ends[unit] - numel[members[unit]]
            columns = {"unit": np.full(k, unit), "draw": np.full(k, number), "rank": np.arange(1, k + 1)}
            frames.append({**columns, "tensor": members[unit][place], "index": drawn - starts[place]})
    joined = {name: np.concatenate([frame[name] for frame in frames]) for name in frames[0]}
    return Selection(_typed(pl.DataFrame(joined)))


def matched_k(pool: Pool, rank: Rank) -> Selection:
    """Give each top_k weight, in rank order, a partner of like size: same tensor, nearest log abs(w), none used twice.

    Partners come from the tensor's kept rows of any stratum, outside the top_k of the largest K. Of two equally near
    the smaller abs(w) is taken. ``match_ratio`` is the larger abs(w) over the smaller, at least 1; beyond 1.25 it is
    noted. A zero weight is matched with a zero (ratio 1), and, when none is left, with the smallest abs(w) (ratio null,
    noted); a weight that is not zero is never matched with a zero. Row ``rank`` is the partner of top_k's row ``rank``.
    Raises SelectionError as ``top_k`` does, and where a tensor has fewer partners than top_k weights.
    """
    top = top_k(pool, rank).frame
    if top["weight"].null_count():
        raise SelectionError("matched_k needs the column weight, and the scores leave it empty", where="rank.groups")
    rows_of = dict(split(pool.column("tensor"), len(pool.tensors)))
    partner, ratio = np.empty(len(top), dtype=np.int64), np.empty(len(top))
    index, weight = pool.column("index"), np.abs(pool.column("weight").astype(np.float64))
    top_index, top_weight = top["index"].to_numpy(), np.abs(top["weight"].to_numpy())
    for number, wanted in split(top["tensor"].to_numpy(), len(pool.tensors)):
        _, first = np.unique(index[rows_of[number]], return_index=True)
        rows = rows_of[number][first]  # each kept weight once
        rows = rows[~np.isin(index[rows], top_index[wanted]) & ~np.isnan(weight[rows])]
        partner[wanted] = rows[_partners(top_weight[wanted], weight[rows], pool.tensors[number].parameter)]
        low, high = np.sort([weight[partner[wanted]], top_weight[wanted]], axis=0)
        with np.errstate(divide="ignore", invalid="ignore"):
            ratio[wanted] = np.where(high == low, 1.0, high / low)
    infinite = ~np.isfinite(ratio)
    frame = _gather(pool, [(0, partner)]).with_columns(
        top["unit"], top["rank"], pl.Series("match_ratio", np.where(infinite, np.nan, ratio)).fill_nan(None)
    )
    loose = int(np.count_nonzero(ratio > WORST_MATCH))
    if not loose:
        return Selection(frame)
    worst = "a zero has no zero left" if infinite.any() else f"the worst by {ratio.max():.3g}"
    text = f"{loose:,} of {len(top):,} matches differ in abs(weight) by more than {WORST_MATCH} ({worst})"
    return Selection(frame, (f"matched_k: {pool.label}: {text}",))


def _partners(wanted: Array, sizes: Array, parameter: str) -> Array:
    """Return the position in ``sizes`` of the partner of each of ``wanted``, both abs(w)."""
    order = np.argsort(sizes, kind="stable")
    num_zero = int(np.count_nonzero(sizes == 0))
    zeros, others = order[:num_zero], order[num_zero:]
    result = np.full(len(wanted), -1, dtype=np.int64)
    paired = np.flatnonzero(wanted == 0)[:num_zero]
    result[paired] = zeros[: len(paired)]
    rest = np.flatnonzero(result < 0)
    with np.errstate(divide="ignore"):  # a zero without a zero left looks from below for the smallest
        taken = nearest_unused(np.log(wanted[rest]), np.log(sizes[others]))
    if (taken < 0).any():
        raise SelectionError(
            f"matched_k finds {len(sizes):,} kept partners for {len(wanted):,} top_k weights of {parameter}",
            where="rank.k",
            hint="ask for a smaller K, or score again with a larger score.keep",
        )
    result[rest] = others[taken]
    return result


def _of_strata(pool: Pool, stratum: str) -> Array:
    rows: Array = pool.rows["stratum"].is_in([stratum, "all"]).arg_true().to_numpy()
    return rows


def _gather(pool: Pool, chosen: list[tuple[int, Array]]) -> pl.DataFrame:
    frame = pool.rows[np.concatenate([rows for _, rows in chosen])]
    return _typed(
        frame.with_columns(
            pl.Series("unit", np.concatenate([np.full(len(rows), unit) for unit, rows in chosen])),
            pl.Series("rank", np.concatenate([np.arange(1, len(rows) + 1) for _, rows in chosen])),
        )
    )


def _typed(frame: pl.DataFrame) -> pl.DataFrame:
    given = frame.columns
    return frame.select((pl.col(c) if c in given else pl.lit(None)).cast(t).alias(c) for c, t in CHOSEN.items())


def _tie_notes(pool: Pool, ties: list[tuple[int, str, int, float, str]], num_units: int) -> tuple[str, ...]:
    if not ties:
        return ()
    _, tied, taken, cut, name = max(ties, key=lambda tie: tie[0])
    text = f"{tied} weights tie at the cut {cut:g}, {taken:,} of them drawn by seed"
    if num_units > 1:
        text = f"in {len(ties)} of {num_units} units more weights tie at the cut than fit; most in '{name}': {text}"
    return (f"bottom_k: {pool.label}: {text}",)
