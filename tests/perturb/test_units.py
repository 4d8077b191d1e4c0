"""Units beside joint and single, lists of doses, regions and informed methods: which cases and rows a campaign has."""

import math
import time
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch

from esa.artifact import read_manifest, read_ranking
from esa.data import eval_windows
from esa.errors import EsaError
from esa.model import fingerprint
from esa.perturb.cases import Plan, dose_of, plan_cases
from esa.perturb.groups import Group, groups_from_ranking
from esa.perturb.heads import heads_of
from esa.perturb.units import num_parts, parts_of
from esa.progress import Silent
from tests.conftest import load
from tests.eval.naive import token_nlls
from tests.perturb.planted import BOTTOM, DOWN, HEAD, RANDOM, TOP, UP, frame, perturb, ranking, rows, spec

SEVEN = [*TOP, *BOTTOM, RANDOM[0]]
ADDRESSES = [f"{DOWN}:5,7", f"{UP}:0,5", f"{HEAD}:2,8"]


def plan(*sections: dict[str, Any], table: Any = None, ks: tuple[int, ...] = (1, 3)) -> Plan:
    """Plan a campaign on a ranking of the tiny Llama."""
    loaded = load("llama")
    found = groups_from_ranking((table or ranking()).frame, loaded.table, "t", heads=heads_of(loaded))
    return plan_cases(spec(*sections).perturb, found, ks, loaded, Silent())


def seven() -> Any:
    """Return a ranking of seven weights."""
    return ranking(rows("act_mag", 0, "top_k", SEVEN))


def test_leave_one_out_changes_all_but_the_one_it_names() -> None:
    """One case per target of the largest K, named by the target left out, k of them changed."""
    found = plan({"method": "zero", "unit": "leave_one_out", "groups": ["top_k"]})
    assert [(use.unit, use.k, use.target) for use in found.uses] == [("leave_one_out", 2, text) for text in ADDRESSES]
    assert [set(case.targets) for case in found.cases.values()] == [set(TOP) - {target} for target in TOP]


@pytest.mark.parametrize(
    ("k", "expected"), [(1, [1]), (2, [1, 2]), (6, [1, 2, 4, 6]), (4, [1, 2, 4]), (7, [1, 2, 4, 7])]
)
def test_cumulative_doubles_up_to_k(k: int, expected: list[int]) -> None:
    """Prefixes of 1, 2, 4, ... and K, each the joint change of so many."""
    found = plan({"method": "zero", "unit": "cumulative", "k": k}, table=seven())
    assert [use.k for use in found.uses] == expected
    assert [list(case.targets) for case in found.cases.values()] == [SEVEN[:number] for number in expected]
    assert [use.target for use in found.uses] == [ADDRESSES[0]] + [None] * (len(expected) - 1)


def test_pairs_are_every_two() -> None:
    """Every two of the K once, named by both addresses."""
    found = plan({"method": "zero", "unit": "pairs", "groups": ["top_k"]})
    assert [(use.k, use.target) for use in found.uses] == [(2, f"{a} + {b}") for a, b in combinations(ADDRESSES, 2)]
    assert [case.targets for case in found.cases.values()] == list(combinations(TOP, 2))


def test_a_ranking_per_layer_counts_what_is_changed() -> None:
    """With K in every layer, leave_one_out counts all weights but one, and cumulative takes the first K of each layer."""
    table = ranking(rows("act_mag", 0, "top_k", BOTTOM[:2]), rows("act_mag", 0, "top_k", [(UP, 9), (UP, 8)]))
    found = plan({"method": "zero", "unit": ["leave_one_out", "cumulative"]}, table=table, ks=(2,))
    assert [(use.unit, use.k) for use in found.uses] == [("leave_one_out", 3)] * 4 + [
        ("cumulative", 1),
        ("cumulative", 2),
    ]
    assert [len(found.cases[use.case].targets) for use in found.uses] == [3, 3, 3, 3, 2, 4]


def test_units_share_their_cases() -> None:
    """The same set of weights is one case, whatever the unit that asks for it; its rows differ in unit, k and target."""
    units = ["joint", "single", "leave_one_out", "cumulative", "pairs"]
    found = plan({"method": "zero", "unit": units, "groups": ["top_k"]})
    assert [use.unit for use in found.uses] == [
        *units[:1] * 2,
        *units[1:2] * 3,
        *units[2:3] * 3,
        *units[3:4] * 3,
        *units[4:] * 3,
    ]
    assert len(found.cases) == 3 + 3 + 1  # singles, pairs (left-one-out alike), all three
    assert {len(case.targets) for case in found.cases.values()} == {1, 2, 3}


