"""Log-likelihoods of continuations: tokens, cuts and sums against the plain loop."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch

from esa.data import TokenWindows
from esa.errors import DataError
from esa.eval import Evaluator
from esa.eval.loglikelihood import Answer, Request, encode_pair, loglikelihoods, longest_input, num_cut, require_room
from esa.eval.variants import Variant, unchanged, variant_logits
from esa.model import LoadedModel
from tests.conftest import VOCABULARY, load, make_tokenizer
from tests.eval.edits import edit_of, places

REQUESTS = [
    Request((5, 9, 3), (7, 2)),
    Request((1,), (4, 4, 4, 8)),
    Request((8, 8), (6,)),
    Request((5, 9, 3), (2, 7)),
    Request(tuple(range(20)), (3, 1, 4)),
]


def naive(loaded: LoadedModel, request: Request) -> tuple[float, bool]:
    """Return a request's log-likelihood by a whole forward pass in a batch of one, float64, token by token."""
    tokens = request.context + request.continuation
    with torch.no_grad():
        logits = loaded.model(input_ids=torch.tensor([tokens]), use_cache=False).logits[0].double().log_softmax(-1)
    places = range(len(request.context), len(tokens))
    total = sum(float(logits[place - 1, tokens[place]]) for place in places)
    return total, all(int(logits[place - 1].argmax()) == tokens[place] for place in places)


def assert_answers(found: list[Answer], expected: list[tuple[float, bool]]) -> None:
    """Raise AssertionError unless log-likelihoods agree to 1e-5 and greedy matches exactly."""
    for answer, (loglik, greedy) in zip(found, expected, strict=True):
        assert answer.loglik == pytest.approx(loglik, abs=1e-5)
        assert answer.greedy == greedy


@pytest.mark.parametrize("batch_tokens", [2, 12, 4096])
def test_log_likelihoods_equal_a_plain_loop(architecture: str, batch_tokens: int) -> None:
    """Sums and greedy matches agree with one whole forward pass per request, on every architecture, in any batches."""
    loaded = load(architecture)
    greedy = loaded.model(input_ids=torch.tensor([[3, 5]])).logits[0, -1].argmax().item()
    requests = [*REQUESTS, Request((3, 5), (greedy,))]
    (found,) = loglikelihoods(loaded, requests, [unchanged(loaded)], batch_tokens)
    assert_answers(found, [naive(loaded, request) for request in requests])
    assert found[-1].greedy
    with pytest.raises(AssertionError):
        assert_answers(found, [(value + 1e-4, match) for value, match in map(naive, [loaded] * 6, requests)])


@pytest.mark.parametrize("place", list(places(load("llama"))))
def test_variants_equal_whole_passes_under_the_change(architecture: str, place: str) -> None:
    """A change anywhere gives what a whole forward pass under it gives, beside the intact model and another change."""
    loaded = load(architecture)
    names = places(loaded)[place]
    if not names:
        pytest.skip(f"{architecture} has no {place}")
    edit, other = edit_of(loaded, *names), edit_of(loaded, places(loaded)["block 1"][0], factor=0.5)
    windows = TokenWindows(((1, 2, 3),), "x", "stream", 3, False, 1, 0)
    start = Evaluator(loaded, windows, 8).first_block
    variants = [
        Variant(start(edit.names), lambda: edit.make(edit.names)),
        unchanged(loaded),
        Variant(start(other.names), lambda: other.make(other.names)),
    ]
    found = loglikelihoods(loaded, REQUESTS, variants, 64)
    for answers, variant in zip(found, variants, strict=True):
        with variant.make():
            expected = [naive(loaded, request) for request in REQUESTS]
        assert_answers(answers, expected)
    assert found[0] != found[1]


def test_a_hooked_variant_sees_whole_windows() -> None:
    """The head runs on the last positions alone, unless the change looks at whole windows."""
    loaded = load("llama")
    seen: list[int] = []

    @contextmanager
    def hooked() -> Iterator[None]:
        handle = loaded.model.lm_head.register_forward_hook(lambda module, args, output: seen.append(args[0].shape[1]))
        yield
        handle.remove()

    ids = torch.tensor([[1, 2, 3, 4, 5]])
    with torch.no_grad():
        shapes = [
            logits.shape for logits in variant_logits(loaded, ids, [Variant(3, hooked), Variant(3, hooked, True)], 2)
        ]
    assert seen == [2, 5]
    assert shapes == [(1, 2, VOCABULARY)] * 2


