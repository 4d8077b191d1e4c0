"""Targets larger than a weight: which weights they hold, what they are called, and what is refused."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from esa.errors import TargetError
from esa.model import LoadedModel
from esa.perturb.heads import Heads, heads_of
from esa.perturb.targets import GRAMMAR, AnyTarget, Region, addressed, by_tensor, names_of, parse_target
from tests.conftest import load
from tests.families import FAMILIES, load_family
from tests.perturb.planted import DOWN, HEAD, UP

Q, K, O = (f"model.layers.1.self_attn.{name}_proj.weight" for name in "qko")
GATE_UP = "model.layers.0.mlp.experts.gate_up_proj"  # (4, 48, 16)
FUSED_DOWN = "model.layers.0.mlp.experts.down_proj"  # (4, 16, 24)
LLAMA, MIXTRAL = load("llama"), load("mixtral")


def parse(text: str, loaded: LoadedModel = LLAMA) -> AnyTarget:
    """Parse a target of a model."""
    return parse_target(text, loaded.table, heads_of(loaded))


def mask(text: str, loaded: LoadedModel = LLAMA) -> dict[str, Any]:
    """Return per touched parameter which of its weights a target holds."""
    found = {}
    for name, index in by_tensor(loaded, [parse(text, loaded)]).items():
        found[name] = np.zeros(loaded.table[name].shape, dtype=bool)
        found[name].reshape(-1)[index.numpy()] = True
    return found


@pytest.mark.parametrize(
    ("model", "text", "name", "place"),
    [
        ("llama", f"{DOWN}:5,:", DOWN, np.s_[5]),
        ("llama", f"{DOWN}::,7", DOWN, np.s_[:, 7]),
        ("llama", f"{DOWN}", DOWN, np.s_[:]),
        ("mixtral", f"{GATE_UP}:3,5,:", GATE_UP, np.s_[3, 5]),
        ("mixtral", f"{GATE_UP}::,5,:", GATE_UP, np.s_[:, 5]),
        ("mixtral", f"{GATE_UP}::,:,7", GATE_UP, np.s_[:, :, 7]),
        ("mixtral", f"{GATE_UP}:@expert=3", GATE_UP, np.s_[3]),
        ("llama", f"{Q}:@head=3", Q, np.s_[12:16]),
        ("llama", f"{K}:@head=1", K, np.s_[0:4]),  # heads 0 and 1 share its keys
        ("llama", f"{K}:@head=2", K, np.s_[4:8]),
        ("llama", f"{O}:@head=3", O, np.s_[:, 12:16]),
        ("llama", "model.norm.weight:", "model.norm.weight", np.s_[:]),
    ],
)
def test_a_region_of_one_tensor(model: str, text: str, name: str, place: Any) -> None:
    """A row, column, expert, head or tensor holds exactly the weights that NumPy's indexing says."""
    loaded = load(model)
    expected = np.zeros(loaded.table[name].shape, dtype=bool)
    expected[place] = True
    (found,) = mask(text, loaded).items()
    assert found[0] == name
    assert np.array_equal(found[1], expected)
    region = parse(text, loaded)
    assert isinstance(region, Region)
    assert region.num_weights == expected.sum()
    held = [region.holds(name, at) for at in np.ndindex(*expected.shape)]
    assert np.array_equal(np.array(held).reshape(expected.shape), expected)


@pytest.mark.parametrize(
    ("model", "text", "names"),
    [
        ("llama", "component=mlp.down", [f"model.layers.{n}.mlp.down_proj.weight" for n in range(3)]),
        ("llama", "component=mlp.*,block=1", [f"model.layers.1.mlp.{n}_proj.weight" for n in ("gate", "up", "down")]),
        ("llama", "*.mlp.*,block=[02],component=mlp.up", [UP, UP.replace(".0.", ".2.")]),
        ("llama", "block=", [name for name in LLAMA.table if ".layers." not in name]),
        ("llama_tied", "lm_head.*", ["model.embed_tokens.weight"]),
        ("mixtral", "block=0,expert=2", [GATE_UP, FUSED_DOWN]),
        ("llama", "block=1,head=0", [f"model.layers.1.self_attn.{n}_proj.weight" for n in "qkvo"]),
    ],
)
def test_a_selection_of_parameters(model: str, text: str, names: list[str]) -> None:
    """A comma means and; globs are those of score.include; experts and heads leave other parameters out."""
    assert list(mask(text, load(model))) == names


