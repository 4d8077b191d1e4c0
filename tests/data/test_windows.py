"""Text becomes token windows: cut as the design says, drawn by seed, identified by their token numbers."""

import hashlib
from pathlib import Path
from typing import Any

import pytest
from tokenizers.processors import TemplateProcessing

from esa.data import TokenWindows, calibration_windows, eval_windows
from esa.data.cut import cut_windows
from esa.errors import DataError
from esa.progress import Silent
from esa.spec.sections import Calibration, Eval
from tests.conftest import make_tokenizer

# Each printable character is its own token: its code less 31. Everything else is 0, which is also BOS.
A, B, C, D, E, F, G = (ord(letter) - 31 for letter in "abcdefg")
NEWLINE = BOS = 0


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Name texts by relative paths."""
    monkeypatch.chdir(tmp_path)


def opening_tokenizer() -> Any:
    """Return a tokenizer that opens a text with BOS by itself."""
    tokenizer = make_tokenizer()
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<unk> $A", pair="<unk> $A $B", special_tokens=[("<unk>", 0)]
    )
    return tokenizer


def nameless_tokenizer() -> Any:
    """Return a tokenizer without a BOS token."""
    tokenizer = make_tokenizer()
    tokenizer.bos_token = None
    return tokenizer


def section(text: str | None = None, **keys: Any) -> Calibration:
    """Return a section over a text in a file of its own."""
    if text is not None:
        Path("t.txt").write_text(text, encoding="utf-8")
    return Calibration(**{"source": "file:t.txt", "windows": 1, **keys})


def cut(text: str, tokenizer: Any = None, **keys: Any) -> tuple[list[tuple[int, ...]], bool]:
    """Return every window of a text and whether each opens with BOS."""
    found = cut_windows(section(text, **keys), tokenizer or make_tokenizer())
    return found.ids, found.bos


def message(error: pytest.ExceptionInfo[DataError]) -> str:
    """Return what a person reads."""
    return str(error.value)


CUTS: dict[str, tuple[str, dict[str, Any], list[tuple[int, ...]]]] = {
    "a stream, its ragged tail dropped": ("abcdefg", {"length": 3}, [(A, B, C), (D, E, F)]),
    "a stream that fits": ("abcdef", {"length": 3}, [(A, B, C), (D, E, F)]),
    "a stream across lines": ("ab\ncd", {"length": 2}, [(A, B), (NEWLINE, C)]),
    "a stream under one window": ("ab", {"length": 3}, []),
    "a stream, length counting BOS": ("abcdefg", {"length": 3, "bos": True}, [(BOS, A, B), (BOS, C, D), (BOS, E, F)]),
    "a stream of BOS and one token": ("abc", {"length": 2, "bos": True}, [(BOS, A), (BOS, B), (BOS, C)]),
    "lines, empty ones left out": ("ab\n\n  \ncde\n", {"length": 9, "packing": "lines"}, [(A, B), (C, D, E)]),
    "lines cut at length": ("abcdef\nab", {"length": 3, "packing": "lines"}, [(A, B, C), (A, B)]),
    "lines under two tokens left out": ("a\nbc\nd", {"length": 3, "packing": "lines"}, [(B, C)]),
    "lines with BOS": ("a\nbcd", {"length": 3, "packing": "lines", "bos": True}, [(BOS, A), (BOS, B, C)]),
    "lines of Windows": ("ab\r\ncd\r\n", {"length": 3, "packing": "lines"}, [(A, B), (C, D)]),
}


@pytest.mark.parametrize("case", CUTS)
def test_a_text_is_cut_by_hand(case: str) -> None:
    """Each packing gives the very windows that one cuts by hand."""
    text, keys, expected = CUTS[case]
    assert cut(text, **keys) == (expected, keys.get("bos", False))


BOS_CASES = [
    (make_tokenizer, "auto", False), (make_tokenizer, True, True), (make_tokenizer, False, False),
    (opening_tokenizer, "auto", True), (opening_tokenizer, True, True), (opening_tokenizer, False, False),
    (nameless_tokenizer, "auto", False), (nameless_tokenizer, False, False),
]  # fmt: skip


@pytest.mark.parametrize("packing", ["stream", "lines"])
@pytest.mark.parametrize(("tokenizer", "bos", "opens"), BOS_CASES)
def test_bos_opens_every_window_or_none(tokenizer: Any, bos: bool | str, opens: bool, packing: str) -> None:
    """bos says whether windows open with BOS, auto asks whether the tokenizer opens a text so, and it is never doubled."""
    windows, found = cut("abcdef\nabcdef\n", tokenizer(), length=4, bos=bos, packing=packing)
    first = (BOS, A, B, C) if opens else (A, B, C, D)
    assert (windows[0], found) == (first, opens)
    assert all((window[0] == BOS and BOS not in window[1:]) or not opens for window in windows[:1])


def test_bos_needs_a_token() -> None:
    """bos = true with a tokenizer that has no BOS token is an error."""
    with pytest.raises(DataError) as caught:
        cut("abcdef", nameless_tokenizer(), length=3, bos=True)
    assert message(caught) == "calibration.source: file:t.txt: bos = true, but the tokenizer has no BOS token"


HUNDRED = "".join(f"{i:03d}!" for i in range(100))  # 100 windows of 4, all different


def draw(seeds: tuple[int, ...], **keys: Any) -> tuple[dict[int, TokenWindows], list[str]]:
    """Return each seed's windows of 100 and what was warned of."""
    progress = Silent()
    made = section(HUNDRED, **{"length": 4, "windows": 10, **keys})
    return calibration_windows(made, make_tokenizer(), seeds, progress), progress.warnings


