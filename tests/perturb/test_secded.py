"""The code corrects one wrong bit, detects two, and never takes three for none."""

from itertools import combinations

import numpy as np
import pytest

from esa.perturb.faults.secded import (
    CHECK_BITS,
    CLEAN,
    CODE_BITS,
    COLUMNS,
    CORRECTED,
    DATA_BITS,
    DETECTED,
    check_bits,
    decode,
    pack,
    unpack,
)

MATRIX = np.array([[column >> row & 1 for column in COLUMNS] for row in range(CHECK_BITS)])  # (8, 72)
WORDS = np.random.default_rng(0).integers(0, 1 << 64, 5, dtype=np.uint64)
EDGES = np.array([0, (1 << 64) - 1, *WORDS], dtype=np.uint64)


def codeword(word: int, check: int) -> np.ndarray:
    """Return the 72 bits of a word with its check bits, bit by bit."""
    return np.array([word >> bit & 1 for bit in range(DATA_BITS)] + [check >> bit & 1 for bit in range(CHECK_BITS)])


def naive(bits: np.ndarray) -> tuple[int, int]:
    """Return the word and the status that a matrix product and a search among the columns give."""
    bits = bits.copy()
    syndrome = MATRIX @ bits % 2
    hits = [bit for bit in range(CODE_BITS) if (MATRIX[:, bit] == syndrome).all()]
    if hits:
        bits[hits[0]] ^= 1
    status = CLEAN if not syndrome.any() else CORRECTED if hits else DETECTED
    return sum(int(bit) << place for place, bit in enumerate(bits[:DATA_BITS])), status


def struck(word: int, patterns: list[tuple[int, ...]]) -> tuple[np.ndarray, np.ndarray]:
    """Return a word and its check bits as they are read under each pattern of wrong codeword bits."""
    masks = [sum(1 << bit for bit in pattern) for pattern in patterns]
    words = np.array([mask & (1 << 64) - 1 for mask in masks], dtype=np.uint64) ^ np.uint64(word)
    clean = int(check_bits(np.array([word], dtype=np.uint64))[0])
    return words, np.array([mask >> DATA_BITS for mask in masks], dtype=np.uint8) ^ np.uint8(clean)


def test_the_columns_are_those_of_a_hsiao_code() -> None:
    """72 different columns of odd weight, 56 of them of weight 3 and 8 of weight 5, every row with 27 ones."""
    assert len(set(COLUMNS)) == CODE_BITS
    weights = [column.bit_count() for column in COLUMNS]
    assert [weights.count(weight) for weight in (1, 3, 5)] == [8, 56, 8]
    assert MATRIX.sum(axis=1).tolist() == [27] * CHECK_BITS


def test_check_bits_are_the_matrix_times_the_word() -> None:
    """Every codeword has syndrome zero by a plain matrix product, and decodes as clean."""
    checks = check_bits(EDGES)
    for word, check in zip(EDGES.tolist(), checks.tolist(), strict=True):
        assert not (MATRIX @ codeword(word, check) % 2).any()
    found = decode(EDGES, checks)
    assert found.words.tolist() == EDGES.tolist()
    assert set(found.status.tolist()) == {CLEAN}


@pytest.mark.parametrize("word", EDGES.tolist())
def test_every_single_wrong_bit_is_corrected(word: int) -> None:
    """All 72 patterns of one wrong bit come back as the word that was stored."""
    found = decode(*struck(word, [(bit,) for bit in range(CODE_BITS)]))
    assert set(found.words.tolist()) == {word}
    assert set(found.status.tolist()) == {CORRECTED}


@pytest.mark.parametrize("word", EDGES.tolist())
def test_every_pair_of_wrong_bits_is_detected(word: int) -> None:
    """All 2,556 patterns of two wrong bits are detected, and the word is left as it was read."""
    pairs = list(combinations(range(CODE_BITS), 2))
    assert len(pairs) == 2556
    words, checks = struck(word, pairs)
    found = decode(words, checks)
    assert set(found.status.tolist()) == {DETECTED}
    assert found.words.tolist() == words.tolist()


def test_three_wrong_bits_are_never_clean() -> None:
    """All 59,640 patterns of three: none is clean, none gives the right word, most are corrected wrongly."""
    triples = list(combinations(range(CODE_BITS), 3))
    word = int(WORDS[0])
    found = decode(*struck(word, triples))
    assert not (found.status == CLEAN).any()
    assert not (found.words == np.uint64(word)).any()
    assert (found.status == DETECTED).any()
    assert (found.status == CORRECTED).mean() > 0.5  # wrongly: a decoder cannot know


@pytest.mark.parametrize("number", [0, 1, 2, 3, 4, 5, 9])
def test_the_decoder_is_the_matrix_decoder(number: int) -> None:
    """On random patterns of any number of wrong bits, words and verdicts are those of the plain matrix decoder."""
    draw = np.random.default_rng(number)
    patterns = [tuple(draw.choice(CODE_BITS, number, replace=False).tolist()) for _ in range(150)]
    words, checks = struck(int(WORDS[1]), patterns)
    found = decode(words, checks)
    expected = [naive(codeword(*pair)) for pair in zip(words.tolist(), checks.tolist(), strict=True)]
    assert list(zip(found.words.tolist(), found.status.tolist(), strict=True)) == expected


@pytest.mark.parametrize("width", [4, 8, 16, 32])
def test_packing_and_unpacking_are_inverse(width: int) -> None:
    """Numbers fill words from the lowest bits on, and come out again."""
    numbers = np.random.default_rng(width).integers(0, 1 << width, (9, 64 // width), dtype=np.uint64)
    words = pack(numbers, width)
    assert words[3] == sum(int(number) << width * place for place, number in enumerate(numbers[3]))
    assert (unpack(words, width) == numbers).all()
