"""The detector's candidates: what stood out in a score step, what was published, and which of them share a row or a column."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any

from esa.model import ParameterInfo, parse_address, unravel
from esa.model.published import Match, targets
from esa.perturb.targets import Target

WRITER, ERASER = "writer", "eraser"


@dataclass(frozen=True)
class Candidate:
    """One weight to be tested.

    ``growth``: signed, in medians of the block's abs(h), the one of the largest size over the seeds; None for a published
    weight that did not stand out. ``peak_ratio``: of its block then; None where the block has no median channel. ``num_seeds``:
    in how many seeds it stood out. ``published``: None where the model is like none that was published.
    """

    target: Target
    growth: float | None = None
    peak_ratio: float | None = None
    num_seeds: int = 0
    published: bool | None = None

    @property
    def role(self) -> str | None:
        """Return ``writer`` for a positive growth, ``eraser`` for a negative one, None where nothing stood out."""
        if self.growth is None:
            return None
        return WRITER if self.growth > 0 else ERASER


@dataclass(frozen=True)
class Comparison:
    """What a published model has, of which the step found some and missed others."""

    match: Match
    found: tuple[Target, ...]
    missed: tuple[Target, ...]


def from_records(
    records: Iterable[Mapping[str, Any]], table: Mapping[str, ParameterInfo], where: str
) -> list[Candidate]:
    """Return what stood out in any seed, each weight once: writers by falling growth, then erasers, the strongest last.

    ``records``: a score manifest's ``candidates``. Raises TargetError for an address that the model does not have.
    """
    found: dict[Target, Candidate] = {}
    seeds: dict[Target, set[int]] = {}
    for record in records:
        target = parse_address(record["address"], table, where)
        seeds.setdefault(target, set()).add(record["seed"])
        known = found.get(target)
        if known is None or known.growth is None or abs(record["growth"]) > abs(known.growth):
            found[target] = Candidate(target, record["growth"], record["peak_ratio"])
    order = {name: number for number, name in enumerate(table)}
    ordered = sorted(found.values(), key=lambda one: (-(one.growth or 0), order[one.target[0]], one.target[1]))
    return [replace(one, num_seeds=len(seeds[one.target])) for one in ordered]


def with_published(
    candidates: Sequence[Candidate], found: Sequence[Match], table: Mapping[str, ParameterInfo]
) -> tuple[list[Candidate], list[Comparison]]:
    """Return the candidates with the published weights that did not stand out behind them, and a comparison per match."""
    if not found:
        return list(candidates), []
    mine = {one.target for one in candidates}
    comparisons = []
    for match in found:
        known = targets(match.published, table)
        comparisons.append(
            Comparison(
                match,
                tuple(one for one in known if one in mine),
                tuple(one for one in known if one not in mine),
            )
        )
    named = dict.fromkeys(target for one in comparisons for target in (*one.found, *one.missed))
    marked = [replace(one, published=one.target in named) for one in candidates]
    return [*marked, *(Candidate(target, published=True) for target in named if target not in mine)], comparisons


def groups_of(candidates: Sequence[Candidate], table: Mapping[str, ParameterInfo]) -> dict[str, list[Target]]:
    """Return by name the groups of two or more candidates of one role that are linked by a shared row or column.

    A row (the weights of one output) is shared across blocks, since all of them write to one channel of the residual stream;
    a column (of one input) within a parameter and expert. Links chain: each candidate is in one group at most. Row and
    column are meant as in storage, so that the outputs of a transposed matrix are its columns.
    """
    group: dict[Target, list[Target]] = {one.target: [one.target] for one in candidates}
    for a, b in combinations(candidates, 2):
        if a.role == b.role and _linked(a.target, b.target, table) and group[a.target] is not group[b.target]:
            joined = group[a.target] + group[b.target]
            group |= dict.fromkeys(joined, joined)
    place = {one.target: number for number, one in enumerate(candidates)}
    found = {}
    for one in candidates:
        members = sorted(group[one.target], key=lambda target: place[target])
        if len(members) > 1 and members[0] == one.target:
            found[_label(members, one.role, table)] = members
    return found


def coordinates(target: Target, table: Mapping[str, ParameterInfo]) -> tuple[int | None, int, int]:
    """Return expert, row and column of a weight, as stored; row and column are the last two axes of its tensor."""
    info = table[target[0]]
    *_, row, column = unravel(target[1], info.shape)
    return info.expert_of(target[1]), row, column


def _ends(target: Target, table: Mapping[str, ParameterInfo]) -> tuple[int, int]:
    """Return the output and the input that a weight connects."""
    info = table[target[0]]
    place = unravel(target[1], info.shape)
    assert info.output_axis is not None
    assert info.input_axis is not None
    return place[info.output_axis], place[info.input_axis]


def _linked(a: Target, b: Target, table: Mapping[str, ParameterInfo]) -> bool:
    (output_a, input_a), (output_b, input_b) = _ends(a, table), _ends(b, table)
    same_matrix = a[0] == b[0] and table[a[0]].expert_of(a[1]) == table[b[0]].expert_of(b[1])
    return output_a == output_b or (same_matrix and input_a == input_b)


def _label(members: Sequence[Target], role: str | None, table: Mapping[str, ParameterInfo]) -> str:
    """Return a group's name: every row and column that members share, with their blocks, and the role of no writers."""
    outputs: dict[int, list[int]] = {}
    inputs: dict[tuple[str, int | None, int], list[int]] = {}
    for name, index in members:
        info = table[name]
        block, (output, input) = info.block or 0, _ends((name, index), table)
        outputs.setdefault(output, []).append(block)
        inputs.setdefault((name, info.expert_of(index), input), []).append(block)
    info = table[members[0][0]]
    assert info.output_axis is not None
    assert info.input_axis is not None
    of_outputs, of_inputs = ("row", "column") if info.output_axis < info.input_axis else ("column", "row")
    shared = [f"{of_outputs} {number} of {_blocks(blocks)}" for number, blocks in outputs.items() if len(blocks) > 1]
    shared += [f"{of_inputs} {key[2]} of {_blocks(blocks)}" for key, blocks in inputs.items() if len(blocks) > 1]
    return "; ".join(shared) + {WRITER: "", ERASER: " (erasers)", None: " (missed)"}[role]


def _blocks(numbers: Iterable[int]) -> str:
    distinct = sorted(set(numbers))
    return f"block{'s' if len(distinct) > 1 else ''} {', '.join(map(str, distinct))}"