@pytest.mark.parametrize(
    ("model", "texts", "canonical"),
    [
        ("llama", [f"{DOWN}:5,:", f"{DOWN[:-7]}: 5 , :"], f"{DOWN}:5,:"),
        ("llama", [DOWN, f"{DOWN}:", f"{DOWN}::,:", f"{DOWN}::", "block=1,component=mlp.down", f"*.1.*,{DOWN}"], DOWN),
        ("llama", ["block=1,component=mlp.*", "component=mlp.*, block=1"], "component=mlp.*,block=1"),
        ("llama", [f"{Q}:@head=2", f"{Q[:-7]}:@head=2", f"{Q},head=2"], f"{Q}:@head=2"),
        ("llama", ["block=1,head=2", "head=2,block=1"], "block=1,head=2"),
        ("mixtral", [f"{GATE_UP}:@expert=3", f"{GATE_UP}:3,:,:"], f"{GATE_UP}:3,:,:"),
        ("llama_tied", ["lm_head.weight:5,:"], "model.embed_tokens.weight:5,:"),
        ("llama", ["lm_head.*,*.weight"], "lm_head.weight"),
    ],
)
def test_one_name_for_one_set(model: str, texts: list[str], canonical: str) -> None:
    """However a region is written, it is known by one canonical text, which parses to itself."""
    loaded = load(model)
    found = {parse(text, loaded) for text in [*texts, canonical]}
    assert [addressed(target, loaded.table) for target in found] == [canonical]


def test_by_tensor_is_the_union() -> None:
    """Weights, rows, heads and selections that overlap give each weight once, tensors in table order, indices ascending."""
    texts = [
        f"{HEAD}:2,8",
        f"{DOWN}:5,:",
        f"{DOWN}:5,7",
        f"{DOWN}:0,1",
        f"{DOWN}::,7",
        "block=1,head=0",
        "block=1,head=1",
    ]
    found = by_tensor(LLAMA, [parse(text) for text in texts])
    assert list(found) == [name for name in LLAMA.table if name in found]
    naive: dict[str, Any] = {}
    for text in texts:
        for name, held in mask(text).items():
            naive[name] = naive.get(name, False) | held
    assert found.keys() == naive.keys()
    for name, index in found.items():
        assert index.dtype == torch.int64
        assert index.tolist() == np.flatnonzero(naive[name]).tolist()


def test_a_tensor_is_never_a_list() -> None:
    """A region of 10^9 weights costs nothing until its indices are asked for."""
    region = Region("x", (("x", ((0, 1 << 15), (0, 1 << 15))),))
    assert region.num_weights == 1 << 30
    assert names_of([region, ("x", 3), ("y", 0), region]) == ["x", "y"]


@pytest.mark.parametrize(
    ("model", "text", "message"),
    [
        ("llama", f"{DOWN}:16,:", f"(16, :) is outside {DOWN}, of shape (16, 24)"),
        ("llama", f"{DOWN}:1,:,:", f"(1, :, :) is outside {DOWN}, of shape (16, 24)"),
        ("llama", f"{DOWN}:5,,7", f"'{DOWN}:5,,7' is not an address; allowed: {GRAMMAR}"),
        (
            "llama",
            "component=mlp.dwn",
            "'component=mlp.dwn' selects no parameter of the model (did you mean 'mlp.down'?)",
        ),
        (
            "llama",
            "blok=3",
            f"'blok=3' in 'blok=3' is not part of a selection (did you mean 'block'?); allowed: {GRAMMAR}",
        ),
        ("llama", "block=1,block=2", f"'block=2' in 'block=1,block=2' stands twice; allowed: {GRAMMAR}"),
        ("llama", "block=7", "'block=7' selects no parameter of the model"),
        ("llama", "head=x", f"'head=x' in 'head=x' is not part of a selection; allowed: {GRAMMAR}"),
        ("llama", "head=4", "'head=4': there are 4 heads, 0 to 3"),
        ("llama", "component=mlp.*,head=0", "'component=mlp.*,head=0' selects no attention projections"),
        ("llama", "head=0,expert=1", "'head=0,expert=1' asks for an expert and a head; no weight belongs to both"),
        ("llama", "expert=0", "'expert=0' selects no weights of expert 0; of what it selects there are 0 experts"),
        ("mixtral", "expert=4", "'expert=4' selects no weights of expert 4; of what it selects there are 4 experts"),
        ("llama", "no_such:@head=1", "'no_such' is not a parameter of the model"),
    ],
)
def test_refusals(model: str, text: str, message: str) -> None:
    """What cannot be read or selects nothing is refused with the text and what is allowed, word for word."""
    with pytest.raises(TargetError) as raised:
        parse(text, load(model))
    assert str(raised.value).splitlines()[0].startswith(f"--target: {message}")


