"""The gradient at the touched weights is that of the whole loss, whatever the family, the batch and the storage."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from esa.data import TokenWindows
from esa.errors import ModelError
from esa.model import LoadedModel, load_model
from esa.perturb.gradients import touched_gradients
from esa.progress import Silent
from esa.spec.sections import Model
from tests.conftest import VOCABULARY, build, load, make_tokenizer
from tests.families import FAMILIES, load_family
from tests.perturb.test_hooks import eval_windows
from tests.quantized import DOWN, UP, dense_twin, load_quantized

Touched = dict[str, Tensor]


def some_of(loaded: LoadedModel, every: int = 1, step: int = 7) -> Touched:
    """Return every ``step``-th index of every ``every``-th parameter."""
    return {name: torch.arange(0, info.numel, step) for name, info in list(loaded.table.items())[::every]}


def backward_gradients(loaded: LoadedModel, windows: TokenWindows) -> dict[str, Tensor]:
    """Return the gradient of the mean NLL per predicted token by one ``loss.backward()``, window by window, in no block order."""
    loaded.model.zero_grad()
    for ids in windows.ids:
        tokens = torch.tensor([ids])
        logits = loaded.model(input_ids=tokens, use_cache=False).logits[0, :-1].float()
        (F.cross_entropy(logits, tokens[0, 1:], reduction="sum") / windows.num_predicted).backward()
    found = {name: p.grad for name, p in loaded.model.named_parameters() if p.grad is not None}
    loaded.model.zero_grad()
    return {name: gradient.detach().clone() for name, gradient in found.items()}


def assert_close(found: Any, expected: dict[str, Tensor], touched: Touched, tolerance: float = 1e-4) -> None:
    """Raise AssertionError, naming the tensor, unless every touched gradient is the expected one.

    Those of a key bias are zero but for roundings: softmax does not see it.
    """
    assert list(found) == list(touched)
    for name, (index, gradient) in found.items():
        assert torch.equal(index, touched[name]), name
        assert gradient.dtype == torch.float32
        wanted = expected[name].reshape(-1)[index].float()
        assert (gradient - wanted).abs().max() <= tolerance * max(float(expected[name].abs().max()), 1e-4), name


def test_the_comparison_can_fail() -> None:
    """A gradient of another model is noticed."""
    loaded, windows = load("llama"), eval_windows()
    touched = some_of(loaded)
    expected = backward_gradients(loaded, windows)
    expected[next(iter(expected))] *= 1.01
    with pytest.raises(AssertionError, match="embed_tokens"):
        assert_close(touched_gradients(loaded, windows, touched, 100, Silent()), expected, touched)


@pytest.mark.parametrize("name", FAMILIES)
def test_gradients_equal_backward(name: str) -> None:
    """On every family, of every tensor that a gradient reaches: dense, tied, Conv1D, fused, experts, state space."""
    loaded, windows = load_family(name), eval_windows()
    expected = backward_gradients(loaded, windows)
    touched = {n: index for n, index in some_of(loaded).items() if n in expected}
    assert len(touched) > 10
    assert_close(touched_gradients(loaded, windows, touched, 18, Silent()), expected, touched)


@pytest.mark.parametrize("batch_tokens", [1, 18, 1000])
def test_the_batch_changes_nothing_but_roundings(batch_tokens: int) -> None:
    """Windows of unequal length weigh by their predicted tokens, one by one or together."""
    loaded, windows = load("llama_tied"), eval_windows()
    touched = some_of(loaded)
    found = touched_gradients(loaded, windows, touched, batch_tokens, Silent())
    assert_close(found, backward_gradients(loaded, windows), touched, 1e-5)


PARTS = {
    "a middle block": ["model.layers.1.mlp.down_proj.weight"],
    "the last block": ["model.layers.2.self_attn.v_proj.weight"],
    "the head": ["lm_head.weight"],
    "the embedding": ["model.embed_tokens.weight"],
    "both ends": ["model.embed_tokens.weight", "model.norm.weight"],
}


@pytest.mark.parametrize("part", PARTS)
def test_it_goes_no_deeper_than_it_must(part: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A touched block runs again with those above it and no others; the gradients are the same."""
    loaded, windows = load("llama"), eval_windows()
    touched = {name: torch.arange(3) for name in PARTS[part]}
    expected, runs = backward_gradients(loaded, windows), []
    run_block = type(loaded.stack).run_block

    def counted(self: Any, number: int, hidden: Tensor, prologue: Any) -> Tensor:
        if torch.is_grad_enabled():
            runs.append(number)
        return run_block(self, number, hidden, prologue)

    monkeypatch.setattr(type(loaded.stack), "run_block", counted)
    assert_close(touched_gradients(loaded, windows, touched, 1000, Silent()), expected, touched, 1e-5)
    below = {"a middle block": {2, 1}, "the last block": {2}, "the head": set()}.get(part, {2, 1, 0})
    assert set(runs) == below


