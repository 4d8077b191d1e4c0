"""Which cases a campaign has, which rows they give, and what is refused."""

from pathlib import Path
from typing import Any

import pytest
import torch

from esa.artifact import read_ranking
from esa.errors import EsaError, SpecError, TargetError
from esa.perturb.cases import Plan, plan_cases
from esa.perturb.checks import require_scales
from esa.perturb.groups import Group, group_from_addresses, groups_from_ranking
from esa.perturb.targets import GRAMMAR
from esa.progress import Silent
from tests.conftest import load
from tests.perturb.planted import BOTTOM, DOWN, HEAD, RANDOM, TOP, UP, ranking, rows, spec


def groups(table: Any = None, seeds: str = "all") -> list[Group]:
    """Return the groups of a ranking on the tiny Llama."""
    return groups_from_ranking((table or ranking()).frame, load("llama").table, "ranking.csv", seeds)


def plan(
    *perturb: dict[str, Any], table: Any = None, ks: tuple[int, ...] = (1, 3), dtype: torch.dtype = torch.float32
) -> Plan:
    """Plan a campaign on a ranking."""
    return plan_cases(spec(*perturb).perturb, groups(table), ks, load("llama", dtype), Silent())


def test_groups_of_a_ranking() -> None:
    """Each metric, seed, group and draw is a group, in the ranking's order."""
    found = [(g.metric, g.seed, g.name, g.draw, list(g.targets)) for g in groups()]
    assert found == [
        ("act_mag", 0, "top_k", None, TOP),
        ("act_mag", 0, "bottom_k", None, BOTTOM),
        (None, 0, "random_k", 0, RANDOM),
        (None, 0, "random_k", 1, RANDOM[::-1]),
    ]


def test_a_list_of_k_gives_prefixes() -> None:
    """Each K is one joint case of a group's first K weights, one row each."""
    found = plan({"method": "zero"})
    assert [(use.group.name, use.k) for use in found.uses][:4] == [
        ("top_k", 1),
        ("top_k", 3),
        ("bottom_k", 1),
        ("bottom_k", 3),
    ]
    assert [list(case.targets) for case in found.cases.values()][:2] == [TOP[:1], TOP]


def test_k_follows_the_rank_within_each_unit() -> None:
    """In a ranking per layer K takes the first K of every layer."""
    per_layer = ranking(rows("act_mag", 0, "top_k", BOTTOM[:2]), rows("act_mag", 0, "top_k", [(UP, 9), (UP, 8)]))
    found = plan({"method": "zero"}, table=per_layer, ks=(1,))
    assert [list(case.targets) for case in found.cases.values()] == [[(DOWN, 1), (UP, 9)]]


def test_a_case_is_a_set_of_weights() -> None:
    """The same set under another name, order or metric is one case with a row for each."""
    found = plan(
        {"method": "zero"}, table=ranking(rows("act_mag", 0, "top_k", TOP), rows("wanda", 0, "top_k", TOP[::-1]))
    )
    assert len(found.uses) == 4
    assert len(found.cases) == 3  # two firsts that differ, one set of three
    assert [use.case for use in found.uses][1] == [use.case for use in found.uses][3]


def test_random_groups_are_shared_by_metrics() -> None:
    """A group without a metric stands once, however many metrics are ranked beside it."""
    table = ranking(
        rows("act_mag", 0, "top_k", TOP), rows("wanda", 0, "top_k", BOTTOM), rows(None, 0, "random_k", RANDOM, 0)
    )
    found = plan({"method": "zero"}, table=table, ks=(3,))
    assert [(use.group.metric, use.group.name) for use in found.uses] == [
        ("act_mag", "top_k"),
        ("wanda", "top_k"),
        (None, "random_k"),
    ]
    assert len(found.cases) == 3


def test_single_takes_each_weight_alone() -> None:
    """Unit single gives one case per weight of the largest K, each with k = 1."""
    found = plan({"method": "zero", "unit": "single", "groups": ["top_k"]})
    assert [list(case.targets) for case in found.cases.values()] == [[target] for target in TOP]
    assert [use.k for use in found.uses] == [1, 1, 1]


def test_joint_and_single_share_the_first_weight() -> None:
    """The set of one weight is the same case whether joint or single."""
    found = plan({"method": "zero", "groups": ["top_k"]}, {"method": "zero", "unit": "single", "groups": ["top_k"]})
    assert len(found.uses) == 5
    assert len(found.cases) == 4


