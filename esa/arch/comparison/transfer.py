"""Do one model's critical positions predict another's, where their addresses do not compare?"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import permutations as ordered_pairs

import numpy as np
import numpy.typing as npt
import polars as pl

from esa.arch.comparison.findings import Found, Options, Row, compared
from esa.arch.comparison.over_blocks import clipped, weighted_interval
from esa.arch.comparison.roles import with_role
from esa.arch.comparison.row_ranks import row_ranks
from esa.arch.comparison.scored import Scored, scored
from esa.arch.comparison.sources import Labelled
from esa.artifact.places import same_places, trained_apart
from esa.spec import generator
from esa.statistics.bootstrap import Interval
from esa.statistics.permutation import monte_carlo_p, smallest_monte_carlo_p

Array = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
QUESTION = "transfer"
BANDWIDTH = 0.1  # of the kernels over relative depth and row rank, both from 0 to 1
_RESIDUAL = ("embed", "attn.o", "mlp.down", "expert.down")  # their output rows are the channels of the residual stream
_FEW = "the list lies in effectively fewer than 3 tensors: no interval"
_BACKGROUND = 20_000  # weights of b that those of its list are held against for the AUC


@dataclass(frozen=True)
class Positions:
    """A model's tensors and where its top K lie among them.

    Per tensor: ``roles``, ``depths`` (relative, NaN outside the blocks), ``sizes`` (weights). Per top weight: ``tensor``, its
    number; ``row``, a number that weights of one output row share, and of all tensors that write to the residual stream those of
    one channel: a massive activation is one, however many blocks feed it; ``row_rank``, from 0 (the row of the smallest score sum
    of its tensor, the listed weights not counted) to 1, NaN where it is not known.
    """

    label: str
    roles: tuple[str, ...]
    depths: Array
    sizes: Array
    tensor: Ints
    row: Ints
    row_rank: Array

    @property
    def known_ranks(self) -> Array:
        """Return the row ranks that are known."""
        return self.row_rank[~np.isnan(self.row_rank)]


def positions(one: Scored, ranks: Sequence[tuple[int, float] | None]) -> Positions:
    """Return the positions of a run's top K; ``ranks``: output row and its rank of each, None where not known."""
    assert one.top is not None
    frame = with_role(one.tensors)
    names = {name: number for number, name in enumerate(frame["parameter"])}
    blocks = frame["block"].cast(pl.Float64).fill_null(float("nan")).to_numpy()
    tensor = np.array([names[name] for name in one.top["parameter"]], dtype=np.int64)
    residual = [component in _RESIDUAL for component in frame["component"]]
    keys = [
        (int(t), place) if rank is None else (-1 if residual[t] else int(t), -1 - rank[0])
        for place, (t, rank) in enumerate(zip(tensor, ranks, strict=True))
    ]
    numbers = {key: number for number, key in enumerate(dict.fromkeys(keys))}
    return Positions(
        one.label,
        tuple(frame["role"]),
        (blocks + 0.5) / one.num_blocks,
        frame["numel"].to_numpy().astype(float),
        tensor,
        np.array([numbers[key] for key in keys], dtype=np.int64),
        np.array([np.nan if rank is None else rank[1] for rank in ranks]),
    )


