"""A text as tokens, cut into windows of which it is known how many bytes of the text each one predicts."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from esa.data.sources import load_text, naming
from esa.errors import DataError
from esa.spec.sections import Windows as WindowsSection


@dataclass(frozen=True)
class Cut:
    """Every window that a text holds, and how many bytes of it each one predicts.

    ``num_bytes(i)``: the UTF-8 bytes of the text that the predicted tokens of window i stand for. A token stands for the
    characters from where it starts up to where the next one starts; so a character of which several tokens hold a part
    counts with the token that ends it, and the tokens of the whole text add up to the text. None where the tokenizer does
    not tell where its tokens start (those not backed by ``tokenizers``).
    """

    ids: list[tuple[int, ...]]
    bos: bool
    num_bytes: Callable[[int], int] | None
    text_facts: Mapping[str, Any]


@dataclass(frozen=True)
class Tokens:
    """A text as tokens without special ones: all of it as one piece, or each non-empty line (``packing``).

    ``pieces``: per piece the characters, the token numbers, and where each token starts (``tokenizers.Encoding``; None where
    the tokenizer does not tell).
    """

    pieces: list[tuple[str, list[int], Any]]
    text_facts: Mapping[str, Any]


def tokenised(section: WindowsSection, tokenizer: Any, key: str | None = None) -> Tokens:
    """Return the section's text as tokens, which windows of any length are cut from.

    ``key``: the spec key that names the text, for errors; the section's ``source`` by default. Raises DataError for a text
    that cannot be read. Cost: the whole text is tokenised, however few windows are needed.
    """
    with naming(key or f"{section.key}.source"):
        text = load_text(section.source)
    lines = (line for line in text.content.splitlines() if line.strip())
    pieces = list(lines) if section.packing == "lines" else [text.content]
    with _untrimmed(tokenizer):
        return Tokens([(piece, *_encode(tokenizer, piece)) for piece in pieces], text.facts)


def cut_windows(section: WindowsSection, tokenizer: Any, key: str | None = None, tokens: Tokens | None = None) -> Cut:
    """Return every window that the text holds.

    ``stream``: the text is cut into consecutive windows, the ragged tail dropped. ``lines``: every non-empty line is one, cut
    at ``length``; those under 2 tokens are left out. ``tokens``: of the same text, where they are at hand.
    Raises DataError, naming ``key`` (the section's ``source`` by default), for a text that cannot be read.
    """
    with naming(key or f"{section.key}.source"):
        bos = _wants_bos(section, tokenizer)
        if section.length - bos < 1:
            raise DataError(f"length = {section.length} leaves no token beside BOS", where=section.source)
    tokens = tokens or tokenised(section, tokenizer, key)
    opening = (tokenizer.bos_token_id,) if bos else ()
    body = section.length - len(opening)
    spans = _line_spans(tokens, body, bos) if section.packing == "lines" else _stream_spans(tokens, body)
    told = all(encoding is not None for _, _, encoding in tokens.pieces)

    def num_bytes(window: int) -> int:
        piece, start, end = spans[window]
        text, _, encoding = tokens.pieces[piece]
        first = start if bos else start + 1  # what stands first in a window is not predicted
        return len(text[_start(text, encoding, first) : _start(text, encoding, end)].encode())

    ids = [opening + tuple(tokens.pieces[piece][1][start:end]) for piece, start, end in spans]
    return Cut(ids, bos, num_bytes if told else None, tokens.text_facts)


def _stream_spans(tokens: Tokens, body: int) -> list[tuple[int, int, int]]:
    """Return piece, first token and end of every window."""
    number = len(tokens.pieces[0][1]) // body
    return [(0, window * body, (window + 1) * body) for window in range(number)]


def _line_spans(tokens: Tokens, body: int, bos: bool) -> list[tuple[int, int, int]]:
    sizes = [min(len(ids), body) for _, ids, _ in tokens.pieces]
    return [(piece, 0, size) for piece, size in enumerate(sizes) if size + bos > 1]


def _encode(tokenizer: Any, text: str) -> tuple[list[int], Any]:
    found = tokenizer(text, add_special_tokens=False, verbose=False)
    encodings = getattr(found, "encodings", None)
    return list(found["input_ids"]), encodings[0] if encodings else None


@contextmanager
def _untrimmed(tokenizer: Any) -> Iterator[None]:
    """Take the post-processor out: it adds no token here, but Llama 3's moves the start of a token behind its spaces."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        yield
        return
    processor = backend.post_processor
    backend.post_processor = None
    try:
        yield
    finally:
        backend.post_processor = processor


def _start(text: str, encoding: Any, token: int) -> int:
    """Return the character at which a token starts; behind the last one the text ends."""
    while token < len(encoding):
        span = encoding.token_to_chars(token)
        if span is not None:
            return int(span[0])
        token += 1
    return len(text)


def _wants_bos(section: WindowsSection, tokenizer: Any) -> bool:
    known = tokenizer.bos_token_id is not None
    if section.bos == "auto":
        return known and list(tokenizer("a")["input_ids"])[:1] == [tokenizer.bos_token_id]
    if section.bos and not known:
        raise DataError("bos = true, but the tokenizer has no BOS token", where=section.source)
    return bool(section.bos)
