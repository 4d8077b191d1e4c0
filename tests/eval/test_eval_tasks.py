"""The eval step with tasks: its rows, its items, its refusals, seeds and their spread."""

import json
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch

import esa.eval
from esa.artifact import find_table, read_manifest
from esa.data import eval_windows, seeded_eval_windows
from esa.errors import DataError, SpecError
from esa.eval.hellaswag import TASK
from esa.eval.item_rows import read_rows
from esa.eval.loglikelihood import encode_pair, loglikelihoods
from esa.eval.variants import unchanged
from esa.progress import Silent
from esa.spec import Spec
from tests.conftest import load, make_tokenizer, tiny_spec
from tests.eval.harness_files import write_lines
from tests.eval.hellaswag_items import RAW

PASSAGES = [{"text": f"The cat sat on mat number {word}"} for word in ("one", "two", "three", "four")]


def spec_of(folder: Path, tasks: list[str], **more: Any) -> Spec:
    """Return a spec of tasks whose items lie in ``folder``."""
    items = {
        "hellaswag": write_lines(folder / "hellaswag.jsonl", RAW),
        "lambada": write_lines(folder / "lambada.jsonl", PASSAGES),
    }
    sources = {name: f"file:{path}" for name, path in items.items()}
    return tiny_spec(eval={"tasks": tasks, "task_sources": sources, "new_tokens": 4, "prompts": 3, **more})


def rows_of(frame: pl.DataFrame, task: str) -> dict[str, dict[str, Any]]:
    """Return a task's rows by metric."""
    return {row["metric"]: row for row in frame.filter(pl.col("task") == task).to_dicts()}


def test_every_task_has_rows_and_items(tmp_path: Path) -> None:
    """All tasks in one step: text first, tasks on windows next, tasks with items last; items give the figures back."""
    spec = spec_of(tmp_path, ["lambada", "generation", "hellaswag", "language_modeling", "calibration_error"])
    result = esa.eval.run(spec, loaded=load("llama"), root=tmp_path)
    frame = result.table.frame
    assert frame["task"].unique(maintain_order=True).to_list() == [
        "language_modeling", "generation", "calibration_error", "lambada", "hellaswag",
    ]  # fmt: skip
    assert frame["value"].equals(frame["intact"])
    items = find_table(result.folder, "items/1").frame
    for task, number in (("hellaswag", 20), ("lambada", 4)):
        found = rows_of(frame, task)
        assert found["acc"]["num_items"] == number
        assert found["acc"]["source"] == f"file:{tmp_path / task}.jsonl"
        mine = items.filter(pl.col("task") == task, pl.col("metric") == "acc")
        assert mine["item"].to_list() == list(range(number))
        assert mine["value"].mean() == pytest.approx(found["acc"]["value"])
        assert set(mine["case"]) == {found["acc"]["case"]}
    per_choice = items.filter(pl.col("choice").is_not_null())
    assert per_choice.height == 80
    gold = per_choice.filter(pl.col("choice") == pl.Series([int(row["label"]) for row in RAW for _ in range(4)]))
    assert gold["value"].mean() == pytest.approx(rows_of(frame, "hellaswag")["loglik"]["value"])
    texts = find_table(result.folder, "continuations/1").frame
    assert texts["item"].to_list() == [0, 1, 2]
    assert texts["num_tokens"].sum() == rows_of(frame, "generation")["rep_1"]["num_tokens"]
    assert read_manifest(result.folder)["data"][-1]["rows"] == 20
    again = esa.eval.run(spec, loaded=load("llama"), root=tmp_path)
    assert (again.reused, again.table.frame.equals(frame)) == (True, True)


def test_the_figures_are_those_of_the_answers(tmp_path: Path) -> None:
    """HellaSwag's accuracy through the step is the one counted by hand from the log-likelihoods."""
    loaded = load("gpt2")
    spec = spec_of(tmp_path, ["hellaswag"], task_items=7)
    frame = esa.eval.run(spec, loaded=loaded, root=tmp_path).table.frame
    items = [TASK.item(row, "") for row in RAW[:7]]
    requests = [
        encode_pair(loaded.tokenizer, item.context, f" {c}", "auto", "") for item in items for c in item.choices
    ]
    (answers,) = loglikelihoods(loaded, requests, [unchanged(loaded)], 100)
    sums = [[answers[4 * n + c].loglik for c in range(4)] for n in range(7)]
    right = sum(row.index(max(row)) == item.gold for row, item in zip(sums, items, strict=True))  # type: ignore[type-var]
    found = rows_of(frame, "hellaswag")
    assert found["acc"]["value"] == pytest.approx(right / 7)
    assert found["acc"]["num_items"] == 7
    assert found["acc"]["num_tokens"] == sum(len(request.continuation) for request in requests)
    assert not frame["length"].is_not_null().any()


