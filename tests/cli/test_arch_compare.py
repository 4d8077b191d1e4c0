"""`esa arch RUN...`: what is printed, where to, and what is refused; and a real mixture scored, ranked and compared."""

import json
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from esa.arch.comparison import PARTS
from esa.artifact import read_table
from tests.arch.planted_mixtures import dense, mixture, with_axes
from tests.cli.conftest import SPEC, Invoke
from tests.conftest import build, make_tokenizer

QUICK = ("shares", "attention", "depth", "experts", "clustering")


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Work beside two finished runs, and ask but for what takes no time."""
    with_axes(dense(tmp_path, tied=True))
    with_axes(mixture(tmp_path, usage=lambda block, expert: 0.1 * (expert + 1)))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("esa.arch.comparison.PARTS", {name: PARTS[name] for name in QUICK})
    return ["outputs/dense", "outputs/moe", "--permutations", "99"]


def test_runs_are_compared(runs: list[str], esa: Invoke) -> None:
    """The folder is data on stdout; shares by component, answers with intervals and p, and reasons are talk on stderr."""
    done = esa("arch", *runs)
    assert done.exit_code == 0, done.output
    folder = Path(done.stdout.strip())
    assert folder.parent == Path("outputs/dense_moe")
    assert folder.name.startswith("arch-")
    for text in (
        "Runs", "dense  ", "Where the score lies: act_mag, first seed", "expert.gate_up", "weights %", "Attention against MLP: act_mag", "p (Holm)",
        "Score against usage: moe, act_mag", "usage enters this score by definition",
        "embedding and head: no answer for dense, head / blocks: tied to the embedding: one tensor, counted there",
        "esa: warning: dense: embedding and head are one tied tensor",
    ):  # fmt: skip
        assert text in done.stderr
    shares = read_table(folder / "shares.csv", "shares/1").frame
    row = shares.filter(pl.col("label") == "dense", pl.col("value") == "mlp.down", pl.col("seed") == 0).to_dicts()[0]
    line = next(line for line in done.stderr.splitlines() if line.startswith("dense  mlp.down"))
    assert line.split()[2:4] == [f"{100 * row['weight_share']:.2f}", f"{100 * row['score_share']:.2f}"]


def test_many_runs_are_a_line_each(runs: list[str], esa: Invoke, tmp_path: Path) -> None:
    """Of more than three runs the screen has a line each, with the density of every part; a dash where one has no such part."""
    more = [str(dense(tmp_path, name=name, model_seed=n).write()) for n, name in enumerate("ab")]
    done = esa("arch", *more, *runs)
    assert done.exit_code == 0, done.output
    head, *lines = done.stderr.split("Density by part: act_mag, first seed")[1].splitlines()[1:6]
    assert head.split() == ["run", "attention", "mlp", "embedding", "head", "expert", "router"]
    assert [line.split()[0] for line in lines] == ["a", "b", "dense", "moe"]
    assert lines[2].split()[4:] == ["-", "-", "-"]  # tied and dense
    assert lines[3].split()[2] == "-"


def test_of_many_answers_those_of_the_smallest_p_are_shown(runs: list[str], esa: Invoke, tmp_path: Path) -> None:
    """Of more than ten tests the ten of the smallest p stand on the screen, and the line below says so; a pair names both runs."""
    target = "model.layers.1.mlp.down_proj.weight:3,{}"
    critical = {target.format(column): 100.0 + column for column in range(10)}
    more = [
        str(with_axes(dense(tmp_path, name="planted", model_seed=7, ks=(1, 10), critical=critical))),
        str(with_axes(dense(tmp_path, name="b", model_seed=8))),
    ]
    done = esa("arch", *runs[:2], *more, *runs[2:], "-k", 10)
    assert done.exit_code == 0, done.output
    part = done.stderr.split("Clustering: act_mag")[1].splitlines()
    assert part[2].split()[:2] == ["planted", "output"]
    assert "and 6 more in comparison.csv, these being of the smallest p" in part


def test_two_runs_of_one_answer_are_both_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, esa: Invoke) -> None:
    """Where a question has one pair, its title names both; a run given twice is refused before anything is written."""
    dense(tmp_path, name="base").write()
    dense(tmp_path, name="tuned", model_seed=1, chat_template=True).write()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("esa.arch.comparison.PARTS", {"variants": PARTS["variants"]})
    done = esa("arch", "outputs/base", "outputs/tuned", "--permutations", "99")
    assert "Variants: base and tuned, act_mag" in done.stderr
    twice = esa("arch", "outputs/base", "outputs/base", "-o", "twice")
    assert twice.exit_code == 3
    assert (
        twice.stderr == "esa: error: outputs/base: 'base' is given twice, with the same steps; allowed: each run once\n"
    )
    assert not Path("twice").exists()


def test_quiet_prints_the_folder_alone(runs: list[str], esa: Invoke) -> None:
    """With -q there is nothing but the folder, that of -o."""
    done = esa("arch", *runs, "-q", "-o", "mine")
    assert (done.exit_code, done.stdout, done.stderr) == (0, "mine\n", "")
    assert (Path("mine") / "comparison.csv").is_file()


def test_step_folders_are_runs_too(runs: list[str], esa: Invoke) -> None:
    """The score and rank steps of a run, given as folders, are one run."""
    steps = [path for kind in ("score", "rank") for path in Path("outputs/dense").glob(f"{kind}-*")]
    done = esa("arch", *steps, *runs[2:])
    assert done.exit_code == 0, done.output
    assert Path(done.stdout.strip()).parent == Path("outputs/dense")


def test_a_dry_run_touches_nothing(runs: list[str], esa: Invoke, tmp_path: Path) -> None:
    """The plan names runs, metrics, K, permutations, questions and the folder; nothing is written."""
    before = sorted(tmp_path.rglob("*"))
    done = esa("arch", *runs, "-n", "-k", 5)
    assert done.exit_code == 0, done.output
    assert done.stdout.startswith("dense: score, rank, perturb, overlap, eval; ")
    assert "metrics: act_mag; K: 5; 99 permutations" in done.stdout
    assert "writes outputs/dense_moe/arch-" in done.stdout
    assert sorted(tmp_path.rglob("*")) == before


REFUSED: list[tuple[list[Any], str]] = [
    (["outputs/dense", "smollm2-135m"],
     "MODEL|RUN: smollm2-135m: no finished run, beside 1 that is; allowed: one model, or finished runs alone\n"
     "  hint: a finished run is a folder with run.json, a finished step one with manifest.json"),
    (["one", "two"], "MODEL: 2 models are given: one, two; one is described at a time"),
    (["outputs/dense", "-f", "csv"], "--format: is for describing a model; here runs are compared"),
    (["outputs/dense", "--set", "model.dtype='float16'"], "--set: is for describing a model; here runs are compared"),
    (["outputs/dense", "-o", "a.csv"], "--out: 'a.csv': a comparison is a folder of tables; give a folder"),
    (["outputs/dense", "--metric", "actmag"],
     "--metric: no run scored 'actmag' (did you mean 'act_mag'?); scored: act_mag"),
    (["outputs/dense", "-k", "5000"], "-k: 5,000 weights are asked for, and a list holds 20 weights"),
    (["smollm2-135m", "-k", "5"], "-k: is for comparing finished runs; here a model is described"),
    (["smollm2-135m", "--force"], "--force: is for comparing finished runs; here a model is described"),
]  # fmt: skip


@pytest.mark.parametrize(("words", "text"), REFUSED, ids=[" ".join(words) for words, _ in REFUSED])
@pytest.mark.usefixtures("runs")
def test_what_does_not_go_together_is_refused(words: list[Any], text: str, esa: Invoke) -> None:
    """A model beside a run, several models, and options that have no meaning here end with exit code 3 and one text."""
    done = esa("arch", *words)
    assert (done.exit_code, done.stdout) == (3, "")
    assert done.stderr.startswith(f"esa: error: {text}")


def test_a_real_mixture(folder: Path, esa: Invoke, monkeypatch: pytest.MonkeyPatch) -> None:
    """A tiny Mixtral, scored and ranked by esa, has its experts in the table, usage and axes as the model stores them."""
    build("mixtral").save_pretrained(folder / "model")
    make_tokenizer().save_pretrained(folder / "model")
    (folder / "s.toml").write_text(SPEC.replace('"magnitude", ', ""))
    score = esa("score", "-s", "s.toml", "-q").stdout.strip()
    rank = esa("rank", score, "-s", "s.toml", "-q").stdout.strip()
    monkeypatch.setattr("esa.arch.comparison.PARTS", {name: PARTS[name] for name in QUICK})
    done = esa("arch", score, rank, "--permutations", "99", "-q")
    assert done.exit_code == 0, done.output
    found = Path(done.stdout.strip())
    experts = read_table(found / "experts.csv", "experts/1").frame
    assert experts.group_by("metric", "seed").len()["len"].to_list() == [3 * 4] * 4
    assert set(experts["numel"]) == {3 * 16 * 24}  # gate, up and down of an expert
    by_block = experts.filter(pl.col("metric") == "act_mag").group_by("seed", "block").agg(pl.col("usage").sum())
    assert by_block["usage"].to_list() == pytest.approx([2.0] * 6)  # a token uses two experts
    same = experts.pivot("metric", index=["seed", "block", "expert"], values="usage")
    assert same["grad_x_weight"].to_list() == same["act_mag"].to_list()
    asked = read_table(found / "comparison.csv", "comparison/1").frame
    clustered = asked.filter(pl.col("question") == "clustering")
    assert clustered["num"].to_list() == [5] * 8
    assert not clustered["why"].fill_null("").str.contains("left out").any()  # the axes of all tensors are known
    assert json.loads((found / "manifest.json").read_text())["options"]["k"] == 5
