"""The permutation null against enumeration and closed forms."""

import itertools

import numpy as np
import pytest

from esa.overlap.anatomy import Anatomy, Entry
from esa.overlap.permutation import distinct, permutation_p_value, permuted_jaccards

LINEAR = Entry("a.weight", (2, 3), 6, "a", 0, "mlp.up", output_axis=0, input_axis=1)
CONV1D = Entry("b.weight", (3, 2), 6, "b", 1, "mlp.down", output_axis=1, input_axis=0)
BOTH: Anatomy = (LINEAR, CONV1D)


def member(entry: Entry, offset: int, by: str) -> tuple[str, object]:
    """Return what a weight counts as, by its definition."""
    if by in ("output", "input"):
        axis = entry.output_axis if by == "output" else entry.input_axis
        assert axis is not None
        return entry.parameter, np.unravel_index(offset, entry.shape)[axis]
    return by, getattr(entry, by)


def enumerated(mode: str, by: str, quota: int) -> float:
    """Return the exact mean Jaccard of two independent draws of ``quota`` weights per unit, over all pairs of draws."""
    units = [BOTH] if mode == "global" else [(LINEAR,), (CONV1D,)]
    choices = []
    for unit in units:
        weights = [member(entry, offset, by) for entry in unit for offset in range(entry.numel)]
        choices.append([set(chosen) for chosen in itertools.combinations(weights, quota)])
    draws = [set().union(*parts) for parts in itertools.product(*choices)]
    return float(np.mean([len(a & b) / len(a | b) for a in draws for b in draws]))


@pytest.mark.parametrize("by", ["output", "input", "layer", "block", "component"])
@pytest.mark.parametrize(("mode", "quota"), [("global", 2), ("global", 1), ("per_layer", 1), ("per_layer", 2)])
def test_mean_is_that_of_all_draws(mode: str, quota: int, by: str) -> None:
    """The mean of the permutations is the enumerated one, within five standard errors."""
    names = [""] if mode == "global" else ["a.weight", "b.weight"]
    quotas = tuple((name, quota) for name in names)
    jaccards = permuted_jaccards(BOTH, mode, by, (quotas, quotas), 0)
    error = jaccards.std() / np.sqrt(len(jaccards))
    assert abs(jaccards.mean() - enumerated(mode, by, quota)) <= 5 * error + 1e-12


def test_outputs_of_experts_stay_apart() -> None:
    """An expert's outputs are not those of another: a fused tensor has experts times outputs of them."""
    fused = Entry("e.weight", (50, 1, 3), 150, "e", 0, "expert.up", output_axis=1, input_axis=2)
    quotas = ((("", 1),), (("", 1),))
    jaccards = permuted_jaccards((fused,), "global", "output", quotas, 0)
    assert 0 < jaccards.mean() < 0.08  # 1/50 apart, 1 if merged


def test_permutations_are_seeded() -> None:
    """The same seed gives the same permutations and another seed others."""
    quotas = ((("", 3),), (("", 3),))
    first = permuted_jaccards(BOTH, "global", "output", quotas, 0)
    permuted_jaccards.cache_clear()
    np.testing.assert_array_equal(first, permuted_jaccards(BOTH, "global", "output", quotas, 0))
    assert (first != permuted_jaccards(BOTH, "global", "output", quotas, 1)).any()


def test_long_lists_take_fewer_permutations() -> None:
    """There are 999 permutations, and 99 for lists of the published length."""
    large = Entry("c.weight", (5000, 5000), 25_000_000, "c", 0, "other", output_axis=0, input_axis=1)
    for count, repeats in ((100, 999), (22_600, 99)):
        quotas = ((("", count),), (("", count),))
        assert len(permuted_jaccards((large,), "global", "block", quotas, 0)) == repeats


@pytest.mark.parametrize(("population", "count"), [(10, 1), (10, 3), (10, 5), (10, 8), (10, 10), (10**12, 50)])
def test_distinct_draws_without_replacement(population: int, count: int) -> None:
    """Every row holds distinct numbers of the population, and every number is drawn equally often."""
    rows = distinct(np.random.default_rng(0), population, count, 2000)
    assert rows.shape == (2000, count)
    assert rows.min() >= 0
    assert rows.max() < population
    assert all(len(set(row)) == count for row in rows.tolist())
    if population == 10:
        counts = np.bincount(rows.ravel(), minlength=10)
        assert np.abs(counts / 2000 - count / 10).max() < 0.06


def test_distinct_draws_every_set_equally() -> None:
    """Drawing repeated numbers again leaves all sets equally likely."""
    rows = distinct(np.random.default_rng(1), 6, 3, 20_000)
    sets, counts = np.unique(np.sort(rows, axis=1), axis=0, return_counts=True)
    assert len(sets) == 20
    assert abs(((counts - 1000) ** 2 / 1000).sum() - 19) < 30  # chi squared, 19 degrees of freedom


def test_p_value_is_never_zero() -> None:
    """The observed lists count as one permutation."""
    assert permutation_p_value(np.zeros(99), 0.5) == 0.01
    assert permutation_p_value(np.full(99, 0.5), 0.5) == 1
