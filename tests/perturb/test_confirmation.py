"""The confirmatory test of a campaign: its own draws, changed for it alone, and one p value that nothing adjusts."""

from pathlib import Path
from typing import Any

import polars as pl
import pytest

from esa.errors import SpecError
from esa.progress import Silent
from esa.spec import Spec
from tests.perturb.planted import DOWN, HEAD, TOP, UP, frame, perturb, ranking, rows, spec

DRAWS = 39


class Notes(Silent):
    """Keeps what is said."""

    def __init__(self) -> None:
        super().__init__()
        self.said: list[str] = []

    def note(self, text: str) -> None:
        """Keep a note."""
        self.said.append(text)


def confirmed(**more: Any) -> Spec:
    """Return a spec with two methods of which zero is confirmed at K = 3."""
    confirm = {"metric": "act_mag", "k": 3, "draws": DRAWS, **more}
    given = {
        "rank": {"k": [1, 3], "draws": 19},
        "confirm": confirm,
        "eval": {"windows": 4, "length": 12, "rewrites": 2},
    }
    return spec({"method": "zero"}, {"method": "sign_flip"}, **given)


def drawn(number: int) -> list[dict[str, object]]:
    """Return a draw of three weights."""
    return rows(None, 0, "random_k", [(UP, 77 + 3 * number), (DOWN, 200 - number), (HEAD, 9 + number)], draw=number)


RANKING = ranking(rows("act_mag", 0, "top_k", TOP), *[drawn(number) for number in range(DRAWS)])


def test_further_draws_serve_the_test_alone(tmp_path: Path) -> None:
    """Draws beyond rank.draws are changed by the confirmed method at its K and by no other; the first ones by all."""
    result = perturb(confirmed(), RANKING, tmp_path)
    damage = frame(result).filter(group="random_k")
    counts = damage.group_by("draw", maintain_order=True).agg(pl.len(), pl.col("method").n_unique().alias("methods"))
    assert counts.filter(pl.col("draw") < 19).rows() == [(draw, 4, 2) for draw in range(19)]
    assert counts.filter(pl.col("draw") >= 19).rows() == [(draw, 1, 1) for draw in range(19, DRAWS)]
    assert damage.filter(pl.col("draw") >= 19)["k"].unique().to_list() == [3]
    tests = frame(result, "tests/1")
    (row,) = tests.filter(phase="confirmatory").to_dicts()
    assert (row["claim"], row["k"], row["method"], row["num_draws"]) == ("more_than_random", 3, "zero", DRAWS)
    values = damage.filter(k=3, method="zero")["delta_nll"].to_list()
    top = frame(result).filter(group="top_k", k=3, method="zero")["delta_nll"].item()
    assert row["p_value"] == (1 + sum(value >= top for value in values)) / (DRAWS + 1)
    assert tests.filter(claim="more_than_random", phase="screen")["num_draws"].unique().to_list() == [19]


def test_a_method_that_is_not_there_is_refused(tmp_path: Path) -> None:
    """The confirmed method must be one of the tables."""
    with pytest.raises(SpecError) as caught:
        perturb(confirmed(method="clamp"), RANKING, tmp_path)
    assert "confirm.method: 'clamp' is not among the methods of [[perturb]]: zero, sign_flip" in str(caught.value)


def test_a_ranking_without_the_group_is_refused(tmp_path: Path) -> None:
    """Random groups, the metric's top group and K weights in each are what the test compares."""
    for table, missing in [
        (ranking(rows("act_mag", 0, "top_k", TOP)), "no random_k"),
        (ranking(rows("wanda", 0, "top_k", TOP), drawn(0)), "no top_k"),
        (ranking(rows("act_mag", 0, "top_k", TOP[:2]), drawn(0)), "2 weights of its top_k"),
    ]:
        with pytest.raises(SpecError) as caught:
            perturb(confirmed(), table, tmp_path)
        assert f"the ranking has {missing}" in str(caught.value)


def test_of_addresses_there_is_no_test(tmp_path: Path) -> None:
    """Targets given by address have no random groups: the test is left out with a note, whatever the methods are."""
    for chosen in (confirmed(), confirmed(method="clamp")):
        notes = Notes()
        result = perturb(chosen, [f"{DOWN}:3,4"], tmp_path, progress=notes)
        assert "confirm: compares a ranking's top_k with random_k; of addresses there is no such test" in notes.said
        assert frame(result, "tests/1")["phase"].unique().to_list() == ["screen"]
        assert result.reused is (chosen.confirm.method == "clamp")  # the test is no part of the step's id


def test_the_further_draws_are_not_followed(tmp_path: Path) -> None:
    """Draws that only the test needs are followed through no block and run on no task; the others are."""
    tables = ({"method": "zero", "propagation": True}, {"method": "sign_flip"})
    chosen = confirmed()
    given = chosen.model_dump(include={"rank", "confirm", "eval"}, exclude_none=True)
    given["eval"] |= {"tasks": ["language_modeling", "generation"], "prompts": 1, "new_tokens": 2}
    result = perturb(spec(*tables, **given), RANKING, tmp_path)
    damage = frame(result)
    further = set(damage.filter(pl.col("draw") >= 19)["case"])
    assert len(further) == DRAWS - 19
    assert set(frame(result, "propagation/1")["draw"].drop_nulls()) == set(range(19))
    assert set(frame(result, "task_damage/1")["case"]) == set(damage["case"]) - further
