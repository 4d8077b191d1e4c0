"""Base against instruct: which critical weights stay, move, vanish or appear, and what one model's list does to the other."""

from collections import Counter
from collections.abc import Sequence
from itertools import combinations

import numpy as np
import polars as pl

from esa.arch.comparison.damages import Damaged, Key, damages_of, joint_damages
from esa.arch.comparison.findings import Found, Options, Row, compared
from esa.arch.comparison.moves import Shapes, Weight, random_moves
from esa.arch.comparison.sources import Labelled
from esa.artifact.places import same_places, trained_apart
from esa.spec import generator
from esa.statistics.hypergeometric import expected_jaccard, p_value
from esa.statistics.permutation import monte_carlo_p, smallest_monte_carlo_p

QUESTION = "variants"
Line = tuple[str, int, tuple[int, ...]]  # parameter, the axis along it, the other indices
STATUSES = ("stays", "moves", "vanishes", "appears")
_MOST_DRAWS = 999  # random lists that are matched weight by weight
_APART = "trained from different seeds: an address is not the same unit in both; transfer asks of their positions"


def compare(runs: Sequence[Labelled], options: Options) -> Found:
    """Compare the top K of every two runs whose addresses are the same places, metric by metric: ``positions/1``.

    ``status`` of a weight: ``stays`` (in both lists), ``moves`` (it enters b's list while another of the same tensor and the
    same row or column leaves a's: ``moved_from``, with that one's ``rank_a``), ``vanishes`` (of a's alone), ``appears`` (of
    b's alone); see :func:`matched`.

    comparison/1, question ``variants``: ``jaccard`` of the lists with expectation and p of as many weights drawn within each
    tensor (that both lists lie in one tensor is no agreement on weights); ``num_stay``, ``num_move`` (against entering weights
    drawn anew within their tensors), ``num_vanish``, ``num_appear``; where both models were damaged by the same method at the
    same K, ``damage_of_own_list`` and, from a campaign in one model by the other's ranking, ``damage_of_other_list`` with their
    intervals, nats per token, a the list's run and b the model's.
    Pairs without the same places (other families, other sizes) are passed over. So are models that were trained from different
    seeds: a unit of one is no unit of the other, and an address says nothing; one row counts them, and
    :mod:`esa.arch.comparison.transfer` asks of their positions.
    """
    tables: dict[str, list[Row]] = {"positions/1": [], "comparison/1": []}
    apart: list[tuple[str, str]] = []
    for a, b in combinations(runs, 2):
        if (a.fingerprint is not None and a.fingerprint == b.fingerprint) or not same_places(a.run, b.run):
            continue
        if trained_apart(a.run, b.run):
            apart.append((a.label, b.label))
            continue
        for metric in options.metrics:
            rows, positions = _lists(a, b, metric, options)
            tables["positions/1"] += positions
            tables["comparison/1"] += rows + _damage(a, b, metric) + _damage(b, a, metric)
    if apart:
        about = " and ".join(apart[0]) if len(apart) == 1 else f"{len(apart)} pairs of runs"
        tables["comparison/1"].append(compared(QUESTION, about, None, None, "jaccard", why=_APART))
    return Found(tables, adjust=frozenset({QUESTION}))


def _lists(a: Labelled, b: Labelled, metric: str, options: Options) -> tuple[list[Row], list[Row]]:
    """Return the rows of comparison/1 and of positions/1 of two runs' lists by a metric; none where a run has no list."""
    tops = [top for run in (a, b) if (top := run.top(metric, options.k)) is not None]
    scored = [
        frame for run in (a, b) for seed in run.seeds(metric)[:1] if (frame := run.tensors(metric, seed)) is not None
    ]
    if len(tops) < 2 or len(scored) < 2:
        return [], []
    tensors = pl.concat(scored).unique("parameter", keep="first", maintain_order=True)  # what either spec left out, too
    one, two = ([(str(p), int(i)) for p, i in top.select("parameter", "index").iter_rows()] for top in tops)
    shapes = {name: _shape(text) for name, text in tensors.select("parameter", "shape").iter_rows()}
    about = {row[0]: row[1:] for top in tops for row in top.select("parameter", "block", "component").iter_rows()}
    positions = [
        {
            "a": a.label, "b": b.label, "metric": metric, "k": len(two), "parameter": name, "index": index,
            "target": target_of(name, index, shapes), "block": about[name][0], "component": about[name][1], **row,
        }
        for (name, index), row in matched(one, two, shapes)
    ]  # fmt: skip
    shared = len(set(one) & set(two))
    of_one, of_two = (Counter(name for name, _ in weights) for weights in (one, two))
    sizes = dict(tensors.select("parameter", "numel").iter_rows())
    units = tuple((of_one[name], of_two[name], sizes[name]) for name in sizes if of_one[name] or of_two[name])
    subject, common = f"top {len(one):,}", {"b": b.label, "num": len(one)}
    counts = {status: sum(row["status"] == status for row in positions) for status in STATUSES}
    entering = len(two) - shared
    draw = generator(options.seed, QUESTION, metric, a.label, b.label)
    null = random_moves(one, two, shapes, min(options.permutations, _MOST_DRAWS), draw) if entering else []
    moved = {
        "expected": float(np.mean(null)), "null": "entering weights drawn within their tensors",
        "p_value": monte_carlo_p(counts["moves"], null), "smallest_p": smallest_monte_carlo_p(len(null)),
    } if entering else {}  # fmt: skip
    rows = [
        compared(
            QUESTION, a.label, metric, subject, "jaccard", **common, value=shared / (len(one) + len(two) - shared),
            expected=expected_jaccard(units), null="as many weights of each tensor at random", p_value=p_value(units, shared),
        ),
        compared(QUESTION, a.label, metric, subject, "num_stay", **common, value=counts["stays"]),
        compared(QUESTION, a.label, metric, subject, "num_move", **common, value=counts["moves"], **moved),
        compared(QUESTION, a.label, metric, subject, "num_vanish", **common, value=counts["vanishes"]),
        compared(QUESTION, a.label, metric, subject, "num_appear", **common, value=counts["appears"]),
    ]  # fmt: skip
    return rows, positions