def compare(runs: Sequence[Labelled], options: Options) -> Found:
    """Ask of every ordered pair of runs whose addresses do not compare whether a's critical positions predict b's.

    Those are models of other shapes, and of other training seeds (see :mod:`esa.arch.comparison.variants`).
    A position is (role, relative depth, row rank). a's top K give a density: the frequency of each role plus one, a Gaussian
    kernel of width 0.1 over the relative depth (reflected at both ends, and as much of the uniform density as one weight
    brings), and the same over the row rank. Role and depth give every tensor of b a share ``m_a`` (adding up to one), and b's
    own weights the share ``u_b`` of its numel. Of a weight of b in tensor t with row rank r ::

        l(t, r) = ln m_a(t) - ln u_b(t) + ln h_a(r)       [nats; 0 where a says nothing beyond where b's weights are]

    comparison/1, question ``transfer``, b predicted by a. ``log_likelihood_ratio``: mean of l over b's top K, its interval over
    b's tensors with one of them (none where those are effectively fewer than three), against random positions: b's top weights
    of a tensor move together to a tensor drawn by its size, those of an output row, or of one channel of the residual
    stream, to a row rank drawn uniformly (a cluster is one surprise, not a hundred).
    ``..._of_depth``: the depth term alone, against the stricter null that keeps every tensor's role and draws its block: does
    depth predict beyond role? ``..._of_row_rank``: that term alone, against rows drawn uniformly; ``..._of_role``: without a
    test. ``auc``: the chance that a weight of b's list has a larger l than a random one of its weights. p: ``(1 + #{l* >=
    l}) / (1 + R)``. A weight without a row rank (no margins, fused experts) goes without that term, and ``why`` counts them.
    Cost: R times the number of b's tensors in the list.
    Source: the test is Monte Carlo; log-likelihood ratio of positions against background as in position weight matrices (Stormo,
    "DNA binding sites: representation and discovery", Bioinformatics 16, 2000).
    """
    rows: list[Row] = []
    for metric in options.metrics:
        found = {}
        for one in runs:
            about = scored(one, metric, options.k)
            if about is not None and about.top is not None:
                found[one.label] = positions(about, row_ranks(one, about))
        for a, b in ordered_pairs(runs, 2):
            addresses = same_places(a.run, b.run) and not trained_apart(a.run, b.run)
            if a.label in found and b.label in found and not addresses:
                rows += predict(found[a.label], found[b.label], metric, options)
    return Found({"comparison/1": rows}, adjust=frozenset({QUESTION}))


def predict(a: Positions, b: Positions, metric: str, options: Options) -> list[Row]:
    """Return the rows of comparison/1 of an ordered pair: see :func:`compare`."""
    by_role, by_depth = tensor_terms(a, b)
    ranked, of_rank = ~np.isnan(b.row_rank), np.zeros(len(b.tensor))
    of_rank[ranked] = np.log(smoothed(a.known_ranks, b.row_rank[ranked]))  # all 0 where a has none
    total = by_role[b.tensor] + by_depth[b.tensor] + of_rank
    draw = generator(options.seed, QUESTION, metric, a.label, b.label)
    groups, at = np.unique(b.tensor, return_inverse=True)
    counts = np.bincount(at).astype(float)
    shares = b.sizes / b.sizes.sum()
    times = options.permutations
    lines = np.unique_counts(b.row[ranked]).counts.astype(float)
    rows_only = _row_terms(a.known_ranks, lines, times, draw) / len(total)
    anywhere = rows_only.copy()
    for count in counts:
        anywhere += count * (by_role + by_depth)[draw.choice(len(shares), size=times, p=shares)] / len(total)
    depth_only, beyond = np.zeros(times), False
    for group, count in zip(groups, counts, strict=True):
        choices = np.array([role == b.roles[group] for role in b.roles])
        drawn = draw.choice(np.flatnonzero(choices), size=times, p=shares[choices] / shares[choices].sum())
        depth_only += count * by_depth[drawn] / len(total)
        beyond = beyond or bool(np.ptp(by_depth[choices]) > 0)
    depth_value = float(by_depth[b.tensor].mean())
    low, high = _over_tensors(total, at, options.level)
    missing = [f"{one.label} {n} of {len(one.row_rank)}" for one in (a, b) if (n := int(np.isnan(one.row_rank).sum()))]
    why = f"without a row rank, and without that term: {', '.join(missing)}" if missing else None
    alone = why if low is not None else "; ".join(filter(None, [_FEW, why]))
    about = {"b": b.label, "num": len(total)}
    subject = f"top {len(total):,}"
    smallest = smallest_monte_carlo_p(times)
    value = float(total.mean())
    rows = [
        compared(
            QUESTION, a.label, metric, subject, "log_likelihood_ratio", **about, value=value, low=low, high=high,
            expected=float(anywhere.mean()), null="positions drawn by size, tensors and rows together",
            p_value=monte_carlo_p(value, anywhere), smallest_p=smallest, why=alone,
        ),
        compared(
            QUESTION, a.label, metric, subject, "log_likelihood_ratio_of_role", **about,
            value=float(by_role[b.tensor].mean()), expected=float(by_role @ shares),
        ),
        compared(
            QUESTION, a.label, metric, subject, "log_likelihood_ratio_of_depth", **about, value=depth_value,
            expected=float(depth_only.mean()), null="blocks drawn anew, roles kept",
            p_value=monte_carlo_p(depth_value, depth_only) if beyond else None, smallest_p=smallest if beyond else None,
            why=None if beyond else "no role of the list has another depth to be drawn from",
        ),
    ]  # fmt: skip
    if ranked.any() and len(a.known_ranks):
        rank_value = float(of_rank.mean())
        rows.append(
            compared(
                QUESTION, a.label, metric, subject, "log_likelihood_ratio_of_row_rank", **about, value=rank_value,
                expected=float(rows_only.mean()), null="rows drawn uniformly",
                p_value=monte_carlo_p(rank_value, rows_only), smallest_p=smallest, why=why,
            )
        )  # fmt: skip
    placed = _placements(total, a, by_role + by_depth, shares, float(ranked.mean()), draw)
    low, high = clipped(_over_tensors(placed, at, options.level), 0.0, 1.0)
    auc = {"value": float(placed.mean()), "low": low, "high": high, "expected": 0.5}
    return [*rows, compared(QUESTION, a.label, metric, subject, "auc", **about, **auc)]


