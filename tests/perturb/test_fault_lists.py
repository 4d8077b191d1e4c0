"""A list of faults is uniform over the stored bits, drawn without counting them, and read again only where it fits."""

from typing import Any

import numpy as np
import polars as pl
import pytest
import torch

from esa.errors import EsaError, SpecError, TargetError
from esa.perturb.faults.lists import Store, check_list, chosen, draw_list, draw_positions, matched, stores
from esa.perturb.faults.secded import CODE_BITS, DATA_BITS
from esa.spec.sections import Faults
from tests.conftest import load

SMALL = [Store("a", 3, 32), Store("b", 5, 16), Store("c", 9, 8), Store("d", 17, 4)]
DOWN = "model.layers.1.mlp.down_proj.weight"
NORM = "model.norm.weight"


def faults(**keys: Any) -> Faults:
    """Return the section ``[faults]``."""
    return Faults(**{"rates": (0.01,), "trials": 4, **keys})


def every_bit(found: list[Store], ecc: str) -> list[tuple[object, ...]]:
    """Return every place a fault can fall on, by plain loops: parameter, index, bit, width, word, codeword bit."""
    places: list[tuple[object, ...]] = []
    for store in found:
        if ecc == "none":
            places += [
                (store.name, i, b, store.width, None, None) for i in range(store.numel) for b in range(store.width)
            ]
            continue
        for word in range(-(-store.numel * store.width // DATA_BITS)):
            for place in range(CODE_BITS):
                index, bit = divmod(word * DATA_BITS + place, store.width)
                inside = place < DATA_BITS and index < store.numel
                places.append(
                    (store.name, index if inside else None, bit if inside else None, store.width, word, place)
                )
    return places


@pytest.mark.parametrize("ecc", ["none", "secded"])
def test_places_are_those_of_a_plain_enumeration(ecc: str) -> None:
    """Where nearly every bit is wrong, the rows are the enumerated places in order, padding and check bits included."""
    frame = draw_list(SMALL, faults(rates=(1 - 1e-12,), trials=1, ecc=ecc), seed=0)
    assert frame.drop("rate", "trial").rows() == every_bit(SMALL, ecc)
    assert frame.height == sum(store.num_bits(ecc) for store in SMALL)


@pytest.mark.parametrize("rate", [0.1, 0.45, 0.8])
def test_every_bit_is_hit_at_the_rate(rate: float) -> None:
    """Over 4,000 draws each of 40 bits is hit as often as the rate says, and so are pairs of them."""
    draws, total = 4000, 40
    hits = np.zeros((draws, total))
    for number in range(draws):
        found = draw_positions(total, rate, np.random.default_rng(number))
        assert len(np.unique(found)) == len(found)
        hits[number, found] = 1
    spread = (rate * (1 - rate) / draws) ** 0.5
    assert np.abs(hits.mean(axis=0) - rate).max() < 4.5 * spread
    together = hits.T @ hits / draws - np.outer(hits.mean(axis=0), hits.mean(axis=0))
    assert np.abs(together - np.diag(np.diag(together))).max() < 5 * rate * (1 - rate) / draws**0.5


def test_the_bits_of_eight_billion_weights_are_not_counted() -> None:
    """A list over 1.28e11 bits takes no more room than its faults."""
    frame = draw_list([Store("w", 8_000_000_000, 16)], faults(rates=(1e-9,), trials=20), seed=1)
    counts = frame.group_by("trial").len()["len"]
    assert 20 * 100 < frame.height < 20 * 160
    assert counts.std() == pytest.approx(128**0.5, rel=0.5)
    assert frame["index"].max() > 7_000_000_000
    assert frame["bit"].n_unique() == 16


def test_a_trial_keeps_its_faults_whatever_stands_beside_it() -> None:
    """More trials and other rates leave a trial's faults as they are; another seed does not."""
    short = draw_list(SMALL, faults(rates=(0.05,), trials=3), seed=0)
    long = draw_list(SMALL, faults(rates=(0.02, 0.05), trials=9), seed=0)
    assert short.equals(long.filter(pl.col("rate") == 0.05, pl.col("trial") < 3))
    assert not short.equals(draw_list(SMALL, faults(rates=(0.05,), trials=3), seed=1))


def test_a_trial_without_a_fault_is_a_row_without_a_parameter() -> None:
    """No trial is lost from the list."""
    frame = draw_list(SMALL, faults(rates=(1e-9,), trials=5), seed=0)
    assert frame.rows() == [(1e-9, trial, *[None] * 6) for trial in range(5)]


def test_too_long_a_list_is_refused_before_it_is_drawn() -> None:
    """The refusal says how many faults it would be, and which rate gives one per trial."""
    with pytest.raises(
        EsaError, match=r"4 trials at rate 0\.01 over 128,000,000,000 bits are about 5,120,000,000"
    ) as info:
        draw_list([Store("w", 8_000_000_000, 16)], faults(), seed=0)
    assert "7.8e-12" in str(info.value.hint)


def test_every_parameter_is_chosen_by_default() -> None:
    """Norms hold bits too; include and exclude choose as everywhere, under their own names."""
    table = load("llama").table
    assert chosen(table, faults()) == list(table)
    assert NORM in chosen(table, faults())
    assert chosen(table, faults(include=("component=norm",), exclude=("block=*[0-9]",))) == [NORM]
    with pytest.raises(SpecError, match=r"faults\.include: 'nosuch' matches no parameter"):
        chosen(table, faults(include=("nosuch",)))
    with pytest.raises(SpecError, match=r"faults\.include: no parameter is left$"):
        chosen(table, faults(exclude=("*",)))


@pytest.mark.parametrize(("dtype", "width"), [(torch.float32, 32), (torch.bfloat16, 16), (torch.float16, 16)])
def test_the_storage_dtype_says_how_many_bits_there_are(dtype: torch.dtype, width: int) -> None:
    """A number has as many bits as its storage dtype."""
    assert stores(load("llama", dtype), [DOWN]) == [Store(DOWN, 384, width)]


def drawn(ecc: str = "none") -> pl.DataFrame:
    """Return a list over two tensors of the tiny Llama, of two rates."""
    found = stores(load("llama"), [DOWN, NORM])
    return draw_list(found, faults(rates=(1e-3, 3e-3), trials=3, ecc=ecc), seed=0)


@pytest.mark.parametrize("ecc", ["none", "secded"])
def test_a_list_that_fits_is_taken_as_it_is(ecc: str) -> None:
    """Checking changes nothing but a parameter's other name."""
    frame = drawn(ecc)
    check_list(frame, ecc, "list")
    assert matched(frame, load("llama"), ecc, "list").equals(frame)
    short = frame.with_columns(pl.col("parameter").str.strip_suffix(".weight"))
    assert matched(short, load("llama"), ecc, "list").equals(frame)


def change(column: str, value: object) -> Any:
    """Return what sets a column of a list's first fault."""

    def changed(frame: pl.DataFrame) -> pl.DataFrame:
        rows = frame.to_dicts()
        next(row for row in rows if row["parameter"] is not None)[column] = value
        return pl.DataFrame(rows, schema=frame.schema)

    return changed


def taken(frame: pl.DataFrame, ecc: str) -> None:
    """Take a list for the tiny Llama."""
    check_list(frame, ecc, "list.csv")
    matched(frame, load("llama"), ecc, "list.csv")


def under_both_names(frame: pl.DataFrame) -> pl.DataFrame:
    """Return a list with its faults once more, under the parameters' short names."""
    return pl.concat([frame, frame.with_columns(pl.col("parameter").str.strip_suffix(".weight"))])


REFUSED = [
    ("none", lambda frame: frame.clear(), "holds no row"),
    ("none", change("rate", 1.5), "no rate between 0 and 1"),
    ("none", change("trial", None), "or no trial"),
    ("none", lambda frame: frame.filter(pl.col("trial") != 1), r"the trials \[0, 2\]"),
    ("none", lambda frame: frame.filter((pl.col("rate") > 0.002) | (pl.col("trial") < 2)), r"its rates have \[2, 3\] trials"),
    ("none", lambda frame: pl.concat([frame, frame]), "a fault stands twice"),
    ("none", under_both_names, "a fault stands twice"),
    ("none", change("parameter", "model.layers.9"), "'model.layers.9' is not a parameter"),
    ("none", change("width", 16), "is of 16-bit numbers; this model stores them in 32 bits"),
    ("none", change("index", 384), r"'index': 384.*is no stored bit of model.layers.1.mlp.down_proj.weight, of 384"),
    ("none", change("index", None), "'index': None"),
    ("none", change("bit", 32), "'bit': 32"),
    ("none", change("bit", -1), "'bit': -1"),
    ("secded", change("index", 0), "'index': 0"),
    ("secded", change("word", 192), "'word': 192"),
    ("secded", change("codeword_bit", 72), "'codeword_bit': 72"),
]  # fmt: skip


@pytest.mark.parametrize(("ecc", "changed", "words"), REFUSED)
def test_a_list_that_does_not_fit_is_refused(ecc: str, changed: Any, words: str) -> None:
    """Each way in which a list can be wrong has its own words."""
    with pytest.raises((EsaError, TargetError), match=words):
        taken(changed(drawn(ecc)), ecc)


@pytest.mark.parametrize("ecc", ["secded", "none"])
def test_a_list_drawn_for_another_code_is_refused(ecc: str) -> None:
    """A list over stored bits is none over codewords, and the other way round."""
    other = {"none": "secded", "secded": "none"}[ecc]
    with pytest.raises(EsaError, match=f"was drawn for faults.ecc = '{other}', not '{ecc}'") as info:
        check_list(drawn(other), ecc, "list.csv")
    assert info.value.hint == f"--ecc {other}"
