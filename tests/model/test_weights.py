"""A fingerprint is of every bit of every weight, and of nothing else."""

import torch
from torch import nn

from tests.conftest import build, model_fingerprint


def flip_last_bit(parameter: nn.Parameter) -> None:
    """Flip the least significant bit of a parameter's last weight."""
    with torch.no_grad():
        parameter.view(-1).view(torch.int32)[-1] ^= 1


def test_a_fingerprint_sees_every_bit() -> None:
    """One bit of one weight of any parameter changes the fingerprint, and flipped back it is as before."""
    model = build("llama")
    before = model_fingerprint(model)
    seen = {before}
    for parameter in model.parameters():
        flip_last_bit(parameter)
        seen.add(model_fingerprint(model))
        flip_last_bit(parameter)
    assert model_fingerprint(model) == before
    assert len(seen) == 1 + len(list(model.parameters()))


def test_a_fingerprint_sees_zeros_sign_and_dtype() -> None:
    """Equal numbers of other bits have another fingerprint: -0.0 for 0.0, and another dtype."""
    model = build("llama")
    seen = set()
    with torch.no_grad():
        for value in (0.0, -0.0):
            model.lm_head.weight.fill_(value)
            seen.add(model_fingerprint(model))
    seen.add(model_fingerprint(model.bfloat16()))
    assert len(seen) == 3


def test_a_fingerprint_of_some_sees_only_those() -> None:
    """A fingerprint of named parameters does not see the others."""
    model = build("llama")
    names = {"lm_head.weight"}
    before = model_fingerprint(model, names)
    flip_last_bit(model.model.norm.weight)
    assert model_fingerprint(model, names) == before
    flip_last_bit(model.lm_head.weight)
    assert model_fingerprint(model, names) != before
