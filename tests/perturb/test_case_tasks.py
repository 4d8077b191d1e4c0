"""Tasks inside a campaign: every case on the same items, paired with the intact model, resumed after a kill."""

from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch

from esa import perturb
from esa.artifact import find_table
from esa.errors import DataError
from esa.eval import INTACT
from esa.eval.harness import find_tasks, run_harness
from esa.eval.hellaswag import TASK
from esa.eval.loglikelihood import encode_pair
from esa.model import LoadedModel
from esa.perturb import case_tasks
from esa.perturb.campaign import Campaign
from esa.spec import Spec
from tests.conftest import build, load, make_tokenizer, model_fingerprint, tiny_spec
from tests.eval.harness_files import task_file, write_lines
from tests.eval.hellaswag_items import RAW
from tests.eval.test_eval_tasks import PASSAGES

TARGETS = [
    "model.layers.1.mlp.down_proj.weight:3,4",
    "model.layers.2.self_attn.o_proj.weight:1,1",
    "model.embed_tokens.weight:69,2",
    "lm_head.weight:70,5",
]
METHODS = [{"method": "scale", "factor": 40.0, "unit": "single"}, {"method": "zero_keep_peak"}]


def spec_of(folder: Path, tasks: list[str], methods: Any = METHODS, **more: Any) -> Spec:
    """Return a campaign with tasks whose items lie in ``folder``."""
    sources = {
        "hellaswag": f"file:{write_lines(folder / 'h.jsonl', RAW[:9])}",
        "lambada": f"file:{write_lines(folder / 'l.jsonl', PASSAGES)}",
    }
    section = {"tasks": ["language_modeling", *tasks], "task_sources": sources, "rewrites": 1, "new_tokens": 4}
    return tiny_spec(eval={**section, "windows": 3, "prompts": 2, **more}, perturb=methods)


def whole_sums(model: Any, row: dict[str, Any]) -> list[float]:
    """Return the log-likelihood of each ending by whole forward passes of the model as it is."""
    item = TASK.item(row, "")
    sums = []
    for choice in item.choices:
        request = encode_pair(make_tokenizer(), item.context, f" {choice}", "auto", "")
        tokens = torch.tensor([(request.context + request.continuation)[-65:]])
        with torch.no_grad():
            logits = model(input_ids=tokens[:, :-1]).logits[0].double().log_softmax(-1)
        last = len(request.continuation)
        sums.append(float(logits[-last:].gather(1, tokens[0, -last:, None]).sum()))
    return sums


def run_once(spec: Spec, root: Path, loaded: LoadedModel | None = None) -> Path:
    """Return the folder of the campaign."""
    return perturb.run(spec, TARGETS, loaded=loaded or load("llama"), root=root).folder


def test_each_case_is_measured_as_a_changed_model(tmp_path: Path) -> None:
    """Of every single case, in a block, before or behind them, log-likelihoods are those of a model changed for good."""
    folder = run_once(spec_of(tmp_path, ["hellaswag"], METHODS[:1]), tmp_path)
    damage = find_table(folder, "damage/1").frame
    items = find_table(folder, "items/1").frame.filter(pl.col("choice").is_not_null())
    assert items["case"].unique(maintain_order=True).to_list() == [INTACT, *damage["case"]]
    for case, target in [(INTACT, None), *damage.select("case", "target").iter_rows()]:
        model = build("llama")
        if target is not None:
            name, _, indices = target.rpartition(":")
            with torch.no_grad():
                dict(model.named_parameters())[name][tuple(map(int, indices.split(",")))] *= 40.0
        expected = [value for row in RAW[:9] for value in whole_sums(model, row)]
        assert items.filter(pl.col("case") == case)["value"].to_list() == pytest.approx(expected, abs=2e-5)


def test_differences_are_paired_by_item(tmp_path: Path) -> None:
    """delta is value minus intact; the interval holds the mean of the paired differences; items that moved are counted."""
    spec = spec_of(tmp_path, ["lambada", "calibration_error", "generation", "hellaswag"])
    folder = run_once(spec, tmp_path)
    rows = find_table(folder, "task_damage/1").frame
    figures = find_table(folder, "eval/1").frame
    items = find_table(folder, "items/1").frame.filter(pl.col("choice").is_null())
    assert rows.height == figures.filter(pl.col("case") != INTACT).height
    assert set(rows["task"]) == {"lambada", "calibration_error", "generation", "hellaswag"}
    for row in rows.filter(pl.col("task").is_in(["lambada", "hellaswag"])).to_dicts():
        key = (pl.col("task") == row["task"]) & (pl.col("metric") == row["metric"])
        ours, theirs = (items.filter(key, pl.col("case") == case)["value"] for case in (row["case"], INTACT))
        assert row["delta"] == pytest.approx(row["value"] - row["intact"])
        if row["metric"] == "perplexity":
            assert (row["delta_low"], row["p_value"]) == (None, None)
            continue
        assert row["delta"] == pytest.approx((ours - theirs).mean(), abs=1e-12)
        assert row["delta_low"] <= row["delta"] + 1e-12
        assert row["delta"] <= row["delta_high"] + 1e-12
        assert row["num_changed"] == int((ours != theirs).sum())
        assert 0 < row["p_value"] <= 1
    intact = {(r["task"], r["metric"]): r["value"] for r in figures.filter(pl.col("case") == INTACT).to_dicts()}
    assert all(row["intact"] == intact[row["task"], row["metric"]] for row in figures.to_dicts())
    texts = find_table(folder, "continuations/1").frame
    assert texts["case"].n_unique() == figures["case"].n_unique()


