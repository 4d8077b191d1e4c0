"""Weights with a known course through training: one that comes and stays, one that leaves, one that comes and goes."""

import numpy as np
import pytest

from esa.scale.emergence import Address, Course, follow, jaccard, listed, settling
from esa.spec import generator


def top(*names: str) -> dict[Address, int]:
    """Return a top list of the named weights, best first."""
    return {(name, "(0, 0)"): rank for rank, name in enumerate(names, start=1)}


# Five checkpoints. "always" is there from the first; "late" comes at the fourth and stays; "leaves" is lost at the third;
# "blinks" comes, goes and comes again; "once" passes by.
TOPS = [
    top("always", "leaves", "once"),
    top("leaves", "always", "blinks"),
    top("always", "other", "another"),
    top("late", "always", "blinks"),
    top("late", "blinks", "always"),
]


@pytest.fixture
def courses() -> dict[str, Course]:
    """Return the courses by name."""
    return {one.address[0]: one for one in follow(TOPS)}


@pytest.mark.parametrize(
    ("name", "first", "stays_from", "num_in_top", "num_exits", "final_rank"),
    [
        ("always", 0, 0, 5, 0, 3),
        ("late", 3, 3, 2, 0, 1),
        ("blinks", 1, 3, 3, 1, 2),
        ("leaves", 0, None, 2, 1, None),
        ("once", 0, None, 1, 1, None),
        ("other", 2, None, 1, 1, None),
    ],
)
def test_a_planted_course_is_told(
    courses: dict[str, Course],
    name: str,
    first: int,
    stays_from: int | None,
    num_in_top: int,
    num_exits: int,
    final_rank: int | None,
) -> None:
    """When a weight appears, whether it stays, and how often it left come out as planted."""
    one = courses[name]
    found = one.first, one.stays_from, one.num_in_top, one.num_exits, one.final_rank
    assert found == (first, stays_from, num_in_top, num_exits, final_rank)


def test_the_last_list_comes_first_then_what_vanished() -> None:
    """The order is the last top K by rank, then vanished weights by how long they were there, their best rank, address."""
    assert [one.address[0] for one in follow(TOPS)] == [
        "late",
        "blinks",
        "always",
        "leaves",
        "other",
        "another",
        "once",
    ]


def test_courses_agree_with_a_naive_reading() -> None:
    """On random lists every number is what a direct reading of its definition gives."""
    draw = generator(0, "test", "courses")
    tops = [top(*(f"w{n}" for n in draw.permutation(12)[:5])) for _ in range(7)]
    courses = follow(tops)
    assert {one.address for one in courses} == set().union(*tops)
    for one in courses:
        inside = [one.address in each for each in tops]
        assert one.first == min(place for place in range(7) if inside[place])
        assert one.num_in_top == inside.count(True)
        since = [place for place in range(7) if all(inside[place:])]
        assert one.stays_from == (min(since) if since else None)
        assert one.num_exits == sum(inside[p] and not inside[p + 1] for p in range(6))
        assert one.final_rank == tops[-1].get(one.address)


def test_settling_counts_who_is_there_for_good() -> None:
    """Of the last three, one stays from the first checkpoint on and all from the fourth, where half are together too."""
    found = settling(follow(TOPS))
    assert found.by == (1, 1, 1, 3, 3)
    assert (found.num_weights, found.half(), found.num_vanished) == (3, 3, 4)


def test_equal_lists_settle_at_once() -> None:
    """Where nothing ever changes, all stay from the first checkpoint on and nothing vanished."""
    found = settling(follow([top("a", "b")] * 3))
    assert found.by == (2, 2, 2)
    assert (found.half(), found.num_vanished) == (0, 0)


def test_a_long_list_is_cut_at_both_parts() -> None:
    """A table lists so many of the last top K and so many that vanished, the first of each."""
    courses = follow([top("x", "y", "z"), top("a", "b", "c")])
    assert [one.address[0] for one in listed(courses, 2)] == ["a", "b", "x", "y"]


def test_jaccard_of_random_lists_is_near_what_chance_gives() -> None:
    """The mean share in common of random lists is K / N, and the Jaccard index follows from the sets."""
    draw = generator(1, "test", "jaccard")
    shares = []
    for _ in range(400):
        a, b = ({(str(n), ""): 1 for n in draw.permutation(50)[:10]} for _ in range(2))
        shared = len(set(a) & set(b))
        assert jaccard(a, b) == shared / (20 - shared)
        shares.append(shared / 10)
    assert np.mean(shares) == pytest.approx(10 / 50, abs=0.02)
    assert jaccard(top("a"), top("a")) == 1
    assert jaccard(top("a"), top("b")) == 0