@pytest.mark.parametrize("unit", ["joint", "single", "leave_one_out", "cumulative", "pairs"])
@pytest.mark.parametrize("sizes", [(2,), (3, 7), (1, 2, 5)])
def test_the_number_of_parts_is_known_beforehand(unit: str, sizes: tuple[int, ...]) -> None:
    """What a dry run counts is what the unit gives."""
    group = Group(None, None, "g", None, tuple(SEVEN), tuple(range(1, 8)))
    assert len(list(parts_of(unit, group, sizes, "w"))) == num_parts(unit, sizes)


@pytest.mark.parametrize(
    ("unit", "number", "message"),
    [
        ("leave_one_out", 1, "perturb.0.unit: 'leave_one_out' needs two targets, top_k has 1"),
        ("pairs", 1, "perturb.0.unit: 'pairs' needs two targets, top_k has 1"),
        (
            "pairs",
            33,
            "perturb.0.unit: 'pairs' of the 33 targets of top_k are 528 cases; allowed: at most 32 targets, 496 cases",
        ),
    ],
)
def test_units_that_a_group_does_not_have(unit: str, number: int, message: str) -> None:
    """Leaving the only one out changes nothing, and too many pairs are refused with their number."""
    table = ranking(rows("act_mag", 0, "top_k", [(UP, index) for index in range(number)]))
    with pytest.raises(EsaError) as raised:
        plan({"method": "zero", "unit": unit}, table=table, ks=(100,))
    assert str(raised.value).splitlines()[0] == message


def test_lists_of_options_are_tables_of_their_own() -> None:
    """Every combination of listed options is what a table with those values gives, the last one varying fastest."""
    listed = {"method": "gauss_noise", "sigma": [0.1, 0.2], "relative_to": ["weight", "absolute"], "repeats": 2}
    one_by_one = [
        {**listed, "sigma": sigma, "relative_to": relative}
        for sigma in (0.1, 0.2)
        for relative in ("weight", "absolute")
    ]
    found, expected = plan(listed), plan(*one_by_one)
    assert [(use.case, use.k, use.repeat) for use in found.uses] == [(u.case, u.k, u.repeat) for u in expected.uses]
    assert found.cases.keys() == expected.cases.keys()
    assert {dose_of(case.options) for case in found.cases.values()} == {0.1, 0.2}


@pytest.mark.parametrize(
    ("options", "dose"),
    [
        ({"epsilon": 0.3, "direction": "aligned"}, 0.3),
        ({"strength": 2.0}, 2.0),
        ({"quantile": 0.9}, 0.9),
        ({"bits": 3}, 3.0),
        ({"bit": 14}, None),
        ({}, None),
    ],
)
def test_doses(options: dict[str, Any], dose: float | None) -> None:
    """The option that is a strength is the dose; the position of a bit is none."""
    assert dose_of(options) == dose


def test_adaptive_cases_are_told_apart_by_metric_and_scores() -> None:
    """The same weights ranked by another metric, or with other scores, are another case of adaptive; of zero they are not."""
    tables = [ranking(rows(metric, 0, "top_k", TOP)) for metric in ("act_mag", "wanda")]
    other = [{**row, "score": float(number)} for number, row in enumerate(rows("act_mag", 0, "top_k", TOP), start=1)]
    ids = {
        method: [
            next(iter(plan({"method": method}, table=table, ks=(3,)).cases.values()))
            for table in (*tables, ranking(other))
        ]
        for method in ("adaptive", "zero")
    }
    assert len({case.id for case in ids["adaptive"]}) == 3
    assert len({case.id for case in ids["zero"]}) == 1
    assert ids["adaptive"][1].given.metric == "wanda"
    assert ids["adaptive"][1].given.scores == dict(zip(TOP, (0.5, 0.25, 0.5 / 3), strict=True))
    assert ids["adaptive"][0].options == {"strength": 1.0}


def test_plans_of_ten_thousand_cases_are_linear() -> None:
    """Ten thousand cases are planned in seconds of a processor, and twice as many take about twice as long."""

    def seconds(number: int) -> float:
        table = ranking(
            *(rows(None, 0, "random_k", [(UP, draw % 384), (DOWN, draw % 383)], draw) for draw in range(number))
        )
        began = time.process_time()
        assert len(plan({"method": "zero"}, table=table, ks=(1, 2)).uses) == 2 * number
        return time.process_time() - began

    small, large = seconds(2500), seconds(5000)
    assert large < 20
    assert large < 4 * small + 1


# What a campaign measures


