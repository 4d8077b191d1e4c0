"""The tree of models by where their score lies."""

import numpy as np
import pytest
from scipy.spatial.distance import jensenshannon

from esa.arch.comparison.findings import Options
from esa.arch.comparison.sources import labelled
from esa.arch.comparison.tree import compare, distance, joined, profile
from esa.artifact.grouping import group
from tests.arch.scores import scores
from tests.planted_runs import Planted

NOW = Options(("act_mag",), 10, permutations=9)


def test_the_distance_is_that_of_scipy() -> None:
    """The Jensen-Shannon distance equals scipy's in base 2, zeros included, and lies from 0 to 1."""
    draw = np.random.default_rng(0)
    for _ in range(5):
        p, q = draw.dirichlet(np.ones(6)), draw.dirichlet(np.ones(6))
        p[2] = 0.0
        p /= p.sum()
        assert distance(p, q) == pytest.approx(jensenshannon(p, q, base=2))
    assert distance(np.array([1.0, 0.0]), np.array([0.0, 1.0])) == 1.0
    assert distance(p, p) == 0.0


def test_fused_tensors_depth_and_order_do_not_move_a_profile() -> None:
    """A profile adds up to one; fusing q, k and v, and having twice the blocks of half the score, leave it as it is."""
    apart = scores("a", 5)
    sums = {("attn.qkv", b): 3.0 for b in range(5)} | {("mlp.gate_up", b): 2.0 for b in range(5)}
    fused = scores("b", 5, sums, components=("attn.qkv", "attn.o", "mlp.gate_up", "mlp.down"))
    halves = {(c, b): 0.5 for c in ("attn.q", "attn.k", "attn.v", "attn.o", "mlp.gate", "mlp.up", "mlp.down") for b in range(10)}  # fmt: skip
    deeper = scores("c", 10, halves)
    odd = scores("d", 7, dict.fromkeys(((c, b) for c in ("attn.q", "attn.k", "attn.v", "attn.o", "mlp.gate", "mlp.up", "mlp.down") for b in range(7)), 5 / 7))  # fmt: skip
    first = profile(apart)
    assert sum(first.values()) == pytest.approx(1.0)
    for other in (fused, deeper, odd):
        found = profile(other)
        assert found.keys() == first.keys()
        assert all(found[cell] == pytest.approx(first[cell]) for cell in first)


def test_planted_groups_are_joined_first() -> None:
    """Two pairs of like models are joined before the pairs are, and the tree keeps such distances."""
    early = {("mlp.down", 0): 40.0}
    late = {("mlp.down", 9): 40.0}
    subjects = [
        scores("a1", 10, early), scores("b1", 10, late), scores("a2", 10, {("mlp.down", 0): 44.0}),
        scores("b2", 10, {("mlp.down", 9): 44.0}),
    ]  # fmt: skip
    rows, correlation = joined(subjects)
    assert {frozenset((row["left"], row["right"])) for row in rows[:2]} == {
        frozenset(("a1", "a2")),
        frozenset(("b1", "b2")),
    }
    assert (rows[2]["left"], rows[2]["right"], rows[2]["size"]) == ("merge 1", "merge 2", 4)
    assert correlation is not None
    assert correlation > 0.99
    assert joined([scores(name, 5) for name in "abc"])[1] is None  # all alike


def test_two_models_are_refused(tmp_path) -> None:  # type: ignore[no-untyped-def]
    """Under three models with weights of their own there is no tree, and the comparison says why."""
    made = [Planted(tmp_path, name, ks=(10,), draws=1, steps=("score", "rank"), fingerprint=mark) for name, mark in ("ax", "by", "cy")]  # fmt: skip
    found = compare(labelled(group([one.write() for one in made]).runs), NOW)
    assert not found.tables["tree/1"]
    (row,) = found.tables["comparison/1"]
    assert row["why"] == "2 models were scored by it; at least 3 are needed"
    assert row.get("value") is None
    made[2].fingerprint = "z"
    found = compare(labelled(group([one.write() for one in made]).runs), NOW)
    assert [row["size"] for row in found.tables["tree/1"]] == [2, 3]
