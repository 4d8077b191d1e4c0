"""What is said of an architecture holds for families that make their heads and experts in other ways."""

from typing import Any

import pytest

from esa.model import describe
from esa.model.experts import active_weights
from esa.model.shape import architecture_facts
from tests.families import build_family

FACTS: dict[str, dict[str, Any]] = {
    "llama": {"head_dim": 4, "intermediate_size": 24},
    "deepseek_v3": {"head_dim": None, "intermediate_size": [8, 24], "expert_intermediate_size": 8, "num_experts": 4},
    "opt": {"head_dim": 4, "intermediate_size": 24},
    "mpt": {"head_dim": 4, "intermediate_size": 64},
    "llama4": {"head_dim": 4, "expert_intermediate_size": 24, "num_experts": 4, "num_experts_per_tok": 1},
    "dbrx": {"head_dim": 4, "expert_intermediate_size": None, "num_experts": None},
    "mamba": {"head_dim": None, "intermediate_size": None},
}  # fmt: skip


@pytest.mark.parametrize("name", FACTS)
def test_headlines_are_read_from_the_projections(name: str) -> None:
    """Widths are those of the projections; behind a latent, or of experts on top of each other, nothing is said."""
    model = build_family(name)
    found = architecture_facts(model, describe(model))
    assert {key: found[key] for key in FACTS[name]} == FACTS[name]


def test_a_token_s_share_of_stacked_experts_is_not_told() -> None:
    """Of experts on top of each other in a matrix nobody knows how many weights a token uses; of all else it uses all."""
    model = build_family("dbrx")
    table = describe(model)
    active = active_weights(model, table, model.config)
    for name, info in table.items():
        assert active[name] == (None if info.component.startswith("expert.") else info.numel), name


def test_a_bias_goes_with_its_expert() -> None:
    """A token uses the biases of its two experts of four, and half the experts' weights."""
    model = build_family("gpt_oss")
    table = describe(model)
    active = active_weights(model, table, model.config)
    for name, info in table.items():
        assert active[name] == (info.numel // 2 if info.component.startswith("expert.") else info.numel), name