@pytest.mark.parametrize("family", ["deepseek_v3", "codegen"])
def test_heads_that_are_not_known_are_refused(family: str) -> None:
    """A projection through a latent, or fused in a way of its own, is not cut into heads by guessing."""
    with pytest.raises(TargetError, match=r"which part of .*, belongs to which of the 4 heads of 4 is not known"):
        parse("block=0,head=1", load_family(family))


def test_a_model_without_heads_is_refused() -> None:
    """Where the configuration names no number of heads, none is made up."""
    with pytest.raises(TargetError, match="the configuration does not say how many heads the model has"):
        parse_target("head=0", LLAMA.table, None)
    assert heads_of(LLAMA) == Heads(4, 4, None)


# Heads of queries that share keys and values, where these are fused into one matrix; elsewhere the rows of v tell.
SHARING = {"falcon": 4, "gpt_bigcode": 4, "falcon_new": 2, "phi3": 2, "dbrx": 2}
WITH_HEADS = [
    name for name, family in FAMILIES.items()
    if {"attn.v", "attn.qkv"} & family.components.keys()
    and name not in ("deepseek_v3", "codegen", "olmo2")  # not known; olmo2 normalises queries over all heads
]  # fmt: skip


@pytest.mark.parametrize("family", WITH_HEADS)
def test_a_head_is_what_computes_its_columns(family: str) -> None:
    """Without a head's queries its own inputs of o change alone; without its keys and values those of all that share them.

    In every family, fused or not: the head's own inputs of o are then zero, and they are what its columns of o read.
    """
    loaded, head = load_family(family), 2
    heads = heads_of(loaded)
    assert heads is not None
    block = next(info.block for info in loaded.table.values() if info.component == "attn.o")
    region = parse_target(f"block={block},head={head}", loaded.table, heads)
    assert isinstance(region, Region)
    of = {loaded.table[name].component: name for name in reversed(region.names)}
    queries = [(name, box) for name, box in region.boxes if name == of.get("attn.q", of.get("attn.qkv"))][:1]
    before = inputs_of_o(loaded, heads, of["attn.o"], [])
    without_queries = inputs_of_o(loaded, heads, of["attn.o"], [Region("q", tuple(queries))])
    inside = tuple((name, box) for name, box in region.boxes if name != of["attn.o"])
    without = inputs_of_o(loaded, heads, of["attn.o"], [Region("qkv", inside)])
    sharing = SHARING.get(family, 1)
    if "attn.v" in of:
        sharing = heads.number * heads.width // loaded.table[of["attn.v"]].shape[0]
    changed = [
        [n for n in range(4) if not torch.equal(before[:, n], each[:, n])] for each in (without_queries, without)
    ]
    first = head // sharing * sharing
    assert changed == [[head], list(range(first, first + sharing))]
    assert float(without[:, head].abs().max()) == 0
    ((_, box),) = [(name, box) for name, box in region.boxes if name == of["attn.o"]]
    assert box[loaded.table[of["attn.o"]].input_axis or 0] == (head * heads.width, (head + 1) * heads.width)


def inputs_of_o(loaded: LoadedModel, heads: Heads, out: str, zeroed: list[AnyTarget]) -> Tensor:
    """Return what an output projection reads, ``(tokens, heads, width)``, with some weights at zero, which come back."""
    seen: list[Tensor] = []
    module = loaded.model.get_submodule(out.rpartition(".")[0])
    hook = module.register_forward_pre_hook(lambda module, args: seen.append(args[0].detach().clone()))
    ids = torch.randint(1, 90, (2, 9), generator=torch.Generator().manual_seed(0))
    saved = []
    with torch.no_grad():
        for name, index in by_tensor(loaded, zeroed).items():
            weight = loaded.parameters()[name]
            saved.append((weight, weight.clone()))
            weight.view(-1)[index] = 0
        loaded.model(ids)
        for weight, values in saved:
            weight.copy_(values)
    hook.remove()
    return seen[0].reshape(-1, heads.number, heads.width)
