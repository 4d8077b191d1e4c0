"""Whether one model's critical positions predict another's."""

import numpy as np
import pytest

from esa.arch.comparison.findings import Options
from esa.arch.comparison.row_ranks import row_ranks
from esa.arch.comparison.scored import all_scored
from esa.arch.comparison.sources import labelled
from esa.arch.comparison.transfer import Positions, compare, positions, predict, smoothed, tensor_terms
from esa.artifact.grouping import group
from tests.planted_runs import Planted

FAST = Options(("act_mag",), 20, permutations=199, resamples=99)
FEW = "the list lies in effectively fewer than 3 tensors: no interval"
ROLES = ("attention in", "attention out", "mlp in", "mlp out")


def model(label: str, blocks: int, top: list[tuple[int, str]], ranks: list[float] | None = None) -> Positions:
    """Return a model of blocks with four tensors each and an embedding, and a top of (block, role)."""
    roles = [role for _ in range(blocks) for role in ROLES] + ["vocabulary"]
    depths = [(block + 0.5) / blocks for block in range(blocks) for _ in ROLES] + [np.nan]
    sizes = [100.0, 100.0, 300.0, 300.0] * blocks + [400.0]
    tensor = [4 * block + ROLES.index(role) for block, role in top]
    values = [np.nan] * len(top) if ranks is None else ranks
    row = np.arange(len(top))
    return Positions(label, tuple(roles), np.array(depths), np.array(sizes), np.array(tensor), row, np.array(values))


def rows_of(a: Positions, b: Positions, options: Options = FAST) -> dict[str, dict]:  # type: ignore[type-arg]
    """Return the rows of a pair by quantity, without the words they share."""
    return {row["quantity"].removeprefix("log_likelihood_ratio"): row for row in predict(a, b, "act_mag", options)}


def test_the_same_places_in_another_model_are_predicted() -> None:
    """Tops in the MLP outputs of the early blocks of two models of other depths predict each other, by role and by depth."""
    a = model("a", 20, [(b, "mlp out") for b in range(5) for _ in range(4)])
    b = model("b", 8, [(b, "mlp out") for b in range(2) for _ in range(10)])
    found = rows_of(a, b)
    assert found[""]["value"] > 1.5
    assert found[""]["p_value"] <= 0.05
    assert (found[""]["low"], found[""]["why"]) == (
        None,
        f"{FEW}; without a row rank, and without that term: a 20 of 20, b 20 of 20",
    )
    assert found["_of_depth"]["p_value"] <= 0.1  # two tensors: p is bounded by how many pairs of blocks are early
    assert found["auc"]["value"] > 0.9
    wide = rows_of(a, model("c", 40, [(b, "mlp out") for b in range(10) for _ in range(2)]))
    assert wide[""]["low"] < wide[""]["value"] < wide[""]["high"]
    assert wide["auc"]["low"] < wide["auc"]["value"] <= wide["auc"]["high"] <= 1
    assert wide["_of_depth"]["p_value"] == wide["_of_depth"]["smallest_p"] == 1 / 200


def test_role_without_depth_is_told_apart() -> None:
    """Where only the role agrees, the first null is rejected and the one that keeps the roles is not."""
    draw = np.random.default_rng(0)
    a = model("a", 20, [(int(b), "mlp out") for b in draw.integers(0, 20, 20)])
    b = model("b", 30, [(int(b), "mlp out") for b in draw.integers(0, 30, 20)])
    found = rows_of(a, b)
    assert found[""]["p_value"] <= 0.01
    assert found["_of_depth"]["p_value"] > 0.05
    opposite = rows_of(model("a", 20, [(2, "mlp out")] * 20), model("b", 20, [(17, "attention in")] * 20))
    assert opposite[""]["value"] < 0
    assert opposite[""]["p_value"] > 0.3


