"""Named random streams: the same for ever, and none moves another."""

import itertools

import numpy as np
import pytest

from esa.spec import derive_seed, generator

# Written down once: a change here changes every published number.
GOLDEN = [
    ((0, "windows"), 8606364673848296795),
    ((0, "block_stack"), 4674790508409361131),
    ((1, "random_k", "global", 2), 6463901062166167483),
    ((12345, "gauss_noise", 4), 3280757244493632282),
]


@pytest.mark.parametrize(("stream", "seed"), GOLDEN)
def test_seeds_stay_what_they_are(stream: tuple[int | str, ...], seed: int) -> None:
    """A stream's seed is the number it has always been."""
    assert derive_seed(*stream) == seed  # type: ignore[arg-type]


def test_streams_stay_what_they_are() -> None:
    """A stream's first numbers are those it has always begun with."""
    assert generator(0, "windows").integers(0, 1000, 5).tolist() == [295, 92, 377, 396, 758]


def test_seeds_fit_a_signed_integer() -> None:
    """Every seed is a 63-bit number, as torch and NumPy take it."""
    seeds = [derive_seed(seed, "stream") for seed in range(200)]
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert max(seeds) >= 2**62  # the highest bit of the 63 is used


def test_streams_are_apart() -> None:
    """No two streams share a seed: not by another seed, another name, another order, or names run together."""
    streams = [
        (0,), (1,), (0, "a"), (1, "a"), (0, "a", "b"), (0, "b", "a"), (0, "ab"), (0, "a", "b", 0), (0, "a", "b", 1),
        (0, "a", 11), (0, "a", 1, 1), (10, "a"), (1, "0a"),
    ]  # fmt: skip
    assert len({derive_seed(*stream) for stream in streams}) == len(streams)  # type: ignore[arg-type]


def test_streams_do_not_follow_each_other() -> None:
    """The draws of neighbouring streams are uncorrelated."""
    draws = [generator(seed, "noise", repeat).standard_normal(10_000) for seed in (0, 1) for repeat in (0, 1)]
    for one, other in itertools.combinations(draws, 2):
        assert abs(np.corrcoef(one, other)[0, 1]) < 0.05  # five standard errors


def test_a_draw_moves_no_other() -> None:
    """What is drawn from one stream leaves another as it was."""
    first = generator(0, "a").random(3)
    generator(0, "b").random(100)
    assert generator(0, "a").random(3).tolist() == first.tolist()
