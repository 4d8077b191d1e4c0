"""Any decoder as embed, blocks and head: bit for bit the model's own, or refused."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, Gemma2Config, LlamaForCausalLM, Qwen2MoeConfig

from esa.errors import ModelError
from esa.model import BlockStack
from tests.conftest import CONFIGS, SMALL, build

# Shapes that the shared table leaves out: windows that alternate and capped logits; a shared expert beside the mixture.
MORE: dict[str, Callable[[], Any]] = {
    "gemma2": lambda: Gemma2Config(**SMALL, num_key_value_heads=2, head_dim=4, sliding_window=4),
    "qwen2_moe": lambda: Qwen2MoeConfig(
        **SMALL, num_key_value_heads=2, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=8,
        shared_expert_intermediate_size=8,
    ),
}  # fmt: skip


def make(name: str, dtype: torch.dtype = torch.float32) -> Any:
    """Return a random model of any of the shapes, in eval mode."""
    if name in CONFIGS:
        return build(name, dtype)
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(MORE[name](), dtype=dtype).eval()


@pytest.fixture(params=[*CONFIGS, *MORE])
def shape(request: pytest.FixtureRequest) -> str:
    """Name every shape of decoder in turn."""
    return str(request.param)


def states(stack: BlockStack, ids: Tensor) -> list[Tensor]:
    """Return the hidden state before each block, and behind the last."""
    prologue = stack.embed(ids)
    found = [prologue.hidden]
    for number in range(len(stack)):
        found.append(stack.run_block(number, found[-1], prologue))
    return found


def assert_restored(stack: BlockStack) -> None:
    """Raise AssertionError if a block has another forward than its class's."""
    assert not any("forward" in block.__dict__ for block in stack.blocks)


@torch.no_grad()
def test_the_chain_is_the_model(shape: str, windows: list[Tensor]) -> None:
    """Embedding, blocks and head in a chain give the model's logits bit for bit, for windows of any length."""
    model = make(shape)
    stack = BlockStack(model)
    assert len(stack) == 3
    for ids in [*windows, windows[0].repeat(2, 1)]:
        assert torch.equal(stack.head(states(stack, ids)[-1], ids), model(input_ids=ids, use_cache=False).logits)


@torch.no_grad()
def test_every_suffix_is_the_model(shape: str, windows: list[Tensor]) -> None:
    """From the input of any block on, the rest of the model gives its logits bit for bit."""
    model = make(shape)
    stack = BlockStack(model)
    ids = windows[0]
    expected = model(input_ids=ids, use_cache=False).logits
    for number, hidden in enumerate(states(stack, ids)[1:], start=1):
        assert torch.equal(stack.logits_from(number, hidden, ids), expected), number


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_chain_is_the_model_in_16_bits(architecture: str, dtype: torch.dtype, windows: list[Tensor]) -> None:
    """The chain is bit for bit the model also where it computes in 16 bits."""
    model = make(architecture, dtype)
    stack = BlockStack(model)
    ids = windows[1]
    assert torch.equal(stack.head(states(stack, ids)[-1], ids), model(input_ids=ids, use_cache=False).logits)


@torch.no_grad()
def test_the_states_are_the_model_s(shape: str, windows: list[Tensor]) -> None:
    """The state before each block is what the model itself hands that block."""
    model = make(shape)
    stack = BlockStack(model)
    seen: list[Tensor] = []
    hooks = [block.register_forward_pre_hook(lambda _, args: seen.append(args[0])) for block in stack.blocks]
    model(input_ids=windows[0], use_cache=False)
    for hook in hooks:
        hook.remove()
    for found, expected in zip(states(stack, windows[0]), seen, strict=False):
        assert torch.equal(found, expected)
    assert len(seen) == 3


@torch.no_grad()
def test_a_block_can_run_again(shape: str, windows: list[Tensor]) -> None:
    """A block run twice with its captured arguments gives the same: no cache lets it see the keys of the first run."""
    stack = BlockStack(make(shape))
    prologue = stack.embed(windows[0])
    first = stack.run_block(0, prologue.hidden, prologue)
    assert torch.equal(stack.run_block(0, prologue.hidden, prologue), first)
    assert not torch.equal(stack.run_block(0, prologue.hidden + 1, prologue), first)


@torch.no_grad()
def test_another_state_gives_other_logits(shape: str, windows: list[Tensor]) -> None:
    """The logits follow from the state that is handed over, and not from the blocks below."""
    model = make(shape)
    stack = BlockStack(model)
    ids = windows[0]
    hidden = states(stack, ids)[1] + 1
    before = stack.logits_from(1, hidden, ids)
    assert not torch.equal(before, model(input_ids=ids, use_cache=False).logits)
    for parameter in stack.blocks[0].parameters():
        parameter.zero_()
    assert torch.equal(stack.logits_from(1, hidden, ids), before)