def test_a_planted_fatal_weight_shows_in_the_tasks(tmp_path: Path) -> None:
    """A weight of the head blown up lowers every word's log-likelihood by far; a factor of one changes nothing at all."""
    methods = [{"method": "scale", "factor": 1e4}, {"method": "scale", "factor": 1.0}]
    folder = perturb.run(
        spec_of(tmp_path, ["lambada"], methods), TARGETS[3:], loaded=load("llama"), root=tmp_path
    ).folder
    broken, same = find_table(folder, "task_damage/1").frame.filter(pl.col("metric") == "loglik").to_dicts()
    assert broken["delta"] < -100
    assert broken["num_changed"] == len(PASSAGES)
    assert (same["delta"], same["delta_low"], same["delta_high"], same["num_changed"]) == (0, 0, 0, 0)
    assert same["p_value"] == 1


def test_a_killed_campaign_goes_on_behind_the_finished_cases(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed while the tasks run, the campaign resumes, measures the rest alone, and writes the same bytes."""
    spec = spec_of(tmp_path, ["lambada", "generation"])
    whole = run_once(spec, tmp_path / "whole")
    monkeypatch.setattr("esa.eval.evaluator.TOGETHER", 2)
    note, noted = case_tasks._note, []

    def dying(campaign: Campaign, case: str, results: Any) -> None:
        if len(noted) == 3:
            raise KeyboardInterrupt
        noted.append(case)
        note(campaign, case, results)

    monkeypatch.setattr(case_tasks, "_note", dying)
    loaded = load("llama")
    before = model_fingerprint(loaded.model)
    with pytest.raises(KeyboardInterrupt):
        run_once(spec, tmp_path / "killed", loaded)
    assert model_fingerprint(loaded.model) == before
    again: list[str] = []
    monkeypatch.setattr(
        case_tasks, "_note", lambda campaign, case, results: (again.append(case), note(campaign, case, results))
    )
    resumed = run_once(spec, tmp_path / "killed")
    assert not set(again) & set(noted)
    assert len(again) + len(noted) == 6
    for name in ("damage.csv", "eval.csv", "items.csv", "task_damage.csv", "continuations.csv"):
        assert (resumed / name).read_bytes() == (whole / name).read_bytes()


def test_items_that_cannot_be_are_refused_before_the_campaign(tmp_path: Path) -> None:
    """A row without its field stops the campaign before a case is evaluated, and leaves no folder."""
    spec = spec_of(tmp_path, ["lambada"])
    (tmp_path / "l.jsonl").write_text('{"words": "a b"}\n')
    with pytest.raises(DataError, match="item 0: has no 'text'"):
        run_once(spec, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_other_items_make_another_step(tmp_path: Path) -> None:
    """The items' bytes are among what a campaign is made from."""
    spec = spec_of(tmp_path, ["lambada"])
    first = perturb.perturb_step(spec, {}, loaded=load("llama")).id
    (tmp_path / "l.jsonl").write_text('{"text": "a b"}\n')
    assert perturb.perturb_step(spec, {}, loaded=load("llama")).id != first


def test_without_tasks_a_campaign_writes_none(tmp_path: Path) -> None:
    """Language modelling alone gives no table of tasks."""
    folder = run_once(spec_of(tmp_path, []), tmp_path)
    assert not {"eval.csv", "items.csv", "task_damage.csv"} & {path.name for path in folder.iterdir()}


@pytest.mark.filterwarnings("ignore")  # the harness and what it imports warn of themselves
def test_a_task_of_the_harness_is_paired_case_by_case(tmp_path: Path) -> None:
    """Every case has the figures that the harness gives a model changed for good, its items' differences, and the same step again."""
    pytest.importorskip("lm_eval")
    yaml = task_file(tmp_path, "lambada", write_lines(tmp_path / "l.jsonl", PASSAGES))
    spec = tiny_spec(
        eval={"windows": 3, "rewrites": 1}, perturb=[{"method": "scale", "factor": 40.0, "unit": "single"}]
    )
    given: dict[str, Any] = {"harness": [str(yaml)], "root": tmp_path / "out"}
    result = perturb.run(spec, TARGETS[:2], loaded=load("llama"), **given)
    figures = find_table(result.folder, "eval/1").frame
    assert figures["task"].unique().to_list() == ["lm_eval:tiny_lambada"]
    cases = list(result.damage.frame.select("case", "target").iter_rows())
    for case, target in cases:
        changed = load("llama")
        name, _, indices = target.partition(":")
        with torch.no_grad():
            changed.model.get_parameter(name)[tuple(map(int, indices.split(",")))] *= 40.0
        expected = {one.metric: one.value for one in run_harness(changed, find_tasks([str(yaml)]), spec)}
        mine = figures.filter(case=case)
        assert dict(mine.select("metric", "value").iter_rows()) == pytest.approx(expected)
    damage = find_table(result.folder, "task_damage/1").frame.filter(metric="acc")
    assert damage["num_items"].to_list() == [len(PASSAGES)] * len(cases)
    assert perturb.run(spec, TARGETS[:2], loaded=load("llama"), **given).reused
    assert perturb.run(spec, TARGETS[:2], loaded=load("llama"), root=tmp_path / "out").id != result.id
