"""correlated draws one number for all that move together; swap exchanges weights and loses none."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from esa.errors import EsaError
from esa.model import LoadedModel
from esa.perturb.apply import applied, plan_changes
from esa.perturb.informed import Given, check_informed
from esa.perturb.targets import Region, Target
from esa.spec import generator
from tests.conftest import load, tiny_spec
from tests.perturb.test_apply import assert_same_model, bits

DOWN = "model.layers.1.mlp.down_proj.weight"  # (16, 24)
UP = "model.layers.0.mlp.up_proj.weight"  # (24, 16)
UP_TOO = "model.layers.2.mlp.up_proj.weight"
FUSED = "model.layers.1.mlp.experts.down_proj"  # (4, 16, 24)
CONV, BIAS = "transformer.h.1.mlp.c_fc.weight", "transformer.h.1.mlp.c_fc.bias"  # (16, 64), (64,)
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
Key = tuple[Any, ...]


def noise(
    loaded: LoadedModel, targets: list[Target], shared_by: str, sigma: float = 0.1, stream: tuple[int, int] = (3, 1),
    draw: int = 0,
) -> dict[Target, float]:  # fmt: skip
    """Return what correlated adds to every target, in units of sigma: relative_to is absolute."""
    options = {"sigma": sigma, "relative_to": "absolute", "shared_by": shared_by}
    changes = plan_changes(loaded, targets, "correlated", options, generator(draw), Given(stream=stream))
    return {
        (change.name, index): moved / sigma
        for change in changes
        for index, moved in zip(change.index.tolist(), (change.after - change.before).tolist(), strict=True)
    }


# what shares a draw, written out: parameter and row-major index to its key
KEYS: dict[tuple[str, str], Callable[[str, int], Key]] = {
    ("llama", "row"): lambda name, i: (name, i // {DOWN: 24, UP: 16, UP_TOO: 16}[name]),
    ("llama", "column"): lambda name, i: (name, i % {DOWN: 24, UP: 16, UP_TOO: 16}[name]),
    ("llama", "layer"): lambda name, i: (name,),
    ("llama", "component"): lambda name, i: ("down" if name == DOWN else "up",),
    ("mixtral", "row"): lambda name, i: (i // 24,),
    ("mixtral", "column"): lambda name, i: (i // 384, i % 24),
    ("gpt2", "row"): lambda name, i: (name, i // 64),
    ("gpt2", "column"): lambda name, i: (name, i % 64),
    ("gpt2", "layer"): lambda name, i: (),
}
PARTS = {"llama": (UP, DOWN, UP_TOO), "mixtral": (FUSED,), "gpt2": (CONV, BIAS)}


@pytest.mark.parametrize(("architecture", "shared_by"), KEYS)
def test_what_shares_moves_together(architecture: str, shared_by: str) -> None:
    """Weights of one row, column (of each expert apart), module or component get one number; others get another."""
    loaded, key = load(architecture), KEYS[architecture, shared_by]
    targets: list[Target] = [(n, i) for n in PARTS[architecture] for i in range(0, loaded.table[n].numel, 3)]
    found = noise(loaded, targets, shared_by)
    groups: dict[Key, list[float]] = {}
    for (name, index), e in found.items():
        groups.setdefault(key(name, index), []).append(e)
    centers = sorted(np.mean(members) for members in groups.values())
    for members in groups.values():
        assert max(members) - min(members) < 1e-4  # roundings of w + sigma e
    assert len(centers) == 1 or min(np.diff(centers)) > 1e-6
    assert sum(map(len, groups.values())) == len(targets) > len(groups)


@pytest.mark.parametrize("shared_by", ["row", "column", "layer", "component"])
def test_the_draw_does_not_know_the_targets(shared_by: str) -> None:
    """A weight moves alike alone, among others and in another case; another seed or repeat moves it otherwise."""
    loaded = load("llama")
    targets: list[Target] = [(DOWN, 30), (UP, 30), (UP_TOO, 99)]
    found = noise(loaded, targets, shared_by)
    for target in targets:
        assert noise(loaded, [target], shared_by, draw=7) == {target: found[target]}
        for stream in ((3, 2), (4, 1)):
            assert abs(noise(loaded, [target], shared_by, stream=stream)[target] - found[target]) > 1e-4


def test_doses_share_their_draws() -> None:
    """Twice the sigma is twice the same noise."""
    loaded = load("llama")
    targets: list[Target] = [(DOWN, i) for i in range(0, 384, 5)]
    one, two = noise(loaded, targets, "row", 0.1), noise(loaded, targets, "row", 0.2)
    assert [two[t] for t in targets] == pytest.approx([one[t] for t in targets], abs=1e-4)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("relative_to", ["weight", "tensor_std", "absolute"])
def test_correlated_by_hand(dtype: torch.dtype, relative_to: str) -> None:
    """W + sigma r e, e the row's number from the stream that seed, repeat, sharing and tensor name, rounded once."""
    loaded = load("llama", dtype)
    options = {"sigma": 0.3, "relative_to": relative_to, "shared_by": "row"}
    index = [0, 5, 30, 200]
    targets: list[Target] = [(DOWN, i) for i in index]
    (change,) = plan_changes(loaded, targets, "correlated", options, generator(0), Given(stream=(5, 2)))
    e = generator(5, "correlated", 2, "row", DOWN).standard_normal(16)[np.array(index) // 24]
    weight = loaded.parameters()[DOWN].detach().double().numpy().reshape(-1)
    old = weight[index]
    r = {"weight": np.abs(old), "tensor_std": weight.std(), "absolute": 1.0}[relative_to]
    wanted = torch.from_numpy(old + 0.3 * r * e).to(dtype)
    torch.testing.assert_close(change.after, wanted, rtol=1e-6, atol=0)


def test_correlated_is_standard_normal() -> None:
    """Over many columns the shared numbers have mean 0 and standard deviation 1."""
    loaded = load("gpt2")
    targets: list[Target] = [(CONV, i) for i in range(64)]
    found = [e for repeat in range(40) for e in noise(loaded, targets, "column", stream=(0, repeat)).values()]
    assert abs(np.mean(found)) < 4 / np.sqrt(len(found))
    assert np.std(found) == pytest.approx(1, rel=0.05)


def swapped(loaded: LoadedModel, targets: list[Any], draw: int = 0) -> Any:
    """Plan a swap."""
    return plan_changes(loaded, targets, "swap", {}, generator(draw))


@pytest.mark.parametrize("dtype", DTYPES)
def test_swap_exchanges_pairs(dtype: torch.dtype) -> None:
    """Each target takes the number of another weight, which takes its; nothing else changes and all bits come back."""
    loaded = load("llama", dtype)
    own = {DOWN: [3, 7, 100], UP: [300]}
    before = bits(loaded)
    old = {name: p.detach().reshape(-1).clone() for name, p in loaded.parameters().items()}
    changes = swapped(loaded, [(name, i) for name, index in own.items() for i in index])
    assert [change.name for change in changes] == [UP, DOWN]
    with applied(loaded, changes):
        for change in changes:
            assert len(change.index) == 2 * len(own[change.name])
            now = loaded.parameters()[change.name].detach().reshape(-1)
            moved = change.index.tolist()
            assert moved == sorted(set(moved))
            assert set(own[change.name]) <= set(moved)
            partners = []
            for i in own[change.name]:
                (j,) = [j for j in moved if torch.equal(now[j], old[change.name][i])]
                assert j not in own[change.name]
                assert torch.equal(now[i], old[change.name][j])
                partners.append(j)
            assert len(set(partners)) == len(partners)
            rest = torch.ones(len(now), dtype=torch.bool)
            rest[change.index] = False
            assert torch.equal(now[rest], old[change.name][rest])
            assert torch.equal(now.sort().values, old[change.name].sort().values)
    assert_same_model(loaded, before)


def test_partners_are_uniform_over_the_untouched() -> None:
    """Over many draws every untouched weight is taken about equally often, and a touched one never."""
    loaded, touched = load("llama"), [0, 1, 5, 15]
    name = "model.norm.weight"  # 16 numbers
    counts = np.zeros(16)
    for draw in range(600):
        (change,) = swapped(loaded, [(name, i) for i in touched], draw)
        others = [i for i in change.index.tolist() if i not in touched]
        assert len(others) == 4
        counts[others] += 1
    assert counts[touched].tolist() == [0, 0, 0, 0]
    free = np.delete(counts, touched)
    assert ((free - 200) ** 2 / 200).sum() < 31.3  # chi-squared of 11 degrees of freedom, p = 0.001


def test_a_whole_tensor_changes_places() -> None:
    """Where partners are too few the touched permute among themselves: the same numbers, elsewhere, and no other index."""
    loaded = load("llama")
    before = bits(loaded)
    whole = Region(DOWN, ((DOWN, ((0, 16), (0, 24))),))
    most: list[Target] = [(DOWN, i) for i in range(200)]
    for targets, number in (([whole], 384), (most, 200)):
        (change,) = swapped(loaded, targets)
        assert change.index.tolist() == list(range(number))
        assert torch.equal(change.after.sort().values, change.before.sort().values)
        assert (change.after != change.before).float().mean() > 0.9
        with applied(loaded, [change]):
            assert not torch.equal(loaded.parameters()[DOWN].detach().reshape(-1)[:number], change.before)
        assert_same_model(loaded, before)
    half: list[Target] = [(DOWN, i) for i in range(192)]
    (change,) = swapped(loaded, half)  # as many partners as targets: each is taken
    assert len(change.index) == 384
    assert sorted(change.after[:192].tolist()) == sorted(change.before[192:].tolist())


def test_repeats_swap_otherwise() -> None:
    """Another draw finds other partners, the same one the same."""
    loaded, targets = load("llama"), [(DOWN, 3), (DOWN, 7)]
    (one,), (same,), (other,) = (swapped(loaded, targets, draw) for draw in (0, 0, 1))
    assert torch.equal(one.index, same.index)
    assert torch.equal(one.after, same.after)
    assert not torch.equal(one.index, other.index)


def test_one_weight_has_no_partner() -> None:
    """A tensor of one weight is refused, when the cases are planned already."""
    loaded = load("llama")
    table = tiny_spec(perturb=[{"method": "swap"}]).perturb[0]
    lonely = "model.norm.weight"
    loaded.table[lonely] = loaded.weights[lonely].info = type(loaded.table[lonely])(
        **{**vars(loaded.table[lonely]), "shape": (1,), "numel": 1}
    )

    class Lonely:
        name, metric, targets, names, scores = "targets", None, ((lonely, 0),), (lonely,), ()

    for where, refused in (
        ("perturb.2.method", lambda: check_informed(table, Lonely(), loaded, "perturb.2")),
        ("perturb", lambda: swapped(loaded, [(lonely, 0)])),
    ):
        with pytest.raises(EsaError) as raised:
            refused()
        assert raised.value.what == f"{lonely} has one weight, and none to swap it with"
        assert raised.value.where == where
