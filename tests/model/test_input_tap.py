"""What reaches every weight, against sums taken by hooks on the modules and written out by hand."""

from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from esa.model import eligible
from esa.model.input_tap import InputTap
from tests.conftest import VOCABULARY, load


@dataclass
class Sums:
    """Sums over tokens of abs(x) and x^2 along one axis, and how many tokens there were; per expert where there are any."""

    sum_abs: Tensor
    sum_square: Tensor
    rows: Tensor

    def __add__(self, other: "Sums") -> "Sums":
        return Sums(self.sum_abs + other.sum_abs, self.sum_square + other.sum_square, self.rows + other.rows)


Found = dict[tuple[str, int], Sums]  # by parameter and contracted axis of its storage


def sums_of(x: Tensor) -> Sums:
    """Return the sums over the rows of ``x`` ``(tokens, d_in)``."""
    x = x.detach().double()
    return Sums(torch.einsum("td->d", x.abs()), torch.einsum("td,td->d", x, x), torch.tensor(len(x)))


def sums_of_experts(module: Any, hidden: Tensor, chosen: Tensor) -> tuple[Sums, Sums]:
    """Return the sums of the inputs of both fused tensors, each expert over the tokens routed to it."""
    into, middle = [], []
    for expert in range(module.gate_up_proj.shape[0]):
        x = hidden[(chosen == expert).any(dim=-1)]
        gate, up = torch.einsum("td,od->to", x, module.gate_up_proj[expert]).chunk(2, dim=-1)
        into.append(sums_of(x))
        middle.append(sums_of(F.silu(gate) * up))
    first, second = [
        Sums(*(torch.stack([getattr(s, name) for s in part]) for name in ("sum_abs", "sum_square", "rows")))
        for part in (into, middle)
    ]
    return first, second