def matched(one: Sequence[Weight], two: Sequence[Weight], shapes: Shapes) -> list[tuple[Weight, Row]]:
    """Return every weight of two lists with its status, ranks in both from 1 on, and where it moved from.

    A weight that enters (of ``two`` alone) moved if a weight that leaves (of ``one`` alone), in the same tensor, agrees with it
    in all indices but one; entering weights choose in the order of their ranks, each the best-ranked that is left. Its row
    carries the other's rank and address, which has none of its own then. Order: weights of ``two`` by rank, then those
    that vanished by rank. Of a tensor with one axis nothing can move.
    """
    ranks_one = {weight: rank for rank, weight in enumerate(one, start=1)}
    known = set(two)
    leaving = [weight for weight in one if weight not in known]
    lines: dict[Line, list[Weight]] = {}
    for weight in leaving:
        for line in _lines_of(weight, shapes):
            lines.setdefault(line, []).append(weight)
    taken: set[Weight] = set()
    rows: list[tuple[Weight, Row]] = []
    for rank, weight in enumerate(two, start=1):
        row: Row = {"rank_a": ranks_one.get(weight), "rank_b": rank, "status": "stays", "moved_from": None}
        if weight not in ranks_one:
            near = [w for line in _lines_of(weight, shapes) for w in lines.get(line, ()) if w not in taken]
            origin = min(near, key=ranks_one.__getitem__, default=None)
            row["status"] = "appears" if origin is None else "moves"
            if origin is not None:
                taken.add(origin)
                row |= {"rank_a": ranks_one[origin], "moved_from": target_of(*origin, shapes)}
        rows.append((weight, row))
    gone = {"rank_b": None, "status": "vanishes", "moved_from": None}
    rows += [(weight, {"rank_a": ranks_one[weight], **gone}) for weight in leaving if weight not in taken]
    return rows


def _lines_of(weight: Weight, shapes: Shapes) -> list[Line]:
    """Return the lines through a weight, each without the index along it: its row and its column; none of a vector."""
    name, index = weight
    at = _place(index, shapes[name])
    return [(name, axis, at[:axis] + at[axis + 1 :]) for axis in range(len(at))] if len(at) > 1 else []


def _place(index: int, shape: tuple[int, ...]) -> tuple[int, ...]:
    found: list[int] = []
    for size in reversed(shape):
        index, rest = divmod(index, size)
        found.append(rest)
    return tuple(reversed(found))


def _shape(text: str) -> tuple[int, ...]:
    """Return the sizes that ``(576, 1536)`` names."""
    return tuple(int(part) for part in text.strip("() ").split(",") if part.strip())


def target_of(name: str, index: int, shapes: Shapes) -> str:
    """Return a weight's address as a person types it: ``model.layers.1.mlp.down_proj.weight:507,90``."""
    return f"{name}:{','.join(map(str, _place(index, shapes[name])))}"


def _damage(of_list: Labelled, model: Labelled, metric: str) -> list[Row]:
    """Return the damage of one run's list in the other run's model beside that of the model's own list, case by case."""
    own = damages_of(model, metric)
    seeds = of_list.seeds(metric)
    mark = {of_list.run.inputs.get("rank"), *of_list.run.manifests.get("rank", {}).get("outputs", {}).values()} - {None}
    rows: list[Row] = []
    for campaign in model.crossed:
        if not mark & set(campaign.manifests["perturb"].get("inputs", {}).values()):
            continue
        for key, damage in joint_damages(campaign, metric, seeds[0] if seeds else None).items():
            rows.append(_of_list("damage_of_other_list", of_list.label, model.label, metric, key, damage))
            if key in own:
                rows.append(_of_list("damage_of_own_list", model.label, model.label, metric, key, own[key]))
    return rows


def _of_list(quantity: str, a: str, b: str, metric: str, key: Key, damage: Damaged) -> Row:
    """Return the row of a list's damage: ``a`` the run whose list it is, ``b`` the one whose model was changed."""
    why = None if damage.value is not None else f"outcome {damage.outcome}"
    return compared(
        QUESTION, a, metric, f"top {key.k:,} by {key.shown}", quantity, b=b, value=damage.value, low=damage.low,
        high=damage.high, num=key.k, why=why,
    )  # fmt: skip