def test_the_likelihood_ratio_is_that_of_a_naive_count() -> None:
    """With every term written out: role by add-one frequency, depth by kernel over blocks of b, row rank by kernel."""
    a = model("a", 4, [(0, "mlp out"), (0, "mlp out"), (3, "attention in")], [0.9, 0.8, 0.5])
    b = model("b", 2, [(0, "mlp out"), (1, "mlp in")], [0.95, 0.2])
    found = rows_of(a, b)

    def kernel(points: list[float], x: float) -> float:
        images = [image for p in points for image in (p, -p, 2 - p)]
        return (1 + sum(np.exp(-(((x - p) / 0.1) ** 2) / 2) / (0.1 * np.sqrt(2 * np.pi)) for p in images)) / (1 + len(points))  # fmt: skip

    frequency = {"mlp out": 3 / 8, "mlp in": 1 / 8}  # 3 weights and 5 roles of b
    values = []
    for role, depth, rank in (("mlp out", 0.25, 0.95), ("mlp in", 0.75, 0.2)):
        g = {d: kernel([0.125, 0.125, 0.875], d) for d in (0.25, 0.75)}
        mass = frequency[role] * g[depth] / (g[0.25] + g[0.75])  # of the tensor: both blocks are of one size
        values.append(np.log(mass) - np.log(300 / 2000) + np.log(kernel([0.9, 0.8, 0.5], rank)))
    assert found[""]["value"] == pytest.approx(np.mean(values))
    terms = [found[name]["value"] for name in ("_of_role", "_of_depth", "_of_row_rank")]
    assert sum(terms) == pytest.approx(found[""]["value"])


def test_the_shares_of_the_tensors_add_up() -> None:
    """What a's positions give the tensors of b is a distribution, whatever roles either has."""
    a = model("a", 6, [(1, "mlp out"), (4, "attention in")])
    b = model("b", 9, [(0, "mlp in")])
    by_role, by_depth = tensor_terms(a, b)
    shares = b.sizes / b.sizes.sum()
    assert (np.exp(by_role + by_depth) * shares).sum() == pytest.approx(1.0)
    grid = (np.arange(20_000) + 0.5) / 20_000
    assert smoothed(np.array([0.02, 0.5, 1.0]), grid).mean() == pytest.approx(1.0, abs=1e-3)
    assert smoothed(np.array([]), grid).tolist() == [1.0] * 20_000