def by_hooks(model: nn.Module, windows: list[Tensor]) -> Found:
    """Return the sums of every matrix of a model, from hooks on its modules."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    found: Found = {}

    def add(parameter: nn.Parameter, axis: int, sums: Sums) -> None:
        key = (names[id(parameter)], axis)
        found[key] = found[key] + sums if key in found else sums

    def watch(module: Any, args: tuple[Any, ...]) -> None:
        if isinstance(module, nn.Embedding):
            add(module.weight, 0, sums_of(F.one_hot(args[0].reshape(-1), module.num_embeddings)))
        elif isinstance(module, Conv1D):
            add(module.weight, 0, sums_of(args[0].flatten(0, -2)))
        elif hasattr(module, "gate_up_proj") and isinstance(module.gate_up_proj, nn.Parameter):
            into, middle = sums_of_experts(module, args[0].flatten(0, -2), args[1])
            add(module.gate_up_proj, 2, into)
            add(module.down_proj, 2, middle)
        else:  # a linear map, or a router that multiplies like one
            add(module.weight, 1, sums_of(args[0].flatten(0, -2)))

    def has_a_matrix(module: nn.Module) -> bool:
        return any(parameter.ndim >= 2 for parameter in module.parameters(recurse=False))

    hooks = [module.register_forward_pre_hook(watch) for module in model.modules() if has_a_matrix(module)]
    with torch.no_grad():
        for ids in windows:
            model(input_ids=ids, use_cache=False)
    for hook in hooks:
        hook.remove()
    return found


def by_tap(model: nn.Module, windows: list[Tensor], names: Any) -> Found:
    """Return the sums of the named parameters of a model, as the tap sees them."""
    tap = InputTap({name: p for name, p in model.named_parameters() if name in names})
    with torch.no_grad(), tap:
        tap.active = True
        for ids in windows:
            model(input_ids=ids, use_cache=False)
    return {
        (name, axis): Sums(one.sum_abs, one.sum_square, one.rows)
        for name, uses in tap.statistics.items()
        for (axis, _), one in uses.items()
    }


def assert_same_sums(found: Found, expected: Found) -> None:
    """Raise AssertionError, naming parameter and axis, unless the same uses were seen with the same sums."""
    assert set(found) == set(expected)
    for key, sums in expected.items():
        assert torch.equal(found[key].rows, sums.rows), key
        for name in ("sum_abs", "sum_square"):
            ours, theirs = getattr(found[key], name), getattr(sums, name)
            assert ours.dtype == torch.float64, key
            assert torch.allclose(ours, theirs, rtol=1e-5, atol=1e-6), (key, name)


def test_every_matrix_sees_its_inputs(architecture: str, windows: list[Tensor]) -> None:
    """Of every matrix of every architecture the tap sums the very inputs that its module received, each token once."""
    loaded = load(architecture)
    names = eligible(loaded.table)
    found = by_tap(loaded.model, windows, names)
    assert_same_sums(found, by_hooks(loaded.model, windows))
    assert {name for name, _ in found} == set(names)


def test_the_contracted_axis_is_the_input_axis(architecture: str, windows: list[Tensor]) -> None:
    """Each use contracts the input axis of the anatomy; only a tied table is contracted on both, as embedding and head."""
    loaded = load(architecture)
    axes: dict[str, list[int]] = {}
    for name, axis in by_tap(loaded.model, windows, eligible(loaded.table)):
        axes.setdefault(name, []).append(axis)
    for name, seen in axes.items():
        info = loaded.table[name]
        assert sorted(seen) == ([0, 1] if info.tied else [info.input_axis]), name


def test_the_comparison_can_fail(windows: list[Tensor]) -> None:
    """A token more, an input a little off, or a use not seen fails the comparison."""
    loaded = load("llama")
    expected = by_hooks(loaded.model, windows)
    key = ("model.layers.1.mlp.down_proj.weight", 1)
    one = expected[key]
    for wrong in (
        Sums(one.sum_abs, one.sum_square, one.rows + 1),
        Sums(one.sum_abs * 1.0001, one.sum_square, one.rows),
        Sums(one.sum_abs, one.sum_square.flip(0), one.rows),
    ):
        with pytest.raises(AssertionError, match=r"down_proj"):
            assert_same_sums({**expected, key: wrong}, expected)
    with pytest.raises(AssertionError):
        assert_same_sums({k: v for k, v in expected.items() if k != key}, expected)


def test_a_mixture_sums_over_the_tokens_routed(windows: list[Tensor]) -> None:
    """Every token reaches two experts of a mixture, the experts share them unevenly, and one without tokens has sums of zero."""
    loaded = load("mixtral")
    tokens = sum(ids.numel() for ids in windows)
    found = by_tap(loaded.model, windows, eligible(loaded.table))
    rows = found["model.layers.0.mlp.experts.down_proj", 2].rows
    assert int(rows.sum()) == 2 * tokens
    assert len(set(rows.tolist())) > 1
    single = by_tap(loaded.model, [windows[0][:, :1]], eligible(loaded.table))[
        "model.layers.0.mlp.experts.down_proj", 2
    ]
    assert sorted(single.rows.tolist()) == [0, 0, 1, 1]
    assert bool((single.sum_abs.sum(dim=1) > 0).eq(single.rows > 0).all())


def test_a_tied_table_has_two_uses(windows: list[Tensor]) -> None:
    """A tied table counts its tokens as an embedding and sums its hidden states as the head."""
    loaded = load("llama_tied")
    found = by_tap(loaded.model, windows, eligible(loaded.table))
    name = "model.embed_tokens.weight"
    tokens = torch.cat([ids.reshape(-1) for ids in windows])
    counts = torch.bincount(tokens, minlength=VOCABULARY).double()
    assert torch.equal(found[name, 0].sum_abs, counts)
    assert torch.equal(found[name, 0].sum_square, counts)
    assert found[name, 1].sum_abs.shape == (16,)
    assert int(found[name, 0].rows) == int(found[name, 1].rows) == len(tokens)


def test_positions_are_counted(windows: list[Tensor]) -> None:
    """GPT-2's table of positions counts the windows that reach each position: here of 9, 12 and 7 tokens."""
    loaded = load("gpt2")
    found = by_tap(loaded.model, windows, eligible(loaded.table))["transformer.wpe.weight", 0]
    assert found.sum_abs.tolist() == [3.0] * 7 + [2.0] * 2 + [1.0] * 3 + [0.0] * 52


def test_the_sums_do_not_change_the_model(architecture: str, windows: list[Tensor]) -> None:
    """A model gives the same logits, bit for bit, while it is watched."""
    loaded = load(architecture)
    with torch.no_grad():
        expected = loaded.model(input_ids=windows[0], use_cache=False).logits
        with InputTap(loaded.parameters()) as tap:
            tap.active = True
            found = loaded.model(input_ids=windows[0], use_cache=False).logits
    assert tap.statistics
    assert torch.equal(found, expected)


def test_a_tap_at_rest_sees_nothing(windows: list[Tensor]) -> None:
    """Nothing is summed while the tap is not active, nor for a parameter that it was not given."""
    loaded = load("llama")
    with torch.no_grad(), InputTap(loaded.parameters()) as tap:
        loaded.model(input_ids=windows[0], use_cache=False)
    assert tap.statistics == {}
    one = "model.layers.0.mlp.up_proj.weight"
    assert {name for name, _ in by_tap(loaded.model, windows, {one})} == {one}


def test_wide_inputs_keep_their_small_changes() -> None:
    """Sums over many tokens are kept in float64: a half behind 2^24 ones is not lost, as float32 would lose it."""
    weight = nn.Parameter(torch.ones(2, 2))
    with torch.no_grad(), InputTap({"w": weight}) as tap:
        tap.active = True
        F.linear(torch.ones(1 << 20, 2), weight)
        tap.statistics["w"][1, 1].sum_abs += 2**24 - 2**20
        F.linear(torch.full((1, 2), 0.5), weight)
    assert tap.statistics["w"][1, 1].sum_abs.tolist() == [2**24 + 0.5] * 2


