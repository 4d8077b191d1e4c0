"""Greedy continuations: the naive loop's tokens, their repetition, and their agreement with the intact model's."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch

from esa.eval.generation import agreement, continuations, evaluate, first_difference, measure, repetition
from esa.eval.variants import Variant, unchanged
from esa.model import LoadedModel
from tests.conftest import load
from tests.eval.edits import edit_of

PROMPTS = [(5, 9, 3), (1, 2, 3, 4), (7, 7, 2)]


def naive(loaded: LoadedModel, prompt: tuple[int, ...], number: int) -> list[int]:
    """Return the argmax token by token, a whole forward pass each, up to the first EOS (0)."""
    ids = list(prompt)
    while len(ids) < len(prompt) + number:
        with torch.no_grad():
            logits = loaded.model(input_ids=torch.tensor([ids]), use_cache=False).logits
        ids.append(int(logits[0, -1].argmax()))
        if ids[-1] == 0:
            break
    return ids[len(prompt) :]


@pytest.mark.parametrize("cached", [True, False])
def test_continuations_are_the_argmax_s(architecture: str, cached: bool) -> None:
    """The model's own generate, with and without its cache, gives the tokens of the naive loop, on every architecture."""
    loaded = load(architecture)
    found = continuations(loaded, PROMPTS, 9, 1000, cached=cached)
    assert found == [naive(loaded, prompt, 9) for prompt in PROMPTS]


def test_a_text_ends_at_its_first_eos() -> None:
    """A token that ends the text is its last; what a batch pads behind it is no part of it."""
    loaded = load("llama")
    whole = naive(loaded, PROMPTS[0], 9)
    loaded.model.generation_config.eos_token_id = [whole[2], 95]
    found = continuations(loaded, PROMPTS, 9, 1000)
    assert found is not None
    assert found[0] == whole[: whole.index(whole[2]) + 1]
    assert loaded.model.generation_config.eos_token_id == [whole[2], 95]


def test_defaults_for_chat_are_put_aside() -> None:
    """A model that ships sampling, a temperature and a repetition penalty continues greedily all the same, and keeps them."""
    loaded = load("llama")
    plain = continuations(loaded, PROMPTS, 9, 1000)
    config = loaded.model.generation_config
    config.do_sample, config.temperature, config.repetition_penalty, config.top_k = True, 9.0, 5.0, 3
    assert continuations(loaded, PROMPTS, 9, 1000) == plain
    assert (loaded.model.generation_config is config, config.repetition_penalty) == (True, 5.0)


def test_repetition_by_hand() -> None:
    """rep-n is one minus distinct over all n-grams; a text shorter than n has none."""
    assert repetition([1, 2, 1, 2, 1], 1) == pytest.approx(1 - 2 / 5)
    assert repetition([1, 2, 1, 2, 1], 2) == pytest.approx(1 - 2 / 4)
    assert repetition([1, 2, 3], 3) == 0
    assert repetition([1, 2, 3], 4) is None


def test_figures_by_hand() -> None:
    """rep_n is a mean over texts; distinct_n counts the n-grams of all of them together; agreement is over the longer."""
    result = evaluate([[1, 1, 1, 1], [1, 2, 3]], [[1, 1, 2, 1], [1, 2, 3, 4, 5]])
    assert result.figure("rep_1") == pytest.approx((3 / 4 + 0) / 2)
    assert result.figure("rep_4") == 0  # of the one text that has four tokens
    assert result.figure("distinct_1") == pytest.approx(3 / 7)
    assert result.figure("distinct_2") == pytest.approx(3 / 5)
    assert result.figure("agreement") == pytest.approx((3 / 4 + 3 / 5) / 2)
    assert result.figure("first_difference") == pytest.approx((2 + 3) / 2)
    assert result.num_tokens == 7
    assert (agreement([], []), first_difference([1], [2])) == (1.0, 0)


def test_the_intact_model_agrees_with_itself() -> None:
    """Against its own continuations agreement is 1 and the first difference lies at the end."""
    loaded = load("llama")
    (result,) = measure(loaded, PROMPTS, 9, [unchanged(loaded)], 1000, None)
    lengths = [len(naive(loaded, prompt, 9)) for prompt in PROMPTS]
    assert result.figure("agreement") == 1
    assert result.figure("first_difference") == pytest.approx(sum(lengths) / 3)


def test_a_change_is_in_the_model_while_it_writes() -> None:
    """A perturbed model's continuation is the naive loop's under the change, and the intact model's again afterwards."""
    loaded = load("llama")
    edit = edit_of(loaded, "model.layers.1.mlp.down_proj.weight", factor=-8.0)
    before = [naive(loaded, prompt, 9) for prompt in PROMPTS]
    (changed,) = measure(loaded, PROMPTS, 9, [Variant(1, lambda: edit.make(edit.names))], 1000, before)
    with edit.make(edit.names):
        assert changed.tokens == [naive(loaded, prompt, 9) for prompt in PROMPTS]
    assert changed.tokens != before
    assert changed.figure("agreement") < 1
    assert continuations(loaded, PROMPTS, 9, 1000) == before


def test_a_hooked_change_sees_whole_windows() -> None:
    """A change that looks for a window's peak runs without the cache: every step's blocks see all tokens so far."""
    loaded = load("llama")
    seen: list[int] = []

    @contextmanager
    def watching() -> Iterator[None]:
        module: Any = loaded.model.get_submodule("model.layers.0.mlp")
        handle = module.register_forward_hook(lambda module, args, output: seen.append(args[0].shape[1]))
        yield
        handle.remove()

    for hooked, expected in ((False, [3, 1, 1]), (True, [3, 4, 5])):
        seen.clear()
        measure(loaded, [(5, 9, 3)], 3, [Variant(0, watching, hooked)], 1000, None)
        assert seen == expected[: len(seen)]
        assert len(seen) > 1


def test_nan_logits_leave_nothing() -> None:
    """A model of NaN writes nothing that counts: every figure null, and it is said."""
    loaded = load("llama")
    edit = edit_of(loaded, "lm_head.weight", factor=float("nan"))
    (result,) = measure(loaded, PROMPTS, 4, [Variant(3, lambda: edit.make(edit.names))], 1000, [[1], [2], [3]])
    assert result.nonfinite
    assert {value for _, value, _ in result.figures} == {None}
