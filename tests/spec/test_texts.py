"""The grammar of text sources: every form is read one way, and what is none is refused with what is allowed."""

from typing import Any

import pytest

from esa.errors import SpecError
from esa.spec.texts import TextSource, parse_source
from tests.conftest import tiny_spec

FORMS: dict[str, TextSource] = {
    "builtin:prose": TextSource("builtin", "prose"),
    "file:a b:c.txt": TextSource("file", "a b:c.txt"),
    "hf:owner/name:test": TextSource("hf", "owner/name", split="test"),
    "hf:owner/name:test:body": TextSource("hf", "owner/name", split="test", field="body"),
    "hf:owner/name:test:a:b": TextSource("hf", "owner/name", split="test", field="a:b"),
    "hf:squad:train": TextSource("hf", "squad", split="train"),
    "hf:Salesforce/wikitext/wikitext-2-raw-v1:validation:text": TextSource(
        "hf", "Salesforce/wikitext", config="wikitext-2-raw-v1", split="validation"
    ),
    "hf:owner/name@v1.0:test": TextSource("hf", "owner/name", revision="v1.0", split="test"),
    "hf:owner/name/20231101.en@refs/convert/parquet:train": TextSource(
        "hf", "owner/name", config="20231101.en", revision="refs/convert/parquet", split="train"
    ),
    "hf:./folder/part:train": TextSource("hf", "./folder/part", split="train", local=True),
    "hf:/data/a@b:train": TextSource("hf", "/data/a@b", split="train", local=True),
    "hf:~/texts:train.clean": TextSource("hf", "~/texts", split="train.clean", local=True),
}  # fmt: skip


@pytest.mark.parametrize("source", FORMS)
def test_every_form_is_read_one_way(source: str) -> None:
    """Dataset, config, revision, split and field are told apart by their places alone."""
    assert parse_source(source) == FORMS[source]


ALL = "allowed: builtin:NAME, file:PATH, hf:DATASET[/CONFIG][@REVISION]:SPLIT[:FIELD]"
FORM = "is not a text source; allowed: hf:DATASET[/CONFIG][@REVISION]:SPLIT[:FIELD]"
DATASET = (
    "is not a dataset; allowed: NAME, OWNER/NAME or OWNER/NAME/CONFIG, each with @REVISION, or a folder, which opens with"
    " ., / or ~"
)
SPLIT = "is not a split; allowed: a name such as train or validation, no slice"
REFUSED = {
    "prose": f"'prose' is not a text source; {ALL}",
    "http://x": f"'http://x' is not a text source; {ALL}",
    "builtin:": f"'builtin:' is not a text source; {ALL}",
    "hf:owner/name": f"'hf:owner/name' {FORM}",
    "hf::train": f"'hf::train' {FORM}",
    "hf:owner/name:": f"'hf:owner/name:' {FORM}",
    "hf:owner/name:train:": f"'hf:owner/name:train:' {FORM}",
    "hf:owner/name:train[:10]": f"'hf:owner/name:train[:10]': 'train[:10]' {SPLIT}",
    "hf:owner/name:train+test": f"'hf:owner/name:train+test': 'train+test' {SPLIT}",
    "hf:a/b/c/d:train": f"'hf:a/b/c/d:train': 'a/b/c/d' {DATASET}",
    "hf:owner/:train": f"'hf:owner/:train': 'owner/' {DATASET}",
    "hf:owner/name@:train": f"'hf:owner/name@:train': 'owner/name@' {DATASET}",
    "hf:own er/name:train": f"'hf:own er/name:train': 'own er/name' {DATASET}",
}


@pytest.mark.parametrize("source", REFUSED)
def test_any_other_form_is_refused(source: str) -> None:
    """What is no source is refused with the part that is wrong and what is allowed."""
    with pytest.raises(ValueError, match=r"allowed: ") as caught:
        parse_source(source)
    assert str(caught.value) == REFUSED[source]


def problems(**eval: Any) -> list[str]:
    """Return what is wrong with an eval section."""
    with pytest.raises(SpecError) as caught:
        tiny_spec(eval=eval)
    return caught.value.problems


def test_texts_and_lengths_are_lists() -> None:
    """eval.texts and eval.lengths take one or several values, each once, each a source or a length of two or more."""
    found = tiny_spec(eval={"texts": "builtin:prose", "lengths": 8}).eval
    assert (found.texts, found.lengths) == (("builtin:prose",), (8,))
    assert tiny_spec().eval.texts is tiny_spec().eval.lengths is None
    assert problems(lengths=[1]) == ["spec: eval.lengths.0: input should be greater than or equal to 2, not 1"]
    assert problems(lengths=[8, 8]) == ["spec: eval.lengths: names a value twice: [8, 8]"]
    assert problems(texts=[]) == ["spec: eval.texts: needs at least one value"]
    assert problems(texts=["prose"]) == [f"spec: eval.texts.0: 'prose' is not a text source; {ALL}"]
