"""Specialisation: experts that one text uses and another does not are found; samples of one text are no two texts."""

from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest

from esa.arch.comparison.concentration import jensen_shannon
from esa.arch.comparison.findings import Options, Row
from esa.arch.comparison.sources import Labelled
from esa.arch.comparison.specialisation import compare
from esa.spec import generator
from tests.arch.planted_mixtures import dense, mixture, opened
from tests.planted_runs import Planted

OPTIONS = Options(("act_mag",), 10)
PROSE, CODE = "builtin:prose", "builtin:code"


def on(root: Path, name: str, text: str, **knobs: object) -> Planted:
    """Return a run of the one mixture on a text."""
    return mixture(root, name=name, calibration=text, **{"fingerprint": "one", **knobs})


def with_usage(made: Planted, usage: Callable[[int, int, int], float]) -> Labelled:
    """Return the written run with a usage of every seed, block and expert."""
    run = opened(made.write())[0]
    found = pl.struct("seed", "block", "expert").map_elements(
        lambda at: None if at["expert"] is None else usage(at["seed"], at["block"], at["expert"]),
        return_dtype=pl.Float64,
    )
    assert run.run.tensors is not None
    run.run.__dict__["tensors"] = run.run.tensors.with_columns(found.alias("usage"))
    return run


def noisy(favourite: int | None) -> Callable[[int, int, int], float]:
    """Return a usage with a little noise per seed, one expert used three times as much."""
    return lambda seed, block, expert: (
        (3.0 if expert == favourite else 1.0)
        * (1 + 0.05 * float(generator(seed, "usage", str(favourite), block, expert).random()))
    )


def usage_rows(*runs: Labelled) -> list[Row]:
    """Return the answers about usage."""
    rows = compare(runs, OPTIONS).tables["comparison/1"]
    return [row for row in rows if row["subject"] == "usage" or row["quantity"].startswith("usage")]


def test_a_text_with_another_favourite_is_found(tmp_path: Path) -> None:
    """Expert 1 on prose and 3 on code: the divergence between is many times that within, p the smallest, both are named."""
    prose = with_usage(on(tmp_path, "p", PROSE, seeds=(0, 1, 2)), noisy(1))
    code = with_usage(on(tmp_path, "c", CODE, seeds=(0, 1, 2)), noisy(3))
    first, *experts = usage_rows(prose, code)
    assert (first["a"], first["b"], first["num"]) == ("p", "c", 6)
    assert first["value"] > 20 * first["expected"]
    assert first["p_value"] == first["smallest_p"] == 2 / 20
    assert len(experts) == 5
    assert {row["subject"].split()[-1] for row in experts} == {"1", "3"}
    assert all((row["value"] > 0) == row["subject"].endswith("1") for row in experts)


def test_the_divergence_is_a_naive_mean(tmp_path: Path) -> None:
    """Between texts: the mean over pairs of seeds and blocks of the divergence of the experts' shares."""
    one, two = noisy(1), noisy(None)
    first = usage_rows(with_usage(on(tmp_path, "p", PROSE), one), with_usage(on(tmp_path, "c", CODE), two))[0]
    apart = []
    for s in (0, 1):
        for t in (0, 1):
            for block in range(4):
                p, q = ([f(seed, block, e) for e in range(5)] for f, seed in ((one, s), (two, t)))
                apart.append(jensen_shannon(*(pl.Series(x).to_numpy() / sum(x) for x in (p, q))))
    assert first["value"] == pytest.approx(sum(apart) / len(apart))


def test_one_usage_on_two_texts_is_no_specialisation(tmp_path: Path) -> None:
    """Two texts that use the experts alike differ between no more than within, and p is not the smallest."""
    first = usage_rows(
        with_usage(on(tmp_path, "p", PROSE, seeds=(0, 1, 2)), noisy(1)),
        with_usage(on(tmp_path, "c", CODE, seeds=(3, 4, 5)), noisy(1)),
    )[0]
    assert first["value"] < 2 * first["expected"]
    assert first["p_value"] > 0.1


def test_a_single_seed_gives_no_p(tmp_path: Path) -> None:
    """One score seed of a text cannot tell texts from samples: a value, no p, and the reason."""
    runs = [with_usage(on(tmp_path, name, text, seeds=(0,)), noisy(1)) for name, text in (("p", PROSE), ("c", CODE))]
    first = usage_rows(*runs)[0]
    assert first["value"] >= 0
    assert "p_value" not in first
    assert first["why"] == "fewer than 2 score seeds of a text: nothing to tell texts from samples of one"


@pytest.mark.parametrize(
    ("second", "knobs"),
    [(PROSE, {}), (CODE, {"fingerprint": "another"})],
    ids=["the same text", "another model"],
)
def test_it_needs_two_texts_of_one_model(second: str, knobs: dict[str, object], tmp_path: Path) -> None:
    """Two runs on one text, or of two models, are refused with the reason, one row each."""
    runs = [with_usage(on(tmp_path, "a", PROSE), noisy(1)), with_usage(on(tmp_path, "b", second, **knobs), noisy(2))]
    rows = compare(runs, OPTIONS).tables["comparison/1"]
    assert [row["a"] for row in rows] == ["a", "b"]
    assert rows[0]["why"] == f"needs runs of this model on two calibration texts; at hand: {PROSE}"
    assert all("value" not in row for row in rows)


def test_dense_models_are_not_asked(tmp_path: Path) -> None:
    """Nothing is said of the experts of a model that has none."""
    assert compare(opened(dense(tmp_path).write()), OPTIONS).tables["comparison/1"] == []


def test_usage_is_asked_once(tmp_path: Path) -> None:
    """Two metrics have one usage: it is one test, without a metric, and does not count twice in the adjustment."""
    runs = [
        with_usage(on(tmp_path, name, text, metrics=("act_mag", "wanda")), noisy(favourite))
        for name, text, favourite in (("p", PROSE, 1), ("c", CODE, 3))
    ]
    rows = compare(runs, Options(("act_mag", "wanda"), 10, permutations=99)).tables["comparison/1"]
    between = [(row["metric"], row["subject"]) for row in rows if row["quantity"] == "divergence_between_texts"]
    assert between == [(None, "usage"), ("act_mag", "score"), ("wanda", "score")]
