"""The published coordinates: the table that ships holds, and a model is recognised by its id or its configuration."""

from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from esa.errors import ArtifactError
from esa.model import describe, unravel
from esa.model.published import Match, matches, parse, published, targets
from tests.conftest import build

TINY = """
[[model]]
name = "Tiny"
ids = ["someone/Tiny"]
shape = { model_type = "llama", hidden_size = 16, intermediate_size = 24, num_hidden_layers = 3 }
weights = [[1, 5, 7], [2, 5, 23]]
"""


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """Publish two weights of the tiny Llama, and a model with its configuration under another name."""
    table = parse(TINY + TINY.replace("Tiny", "Twin"))
    monkeypatch.setattr("esa.model.published.published", lambda: table)


def skeleton(shape: dict[str, Any]) -> Any:
    """Return the model of a published shape without its numbers; vectors of heads as its hidden size allows."""
    config = AutoConfig.for_model(**shape, num_attention_heads=32)
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config)


def test_the_table_that_ships_is_the_published_one() -> None:
    """Ten models, each weight of it where the source has it; spot checks on one of every kind."""
    found = {one.name: one for one in published()}
    assert len(found) == 10
    assert found["Llama-7B"].weights == ((2, 3968, 7003),)
    assert found["OLMo-7B-0724"].weights == ((1, 269, 7467), (2, 269, 8275), (7, 269, 453), (24, 269, 2300))
    phi = found["Phi-3-mini"].weights
    assert {row for _, row, _ in phi} == {525, 1693, 1113}
    assert {(block, column) for block, _, column in phi} == {(2, 808), (4, 2723)}
    assert len(phi) == 6
    assert {column for _, _, column in found["Llama-3-8B"].weights} == {2427}
    assert sum(len(one.weights) for one in found.values()) == 24


@pytest.mark.parametrize("name", [one.name for one in published()])
def test_every_published_weight_is_inside_its_model(name: str) -> None:
    """On the model that the stated shape makes, each coordinate is a weight of the block's output projection."""
    one = next(each for each in published() if each.name == name)
    model = skeleton(dict(one.shape))
    table = describe(model)
    found = targets(one, table)
    assert len(set(found)) == len(one.weights)
    for (block, row, column), (parameter, index) in zip(one.weights, found, strict=True):
        info = table[parameter]
        assert (info.block, info.component) == (block, "mlp.down")
        assert unravel(index, info.shape) == (row, column)
        assert info.shape == (one.shape["hidden_size"], one.shape["intermediate_size"])


@pytest.mark.parametrize("name", [one.name for one in published()])
def test_no_two_published_models_are_mistaken_for_each_other(name: str) -> None:
    """By configuration alone each published shape is recognised as itself and nothing else; by id exactly."""
    one = next(each for each in published() if each.name == name)
    model = skeleton(dict(one.shape))
    assert matches("a/folder", model) == [Match(one, exact=False)]
    for identifier in one.ids:
        assert matches(identifier.upper(), model) == [Match(one, exact=True)]


def test_an_id_counts_more_than_a_configuration(tiny: None) -> None:
    """The hub id names one of two models of one shape; a local folder looks like both; another shape is neither."""
    model = build("llama")
    named, other = published_now()
    assert matches("Someone/tiny", model) == [Match(named, exact=True)]
    assert matches("./tiny", model) == [Match(named, exact=False), Match(other, exact=False)]
    assert matches("./tiny", model)[0].words() == "a model that looks like Tiny"
    assert matches("someone/Tiny", model)[0].words() == "Tiny"
    assert matches("someone/Tiny", build("gpt2")) == []


def published_now() -> tuple[Any, ...]:
    """Return the table as the module sees it now."""
    import esa.model.published

    return esa.model.published.published()


def test_row_and_column_are_output_and_input(tiny: None) -> None:
    """A published row is an output and a column an input, also where a matrix is stored transposed."""
    one = published_now()[0]
    assert targets(one, describe(build("llama"))) == [
        ("model.layers.1.mlp.down_proj.weight", 5 * 24 + 7), ("model.layers.2.mlp.down_proj.weight", 5 * 24 + 23),
    ]  # fmt: skip
    assert targets(one, describe(build("gpt2"))) == [
        ("transformer.h.1.mlp.c_proj.weight", 7 * 16 + 5), ("transformer.h.2.mlp.c_proj.weight", 23 * 16 + 5),
    ]  # fmt: skip


BAD = {
    "outside": ("[2, 5, 23]", "[2, 5, 24]", r"model Tiny: (2, 5, 24) is outside (3, 16, 24) (blocks, rows, columns)"),
    "negative": ("[2, 5, 23]", "[-1, 5, 3]", r"model Tiny: (-1, 5, 3) is outside (3, 16, 24) (blocks, rows, columns)"),
    "twice": ("[2, 5, 23]", "[1, 5, 7]", "model Tiny: names a weight twice"),
    "unknown key": (
        "ids =",
        "idz =",
        "model Tiny: has the keys ['idz', 'name', 'shape', 'weights']; allowed: ids, name",
    ),
    "lacking": ("hidden_size = 16, ", "", "model Tiny: shape lacks hidden_size"),
}


@pytest.mark.parametrize("fault", BAD)
def test_a_table_that_does_not_hold_is_refused(fault: str) -> None:
    """A wrong index, a weight named twice or an unknown key is an error that names the model."""
    old, new, text = BAD[fault]
    with pytest.raises(ArtifactError) as caught:
        parse(TINY.replace(old, new))
    assert text in str(caught.value)