@pytest.mark.parametrize(
    ("section", "repeats"),
    [
        ({"method": "zero"}, [None]),
        ({"method": "gauss_noise", "repeats": 3}, [0, 1, 2]),
        ({"method": "bit_flip", "bits": 2, "repeats": 2}, [0, 1]),
        ({"method": "bit_flip", "prob": 0.5}, [0, 1, 2, 3, 4]),
        ({"method": "bit_flip", "bit": 14}, [None]),
    ],
)
def test_methods_that_draw_are_repeated(section: dict[str, Any], repeats: list[int | None]) -> None:
    """Noise and random bits come in repeats, each a case of its own; what leaves nothing to chance has none."""
    found = plan({**section, "groups": ["top_k"]}, ks=(3,))
    assert [use.repeat for use in found.uses] == repeats
    assert len(found.cases) == len(repeats)


def test_options_and_methods_are_part_of_the_case() -> None:
    """Another method or another option on the same weights is another case; another K list is not."""
    found = plan(
        {"method": "zero"},
        {"method": "scale", "factor": 0.0},
        {"method": "scale"},
        {"method": "zero", "k": [3]},
        ks=(3,),
    )
    per_section = len(found.uses) // 4
    assert len({use.case for use in found.uses}) == 3 * len({use.case for use in found.uses[:per_section]})
    assert [use.case for use in found.uses[-per_section:]] == [use.case for use in found.uses[:per_section]]


def test_groups_and_k_of_a_section() -> None:
    """A section may name its groups and its own K."""
    found = plan({"method": "zero", "groups": ["bottom_k"], "k": [2]})
    assert [(use.group.name, use.k) for use in found.uses] == [("bottom_k", 2)]
    assert [list(case.targets) for case in found.cases.values()] == [BOTTOM[:2]]


def test_a_group_that_the_ranking_lacks_is_refused() -> None:
    """A section whose groups have no row says which the ranking has."""
    with pytest.raises(EsaError) as raised:
        plan({"method": "zero"}, {"method": "zero", "groups": ["matched_k"]})
    assert (
        str(raised.value) == "perturb.1.groups: the ranking has none of ['matched_k']; it has top_k, bottom_k, random_k"
    )


def test_a_k_beyond_the_group_is_the_whole_group() -> None:
    """Ks larger than a group give the whole group once, with a note."""
    notes: list[str] = []
    progress = Silent()
    progress.note = notes.append  # type: ignore[method-assign]
    found = plan_cases(
        spec({"method": "zero", "groups": ["top_k"]}).perturb, groups(), (1, 10, 100), load("llama"), progress
    )
    assert [use.k for use in found.uses] == [1, 3]
    assert notes == ["act_mag top_k: K is limited to the 3 weights at hand"]


@pytest.mark.parametrize(("seeds", "expected"), [("first", [0, None]), ("all", [0, 1, None])])
def test_seeds_first_or_all(seeds: str, expected: list[int | None]) -> None:
    """Seeds = "first" keeps the first seed of the ranking and what has none."""
    table = ranking(
        rows("act_mag", 0, "top_k", TOP), rows("act_mag", 1, "top_k", TOP), rows("magnitude", None, "top_k", TOP)
    )
    assert [group.seed for group in groups(table, seeds)] == expected


@pytest.mark.parametrize(
    ("section", "dtype", "message"),
    [
        ({"bit": 16}, torch.bfloat16, f"perturb.0.bit: 16, but {DOWN} is stored as torch.bfloat16: at most 15"),
        ({"bit": 31}, torch.float16, f"perturb.0.bit: 31, but {DOWN} is stored as torch.float16: at most 15"),
        ({"bits": 17}, torch.bfloat16, f"perturb.0.bits: 17, but {DOWN} is stored as torch.bfloat16: at most 16"),
    ],
)
def test_a_bit_too_high_is_refused(section: dict[str, Any], dtype: torch.dtype, message: str) -> None:
    """A position or a number of bits beyond the storage is refused before anything is evaluated."""
    with pytest.raises(EsaError) as raised:
        plan({"method": "bit_flip", **section}, table=ranking(rows("act_mag", 0, "top_k", BOTTOM[:1])), dtype=dtype)
    assert str(raised.value) == message