def test_long_inputs_lose_their_left_end() -> None:
    """What the model cannot read at once is cut at the left, the last token never being an input; the cuts are counted."""
    loaded = load("llama")  # 64 positions
    assert longest_input(loaded) == 64
    long = Request(tuple(n % VOCABULARY for n in range(80)), (7, 8, 9))
    fits = Request(tuple(range(62)), (7, 8, 9))  # 64 inputs
    assert long.inputs(64) == (*[n % VOCABULARY for n in range(18, 80)], 7, 8)
    assert fits.inputs(64) == (*range(62), 7, 8)
    assert num_cut([long, fits, *REQUESTS], loaded) == 1
    (found,) = loglikelihoods(loaded, [long], [unchanged(loaded)], 64)
    assert_answers(found, [naive(loaded, Request(long.context[18:], long.continuation))])
    with pytest.raises(DataError, match="a continuation has 65 tokens; the model reads 64"):
        require_room([Request((1,), (1,) * 65)], loaded, "x")


def test_the_length_of_a_model_that_states_none_is_its_tokenizer_s(monkeypatch: pytest.MonkeyPatch) -> None:
    """The configuration speaks first, then the tokenizer, unless it knows none either; then it is 2,048."""
    loaded = load("llama")
    monkeypatch.setattr("esa.eval.loglikelihood._LENGTH_KEYS", ())
    assert longest_input(loaded) == 2048  # the tokenizer says 1e30
    loaded.tokenizer.model_max_length = 77
    assert longest_input(loaded) == 77


def test_spaces_at_the_end_of_the_context_move() -> None:
    """Context and continuation are split where the context without its last spaces ends."""
    tokenizer = make_tokenizer()
    ids = {letter: tokenizer.encode(letter)[0] for letter in "ab "}
    found = encode_pair(tokenizer, "a  ", "b", "auto", "")
    assert found == Request((ids["a"],), (ids[" "], ids[" "], ids["b"]))
    assert encode_pair(tokenizer, "a", " b", "auto", "") == Request((ids["a"],), (ids[" "], ids["b"]))


class Joining:
    """A tokenizer that opens texts with 1, and makes one token, 9, of ``a b``: tokens depend on what follows."""

    bos_token_id, eos_token_id = 1, 2

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """Return 1 where asked for, and a token per letter but for the one that joins."""
        ids = [9] if text == "a b" else [ord(letter) for letter in text]
        return [*([1] if add_special_tokens else []), *ids]

    def decode(self, token: int) -> str:
        """Return the name of a special token."""
        return "<s>"


def test_bos_opens_as_the_tokenizer_does_or_as_the_spec_says() -> None:
    """auto leaves it to the tokenizer, and not twice where the text opens with BOS; true and false decide."""
    tokenizer: Any = Joining()
    a, b = ord("a"), ord("b")
    assert encode_pair(tokenizer, "ab", "b", "auto", "") == Request((1, a, b), (b,))
    assert encode_pair(tokenizer, "ab", "b", True, "") == Request((1, a, b), (b,))
    assert encode_pair(tokenizer, "ab", "b", False, "") == Request((a, b), (b,))
    opened = encode_pair(tokenizer, "<s>a", "b", "auto", "")
    assert opened.context == tuple(map(ord, "<s>a"))
    assert encode_pair(tokenizer, "", "ab", "auto", "") == Request((1,), (a, b))


def test_a_continuation_without_tokens_is_refused() -> None:
    """Where the whole has no more tokens than the context there is nothing to score: the texts are shown."""
    with pytest.raises(DataError, match=r"item 3: has a continuation of no token: 'a' \+ ' b'"):
        encode_pair(Joining(), "a", " b", False, "item 3")


def test_nan_logits_give_no_number() -> None:
    """A model of NaN answers None to everything."""
    loaded = load("llama")
    with torch.no_grad():
        loaded.parameters()["lm_head.weight"].fill_(float("nan"))
    (found,) = loglikelihoods(loaded, REQUESTS, [unchanged(loaded)], 64)
    assert set(found) == {Answer(None, False)}