def nll_without(targets: list[tuple[str, Any]]) -> float:
    """Return the NLL of the tiny Llama with weights or slices of it at zero, by hand."""
    loaded = load("llama")
    with torch.no_grad():
        for name, place in targets:
            weight = loaded.parameters()[name]
            (weight.view(-1) if isinstance(place, int) else weight)[place] = 0
    return float(torch.cat(token_nlls(loaded, eval_windows(spec().eval, loaded.tokenizer))).mean())


def test_units_measure_what_a_plain_loop_does(tmp_path: Path) -> None:
    """Leave-one-out, cumulative and pairs have the NLL of zeroing just those weights by hand."""
    chosen = spec({"method": "zero", "unit": ["leave_one_out", "cumulative", "pairs"]})
    found = frame(perturb(chosen, ranking(rows("act_mag", 0, "top_k", TOP)), tmp_path))
    sets = (
        [[t for t in TOP if t is not left] for left in TOP]
        + [TOP[:1], TOP[:2], TOP]
        + [list(p) for p in combinations(TOP, 2)]
    )
    assert found.height == len(sets)
    for row, targets in zip(found.iter_rows(named=True), sets, strict=True):
        assert row["nll"] == pytest.approx(nll_without(targets), rel=1e-6)  # type: ignore[arg-type]
        assert row["k"] == len(targets)


REGIONS: list[tuple[str, list[tuple[str, Any]]]] = [
    (f"{DOWN}:5,:", [(DOWN, np.s_[5, :])]),
    (f"{DOWN}::,7", [(DOWN, np.s_[:, 7])]),
    (UP, [(UP, np.s_[:])]),
    ("component=mlp.*,block=2", [(f"model.layers.2.mlp.{part}_proj.weight", np.s_[:]) for part in ("gate", "up", "down")]),
    ("model.layers.1.self_attn.o_proj.weight:@head=3", [("model.layers.1.self_attn.o_proj.weight", np.s_[:, 12:16])]),
    (f"{HEAD}:2,8", [(HEAD, 40)]),
]  # fmt: skip


def test_regions_measure_what_a_plain_loop_does(tmp_path: Path) -> None:
    """Rows, columns, tensors, components and heads at zero have the NLL of zeroing them by hand, alone and together."""
    loaded = load("llama")
    before = fingerprint(loaded.weights)
    chosen = spec({"method": "zero", "unit": ["single", "joint"]})
    result = perturb(chosen, [text for text, _ in REGIONS], tmp_path, loaded=loaded)
    assert fingerprint(loaded.weights) == before
    found = frame(result)
    assert found["target"].to_list() == [*(text for text, _ in REGIONS), None]
    assert found["k"].to_list() == [1] * 6 + [6]
    for row, (_, places) in zip(found.iter_rows(named=True), REGIONS, strict=False):
        assert row["nll"] == pytest.approx(nll_without(places), rel=1e-6)
    assert found["nll"][-1] == pytest.approx(
        nll_without([place for _, places in REGIONS for place in places]), rel=1e-6
    )
    names = {name for _, places in REGIONS for name, _ in places}
    assert read_manifest(result.folder)["checksum"]["num_tensors"] >= len(names)


@pytest.mark.parametrize("method", ["gauss_noise", "zero_keep_peak", "scale", "mean", "clamp", "quantize", "bit_flip"])
def test_every_method_takes_a_row(tmp_path: Path, method: str) -> None:
    """A row is changed as the weights that it holds are when they are named one by one."""
    more = {"bits": 1, "repeats": 1} if method == "bit_flip" else {}
    chosen = spec({"method": method, **more})
    row = frame(perturb(chosen, [f"{DOWN}:5,:"], tmp_path))
    weights = frame(perturb(chosen, [f"{DOWN}:5,{column}" for column in range(24)], tmp_path))
    if method in ("gauss_noise", "bit_flip"):  # another name, another draw
        assert row.height == weights.height
        assert row["delta_nll"].abs().min() > 0  # type: ignore[operator]
    else:
        assert row["nll"].to_list() == weights["nll"].to_list()
    assert weights["case"].to_list() != row["case"].to_list()


def test_rankings_of_rows_columns_and_tensors_are_targets(tmp_path: Path) -> None:
    """What an aggregated ranking lists is perturbed whole: the same case as its address typed, with the same numbers."""
    texts = ["(5, :)", "(:, 7)", ":", "@head=1"]
    names = [DOWN, DOWN, UP, "model.layers.1.self_attn.q_proj.weight"]
    table = ranking(
        [
            {**rows("act_mag", 0, "top_k", [(name, 0)])[0], "index": None, "indices": text, "rank": rank}
            for rank, (name, text) in enumerate(zip(names, texts, strict=True), start=1)
        ]
    )
    chosen = spec({"method": "zero", "unit": "single"}, rank={"k": 4})
    ranked = frame(perturb(chosen, table, tmp_path))
    typed = frame(perturb(chosen, [f"{DOWN}:5,:", f"{DOWN}::,7", UP, f"{names[3]}:@head=1"], tmp_path))
    measured = ["case", "nll", "delta_low", "delta_high", "kl", "target"]
    assert ranked.select(measured).equals(typed.select(measured))
    assert ranked["group"].to_list() == ["top_k"] * 4