@pytest.mark.parametrize("bit", [15, 31])
def test_the_highest_bit_is_allowed(bit: int) -> None:
    """The sign bit of each width passes."""
    dtype = torch.bfloat16 if bit == 15 else torch.float32
    assert plan({"method": "bit_flip", "bit": bit}, dtype=dtype).cases


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (f"{DOWN}:5;7", f"--target: '{DOWN}:5;7' is not an address; allowed: {GRAMMAR}"),
        (f"{DOWN}:-1,7", f"--target: '{DOWN}:-1,7' is not an address; allowed: {GRAMMAR}"),
        (":5,7", f"--target: ':5,7' is not an address; allowed: {GRAMMAR}"),
        (f"{DOWN}:16,0", f"--target: (16, 0) is outside {DOWN}, of shape (16, 24)"),
        (f"{DOWN}:1,2,3", f"--target: (1, 2, 3) is outside {DOWN}, of shape (16, 24)"),
        (f"{DOWN}:384", f"--target: index 384 is outside {DOWN}, of 384 weights"),
        (
            "model.layers.1.mlp.down.weight:5,7",
            f"--target: 'model.layers.1.mlp.down.weight' is not a parameter of the model (did you mean '{DOWN}'?)\n"
            "hint: it has 30 parameters, from model.embed_tokens.weight to lm_head.weight",
        ),
    ],
)
def test_addresses_that_name_no_weight(text: str, message: str) -> None:
    """A malformed address, an index outside and an unknown parameter are told apart, word for word."""
    with pytest.raises(TargetError) as raised:
        group_from_addresses([f"{DOWN}:0,0", text], load("llama").table)
    assert str(raised.value) == message


def test_addresses_are_one_group() -> None:
    """What a person names is one group in that order, each weight once; a module's or a flat index's address is the same."""
    (group,) = group_from_addresses(
        [f"{UP}:0,5", f"{DOWN}:5,7", DOWN.removesuffix(".weight") + ":5, 7", f"{DOWN}:127"], load("llama").table
    )
    assert list(group.targets) == [(UP, 5), (DOWN, 127)]
    assert (group.metric, group.name, group.size) == (None, "targets", 2)


def test_a_tied_name_is_the_tensor_itself() -> None:
    """The head's name of a tied embedding addresses the embedding."""
    (group,) = group_from_addresses(["lm_head.weight:5,2", "model.embed_tokens.weight:5,2"], load("llama_tied").table)
    assert list(group.targets) == [("model.embed_tokens.weight", 82)]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (
            {"parameter": "model.layers.9.mlp.down_proj.weight"},
            "'model.layers.9.mlp.down_proj.weight' is not a parameter of the model",
        ),
        ({"index": 384}, f"index 384 is outside {DOWN}, of 384 weights"),
        ({"index": None, "indices": "(5, 24)"}, f"(5, 24) is outside {DOWN}, of shape (16, 24)"),
        (
            {"index": None, "indices": "(5, *)"},
            f"(5, *) of {DOWN} is neither a weight nor a row, column or tensor; allowed: 507,1229  507,:  :,1229  :",
        ),
        ({"index": None, "indices": "(16, :)"}, f"(16, :) is outside {DOWN}, of shape (16, 24)"),
        ({"index": None, "indices": "@expert=1"}, f"'{DOWN}:@expert=1' selects no weights of expert 1"),
        ({"index": None}, f"a row of {DOWN} has neither index nor indices\nhint: a whole tensor has the indices :"),
    ],
)
def test_rankings_that_name_no_weight(changed: dict[str, Any], message: str) -> None:
    """A ranking of another model, or of whole rows, is refused with the file's name."""
    table = ranking([{**rows("act_mag", 0, "top_k", [(DOWN, 3)])[0], **changed}])
    with pytest.raises(TargetError) as raised:
        groups(table)
    assert str(raised.value).startswith(f"ranking.csv: {message}")


def test_an_empty_ranking_is_refused() -> None:
    """A ranking without rows is an error."""
    with pytest.raises(TargetError, match=r"^ranking\.csv: holds no row"):
        groups(ranking([]))


@pytest.mark.parametrize(
    "text",
    [
        f'parameter_name,indices,sensitivity_score\n{HEAD},"(2, 8)",1.0\n{DOWN},"(5, 7)",9.0\n{UP},"(0, 5)",3.0\n',
        f'layer,index,sensitivity\n{HEAD.removesuffix(".weight")},"2,8",1.0\n{DOWN},"5,7",9.0\n{UP},"0,5",3.0\n',
        f"parameter,index,score\n{HEAD},40,1.0\n{DOWN},127,9.0\n{UP},5,3.0\n",
    ],
)
def test_older_lists_are_targets(tmp_path: Path, text: str) -> None:
    """Lists with older column names and index notations are one group top_k, highest score first."""
    path = tmp_path / "top_weights.csv"
    path.write_text(text)
    (group,) = groups(read_ranking(path))
    assert (group.name, list(group.targets)) == ("top_k", TOP)


def test_scales_of_floating_point_weights_are_refused_before_loading() -> None:
    """A spec that flips scales of a model without any is an error that needs no model."""
    flips = {"method": "bit_flip", "bit": 1, "of": "scale"}
    with pytest.raises(SpecError) as caught:
        require_scales(spec({"method": "zero"}, flips))
    assert caught.value.problems == ["perturb.1.of: 'scale' is of quantised weights; model.quantization is 'none'"]
    require_scales(spec(flips, model={"id": "m", "quantization": "nf4"}))
