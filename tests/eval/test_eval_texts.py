"""Several texts at several context lengths: the model loaded once, each text tokenised once, the same tokens read."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch

import esa.eval
from esa.artifact import read_manifest, read_table
from esa.artifact.steps import step_keys
from esa.data import eval_windows
from esa.errors import DataError, ModelError, SpecError
from esa.eval.combinations import combinations
from esa.eval.memory import memory_terms
from esa.model import check_context
from esa.model.footprint import footprint
from esa.progress import Silent
from esa.spec import Spec
from tests.conftest import CONFIGS, load, make_tokenizer, tiny_spec
from tests.eval.naive import token_nlls

TEXTS = ("builtin:sentences", "builtin:dev_small")


def spec(**keys: Any) -> Spec:
    """Return a spec of six windows of sixteen tokens on two texts at three lengths."""
    return tiny_spec(eval={"windows": 6, "length": 16, "texts": TEXTS, "lengths": (32, 8, 20), **keys})


def test_every_text_at_every_length(tmp_path: Path) -> None:
    """Each text and length has the naive numbers, its rows in order, and windows under a case of its own."""
    loaded = load("llama")
    result = esa.eval.run(spec(), loaded=loaded, root=tmp_path)
    rows = result.table.frame.to_dicts()
    metrics = ["nll", "perplexity", "bits_per_byte", "accuracy"]
    order = [(source, length, metric) for source in TEXTS for length in (8, 20, 32) for metric in metrics]
    assert [(row["source"], row["length"], row["metric"]) for row in rows] == order
    assert len({row["case"] for row in rows}) == 6
    parts = read_table(result.folder / "windows.csv", "windows/1").frame
    for each in combinations(spec()):
        windows = eval_windows(each.section, loaded.tokenizer)
        nlls = torch.cat(token_nlls(loaded, windows))
        found = {
            row["metric"]: row for row in rows if (row["source"], row["length"]) == (windows.source, windows.length)
        }
        assert found["nll"]["value"] == pytest.approx(float(nlls.mean()), rel=1e-6)
        bits = float(nlls.sum()) / math.log(2) / windows.num_bytes
        assert found["bits_per_byte"]["value"] == pytest.approx(bits, rel=1e-6)
        of_case = [row for row in parts.to_dicts() if row["case"] == found["nll"]["case"]]
        assert [row["window"] for row in of_case] == list(range(len(windows.ids)))
        assert sum(row["nll"] for row in of_case) == pytest.approx(float(nlls.sum()), rel=1e-6)
    assert [data["length"] for data in read_manifest(result.folder)["data"]] == [8, 20, 32] * 2


def test_one_of_several_is_as_it_is_alone(tmp_path: Path) -> None:
    """A text and length measured among others gives the numbers that it gives alone."""
    together = esa.eval.run(spec(), loaded=load("llama"), root=tmp_path).table.frame
    alone = esa.eval.run(
        tiny_spec(eval={"source": TEXTS[1], "windows": 3, "length": 32}), loaded=load("llama"), root=tmp_path
    ).table.frame
    assert together.filter(source=TEXTS[1], length=32).drop("run").equals(alone.drop("run"))


def test_every_length_reads_the_same_tokens() -> None:
    """The lengths have as many windows as fit into the same tokens: all of those but a rest of less than one window."""
    counts = {each.section.length: each.section.windows for each in combinations(spec())}
    assert counts == {8: 12, 20: 4, 32: 3}
    read = {
        each.section.length: [token for ids in eval_windows(each.section, make_tokenizer()).ids for token in ids]
        for each in combinations(spec())
    }
    assert read[8] == read[32]
    assert read[20] == read[8][:80]


def test_a_line_stays_a_line() -> None:
    """With packing = "lines" every length cuts the same lines."""
    found = combinations(spec(packing="lines"))
    assert {each.section.windows for each in found} == {6}


def test_a_length_beyond_the_tokens_is_refused() -> None:
    """A length of more tokens than are read is an error with both numbers and the key to set, before anything is loaded."""
    with pytest.raises(SpecError) as caught:
        esa.eval.eval_step(spec(lengths=[8, 97]))
    assert str(caught.value) == (
        "eval.lengths: 97 tokens are more than the 96 that eval.windows x eval.length give (6 x 16)\n"
        "hint: set eval.windows = 7 or more"
    )


def test_texts_default_to_the_one_source() -> None:
    """Without eval.texts and eval.lengths it is eval.source at eval.length; each alone leaves the other's default."""
    plain = tiny_spec(eval={"windows": 6, "length": 16})
    assert [(each.section, each.key) for each in combinations(plain)] == [(plain.eval, "eval.source")]
    texts = combinations(tiny_spec(eval={"windows": 6, "length": 16, "texts": TEXTS}))
    assert [(each.section.source, each.section.length, each.key) for each in texts] == [
        (source, 16, "eval.texts") for source in TEXTS
    ]


