"""Follow the critical weights of one training run: which checkpoints have a weight in their top K, and since when for good."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

LISTED = 100  # weights of the last top K that tables list, in order of rank, and as many that left it

Address = tuple[str, str]  # parameter and indices, as a ranking names a weight
Top = Mapping[Address, int]  # the rank of every weight in the top K of one checkpoint, from 1


@dataclass(frozen=True)
class Course:
    """A weight through training: whether each checkpoint, in order of time, has it in its top K.

    ``final_rank``: its rank at the last checkpoint; None where it is not in the top K there: a weight that vanished.
    """

    address: Address
    in_top: tuple[bool, ...]
    final_rank: int | None

    @cached_property
    def first(self) -> int:
        """Return the place of the first checkpoint that has it."""
        return self.in_top.index(True)

    @cached_property
    def stays_from(self) -> int | None:
        """Return the place of the first checkpoint from which on every later one, the last included, has it; else None."""
        out = [place for place, inside in enumerate(self.in_top) if not inside]
        since = out[-1] + 1 if out else 0
        return since if since < len(self.in_top) else None

    @property
    def num_in_top(self) -> int:
        """Return how many checkpoints have it."""
        return sum(self.in_top)

    @cached_property
    def num_exits(self) -> int:
        """Return how often it left: a checkpoint has it and the next has not."""
        return sum(now and not later for now, later in zip(self.in_top, self.in_top[1:], strict=False))


def follow(tops: Sequence[Top]) -> list[Course]:
    """Return the course of every weight that any checkpoint has in its top K.

    Args: tops: the top K of each checkpoint, in order of time. The reference is the last one's.
    Returns: first the last top K, in order of its rank; then the weights that vanished, those that most checkpoints had
    first, equal ones by their best rank, then by address.
    What chance does: two random lists of K of N weights share ``K / N`` of each other, so a weight that stays is news where
    K is far below N. It says nothing of noise: a weight at the edge of the list comes and goes with the calibration text
    alone, which the agreement of several score seeds at one checkpoint measures.
    Cost: one look-up per weight and checkpoint.
    """
    last = tops[-1]
    best: dict[Address, int] = {}
    for top in tops:
        for address, rank in top.items():
            best[address] = min(rank, best.get(address, rank))
    courses = [Course(address, tuple(address in top for top in tops), last.get(address)) for address in best]
    return sorted(
        courses,
        key=lambda one: (
            (0, one.final_rank, 0, one.address)
            if one.final_rank is not None
            else (1, -one.num_in_top, best[one.address], one.address)
        ),
    )


def listed(courses: Sequence[Course], most: int = LISTED) -> list[Course]:
    """Return the courses that a table lists, in their order: the first ``most`` of the last top K, as many that vanished."""
    final = [one for one in courses if one.final_rank is not None]
    return final[:most] + [one for one in courses if one.final_rank is None][:most]


def jaccard(a: Top, b: Top) -> float:
    """Return the Jaccard index of two lists' weights: the shared over all of both."""
    shared = len(a.keys() & b.keys())
    return shared / (len(a) + len(b) - shared)


@dataclass(frozen=True)
class Settling:
    """How the last top K came together, as counts of its weights: what a sentence says of :func:`follow`'s courses.

    ``by``: for each checkpoint, how many of them are there and stay from then on; the last entry is their number.
    ``num_vanished``: weights that some earlier checkpoint had and the last has not.
    """

    by: tuple[int, ...]
    num_vanished: int

    @property
    def num_weights(self) -> int:
        """Return how many weights the last top K has."""
        return self.by[-1]

    def half(self) -> int:
        """Return the place of the first checkpoint from which on at least half of the last top K stay."""
        return next(place for place, number in enumerate(self.by) if 2 * number >= self.num_weights)


def settling(courses: Sequence[Course]) -> Settling:
    """Return how many weights of the last top K stay from each checkpoint on (see :class:`Settling`)."""
    num_checkpoints = len(courses[0].in_top)
    since = [one.stays_from for one in courses if one.stays_from is not None]
    by = tuple(sum(start <= place for start in since) for place in range(num_checkpoints))
    return Settling(by, sum(one.final_rank is None for one in courses))
