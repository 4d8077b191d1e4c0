"""``esa eval``: several texts and lengths in one table, errors that name their key, and a model of NaN."""

import json
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
    assert header == "run,case,task,metric,value,intact,stderr,num_items,num_tokens,source,length,bos,seed"


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


def with_items(folder: Path) -> tuple[str, ...]:
    """Write four passages and return what names them."""
    lines = [json.dumps({"text": f"the cat sat on mat {word}"}) for word in ("one", "two", "three", "four")]
    (folder / "l.jsonl").write_text("\n".join(lines))
    return ("--set", "eval.task_sources.lambada='file:l.jsonl'")


def test_tasks_are_named_with_commas_or_one_by_one(folder: Path, esa: Invoke) -> None:
    """--tasks a,b and --tasks a --tasks b are one step; each figure is a row on stderr and in the table."""
    words = ("eval", "-s", "s.toml", *with_items(folder))
    done = esa(*words, "--tasks", "lambada,language_modeling, calibration_error")
    assert done.exit_code == 0, done.output
    again = esa(*words, "--tasks", "lambada", "--tasks", "language_modeling", "--tasks", "calibration_error")
    assert again.stdout == done.stdout
    lines = [line.split() for line in done.stderr.splitlines()]
    assert ["task", "of", "items", "metric", "value"] in lines
    shown = next(line for line in lines if line[:1] == ["lambada"] and "acc" in line)
    assert shown[1:4] == ["file:l.jsonl", "4", "acc"]
    table = pl.read_csv(Path(done.stdout.strip()) / "eval.csv")
    assert table["task"].unique(maintain_order=True).to_list() == ["language_modeling", "calibration_error", "lambada"]
    wrong = esa(*words, "--tasks", "lambda")
    assert wrong.exit_code == 3
    assert "'lambda' is not a task (did you mean 'lambada'?)" in wrong.stderr


def test_what_a_dry_run_says_of_tasks(folder: Path, esa: Invoke) -> None:
    """--dry-run names the items and how many of them, and reads no text that no task reads."""
    words = ("eval", "-s", "s.toml", *with_items(folder), "--tasks", "lambada", "--set", "eval.task_items=2", "-n")
    done = esa(*words)
    assert done.exit_code == 0, done.output
    passes = [line for line in done.stdout.splitlines() if line.startswith("#   eval: ")]
    assert passes[0] == "#   eval: lambada: the first 2 items of file:l.jsonl, forward"
    assert len(passes) == 2  # and the folder


def test_seeds_print_their_spread(folder: Path, esa: Invoke) -> None:
    """Several seeds: a row each, and below the spread of every figure."""
    done = esa("eval", "-s", "s.toml", "--set", "eval.sample='random'", "--set", "eval.seeds=[0, 1]")
    assert done.exit_code == 0, done.output
    assert "Spread across 2 seeds' windows" in done.stderr
    lines = [line.split() for line in done.stderr.splitlines() if line.startswith("language_modeling")]
    assert [line[4] for line in lines] == ["nll", "perplexity", "bits_per_byte", "accuracy"]
    assert all(line[-1] == "%" for line in lines)


def test_power_plans_from_a_finished_campaign(folder: Path, esa: Invoke) -> None:
    """--power prints windows and draws per effect from a pilot, on stderr alone; any other folder is refused at once."""
    pilot = esa("perturb", "-s", "s.toml", "--target", "lm_head.weight:3,4", "--method", "scale", "-q").stdout.strip()
    done = esa("eval", "-s", "s.toml", "--power", pilot)
    assert done.exit_code == 0, done.output
    assert "Windows and random draws for an effect of 0.01, 0.05, 0.1 nats per token" in done.stderr
    row = next(line.split() for line in done.stderr.splitlines() if line.startswith("scale"))
    assert all(cell.replace(",", "").isdigit() for cell in row[-6:-3])
    assert row[-3:] == ["-", "-", "-"]  # no random draws in the pilot
    assert len(done.stdout.splitlines()) == 1
    wrong = esa("eval", "-s", "s.toml", "--power", done.stdout.strip())
    assert wrong.exit_code == 3
    assert "holds the step eval; the pilot is a finished perturb step" in wrong.stderr


def test_harness_without_its_package(folder: Path, esa: Invoke, monkeypatch: pytest.MonkeyPatch) -> None:
    """--harness without lm_eval ends with 3 and the way to install it; nothing is written."""
    monkeypatch.setattr("esa.eval.harness.find_spec", lambda _: None)
    done = esa("eval", "-s", "s.toml", "--harness", "arc_easy")
    assert done.exit_code == 3
    assert done.stderr == "esa: error: --harness: needs the package lm_eval\n  hint: pip install 'esa[eval]'\n"
    assert not (folder / "outputs").exists()


def test_a_campaign_prints_what_became_of_the_tasks(folder: Path, esa: Invoke) -> None:
    """esa perturb with tasks prints intact, perturbed and difference of each task's leading figures."""
    words = (*with_items(folder), "--set", "eval.tasks=['language_modeling', 'lambada']")
    done = esa("perturb", "-s", "s.toml", "--target", "lm_head.weight:3,4", "--method", "zero", *words)
    assert done.exit_code == 0, done.output
    assert "Tasks, perturbed minus intact" in done.stderr
    shown = [line.split() for line in done.stderr.splitlines() if " lambada " in line]
    assert [line[5] for line in shown] == ["acc", "perplexity"]


def test_check_names_items_that_cannot_be(folder: Path, esa: Invoke) -> None:
    """esa check finds a file of items that is not there, and a source for a task that has no items."""
    for source, said in (
        ("lambada = 'file:no.jsonl'", "s.toml: eval.task_sources.lambada: file:no.jsonl: no such file"),
        ("generation = 'file:no.jsonl'", "s.toml: eval.task_sources.generation: generation is measured on eval.source"),
    ):
        text = SPEC.replace("[eval]", f"[eval]\ntasks = ['lambada', 'generation']\ntask_sources = {{ {source} }}")
        (folder / "s.toml").write_text(text)
        done = esa("check", "s.toml")
        assert done.exit_code == 3
        assert said in done.stderr
