"""What a group is cut into: all of it at once, each target alone, all but one, more and more of them, pairs."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations

from esa.errors import EsaError
from esa.perturb.groups import Group

MOST_PAIRED = 32  # targets, with 496 pairs


@dataclass(frozen=True)
class Part:
    """Targets that are changed together, by their positions in the group.

    ``k``: as ``damage/1`` has it. ``named``: the positions of those that the row names.
    """

    unit: str
    k: int
    members: tuple[int, ...]
    named: tuple[int, ...]


def parts_of(unit: str, group: Group, sizes: Sequence[int], where: str) -> Iterator[Part]:
    """Yield the parts of a group by unit; ``sizes``: the K asked for, ascending, none larger than the group.

    ``joint``: the targets of rank at most K, for each K. The others take those of the largest K. ``single``: each alone, k = 1.
    ``leave_one_out``: all but one, named by the one left out; k how many are changed. ``cumulative``: the first 1, 2, 4, ... and
    K, the joint change at each. ``pairs``: every two, k = 2. A part of one target is named by it.
    Raises EsaError, naming ``where``, for leave_one_out of one target, and pairs of one or of more than 32.
    """
    yield from _PARTS[unit](group, sizes, where)


def _joint(group: Group, sizes: Sequence[int], where: str) -> Iterator[Part]:
    for k in sizes:
        yield _together("joint", k, group.members(k))


def _single(group: Group, sizes: Sequence[int], where: str) -> Iterator[Part]:
    for position in group.members(sizes[-1]):
        yield Part("single", 1, (position,), (position,))


def _leave_one_out(group: Group, sizes: Sequence[int], where: str) -> Iterator[Part]:
    members = group.members(sizes[-1])
    _require_two("leave_one_out", group, members, where)
    for place, position in enumerate(members):
        rest = members[:place] + members[place + 1 :]
        yield Part("leave_one_out", len(rest), rest, (position,))


def _cumulative(group: Group, sizes: Sequence[int], where: str) -> Iterator[Part]:
    k = 1
    while k < sizes[-1]:
        yield _together("cumulative", k, group.members(k))
        k *= 2
    yield _together("cumulative", sizes[-1], group.members(sizes[-1]))


def _pairs(group: Group, sizes: Sequence[int], where: str) -> Iterator[Part]:
    members = group.members(sizes[-1])
    _require_two("pairs", group, members, where)
    if len(members) > MOST_PAIRED:
        most, number = MOST_PAIRED, len(members)
        raise EsaError(
            f"'pairs' of the {number} targets of {group.name} are {number * (number - 1) // 2:,} cases; allowed: at most"
            f" {most} targets, {most * (most - 1) // 2} cases",
            where=f"{where}.unit",
            hint=f"set k = {most} or fewer beside unit in that [[perturb]]",
        )
    for pair in combinations(members, 2):
        yield Part("pairs", 2, pair, pair)


_PARTS: dict[str, Callable[[Group, Sequence[int], str], Iterator[Part]]] = {
    "joint": _joint,
    "single": _single,
    "leave_one_out": _leave_one_out,
    "cumulative": _cumulative,
    "pairs": _pairs,
}


def _together(unit: str, k: int, members: tuple[int, ...]) -> Part:
    return Part(unit, k, members, members if len(members) == 1 else ())


def _require_two(unit: str, group: Group, members: tuple[int, ...], where: str) -> None:
    if len(members) < 2:
        raise EsaError(
            f"'{unit}' needs two targets, {group.name} has {len(members)}",
            where=f"{where}.unit",
            hint="rank more: rank.k, or k beside unit in that [[perturb]]",
        )


def num_parts(unit: str, sizes: Sequence[int], num_lists: int = 1) -> int:
    """Return how many parts a group has: ``sizes`` as the spec names them, before any group is known.

    ``num_lists``: of how many lists a ranking takes its K, as of every tensor where ``rank.mode`` is per_layer.
    """
    largest = max(sizes)
    members = largest * num_lists
    return {
        "joint": len(sizes),
        "single": members,
        "leave_one_out": members,
        "cumulative": 1 + (largest - 1).bit_length(),
        "pairs": members * (members - 1) // 2,
    }[unit]
