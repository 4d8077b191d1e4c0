"""One weight, one address: what a person types, what the tables hold, and what NumPy says of both."""

import numpy as np
import pytest

from esa.errors import TargetError
from esa.model import ParameterInfo, address, describe, find_parameter, format_indices, locate, parse_address, unravel
from esa.model.addresses import ravel
from tests.conftest import build, load

DOWN = "model.layers.1.mlp.down_proj.weight"


@pytest.fixture(scope="module")
def table() -> dict[str, ParameterInfo]:
    """Return the description of a tiny Llama: its down_proj has shape (16, 24)."""
    return describe(build("llama"))


SHAPES = [(7,), (16, 24), (4, 16, 24), (1, 5), (5, 1), (3, 1, 2, 2)]


@pytest.mark.parametrize("shape", SHAPES)
def test_indices_are_row_major(shape: tuple[int, ...]) -> None:
    """ravel and unravel are NumPy's row-major ones, and each other's inverse, over the whole tensor."""
    for index in range(int(np.prod(shape))):
        coordinates = unravel(index, shape)
        assert coordinates == tuple(np.unravel_index(index, shape))
        assert ravel(coordinates, shape) == np.ravel_multi_index(coordinates, shape) == index


def test_large_tensors_are_addressed_exactly() -> None:
    """Offsets beyond 2^53, where floats would round, come back exactly."""
    shape = (2**31, 2**31)
    index = 2**61 + 2**31 + 1
    assert unravel(index, shape) == (2**30 + 1, 1)
    assert ravel(unravel(index, shape), shape) == index


def test_indices_are_written_in_one_way() -> None:
    """Indices as text are (507, 1229); an address a person types is name:507,1229."""
    assert format_indices((507, 1229)) == "(507, 1229)"
    assert format_indices((3,)) == "(3)"
    assert address(DOWN, 30, (16, 24)) == f"{DOWN}:1,6"


ADDRESSES = [
    (f"{DOWN}:1,6", DOWN, 30), (f"{DOWN}: 1 , 6 ", DOWN, 30), (f"{DOWN}:30", DOWN, 30), (f"{DOWN}:15,23", DOWN, 383),
    ("model.layers.1.mlp.down_proj:1,6", DOWN, 30), ("model.norm.weight:3", "model.norm.weight", 3),
    ("lm_head:95,15", "lm_head.weight", 1535),
]  # fmt: skip


@pytest.mark.parametrize(("text", "name", "index"), ADDRESSES)
def test_an_address_is_read(text: str, name: str, index: int, table: dict[str, ParameterInfo]) -> None:
    """An address is a parameter, or its module, and coordinates, or one row-major index."""
    assert parse_address(text, table) == (name, index)


def test_every_address_reads_back(table: dict[str, ParameterInfo]) -> None:
    """What address() writes parse_address() reads, for first and last weight of every parameter."""
    for name, info in table.items():
        for index in (0, info.numel // 2, info.numel - 1):
            assert parse_address(address(name, index, info.shape), table) == (name, index)


BAD = [
    ("down_proj", "'down_proj' is not an address; allowed: PARAMETER:I,J"),
    (f"{DOWN}:", f"'{DOWN}:' is not an address; allowed: PARAMETER:I,J"),
    (f"{DOWN}:1,", f"'{DOWN}:1,' is not an address; allowed: PARAMETER:I,J"),
    (f"{DOWN}:-1,2", f"'{DOWN}:-1,2' is not an address; allowed: PARAMETER:I,J"),
    (f"{DOWN}:1.5,2", f"'{DOWN}:1.5,2' is not an address; allowed: PARAMETER:I,J"),
    (f"{DOWN}:²,2", f"'{DOWN}:²,2' is not an address; allowed: PARAMETER:I,J"),
    (f"{DOWN}:(1,2)", f"'{DOWN}:(1,2)' is not an address; allowed: PARAMETER:I,J"),
    (f"{DOWN}:16,0", f"(16, 0) is outside {DOWN}, of shape (16, 24)"),
    (f"{DOWN}:0,24", f"(0, 24) is outside {DOWN}, of shape (16, 24)"),
    (f"{DOWN}:0,0,0", f"(0, 0, 0) is outside {DOWN}, of shape (16, 24)"),
    (f"{DOWN}:384", f"index 384 is outside {DOWN}, of 384 weights"),
    ("model.norm.weight:16", "(16) is outside model.norm.weight, of shape (16)"),
    ("model.norm.weight:0,0", "(0, 0) is outside model.norm.weight, of shape (16)"),
]


@pytest.mark.parametrize(("text", "message"), BAD)
def test_a_bad_address_is_refused(text: str, message: str, table: dict[str, ParameterInfo]) -> None:
    """What is no address, and what is outside its tensor, is refused by one line that names the flag, value and bounds."""
    with pytest.raises(TargetError) as caught:
        parse_address(text, table)
    assert str(caught.value) == f"--target: {message}"
    assert caught.value.exit_code == 3


def test_an_unknown_parameter_is_refused_with_the_nearest(table: dict[str, ParameterInfo]) -> None:
    """A parameter that the model does not have is refused with the nearest name, and where its names begin and end."""
    with pytest.raises(TargetError) as caught:
        parse_address("model.layers.1.mlp.dwon_proj.weight:0,0", table, where="t.csv:3")
    assert str(caught.value) == (
        f"t.csv:3: 'model.layers.1.mlp.dwon_proj.weight' is not a parameter of the model (did you mean '{DOWN}'?)\n"
        "hint: it has 30 parameters, from model.embed_tokens.weight to lm_head.weight"
    )


def test_a_tied_name_is_its_tensor() -> None:
    """The second name of a tied tensor, and its module's, address the first."""
    tied = describe(build("llama_tied"))
    for name in ("lm_head.weight", "lm_head", "model.embed_tokens", "model.embed_tokens.weight"):
        assert parse_address(f"{name}:95,15", tied) == ("model.embed_tokens.weight", 1535)
        assert find_parameter(name, tied, "here").tied


def test_experts_take_three_coordinates() -> None:
    """A weight of a fused tensor is addressed by expert, output and input."""
    mixture = describe(build("mixtral"))
    name = "model.layers.0.mlp.experts.down_proj"
    assert parse_address(f"{name}:3,15,23", mixture) == (name, 4 * 16 * 24 - 1)
    assert locate(mixture[name], (1, 0, 0), "here") == 16 * 24


def test_an_expert_takes_three_numbers() -> None:
    """Two numbers for a weight of fused experts: the error says how many there are to give."""
    table = load("mixtral").table
    name = next(name for name, info in table.items() if info.expert_axis is not None)
    with pytest.raises(TargetError, match=r"\(2, 3\) has two numbers; .* of shape \(4, \d+, \d+\), takes three"):
        parse_address(f"{name}:2,3", table)