X3, X5 = (
    torch.randn(7, 3, generator=torch.Generator().manual_seed(0)),
    torch.randn(7, 5, generator=torch.Generator().manual_seed(1)),
)
PRODUCTS = {
    "linear": (lambda w: F.linear(X5, w), 1, X5),
    "linear by keyword": (lambda w: F.linear(X5, weight=w), 1, X5),
    "linear of a batch": (lambda w: F.linear(X5.reshape(1, 7, 5), w), 1, X5),
    "matmul with the transpose": (lambda w: torch.matmul(X5, w.T), 1, X5),
    "@ with the transpose": (lambda w: X5 @ w.t(), 1, X5),
    "@": (lambda w: X3 @ w, 0, X3),
    "mm": (X3.mm, 0, X3),
    "addmm": (lambda w: torch.addmm(torch.zeros(5), X3, w), 0, X3),
    "in bfloat16": (lambda w: F.linear(X5.bfloat16(), w.detach().bfloat16()), None, X5),
    "rows of it alone": (lambda w: F.linear(X5, w[:2]), None, X5),
    "no product": (lambda w: w + 1, None, X5),
}  # fmt: skip


@pytest.mark.parametrize("case", PRODUCTS)
def test_products_are_recognised_by_their_storage(case: str) -> None:
    """However a weight is multiplied, the axis it contracts and its inputs are found; a part or a copy is left alone."""
    call, axis, x = PRODUCTS[case]
    weight = nn.Parameter(torch.randn(3, 5, generator=torch.Generator().manual_seed(2)))
    with InputTap({"w": weight}) as tap:
        tap.active = True
        call(weight)
    if axis is None:
        assert tap.statistics == {}
    else:
        assert_same_sums(
            {("w", a): Sums(s.sum_abs, s.sum_square, s.rows) for (a, _), s in tap.statistics["w"].items()},
            {("w", axis): sums_of(x)},
        )


@pytest.mark.parametrize("multiply", [torch.bmm, torch.matmul, lambda x, w: torch.baddbmm(torch.zeros(2, 7, 5), x, w)])
def test_a_batch_of_products_is_seen_part_by_part(multiply: Any) -> None:
    """Each part of a tensor of three dimensions has its own inputs; a token that is zero throughout was not routed to it."""
    weight = nn.Parameter(torch.randn(2, 3, 5, generator=torch.Generator().manual_seed(2)))
    x = torch.stack([X3, X3.flip(0)])
    x[1, 2:] = 0
    with InputTap({"w": weight}) as tap:
        tap.active = True
        multiply(x, weight)
    one = tap.statistics["w"][1, 2]
    assert one.rows.tolist() == [7, 2]
    assert torch.allclose(one.sum_abs, x.double().abs().sum(1))
    assert one.along(one.sum_abs, weight.shape).shape == (2, 3, 1)


def test_matrices_on_top_of_each_other_are_seen_apart() -> None:
    """A matrix that is used in equal parts, as DBRX uses its experts, has the inputs of each part on that part's weights."""
    weight = nn.Parameter(torch.randn(6, 5, generator=torch.Generator().manual_seed(2)))
    with torch.no_grad(), InputTap({"w": weight}) as tap:
        tap.active = True
        F.linear(X5, weight.view(2, 3, 5)[1])
        torch.matmul(X3, weight.view(2, 3, 5)[0])
    rows, columns = tap.statistics["w"][1, 2], tap.statistics["w"][0, 2]
    assert (rows.rows.tolist(), columns.rows.tolist()) == ([0, 7], [7, 0])
    spread = rows.along(rows.sum_abs, weight.shape).expand(weight.shape)
    assert torch.allclose(spread[3:], X5.double().abs().sum(0).expand(3, 5))
    assert not spread[:3].any()
    spread = columns.along(columns.sum_abs, weight.shape).expand(weight.shape)
    assert torch.allclose(spread[:3], X3.double().abs().sum(0)[:, None].expand(3, 5))
    assert not spread[3:].any()


def test_a_matrix_before_its_inputs_reads_their_columns() -> None:
    """A matrix that multiplies a batch from the left, as Mamba's dt_proj does, reads the columns of the batch."""
    weight = nn.Parameter(torch.randn(3, 5, generator=torch.Generator().manual_seed(2)))
    with InputTap({"w": weight}) as tap:
        tap.active = True
        weight @ X5.T[None]
    one = tap.statistics["w"][1, 1]
    assert_same_sums({("w", 1): Sums(one.sum_abs, one.sum_square, one.rows)}, {("w", 1): sums_of(X5)})