def test_items_alone_need_no_text(tmp_path: Path) -> None:
    """With tasks that have items alone no window is cut: a text that is too short does not matter, nor is windows.csv."""
    spec = spec_of(tmp_path, ["lambada"], windows=99999)
    result = esa.eval.run(spec, loaded=load("llama"), root=tmp_path)
    assert sorted(read_manifest(result.folder)["kinds"]) == ["eval.csv", "items.csv"]
    assert "builtin:sentences" not in read_manifest(result.folder)["inputs"]


def test_other_items_make_another_step(tmp_path: Path) -> None:
    """A changed line of the items changes the step's id; items of a task that is not asked for do not."""
    spec = spec_of(tmp_path, ["lambada"])
    first = esa.eval.eval_step(spec, loaded=load("llama")).id
    (tmp_path / "hellaswag.jsonl").write_text("{}\n")
    assert esa.eval.eval_step(spec, loaded=load("llama")).id == first
    (tmp_path / "lambada.jsonl").write_text(json.dumps({"text": "another one"}) + "\n")
    assert esa.eval.eval_step(spec, loaded=load("llama")).id != first


def test_items_that_cannot_be_are_refused(tmp_path: Path) -> None:
    """No file, no JSON, an item without its field, a built-in text, a source for a task that has no items: said with where."""
    path = tmp_path / "lambada.jsonl"
    cases = {
        '{"text": "a b"}\nno json\n': r"eval.task_sources.lambada: .*lambada.jsonl:2: is no JSON object: 'no json'",
        '{"text": "a b"}\n{"words": "c d"}\n': r"item 1: has no 'text'; it has 'words'",
        "\n": "lambada.jsonl: holds no item",
    }
    for content, said in cases.items():
        spec = spec_of(tmp_path, ["lambada"])
        path.write_text(content)
        with pytest.raises(DataError, match=said):
            esa.eval.run(spec, loaded=load("llama"), root=tmp_path)
    path.unlink()
    for source, said in (
        (f"file:{path}", "eval.task_sources.lambada: .*: no such file"),
        ("builtin:prose", "is a text; a task's items come from file:PATH"),
    ):
        spec = tiny_spec(eval={"tasks": ["lambada"], "task_sources": {"lambada": source}})
        with pytest.raises(DataError, match=said):
            esa.eval.eval_step(spec, loaded=load("llama"))
    spec = tiny_spec(eval={"task_sources": {"generation": "file:x"}})
    with pytest.raises(SpecError, match="eval.task_sources.generation: generation is measured on eval.source"):
        esa.eval.eval_step(spec, loaded=load("llama"))
    assert not (tmp_path / "tiny").exists()


def test_a_line_of_json_ends_at_its_line_feed(tmp_path: Path) -> None:
    """Other line ends stand as they are in a string of JSON and cut no item; a byte order mark and a CR are no part of one."""
    path = tmp_path / "lambada.jsonl"
    texts = ["one\u2028two three", "four\x85five six"]
    lines = [json.dumps({"text": text}, ensure_ascii=False) + "\r\n" for text in texts]
    path.write_text("".join(lines), encoding="utf-8-sig", newline="")
    assert [row["text"] for row in read_rows(f"file:{path}").rows] == texts


def test_fewer_items_than_asked_for_is_a_warning(tmp_path: Path) -> None:
    """All items are taken, and the manifest says that they were fewer."""
    result = esa.eval.run(spec_of(tmp_path, ["lambada"], task_items=9), loaded=load("llama"), root=tmp_path)
    (warning,) = read_manifest(result.folder)["warnings"]
    assert warning.endswith("lambada.jsonl holds 4 items, fewer than eval.task_items = 9: all are taken")


