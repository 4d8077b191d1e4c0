"""The survey of model types: it tells apart what passes, what passes as a decoder, what is refused and what is too large."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

SCRIPTS = Path(__file__).parents[1] / "scripts"


@pytest.fixture(scope="module")
def script() -> Iterator[Any]:
    """Return the script as a module, imported from its folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "path", [str(SCRIPTS), *sys.path])
        import model_compatibility

        yield model_compatibility


def test_a_decoder_passes_every_check(script: Any) -> None:
    """A Mixtral is built from its defaults, shrunk, and passes everything; its line says so."""
    line = script.examine("mixtral", 6_000_000)
    assert line.complete, line.reason
    assert line.num_weights < 200_000
    assert script.text_of(line).startswith("mixtral ")
    assert script.text_of(line).endswith("build:ok prepare:ok gradients:ok act_mag:ok components:ok")


def test_an_encoder_passes_as_a_decoder(script: Any) -> None:
    """BERT is refused as it is, and passes where it is told to be a decoder, which its line says."""
    line = script.examine("bert", 6_000_000)
    assert (line.complete, line.is_decoder) == (True, True)
    assert script.text_of(line).endswith("with is_decoder = true")


def test_what_has_no_component_is_named(script: Any) -> None:
    """A state-space model is scored exactly, and the matrices without a component are named."""
    line = script.examine("mamba2", 6_000_000)
    assert line.passed == ["build", "prepare", "gradients", "act_mag"]
    assert line.reason == "no component for mixer.in_proj, mixer.out_proj"
    assert line.notes == ["act_mag scores 8 of 11 matrices"]


def test_what_is_too_large_is_not_built(script: Any) -> None:
    """A type whose small configuration is over the limit is skipped with its size, counted without memory."""
    line = script.examine("llama", 1000)
    assert line.passed == []
    assert line.reason.endswith(" weights in the smallest configuration that was tried: skipped")


def test_the_table_has_every_type_once(script: Any) -> None:
    """The Markdown puts each type in the first group that it belongs to, with a star for a decoder by word alone."""
    checks = list(script.CHECKS)
    lines = [
        script.Line("a", checks),
        script.Line("b", checks, is_decoder=True),
        script.Line("c", checks[:4], "no component for x"),
        script.Line("d", ["build"], "d is not a causal language model: a token changes the logits before it"),
        script.Line("e", ["build"], "e has no single list of 3 decoder blocks"),
        script.Line("f", [], "KeyError: 'x'"),
    ]
    table = script.markdown(lines).splitlines()
    assert [row.split("|")[2:4] for row in table[2:7]] == [
        [" 2 ", " a, b* "], [" 1 ", " c "], [" 1 ", " d "], [" 1 ", " e "], [" 1 ", " f "],
    ]  # fmt: skip