def test_older_lists_may_hold_regions(tmp_path: Path) -> None:
    """A CSV under older column names may hold rows, columns and tensors in its indices."""
    path = tmp_path / "top.csv"
    path.write_text(f'layer,indices,sensitivity\n{DOWN},"(5, :)",3.0\n{DOWN},":,7",9.0\n{UP},:,1.0\n{HEAD},"2,8",0.5\n')
    loaded = load("llama")
    (group,) = groups_from_ranking(read_ranking(path).frame, loaded.table, "t")
    assert [getattr(target, "text", target) for target in group.targets] == [
        f"{DOWN}::,7",
        f"{DOWN}:5,:",
        UP,
        (HEAD, 40),
    ]


def test_gradient_cases_step_along_the_calibration_gradient(tmp_path: Path) -> None:
    """Aligned steps of every weight of a tensor raise the loss on the calibration text, opposed ones lower it."""
    text = {"source": "builtin:sentences", "windows": 4, "length": 12, "sample": "first"}
    chosen = spec(
        {"method": "gradient", "epsilon": [0.001, 0.01], "direction": ["aligned", "opposed"]},
        calibration=text,
        eval=text,
    )
    result = perturb(chosen, [DOWN, UP], tmp_path)
    found = frame(result).select("dose", "delta_nll", "options")
    assert found["dose"].to_list() == [0.001, 0.001, 0.01, 0.01]
    assert [math.copysign(1, value) for value in found["delta_nll"]] == [1, -1, 1, -1]
    assert abs(found["delta_nll"][2]) > abs(found["delta_nll"][0])
    manifest = read_manifest(result.folder)
    assert manifest["gradient_data"]["windows"] == 4
    assert manifest["warnings"] == [
        "the calibration windows are the evaluation windows: damage is measured on the text that was scored"
    ]


def test_the_calibration_text_is_an_input_of_gradient_alone(tmp_path: Path) -> None:
    """Other calibration windows are another step where a gradient is taken, and the same step where none is."""
    table = ranking(rows("act_mag", 0, "top_k", TOP))
    ids = {
        method: {
            perturb(spec({"method": method}, calibration={"windows": number}), table, tmp_path).id for number in (2, 3)
        }
        for method in ("gradient", "zero")
    }
    assert {method: len(found) for method, found in ids.items()} == {"gradient": 2, "zero": 1}


def test_a_gradient_is_taken_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One backward pass serves every gradient case, over what these touch alone; a journal that has them all needs none."""
    calls: list[dict[str, int]] = []
    original = pytest.importorskip("esa.perturb").touched_gradients

    def counted(loaded: Any, windows: Any, touched: Any, *more: Any) -> Any:
        calls.append({name: len(index) for name, index in touched.items()})
        return original(loaded, windows, touched, *more)

    monkeypatch.setattr("esa.perturb.touched_gradients", counted)
    chosen = spec({"method": "zero"}, {"method": "gradient", "epsilon": [0.1, 0.2], "groups": ["top_k"]})
    folder = perturb(chosen, ranking(), tmp_path).folder
    assert calls == [{UP: 1, DOWN: 1, HEAD: 1}]
    damage = (folder / "damage.csv").read_bytes()
    (folder / "manifest.json").unlink()
    assert (perturb(chosen, ranking(), tmp_path).folder / "damage.csv").read_bytes() == damage
    assert len(calls) == 1


def test_adaptive_shrinks_what_its_metric_calls_dangerous(tmp_path: Path) -> None:
    """Of three weights the first is scaled to the median's predicted damage, the others are zeroed."""
    loaded = load("llama")
    result = perturb(spec({"method": "adaptive"}), ranking(rows("act_mag", 0, "top_k", TOP)), tmp_path, loaded=loaded)
    whole = frame(result).filter(pl.col("k") == 3)["nll"][0]
    with torch.no_grad():
        for (name, index), share in zip(
            TOP, (0.5, 0, 0), strict=True
        ):  # scores 1/2, 1/4, 1/6: half of the first is left
            loaded.parameters()[name].view(-1)[index] *= share
    expected = torch.cat(token_nlls(loaded, eval_windows(spec().eval, loaded.tokenizer))).mean()
    assert whole == pytest.approx(float(expected), rel=1e-6)