def test_only_eval_reads_texts_and_lengths() -> None:
    """eval.texts and eval.lengths make another eval step and leave the perturb step, whose text is eval.source."""
    plain = tiny_spec(eval={"windows": 6, "length": 16})
    assert step_keys("perturb", spec()) == step_keys("perturb", plain)
    loaded = load("llama")
    assert esa.eval.eval_step(spec(), loaded=loaded).id != esa.eval.eval_step(plain, loaded=loaded).id
    assert not {"texts", "lengths"} & set(step_keys("eval", plain)["eval"])


def test_texts_are_all_read_before_anything_is_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A later text that is missing or too short is refused by its key before the model runs; nothing is written."""
    monkeypatch.setattr(esa.eval.Evaluator, "measure", lambda _: pytest.fail("measured"))
    for texts, words in {
        (TEXTS[0], "file:nope.txt"): "eval.texts: file:nope.txt: no such file",
        (TEXTS[1], TEXTS[0]): "eval.texts: builtin:sentences: is too short: it holds",
    }.items():
        with pytest.raises(DataError) as caught:
            esa.eval.run(spec(texts=texts, windows=120), loaded=load("llama"), root=tmp_path)
        assert str(caught.value).startswith(words)
    assert not list(tmp_path.iterdir())


def test_a_text_is_tokenised_once(tmp_path: Path) -> None:
    """Each text goes through the tokenizer once, whatever the number of lengths."""
    loaded = load("llama")
    tokenizer, seen = loaded.tokenizer, []

    class Counting:
        """The tokenizer, with its long texts noted."""

        def __getattr__(self, name: str) -> Any:
            return getattr(tokenizer, name)

        def __call__(self, text: str, **keys: Any) -> Any:
            seen.append(len(text))
            return tokenizer(text, **keys)

    loaded.tokenizer = Counting()
    esa.eval.run(spec(), loaded=loaded, root=tmp_path)
    assert len([size for size in seen if size > 100]) == len(TEXTS)


def test_longer_than_the_model_was_made_for(tmp_path: Path) -> None:
    """Beyond max_position_embeddings a table of positions has no rows, which is an error; a rotary model only extrapolates."""
    keys: dict[str, Any] = {"windows": 2, "length": 40, "texts": TEXTS[1:], "lengths": (40, 80)}
    with pytest.raises(ModelError) as caught:
        esa.eval.run(spec(**keys), loaded=load("gpt2"), root=tmp_path)
    assert str(caught.value) == (
        "eval.lengths: 80 tokens are more than the 64 positions of the model (max_position_embeddings)"
    )
    progress = Silent()
    esa.eval.run(spec(**keys), loaded=load("llama"), root=tmp_path, progress=progress)
    assert progress.warnings == [
        "eval.lengths: 80 tokens are more than the 64 that the model was made for (max_position_embeddings): it extrapolates"
    ]


@pytest.mark.parametrize("name", CONFIGS)
def test_up_to_the_limit_nothing_is_said(name: str) -> None:
    """Windows as long as the model's positions pass on every architecture, and one more does not."""
    progress = Silent()
    check_context(load(name).model, 64, "eval.length", progress)
    assert progress.warnings == []
    try:
        check_context(load(name).model, 65, "eval.length", progress)
    except ModelError:
        progress.warn("refused")
    assert len(progress.warnings) == 1


def test_memory_is_that_of_the_longest(folder_model: Path) -> None:
    """What --dry-run predicts for an evaluation is bound by its longest windows; for a campaign, by two of eval.length."""
    keys = {"windows": 6, "length": 16, "batch_tokens": 16, "lengths": (8, 96)}
    chosen = tiny_spec(model={"id": str(folder_model)}, eval=keys)
    model = footprint(chosen.model)
    long, plain = (memory_terms(chosen, model, 1 << 30, remembers=remembers) for remembers in (False, True))
    assert long["batch"] - plain["batch"] == (96 - 2 * 16) * model.vocabulary * model.item_bytes