def places(windows: TokenWindows) -> list[int]:
    """Return which windows of the text these are."""
    whole, _ = cut(HUNDRED, length=4)
    return [whole.index(window) for window in windows.ids]


def test_seeds_are_disjoint_while_the_text_allows() -> None:
    """Seeds that fit into the text together share no window, use it up to the last one, and nothing is warned of."""
    drawn, warnings = draw((0, 1, 2, 3), windows=25)
    assert [len(windows.ids) for windows in drawn.values()] == [25] * 4
    assert len({window for windows in drawn.values() for window in windows.ids}) == 100
    assert warnings == []


def test_seeds_that_do_not_fit_share_and_say_so() -> None:
    """Seeds that do not fit draw from the whole text each, and the warning tells the share in common to expect."""
    drawn, warnings = draw(tuple(range(20)), windows=40)
    assert warnings == [
        "file:t.txt holds 100 windows of 4 tokens, fewer than 20 seeds x 40: two seeds share 40% of their windows on average"
    ]
    sets = [set(windows.ids) for windows in drawn.values()]
    assert all(len(found) == 40 for found in sets)  # without replacement
    shared = [len(one & other) / 40 for i, one in enumerate(sets) for other in sets[:i]]
    assert abs(sum(shared) / len(shared) - 0.4) < 0.02


def test_a_seed_always_draws_the_same() -> None:
    """The first seed's windows are its own, whatever seeds follow; another seed draws others."""
    alone, _ = draw((7,))
    together, _ = draw((7, 8))
    assert alone[7] == together[7]
    assert together[7].ids != together[8].ids


def test_the_first_windows_are_the_same_for_every_seed() -> None:
    """sample = "first" gives every seed the first windows in their order, and warns of nothing."""
    drawn, warnings = draw((0, 1), sample="first", windows=60)
    assert drawn[0] == drawn[1]
    assert drawn[0].ids == tuple(cut(HUNDRED, length=4)[0][:60])
    assert warnings == []


def test_evaluation_windows_do_not_move() -> None:
    """Evaluation takes the first windows by default; its random draw is one of its own, in the text's order."""
    section(HUNDRED)
    first = eval_windows(Eval(source="file:t.txt", windows=5, length=4), make_tokenizer())
    assert first.ids == tuple(cut(HUNDRED, length=4)[0][:5])
    made = Eval(source="file:t.txt", windows=5, length=4, sample="random")
    drawn = eval_windows(made, make_tokenizer())
    assert drawn == eval_windows(made, make_tokenizer())
    assert drawn.ids != first.ids
    assert places(drawn) == sorted(places(drawn))


SHORT = [
    ({"length": 5, "windows": 3}, "it holds 2 windows of 5 tokens, 3 are needed"),
    ({"length": 12, "windows": 1}, "it holds 0 windows of 12 tokens, 1 are needed"),
    ({"length": 9, "windows": 3, "packing": "lines"}, "it holds 2 windows of one line, 3 are needed"),
]


@pytest.mark.parametrize("sample", ["random", "first"])
@pytest.mark.parametrize(("keys", "what"), SHORT)
def test_a_text_too_short_says_how_much_it_holds(keys: dict[str, Any], what: str, sample: str) -> None:
    """A text of too few windows is an error with both numbers; no other text takes its place."""
    made = section("abcde\nabcde", sample=sample, **keys)
    calls = {
        "calibration.source": lambda: calibration_windows(made, make_tokenizer(), (0,)),
        "eval.texts": lambda: eval_windows(made, make_tokenizer(), "eval.texts"),
    }
    for key, call in calls.items():
        with pytest.raises(DataError) as caught:
            call()
        assert message(caught) == (
            f"{key}: file:t.txt: is too short: {what}\nhint: lower windows or length, or give a longer text"
        )
        assert caught.value.exit_code == 3


def test_windows_count_their_tokens() -> None:
    """Every token is counted, the predicted ones are all but each window's first, and bytes are those of the predicted."""
    windows = calibration_windows(
        section("abcdef\nxyz", length=4, windows=2, packing="lines", sample="first"), make_tokenizer(), (0,)
    )[0]
    assert (windows.num_tokens, windows.num_predicted, windows.available) == (7, 5, 2)
    assert windows.num_bytes == len("bcd") + len("yz")
    assert windows.facts(seed=3) == {
        "seed": 3, "source": "file:t.txt", "packing": "lines", "length": 4, "bos": False, "windows": 2, "tokens": 7,
        "predicted_tokens": 5, "sha256": windows.sha256,
    }  # fmt: skip
    assert "seed" not in windows.facts()


def windows_of(*ids: tuple[int, ...], source: str = "file:a") -> TokenWindows:
    """Return windows of given tokens."""
    return TokenWindows(ids, source, "stream", 3, False, 9, 0)


def test_windows_are_identified_by_their_tokens() -> None:
    """The sha256 is of the token numbers alone: it knows their order and their windows, and not where they come from."""
    found = windows_of((1, 2, 3), (4, 5))
    assert found.sha256 == hashlib.sha256(b"1 2 3\n4 5").hexdigest()
    assert found.sha256 == windows_of((1, 2, 3), (4, 5), source="file:b").sha256
    others = [((1, 2, 3, 4, 5),), ((1, 2), (3, 4, 5)), ((4, 5), (1, 2, 3)), ((1, 23), (4, 5)), ((1, 2, 3), (4, 6))]
    assert found.sha256 not in {windows_of(*ids).sha256 for ids in others}