def tensor_terms(a: Positions, b: Positions) -> tuple[Array, Array]:
    """Return the role's and the depth's term of ``ln m_a - ln u_b`` of every tensor of b ``(tensors of b,)``.

    ``m_a(t) = f_a(role) g_a(t | role)``: f_a the frequency of the role in a's list plus one over the roles of b, g_a the
    kernel density of a's depths at t's, times t's size, normalised within the role; a role outside the blocks has no
    depth term.
    """
    roles = sorted(set(b.roles))
    listed = [a.roles[tensor] for tensor in a.tensor]
    frequency = {role: listed.count(role) + 1.0 for role in roles}
    total = sum(frequency.values())
    depths = a.depths[a.tensor]
    density = np.ones(len(b.roles))
    inside = ~np.isnan(b.depths)
    density[inside] = smoothed(depths[~np.isnan(depths)], b.depths[inside])
    by_role, by_depth = np.zeros(len(b.roles)), np.zeros(len(b.roles))
    every = b.sizes.sum()
    for role in roles:
        mine = np.array([other == role for other in b.roles])
        size = b.sizes[mine].sum()
        by_role[mine] = np.log(frequency[role] / total) - np.log(size / every)
        by_depth[mine] = np.log(density[mine]) - np.log((density[mine] * b.sizes[mine]).sum() / size)
    return by_role, by_depth


def smoothed(points: Array, at: Array) -> Array:
    """Return a density on [0, 1] at some places: Gaussian kernels on the points, reflected at the ends, and one uniform share.

    ``(1 + sum_i K(x - p_i)) / (1 + n)``, K the kernel of width ``BANDWIDTH`` folded at 0 and 1, so that it integrates to one.
    Shapes: points ``(n,)``, at ``(m,)``; returns ``(m,)``.
    """
    images = np.concatenate([points, -points, 2 - points])
    away = (at[:, None] - images[None, :]) / BANDWIDTH
    kernels = np.exp(-(away**2) / 2).sum(axis=1) / (BANDWIDTH * np.sqrt(2 * np.pi))
    found: Array = (1 + kernels) / (1 + len(points))
    return found


def _row_terms(points: Array, counts: Array, times: int, draw: np.random.Generator) -> Array:
    """Return ``sum_rows count ln h_a(u_row)`` for row ranks u drawn uniformly, ``times`` times, from a grid of h_a."""
    grid = np.log(smoothed(points, (np.arange(1000) + 0.5) / 1000))
    total = np.zeros(times)
    for count in counts:
        total += count * grid[draw.integers(0, len(grid), times)]
    return total


def _placements(
    total: Array, a: Positions, terms: Array, shares: Array, ranked: float, draw: np.random.Generator
) -> Array:
    """Return of each top weight the share of random weights whose l is smaller, ties half; ``ranked``: with a row rank."""
    background = terms[draw.choice(len(shares), size=_BACKGROUND, p=shares)]
    background += _row_terms(a.known_ranks, np.ones(1), _BACKGROUND, draw) * (draw.random(_BACKGROUND) < ranked)
    ordered = np.sort(background)
    below, through = (np.searchsorted(ordered, total, side) for side in ("left", "right"))
    found: Array = (below + through) / (2 * len(ordered))
    return found


def _over_tensors(values: Array, at: Ints, level: float) -> Interval:
    """Return the interval of the mean of the weights' values over their tensors, which are the units."""
    counts = np.bincount(at).astype(float)
    return weighted_interval(np.bincount(at, values) / counts, counts, level)
