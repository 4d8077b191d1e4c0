"""``esa eval``: several texts and lengths in one table, errors that name their key, and a model of NaN."""

from pathlib import Path

import polars as pl
import pytest
from safetensors.torch import load_file, save_file

from tests.cli.conftest import SPEC, Invoke


def test_a_row_per_text_and_length(folder: Path, esa: Invoke) -> None:
    """--text and --length repeat: a table with standard errors on stderr, the step's folder alone on stdout."""
    (folder / "t.txt").write_text("Some words of a text, again and again and again.\n" * 9)
    words = (
        "eval",
        "-s",
        "s.toml",
        "--text",
        "file:t.txt",
        "--text",
        "builtin:prose",
        "--length",
        "32",
        "--length",
        "8",
    )
    done = esa(*words)
    assert done.exit_code == 0, done.output
    step = Path(done.stdout.strip())
    rows = [line.split() for line in done.stderr.splitlines() if line.startswith(("text ", "file:", "builtin:"))]
    assert rows[0] == ["text", "length", "windows", "perplexity", "nll", "bits/byte", "accuracy"]
    assert [row[:3] for row in rows[1:]] == [
        ["file:t.txt", "8", "12"], ["file:t.txt", "32", "3"], ["builtin:prose", "8", "12"], ["builtin:prose", "32", "3"],
    ]  # fmt: skip
    assert all(row.count("\u00b1") == 4 for row in rows[1:])
    assert "Intact model (\u00b1 standard error over windows; no BOS)" in done.stderr
    table = esa(*words, "-o", "-", "-q")
    assert table.stdout_bytes == (step / "eval.csv").read_bytes()
    header = table.stdout.splitlines()[0]
    assert header == "run,case,task,metric,value,intact,stderr,num_items,num_tokens,source,length,bos"


def test_errors_name_the_key_and_the_text(folder: Path, esa: Invoke) -> None:
    """A text that is not there is named with the spec key that named it, by every command that reads it."""
    cases = {
        ("eval", "--text", "file:wiki.txt"): "eval.texts: file:wiki.txt: no such file",
        ("eval", "--set", "eval.source='file:wiki.txt'"): "eval.source: file:wiki.txt: no such file",
        ("score", "--set", "calibration.source='file:wiki.txt'"): "calibration.source: file:wiki.txt: no such file",
        (
            "eval",
            "--text",
            "wiki.txt",
        ): "--set eval.texts=[\"wiki.txt\"]: eval.texts.0: 'wiki.txt' is not a text source; ",
        ("eval", "--length", "1"): "--set eval.lengths=[1]: eval.lengths.0: input should be greater than or equal to 2",
        ("eval", "--length", "97"): "eval.lengths: 97 tokens are more than the 96 that eval.windows x eval.length give",
    }
    for words, text in cases.items():
        done = esa(words[0], "-s", "s.toml", "-q", *words[1:])
        assert (done.exit_code, done.stderr[: len(text) + 12]) == (3, f"esa: error: {text}")
    assert not (folder / "outputs").exists()


def test_nan_logits_end_with_a_failed_check(folder: Path, esa: Invoke) -> None:
    """A model of NaN ends with 4, its table written and printed with null values; asked for again, it ends with 4 again."""
    weights = folder / "model/model.safetensors"
    tensors = load_file(weights)
    tensors["lm_head.weight"].fill_(float("nan"))
    save_file(tensors, weights, metadata={"format": "pt"})
    for _ in range(2):
        done = esa("eval", "-s", "s.toml", "-q", "-o", "-")
        assert done.exit_code == 4
        assert pl.read_csv(done.stdout_bytes)["value"].null_count() == 4
        assert "NaN or infinite logits on builtin:sentences at length 16: its metrics are null" in done.stderr
    step = next((folder / "outputs/tiny").glob("eval-*"))
    assert {path.name for path in step.iterdir()} >= {"eval.csv", "windows.csv", "manifest.json", "spec.toml"}


HUB = """\
name = "tiny"
[model]
id = "org/tiny"
shape = { model_type = "llama", hidden_size = 16, intermediate_size = 24, num_hidden_layers = 3, num_attention_heads = 4, vocab_size = 96 }
[eval]
source = "hf:org/texts:test"
windows = 4
length = 16
"""


def test_a_dry_run_of_the_hub_asks_nobody(folder: Path, esa: Invoke, monkeypatch: pytest.MonkeyPatch) -> None:
    """--dry-run prints the plan of a hub model and a hub text without asking: their ids are known when they are fetched."""
    monkeypatch.setattr("esa.artifact.hub._answer", lambda *_: pytest.fail("the hub was asked"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(folder / "cache"))
    (folder / "s.toml").write_text(HUB)
    done = esa("eval", "-s", "s.toml", "--dry-run")
    assert done.exit_code == 0, done.output
    assert "#   eval: hf:org/texts:test, 4 windows of 16 tokens, forward" in done.stdout
    eval_line = "#   eval: outputs/tiny/eval-<id>/  ({} when the step starts)"
    assert eval_line.format("hf:org/texts:test is fetched") in done.stdout
    done = esa("eval", "-s", "s.toml", "-n", "--text", "builtin:prose")
    assert eval_line.format("org/tiny is on the hub, which is asked") in done.stdout
    reference = folder / "cache/models--org--tiny/refs/main"
    reference.parent.mkdir(parents=True)
    reference.write_text("a" * 40)
    done = esa("eval", "-s", "s.toml", "-n", "--text", "builtin:prose")
    assert "outputs/tiny/eval-" in done.stdout
    assert f" (if main of org/tiny is still {'a' * 12}, as in the local cache)" in done.stdout
    assert esa("check", "s.toml", "-q").exit_code == 0


def test_check_names_every_text_that_cannot_be(folder: Path, esa: Invoke) -> None:
    """`esa check` finds files, built-in names and folders that are not there, of calibration, eval and eval.texts."""
    texts = "texts = ['file:a.txt', 'hf:./nowhere:test', 'builtin:prose']"
    spec = SPEC.replace('source = "builtin:dev_small"', 'source = "builtin:dev_smal"')
    (folder / "s.toml").write_text(spec.replace("[eval]", f"[eval]\n{texts}"))
    done = esa("check", "s.toml")
    assert done.exit_code == 3
    assert [line.split(": ", 2)[2] for line in done.stderr.splitlines()] == [
        "s.toml: calibration.source: builtin:dev_smal: 'dev_smal' is not a built-in text (did you mean 'dev_small'?);"
        " known: sentences, dev_small, prose, prose_eval",
        "s.toml: eval.texts: file:a.txt: no such file",
        "s.toml: eval.texts: hf:./nowhere:test: './nowhere': no such folder",
    ]