def test_callers_are_told_when_the_blocks_are_reached(windows: list[Tensor]) -> None:
    """embed and the head each say once when the part outside the blocks ends or begins."""
    stack = BlockStack(build("llama"))
    calls: list[str] = []
    prologue = stack.embed(windows[0], on_blocks=lambda: calls.append("blocks"))
    stack.head(prologue.hidden, windows[0], on_head=lambda: calls.append("head"))
    stack.logits_from(2, prologue.hidden, windows[0], on_entry=lambda: calls.append("entry"))
    assert calls == ["blocks", "head", "entry"]


def test_a_proof_leaves_nothing_behind(shape: str) -> None:
    """Making a stack leaves the model's forwards, hooks, gradients and random numbers as they were."""
    model = make(shape)
    state = torch.get_rng_state()
    stack = BlockStack(model)
    assert_restored(stack)
    assert torch.equal(torch.get_rng_state(), state)
    assert not any(block._forward_hooks or block._forward_pre_hooks for block in stack.blocks)
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())


class Planted(Exception):
    """An error planted in a model."""


def fail(*_: Any, **__: Any) -> None:
    """Raise the planted error."""
    raise Planted


def test_forwards_come_back_after_an_error(shape: str, windows: list[Tensor]) -> None:
    """An error inside the model comes out as it is, and every block has its own forward again."""
    model = make(shape)
    stack = BlockStack(model)
    expected = model(input_ids=windows[0], use_cache=False).logits
    hidden = stack.embed(windows[0]).hidden
    head, table = model.get_output_embeddings(), model.get_input_embeddings()
    for module, call in (
        (head, lambda: stack.head(hidden, windows[0])),
        (head, lambda: stack.logits_from(1, hidden, windows[0])),
        (table, lambda: stack.embed(windows[0])),
    ):
        hook = module.register_forward_pre_hook(fail)
        with pytest.raises(Planted):
            call()
        hook.remove()
        assert_restored(stack)
    assert torch.equal(model(input_ids=windows[0], use_cache=False).logits, expected)


def test_a_block_s_own_forward_comes_back(windows: list[Tensor]) -> None:
    """A forward that was set on a block itself, as libraries for placement do, is kept and not lost."""
    model = build("llama")
    block = model.model.layers[1]
    own = block.forward
    block.forward = own
    stack = BlockStack(model)
    stack.embed(windows[0])
    assert block.__dict__["forward"] is own
    with pytest.raises(AssertionError):  # and the comparison sees it
        assert_restored(stack)


class Skipping(LlamaForCausalLM):
    """A Llama whose head also reads the first block's output: no chain."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        kept: list[Tensor] = []
        self.model.layers[0].register_forward_hook(lambda _, __, output: kept.append(output))
        self.model.norm.register_forward_hook(lambda _, __, output: output + kept.pop())


def test_a_model_that_is_no_chain_is_refused() -> None:
    """A model whose head reads more than the last block's output is refused, with how far its logits are off."""
    torch.manual_seed(0)
    model = Skipping(CONFIGS["llama"]()).eval()
    with pytest.raises(ModelError) as caught:
        BlockStack(model)
    text = str(caught.value)
    assert text.startswith("Skipping is not the chain of its embedding, blocks and head: its logits differ by up to ")
    assert float(text.rpartition(" ")[2]) > 0


def test_blocks_that_share_weights_are_refused() -> None:
    """A block used twice, and a tensor shared by two blocks, are refused by name."""
    twice = build("llama")
    twice.model.layers[1] = twice.model.layers[0]
    with pytest.raises(ModelError) as caught:
        BlockStack(twice)
    assert str(caught.value) == (
        "blocks 0 and 1 of LlamaForCausalLM share self_attn.q_proj.weight\n"
        "hint: a stack whose blocks share weights cannot be scored block by block"
    )
    shared = build("llama")
    shared.model.layers[2].mlp.down_proj.weight = shared.model.layers[0].mlp.down_proj.weight
    with pytest.raises(ModelError, match=r"^blocks 0 and 2 of LlamaForCausalLM share mlp\.down_proj\.weight"):
        BlockStack(shared)


def test_a_model_that_leaves_blocks_out_is_refused(windows: list[Tensor]) -> None:
    """A forward that does not reach every block is an error with both numbers."""
    model = build("llama")
    stack = BlockStack(model)
    model.config.num_hidden_layers = 2
    with pytest.raises(ModelError) as caught:
        stack.embed(windows[0])
    assert str(caught.value) == "LlamaForCausalLM ran 2 of its 3 blocks"
    assert_restored(stack)


def test_a_short_context_is_no_obstacle() -> None:
    """A model of fewer positions than the proof's 32 tokens is proven on as many as it has."""
    config = CONFIGS["gpt2"]()
    config.n_positions = 8
    model = AutoModelForCausalLM.from_config(config).eval()
    assert isinstance(model.transformer.wpe, nn.Embedding)
    assert len(BlockStack(model)) == 3