def test_a_tied_tensor_adds_over_its_uses() -> None:
    """The tied embedding's gradient is the sum of those that an untied copy of the model has as embedding and head."""
    tied, windows = load("llama_tied"), eval_windows()
    untied = load("llama")
    with torch.no_grad():
        for name, parameter in untied.model.named_parameters():
            parameter.copy_(tied.parameters()[name if name != "lm_head.weight" else "model.embed_tokens.weight"])
    every = torch.arange(VOCABULARY * 16)
    name = "model.embed_tokens.weight"
    _, found = touched_gradients(tied, windows, {name: every}, 100, Silent())[name]
    parts = touched_gradients(untied, windows, {name: every, "lm_head.weight": every}, 100, Silent())
    assert torch.allclose(found, parts[name][1] + parts["lm_head.weight"][1], rtol=1e-4, atol=1e-7)


def test_what_required_gradients_does_so_afterwards() -> None:
    """Frozen parameters get gradients and stay frozen, no gradient is left behind, even after a failure."""
    loaded, windows = load("llama"), eval_windows()
    parameters = loaded.parameters()
    for number, parameter in enumerate(parameters.values()):
        parameter.requires_grad_(number % 2 == 0)
    touched_gradients(loaded, windows, some_of(loaded), 100, Silent())
    broken = parameters["model.norm.weight"]
    with torch.no_grad():
        broken[0] = float("nan")
    with pytest.raises(ModelError, match="is not finite"):
        touched_gradients(loaded, windows, some_of(loaded), 100, Silent())
    assert [p.requires_grad for p in parameters.values()] == [n % 2 == 0 for n in range(len(parameters))]
    assert all(p.grad is None for p in parameters.values())


def test_what_no_text_reaches_is_said() -> None:
    """Rows of tokens that the windows do not hold have gradient zero in an untied embedding: a warning counts them."""
    loaded, windows, progress = load("llama"), eval_windows(), Silent()
    seen = {token for ids in windows.ids for token in ids[:-1]}
    unseen = next(token for token in range(VOCABULARY) if token not in seen)
    touched = {"model.embed_tokens.weight": torch.tensor(sorted([unseen * 16, unseen * 16 + 1, min(seen) * 16]))}
    touched_gradients(loaded, windows, touched, 100, progress)
    assert progress.warnings == [
        "the calibration loss has gradient zero at 2 of 3 touched weights: gradient leaves them alone"
    ]
    touched_gradients(loaded, windows, {"lm_head.weight": torch.arange(5)}, 100, again := Silent())
    assert again.warnings == []


def test_a_tensor_that_no_gradient_reaches_is_refused() -> None:
    """A parameter that takes no part in the loss cannot be stepped along its gradient."""
    loaded = load("llama")
    loaded.stack.blocks[1].mlp.down_proj.forward = lambda x: x[..., :16] * 1.0
    name = "model.layers.1.mlp.down_proj.weight"
    with pytest.raises(ModelError) as raised:
        touched_gradients(loaded, eval_windows(), {name: torch.arange(3)}, 100, Silent())
    assert raised.value.what == f"no gradient reaches 1 of the touched parameters: {name}"


def test_nf4_gradients_are_those_of_the_dense_model() -> None:
    """Codes have the gradient of the numbers that they stand for."""
    loaded, windows = load_quantized("nf4"), eval_windows()
    touched = {name: torch.arange(0, 8192, 5) for name in (UP, DOWN)}
    expected = backward_gradients(dense_twin(loaded), windows)
    assert_close(touched_gradients(loaded, windows, touched, 100, Silent()), expected, touched)


def test_int8_gradients_do_not_depend_on_the_batch() -> None:
    """Int8 maps round a batch's inputs together: their windows go one by one, and the gradient stays near the dense one's."""
    loaded, windows = load_quantized("int8"), eval_windows()
    touched = {name: torch.arange(0, 8192, 5) for name in (UP, DOWN)}
    found = touched_gradients(loaded, windows, touched, 1000, Silent())
    alone = touched_gradients(loaded, windows, touched, 1, Silent())
    for name in touched:
        assert torch.equal(found[name][1], alone[name][1])
    expected = backward_gradients(dense_twin(loaded), windows)
    for name, (index, gradient) in found.items():
        assert F.cosine_similarity(gradient, expected[name].reshape(-1)[index], dim=0) > 0.99


@pytest.mark.parametrize("name", ["llama", "gpt2", "mixtral"])
def test_blocks_on_disk_give_the_same_bits(name: str, tmp_path: Path) -> None:
    """A model whose blocks come from disk has the gradients of the one in memory."""
    build(name).save_pretrained(tmp_path / "model")
    make_tokenizer().save_pretrained(tmp_path / "model")
    found = []
    for residency in ("memory", "disk"):
        loaded = load_model(Model(id=str(tmp_path / "model"), device="cpu", residency=residency))  # type: ignore[arg-type]
        found.append(touched_gradients(loaded, eval_windows(), some_of(loaded, 3), 18, Silent()))
    for parameter, (index, gradient) in found[0].items():
        assert torch.equal(found[1][parameter][0], index)
        assert torch.equal(found[1][parameter][1], gradient), parameter


def test_bfloat16_is_summed_wider() -> None:
    """A bfloat16 model's gradients are near those of the same weights in float32."""
    loaded, wide = load("llama", torch.bfloat16), load("llama", torch.bfloat16, compute="float32")
    touched = {DOWN: torch.arange(384)}
    _, found = touched_gradients(loaded, eval_windows(), touched, 1, Silent())[DOWN]
    _, exact = touched_gradients(wide, eval_windows(), touched, 1, Silent())[DOWN]
    assert F.cosine_similarity(found, exact, dim=0) > 0.99