def test_both_p_values_are_calibrated_for_clustered_tops() -> None:
    """Where b's top lies anywhere, in clumps of one tensor, p is at most 10 % in about 10 % of 150 simulated pairs."""
    rejected = {"": 0, "_of_depth": 0}
    for trial in range(150):
        draw = np.random.default_rng(trial)
        tops = []
        for blocks in (12, 16):
            share = np.tile([1.0, 1.0, 3.0, 3.0], blocks)
            clumps = draw.choice(4 * blocks, size=4, p=share / share.sum())
            tops.append([(int(clump) // 4, ROLES[int(clump) % 4]) for clump in clumps for _ in range(5)])
        a, b = model("a", 12, tops[0], draw.random(20).tolist()), model("b", 16, tops[1], draw.random(20).tolist())
        found = rows_of(a, b, Options(("m",), 20, seed=trial, permutations=49, resamples=19))
        for name in rejected:
            rejected[name] += found[name]["p_value"] <= 0.1
    for count in rejected.values():
        assert count <= 27  # binomial(150, .1): 3.3 standard deviations above
    assert rejected[""] >= 3


def test_row_ranks_come_from_the_margins(tmp_path) -> None:  # type: ignore[no-untyped-def]
    """A weight's row rank is the place of its row by summed score, the listed weights not counted; unknown without axes."""
    target = "model.layers.1.mlp.down_proj.weight:5,3"
    run = Planted(tmp_path, blocks=3, critical={target: 50.0}, ks=(10,), draws=1, steps=("score", "rank"))
    (one,) = labelled(group([run.write()]).runs)
    about = all_scored([one], "act_mag", FAST)[0]
    assert about.top is None  # no list of 20
    about = all_scored([one], "act_mag", Options(("act_mag",), 10))[0]
    ranks = row_ranks(one, about)
    assert about.top is not None
    listed = {(name, index) for name, index in about.top.select("parameter", "index").iter_rows()}
    for (name, index, place), rank in zip(
        about.top.select("parameter", "index", "place").iter_rows(), ranks, strict=True
    ):
        scores = run.scores["act_mag", 0][name]
        if scores.shape[0] == scores.shape[1]:
            assert rank is None, place  # square, and no anatomy that says which axis is the output
        else:
            row = index // scores.shape[1]
            others = scores.copy().ravel()
            others[[at for parameter, at in listed if parameter == name]] = 0.0
            sums = others.reshape(scores.shape).sum(axis=1)
            assert rank == (row, pytest.approx(((sums < sums[row]).sum() + 0.5) / len(sums)))


def test_random_models_do_not_predict_each_other(tmp_path) -> None:  # type: ignore[no-untyped-def]
    """Lists of random scores share neither role, depth nor row: no term is rejected, though their rows hold top weights."""
    made = [
        Planted(tmp_path, name, blocks=n, width=8 + n, model_seed=n, ks=(20,), draws=1, steps=("score", "rank"))
        for name, n in (("a", 3), ("b", 5))
    ]
    rows = compare(labelled(group([one.write() for one in made]).runs), FAST).tables["comparison/1"]
    tested = [row for row in rows if row.get("p_value") is not None]
    assert {row["quantity"] for row in tested} == {
        "log_likelihood_ratio", "log_likelihood_ratio_of_depth", "log_likelihood_ratio_of_row_rank",
    }  # fmt: skip
    assert min(row["p_value"] for row in tested) > 0.05 / 3
    assert all("without a row rank" in row["why"] for row in tested if row["quantity"] == "log_likelihood_ratio")


def test_a_channel_of_the_residual_stream_is_one_row_in_all_tensors(tmp_path) -> None:  # type: ignore[no-untyped-def]
    """Weights that write to one channel move together under the null whatever their block; rows of other tensors do not."""
    down, up = "model.layers.{}.mlp.down_proj.weight:3,1", "model.layers.{}.mlp.up_proj.weight:3,1"
    critical = {name.format(block): 90.0 - block for name in (down, up) for block in range(3)}
    made = Planted(tmp_path, "a", blocks=3, ks=(6,), draws=1, steps=("score", "rank"), critical=critical)
    (run,) = labelled(group([made.write()]).runs)
    about = all_scored([run], "act_mag", Options(("act_mag",), 6))[0]
    assert about.top is not None
    row = positions(about, [(3, 0.9)] * 6).row
    kinds = dict(zip(about.top["parameter"], row.tolist(), strict=True))
    assert len({kinds[name.partition(":")[0]] for name in (down.format(block) for block in range(3))}) == 1
    assert len(set(kinds.values())) == 4


def test_other_families_are_asked_and_equal_places_are_not(tmp_path) -> None:  # type: ignore[no-untyped-def]
    """Both directions of every pair whose addresses do not compare are asked; what has no row rank is counted."""
    planted = {f"model.layers.{n % 2}.mlp.down_proj.weight:{n},{n}": 60.0 for n in range(8)}
    shown = {"draws": 1, "ks": (8,), "steps": ("score", "rank"), "critical": planted}
    a = Planted(tmp_path, "a", blocks=4, **shown)
    b = Planted(tmp_path, "b", blocks=6, width=10, **shown)
    same = Planted(tmp_path, "same", blocks=4, model_seed=3, **shown)
    runs = labelled(group([one.write() for one in (a, b, same)]).runs)
    found = compare(runs, Options(("act_mag",), 8, permutations=99, resamples=19))
    rows = [row for row in found.tables["comparison/1"] if row["quantity"] == "log_likelihood_ratio"]
    assert [(row["a"], row["b"]) for row in rows] == [("a", "b"), ("b", "a"), ("b", "same"), ("same", "b")]
    assert all(row["p_value"] <= 0.05 and row["value"] > 1 for row in rows)
    assert {row["why"] for row in rows} == {FEW}  # two tensors
    assert found.adjust == {"transfer"}
