"""The further random draws of the confirmatory test: at its K alone, for the first seed, and the same as ever."""

from pathlib import Path
from typing import Any

import polars as pl
import pytest

import esa.rank
from esa.errors import SelectionError
from esa.rank.scores import open_scores
from esa.spec import Spec, spec_from_dict


def confirming(folder: Path, **more: Any) -> Spec:
    """Return the spec of the scores with a confirmatory test of two weights against seven draws."""
    found = open_scores(folder).spec
    assert found is not None
    tree = {**found.model_dump(exclude_none=True), "rank": {"k": (2, 10), "draws": 3}}
    return spec_from_dict({**tree, "confirm": {"metric": "act_mag", "k": 2, "draws": 7}, **more})


def ranked(folder: Path, spec: Spec) -> pl.DataFrame:
    """Return the ranking's rows."""
    return esa.rank.run(folder, spec=spec, write=False).table.frame


def test_further_draws_have_the_confirmed_k(folder: Path) -> None:
    """The first seed has seven draws, from the fourth on of two weights; the second has the three that rank.draws names."""
    frame = ranked(folder, confirming(folder)).filter(group="random_k")
    sizes = frame.group_by("seed", "draw", maintain_order=True).len("rows").rows()
    assert sizes == [*((0, draw, 10) for draw in range(3)), *((0, draw, 2) for draw in range(3, 7)),
                     *((1, draw, 10) for draw in range(3))]  # fmt: skip


def test_further_draws_are_those_of_a_larger_number(folder: Path) -> None:
    """A draw's weights depend on its number alone: with rank.draws = 7 the first two of each draw are the same."""
    few = ranked(folder, confirming(folder)).filter(
        pl.col("group") == "random_k", pl.col("rank") <= 2, pl.col("seed") == 0
    )
    many = ranked(folder, confirming(folder, rank={"k": (2, 10), "draws": 7}))
    many = many.filter(pl.col("group") == "random_k", pl.col("rank") <= 2, pl.col("seed") == 0)
    assert few["index"].to_list() == many["index"].to_list()


def test_no_test_is_named_by_default(folder: Path) -> None:
    """Without confirm.metric there are the draws of rank.draws and no others."""
    frame = ranked(folder, confirming(folder, confirm={"k": 2, "draws": 7})).filter(group="random_k")
    assert frame["draw"].max() == 2


REFUSED = [
    ({"confirm": {"metric": "act_mag", "k": 3}}, "confirm.k: 3 is not among rank.k: [2, 10]"),
    ({"confirm": {"metric": "obd", "k": 2}}, "confirm.metric: 'obd' is not among the ranked metrics: act_mag, magnitude"),
    (
        {"rank": {"k": (2,), "groups": ("top_k",)}},
        "confirm.metric: compares top_k with random_k of single weights; the ranking has aggregate = 'weight', groups = ['top_k']",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("changed", "said"), REFUSED)
def test_a_test_that_cannot_be_made_is_refused(folder: Path, changed: dict[str, Any], said: str) -> None:
    """A K, a metric or a group that the ranking does not have is named, with what it has."""
    with pytest.raises(SelectionError) as caught:
        ranked(folder, confirming(folder, **changed))
    assert str(caught.value).splitlines()[0] == said