def test_a_dataset_gives_the_rows_of_its_split(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """hf: reads whole rows, here from a folder: the same figures as the same rows in a file."""
    pytest.importorskip("datasets", reason="datasets is not installed: pip install 'esa[eval]'")
    monkeypatch.chdir(tmp_path)
    Path("d").mkdir()
    pl.DataFrame(RAW).write_parquet("d/validation.parquet")
    spec = tiny_spec(eval={"tasks": ["hellaswag"], "task_sources": {"hellaswag": "hf:./d:validation"}})
    from_rows = esa.eval.run(spec, loaded=load("llama"), root=tmp_path)
    from_file = esa.eval.run(spec_of(tmp_path, ["hellaswag"]), loaded=load("llama"), root=tmp_path)
    assert from_rows.table.frame["value"].equals(from_file.table.frame["value"])
    assert read_manifest(from_rows.folder)["data"][0]["rows"] == 20


def test_a_broken_model_gives_no_accuracy(tmp_path: Path) -> None:
    """Of a model of NaN every figure is null, none zero, and the tasks are named."""
    loaded = load("llama")
    with torch.no_grad():
        loaded.parameters()["model.layers.0.mlp.down_proj.weight"].fill_(float("nan"))
    result = esa.eval.run(
        spec_of(tmp_path, ["hellaswag", "lambada", "calibration_error", "generation"]), loaded=loaded, root=tmp_path
    )
    assert result.table.frame["value"].null_count() == result.table.frame.height
    assert result.nonfinite_tasks == ["calibration_error", "generation", "hellaswag", "lambada"]


def test_short_continuations_are_not_taken_for_a_broken_model(tmp_path: Path) -> None:
    """Two new tokens hold no runs of three: those figures are null, and the task is finite all the same."""
    result = esa.eval.run(spec_of(tmp_path, ["generation"], new_tokens=2), loaded=load("llama"), root=tmp_path)
    found = rows_of(result.table.frame, "generation")
    assert (found["rep_3"]["value"], found["distinct_4"]["value"]) == (None, None)
    assert found["rep_2"]["value"] is not None
    assert result.nonfinite_tasks == []


def test_each_seed_draws_windows_of_its_own() -> None:
    """Seeds draw disjoint windows in the order of the text; seed 0 alone draws those that perturbations are measured on."""
    section = tiny_spec(eval={"sample": "random", "windows": 5}).eval
    drawn = seeded_eval_windows(section, make_tokenizer(), (0, 3, 1))
    assert drawn[0] == eval_windows(section, make_tokenizer())
    every = [window for seed in drawn for window in drawn[seed].ids]
    assert len(set(every)) == 15
    quiet = Silent()
    again = seeded_eval_windows(section.model_copy(update={"windows": 100}), make_tokenizer(), (0, 1), progress=quiet)
    assert set(again[0].ids) & set(again[1].ids)
    assert "fewer than 2 seeds x 100" in quiet.warnings[0]


def test_seeds_are_measured_and_their_spread_is_written(tmp_path: Path) -> None:
    """A row per seed and figure; the spread is the mean, sd and cv over them; a case names text, length and seed."""
    spec = tiny_spec(
        eval={"windows": 4, "sample": "random", "seeds": [0, 1, 2], "tasks": ["language_modeling", "calibration_error"]}
    )
    result = esa.eval.run(spec, loaded=load("llama"), root=tmp_path)
    nll = result.table.frame.filter(pl.col("metric") == "nll")
    assert nll["seed"].to_list() == [0, 1, 2]
    assert nll["case"].n_unique() == nll["value"].n_unique() == 3
    row = result.spread.filter(pl.col("metric") == "nll").row(0, named=True)
    assert (row["num_seeds"], row["mean"]) == (3, pytest.approx(nll["value"].mean()))
    assert row["sd"] == pytest.approx(nll["value"].std())
    assert row["cv"] == pytest.approx(row["sd"] / row["mean"])
    assert (row["min"], row["max"]) == (nll["value"].min(), nll["value"].max())
    assert "calibration_error" in result.spread["metric"]
    again = esa.eval.run(spec, loaded=load("llama"), root=tmp_path)
    assert again.reused
    assert again.spread.equals(result.spread)


def test_seeds_without_a_draw_are_refused() -> None:
    """sample = "first" draws nothing: seeds beside it would do nothing."""
    with pytest.raises(SpecError, match=r"eval.seeds: \[0, 1\] draw windows, and eval.sample = 'first' draws none"):
        esa.eval.eval_step(tiny_spec(eval={"seeds": [0, 1]}), loaded=load("llama"))
