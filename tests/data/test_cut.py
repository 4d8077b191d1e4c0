"""How many bytes of a text a window predicts, where tokens and characters do not meet: exact, by a naive count of bytes."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from esa.data import calibration_windows
from esa.data.cut import cut_windows
from esa.spec.sections import Calibration
from tests.conftest import make_tokenizer

TEXT = (
    "Café au lait, naïve, „Größe“ & 100 €.\n\n  Zwei Leerzeichen ; x )\n"
    "日本語のテキスト、漢字とかな。 العربية हिन्दी\n🎉🎊 emoji 👩‍👩‍👧 and \U0001d54f \t tab\n"
) * 3


def byte_level(trim: bool = False, merges: int = 60) -> Any:
    """Return a byte-level BPE as GPT-2 and Llama 3 have it; few merges leave most characters in pieces."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=256 + merges, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator([TEXT], trainer)
    if trim:  # Llama 3: the token of " a" says it starts at the "a"
        tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


def sentence_pieces() -> Any:
    """Return a BPE with the spaces as U+2581 and bytes for unknown characters, as Llama 2 and Mistral have it."""
    letters = sorted({*TEXT.replace(" ", "\u2581")} - {*"日本語🎉👩\U0001d54f€"})
    vocabulary = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), "\u2581", *letters]
    found = {token: number for number, token in enumerate(dict.fromkeys(vocabulary))}
    tokenizer = Tokenizer(models.BPE(vocab=found, merges=[], unk_token="<unk>", byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>")


def token_bytes(tokenizer: Any) -> list[int]:
    """Return the bytes of each token of TEXT: one per character of a byte-level token."""
    return [len(token) for token in tokenizer.convert_ids_to_tokens(tokenizer(TEXT)["input_ids"])]


def counted(sizes: list[int], first: int, end: int) -> int:
    """Count the bytes of the characters of TEXT whose last byte lies in tokens ``first`` to ``end - 1``, one by one."""
    owner = [token for token, size in enumerate(sizes) for _ in range(size)]
    total, at = 0, 0
    for character in TEXT:
        size = len(character.encode())
        total += size if first <= owner[at + size - 1] < end else 0
        at += size
    assert at == len(owner)
    return total


def cut(tokenizer: Any, **keys: Any) -> Any:
    """Return every window of TEXT."""
    Path("t.txt").write_text(TEXT, encoding="utf-8")
    return cut_windows(Calibration(source="file:t.txt", windows=1, **keys), tokenizer)


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Name texts by relative paths."""
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("trim", [False, True])
@pytest.mark.parametrize("length", [2, 3, 7, 16, 64])
def test_bytes_are_those_of_the_characters_that_end(length: int, trim: bool) -> None:
    """A window's bytes equal a count byte by byte, wherever its borders cut characters of two, three and four bytes."""
    tokenizer = byte_level(trim)
    found, sizes = cut(tokenizer, length=length), token_bytes(tokenizer)
    for window in range(len(found.ids)):
        first = window * length
        assert found.num_bytes(window) == counted(sizes, first + 1, first + length), window


def test_decoding_would_miscount() -> None:
    """The windows really cut characters: what decodes to U+FFFD, of three bytes, makes a count by decoding wrong."""
    tokenizer = byte_level()
    found = cut(tokenizer, length=16)
    decoded = [len(tokenizer.decode(ids[1:]).encode()) for ids in found.ids]
    assert any("\ufffd" in tokenizer.decode(ids[1:]) for ids in found.ids)
    assert decoded != [found.num_bytes(window) for window in range(len(found.ids))]


def test_a_tokenizer_is_left_as_it_was() -> None:
    """What trims the starts of tokens is back in its place after a text was cut."""
    tokenizer = byte_level(trim=True)
    before = tokenizer.backend_tokenizer.to_str()
    cut(tokenizer, length=8)
    assert tokenizer.backend_tokenizer.to_str() == before


TOKENIZERS = [byte_level, lambda: byte_level(trim=True), sentence_pieces, make_tokenizer]


@pytest.mark.parametrize("make", TOKENIZERS)
def test_every_byte_counts_once(make: Callable[[], Any]) -> None:
    """Behind BOS every token is predicted: each alone or all together, they add up to the bytes of the text."""
    tokenizer = make()
    tokenizer.bos_token = tokenizer.bos_token or tokenizer.convert_ids_to_tokens(0)
    number = len(tokenizer(TEXT, add_special_tokens=False)["input_ids"])
    alone = cut(tokenizer, length=2, bos=True)
    assert len(alone.ids) == number
    assert sum(map(alone.num_bytes, range(number))) == len(TEXT.encode())
    assert cut(tokenizer, length=number + 1, bos=True).num_bytes(0) == len(TEXT.encode())


def test_lines_count_alone() -> None:
    """Each line's bytes are those of its predicted tokens, cut at length or not; BOS makes the first one predicted."""
    Path("t.txt").write_text("äöü\nabcdef\n\n€\n", encoding="utf-8")
    section = Calibration(source="file:t.txt", windows=2, length=4, packing="lines", sample="first")
    found = cut_windows(section, byte_level(merges=0))
    # two bytes each: the second token ends the ä, the fourth the ö; then b, c, d; then the € that three tokens hold
    assert [(len(ids), found.num_bytes(window)) for window, ids in enumerate(found.ids)] == [(4, 4), (4, 3), (3, 3)]
    windows = calibration_windows(section, byte_level(merges=0), (0,))[0]
    assert windows.num_bytes == 7


def test_a_tokenizer_that_does_not_tell_has_no_bytes() -> None:
    """Where the starts of tokens are unknown no bytes are made up: there are none."""
    tokenizer = make_tokenizer()

    class Slow:
        """A tokenizer in Python: token numbers and nothing else."""

        bos_token_id = None

        def __call__(self, text: str, **_: Any) -> dict[str, list[int]]:
            return {"input_ids": tokenizer(text)["input_ids"]}

    found = cut(Slow(), length=8)
    assert (found.num_bytes, len(found.ids) > 3) == (None, True)
    section = Calibration(source="file:t.txt", windows=2, length=8, sample="first")
    assert calibration_windows(section, Slow(), (0,))[0].num_bytes == 0
