"""What several runs are found to share and to differ in: keys, facts, notes, sentences, tables, from planted truths."""

import json
from collections.abc import Callable
from typing import Any

import polars as pl
import pytest

from esa.artifact.grouping import group
from esa.artifact.places import same_places
from esa.report.compare_findings import repeated_cases, shared_findings, worst_sentences
from esa.report.compare_frames import (
    TopList,
    overlap_matrix,
    short_names,
    top_lists,
    top_overlaps,
    weights_by_run,
    worst_of_all,
)
from esa.report.compare_notes import notes
from esa.report.compare_specs import UNSET, differing_facts, differing_keys, shown
from esa.report.compare_tables import damage_table, intact_table, lists_table, stability_table, worst_table
from esa.report.comparison import Comparison
from esa.report.markdown import number
from tests.report.conftest import BASE, WORST, Fake

Maker = Callable[..., Any]
ZERO = ({"method": "zero"},)
SMALL = {"metrics": ("act_mag",), "methods": ZERO}


def compare(*made: Fake) -> Comparison:
    """Return the comparison of fake runs."""
    return Comparison(group([one.run for one in made]))


def cells(table: str) -> list[list[str]]:
    """Return the cells of a Markdown table, its header first."""
    lines = [line for line in table.splitlines() if not line.startswith("| :")]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]


def edit(made: Fake, step: str, **changes: Any) -> None:
    """Change what a manifest says."""
    path = made.folders[step] / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_only_keys_that_differ_and_are_read_are_shown(fake: Maker) -> None:
    """Name and question never are; a key without a reader at hand has no value; one that is not set says so."""
    a = fake(name="a", **SMALL, settings={"eval": {"windows": 32}, "rank": {"k": [1, 10, 100]}})
    b = fake(name="b", **SMALL, settings={"eval": {"windows": 8}, "rank": {"k": [1, 10]}}, question="Another?")
    c = fake(name="c", steps=("score",), **SMALL, settings={"calibration": {"length": 64}, "eval": {"windows": 99}})
    found = {one.key: (one.steps, one.values) for one in differing_keys(compare(a, b, c))}
    assert found["eval.windows"] == (("perturb",), ("32", "8", None))
    assert found["rank.k"][1] == ("1, 10, 100", "1, 10", None)
    assert found["calibration.length"][1] == ("256", "256", "64")
    assert set(found) == {"eval.windows", "rank.k", "calibration.length"}
    d = fake(name="d", **SMALL, settings={"overlap": {"k": [10]}})
    assert {one.key: one.values for one in differing_keys(compare(a, d))}["overlap.k"] == (UNSET, "10")
    assert differing_keys(compare(a, a)) == []


def test_values_of_a_spec_read_as_one_writes_them() -> None:
    """Lists, tables of methods and flags are spelled out."""
    methods = [{"unit": "single", "method": "zero", "k": [5]}, {"method": "scale", "factor": 1.2}]
    assert shown(methods) == "zero, unit single, k 5; scale, factor 1.2"
    assert [shown(value) for value in ([1, 10], [], True, 0.5, "x")] == ["1, 10", "none", "true", "0.5", "x"]


def test_facts_of_the_manifests_that_differ_are_shown(fake: Maker) -> None:
    """Model, windows, versions and commit stand there where two runs differ; what one does not say differs from nothing."""
    a, b = fake(name="a", **SMALL), fake(name="b", **SMALL, fingerprint="e2" * 32, digest="cd" * 32)
    edit(b, "score", esa="9.9", git=None, packages={"polars": "0.1", "other": "1"})
    found = {one.key: one.values for one in differing_facts(compare(a, b))}
    assert found["model fingerprint"] == ("f1" * 32, "e2" * 32)
    assert found["evaluation windows"] == ("ab" * 32, "cd" * 32)
    assert found["calibration windows, seed 0"] == ("ab" * 32, "cd" * 32)
    assert found["esa"][1].startswith("9.9; ")
    assert found["polars"][1].startswith("0.1; ")
    assert not {"other", "commit", "python"} & set(found)


def test_the_notes_say_what_compares(fake: Maker) -> None:
    """One model and one text are said once; other models, other windows, and what only some runs measured, by name."""
    a = fake(name="a", metrics=("act_mag", "magnitude"), methods=ZERO)
    same = fake(name="same", metrics=("act_mag", "magnitude"), methods=ZERO, settings={"eval": {"windows": 9}})
    text = "\n".join(notes(compare(a, same)))
    assert "Same model: all runs hold the one with fingerprint" in text
    assert "Same evaluation windows in all runs" in text
    assert "`a` and `same` share `score-" in text
    assert "differ" not in text
    b = fake(name="b", **SMALL, fingerprint="e2" * 32, digest="cd" * 32)
    c = fake(name="c", steps=("score", "rank"), metrics=("act_mag",))
    text = "\n".join(notes(compare(a, b, c)))
    assert f"**Different models**: `a` and `c` hold `smollm2-135m` (fingerprint `{'f1' * 32}`); `b` holds" in text
    assert "Between all 3 runs an address is the same place, not the same weight." in text
    assert f"**The evaluation windows differ**: `{'ab' * 32}` in `a`; `{'cd' * 32}` in `b`." in text
    assert "**The calibration windows of seeds 0, 1 and 2 differ** among all 3 runs" in text
    assert "Only in `a`: the metric `magnitude`." in text
    assert "`c` has no perturb or overlap step" in text
    edit(b, "perturb", model={"id": "m", "fingerprint": "e2" * 32, "dtype": "bfloat16", "quantization": "none"})
    assert "The weights are stored differently: float32 in `a`" in "\n".join(notes(compare(a, b)))


def test_addresses_compare_where_the_tensors_do(fake: Maker) -> None:
    """One fingerprint, or tensors of the same names and shapes and as many weights in all; else not."""
    a, b = fake(name="a", **SMALL), fake(name="b", **SMALL, fingerprint="e2" * 32)
    one, two = compare(a, b).runs
    assert same_places(one, two)
    ranks = group([a.folders["rank"], b.folders["rank"], b.folders["perturb"]]).runs
    assert not same_places(*ranks)  # no tensors at hand, and no step of the first says its model
    other = fake(name="other", **SMALL, fingerprint="d3" * 32)
    model = json.loads((other.folders["score"] / "manifest.json").read_text())["model"]
    for step in ("score", "perturb"):
        edit(other, step, model={**model, "num_parameters": 5})
    found = compare(a, b, other)
    assert found.places == [[0, 1], [2]]
    text = "\n".join(notes(found))
    assert "Between `a` and `b` an address is the same place" in text
    assert "The addresses of `other` do not compare with those of any other run." in text
    assert set(weights_by_run(found).filter(pl.col("places") == 1)["run"]) == {"other"}


def test_the_planted_weight_is_the_worst_in_every_run(fake: Maker) -> None:
    """The sentence counts the runs in which one address is the worst, with its ratio in each."""
    a = fake(name="a", **SMALL)
    b = fake(name="b", **SMALL, effect=1.5, settings={"eval": {"windows": 8}})
    ratios = [row["ratio"] for row in weights_by_run(compare(a, b)).filter(pl.col("rank") == 1).iter_rows(named=True)]
    (text,) = worst_sentences(compare(a, b))
    assert text == (
        f"**zero: the same weight, `{WORST}:507,1229`, is the worst single one in 2 of 2 runs**: perplexity over intact"
        f" {number(ratios[0])} in `a`; {number(ratios[1])} in `b`."
    )
    none = fake(name="none", **SMALL, effect=0.0, settings={"eval": {"windows": 4}})
    (text,) = worst_sentences(compare(a, b, none))
    assert "in 2 of 3 runs**" in text
    assert text.endswith("In `none` no single weight raises the perplexity.")
    assert worst_sentences(compare(none, none)) == ["zero: no single weight raises the perplexity in any of 2 runs."]
    assert worst_sentences(compare(a, fake(name="r", steps=("score", "rank"), **SMALL))) == []


def test_another_worst_weight_is_named(fake: Maker) -> None:
    """Where the worst weights differ each is named, with whether the other was tried."""
    a = fake(name="a", **SMALL)
    b = fake(name="b", metrics=("grad_x_weight",), methods=ZERO)
    (text,) = worst_sentences(compare(a, b))
    assert text.startswith("**zero: the worst single weight is another in each of 2 runs**: `model.layers.11.")
    assert "`model.layers.2.mlp.down_proj.weight:507,90` in `b`" in text
    (text,) = worst_sentences(compare(a, b, a))
    assert "is the worst single one in 2 of 3 runs**" in text
    assert text.endswith("times); the other was not tried there.")


def test_findings_of_runs_without_effect_claim_none(fake: Maker) -> None:
    """Where no top weight does more harm than random ones in any run, the sentence says so; without damage there is none."""
    none = fake(name="none", **SMALL, effect=0.0, broken=False)
    text = "\n".join(shared_findings(compare(none, none)))
    assert "do more harm than every random draw of as many in no comparison of 2 runs**" in text
    assert "is the worst single one" not in text
    a = fake(name="a", **SMALL)
    text = "\n".join(shared_findings(compare(a, none)))
    assert "in some comparisons of 2 runs** (3 of 3 in `a` and 0 of 3 in `none`)" in text
    assert "The intact perplexity is 19.50 in each of 2 runs." in text
    assert "in every comparison of 2 runs** (3 of 3 in `a` and 3 of 3 in `a-" in "\n".join(
        shared_findings(compare(a, a))
    )
    score = fake(name="score", steps=("score",), **SMALL)
    assert shared_findings(compare(score, score)) == []


def test_cases_measured_twice_are_held_against_each_other(fake: Maker) -> None:
    """Equal cases of one model and text agree to the last bit, or the largest difference is told; others are not compared."""
    a = fake(name="a", **SMALL)
    b = fake(name="b", **SMALL, settings={"eval": {"rewrites": 5}})
    (text,) = repeated_cases(compare(a, b))
    assert text.endswith("were measured in more than one run: the mean NLL agrees to the last bit.")
    c = fake(name="c", **SMALL, effect=1.1, settings={"eval": {"rewrites": 6}})
    worst = 0.1 * 1.68 * (1 + 0.9 * 2)
    assert f"the mean NLL differs by {number(worst)} nats per token at most" in repeated_cases(compare(a, c))[0]
    assert repeated_cases(compare(a, a)) == []
    assert repeated_cases(compare(a, fake(name="d", **SMALL, digest="cd" * 32))) == []
    assert repeated_cases(compare(a, fake(name="e", **SMALL, fingerprint="e2" * 32))) == []


def test_damage_stands_side_by_side(fake: Maker) -> None:
    """Each run has its own ratio and outcome in a row; what it did not measure is a dash; rows keep groups together."""
    a = fake(name="a", **SMALL, broken=False)
    b = fake(name="b", metrics=("act_mag", "magnitude"), methods=ZERO, effect=0.5, broken=False)
    head, *rows = cells(damage_table(compare(a, b)))
    assert head == ["method", "unit", "metric", "group", "k", "a: ratio", "outcome", "b: ratio", "outcome"]
    strength = 1.68 * (1 + 0.9)
    row = next(row for row in rows if row[2:5] == ["act_mag", "top_k", "10"])
    assert row[5:] == [number(2.718281828459045**strength), "ok", number(2.718281828459045 ** (strength / 2)), "ok"]
    assert [row[5:7] for row in rows if row[2] == "magnitude"] == [["–", "–"]] * 6  # noqa: RUF001
    assert [row[2:5] for row in rows[:4]] == [
        ["act_mag", "top_k", "1"], ["act_mag", "top_k", "10"], ["act_mag", "top_k", "100"], ["act_mag", "bottom_k", "1"],
    ]  # fmt: skip
    swapped = cells(damage_table(compare(b, a)))[0]
    assert swapped[5:] == ["b: ratio", "outcome", "a: ratio", "outcome"]
    intact = cells(intact_table(compare(a, b)))
    assert [row[:3] for row in intact[1:]] == [["`a`", "19.50", number(BASE)], ["`b`", "19.50", number(BASE)]]


def test_single_weights_have_their_rank_in_every_run(fake: Maker) -> None:
    """A weight's ratio and rank stand under each run that tried it, the best ranks first; nonfinite and dashes are told."""
    a = fake(name="a", **SMALL, singles=True)
    b = fake(name="b", metrics=("grad_x_weight",), methods=ZERO, singles=True)
    found = compare(a, b)
    head, *rows = cells(worst_table(weights_by_run(found), found.labels))
    assert head == ["method", "weight", "value", "a: ratio", "rank", "b: ratio", "rank"]
    assert rows[0][3:5] == ["nonfinite", "1"]
    planted = next(row for row in rows if row[1] == f"`{WORST}:507,1229`")
    assert planted[2] == "5.876"
    assert planted[4] == "2"
    best = [min(int(row[n]) for n in (4, 6) if row[n].isdigit()) for row in rows]
    assert best == sorted(best)
    assert any("–" in row for row in rows)  # noqa: RUF001
    weights = weights_by_run(found)
    assert worst_of_all(weights, 2) == [row[1].strip("`") for row in rows[:2]]


def test_the_overlap_of_top_lists_is_that_of_sets() -> None:
    """Jaccard counts shared members over all, at k that both lists have, within one mode and group of runs."""
    member = [("all", f"w:{n}") for n in range(6)]
    a = TopList("a", "m", 0, "global", (2, 4), {member[n]: n + 1 for n in range(4)})
    b = TopList("b", "m", 0, "global", (2, 3, 4), {member[n]: 6 - n for n in range(2, 6)})
    rows = top_overlaps([a, b]).select("k", "shared", "jaccard").rows()
    assert rows == [(2, 0, 0.0), (4, 2, 2 / 6)]
    assert top_overlaps([a, TopList("c", "m", 1, "global", a.ks, a.members)]).is_empty()
    assert top_overlaps([a, TopList("c", "m", 0, "per_layer", a.ks, a.members)]).is_empty()
    assert overlap_matrix(top_overlaps([a, TopList("a", "n", 0, "global", a.ks, a.members)])).is_empty()


def test_the_overlap_of_rankings_is_computed_from_the_artifacts(fake: Maker) -> None:
    """Equal rankings give one, others what their sets share; the matrix is symmetric."""
    a = fake(name="a", metrics=("act_mag", "grad_x_weight"), methods=ZERO)
    b = fake(name="b", **SMALL)
    overlaps = top_overlaps(top_lists(compare(a, b)))
    (row,) = overlaps.filter((pl.col("metric_a") == pl.col("metric_b")) & (pl.col("k") == 100)).iter_rows(named=True)
    assert (row["run_a"], row["run_b"], row["shared"], row["jaccard"]) == ("a", "b", 100, 1.0)
    matrix = overlap_matrix(overlaps)
    turned = matrix.select(
        *(pl.col(f"{name}_{two}").alias(f"{name}_{one}") for one, two in ("ab", "ba") for name in ("run", "metric")),
        "jaccard",
    )
    assert matrix.select(turned.columns).sort(pl.all()).equals(turned.sort(pl.all()))
    assert [row[2:4] for row in cells(lists_table(overlaps))[1:]] == [["`a`", "`b`"]] * 3


def test_stability_stands_side_by_side(fake: Maker) -> None:
    """Each run's agreement between its seeds stands in its column; a run without a summary has none."""
    a, b = fake(name="a", **SMALL), fake(name="b", metrics=("act_mag", "magnitude"), methods=ZERO)
    for made, value in ((a, 0.75), (b, 0.5)):
        entry = {"jaccard_mean": value, "num_seeds": 3}
        (made.folders["overlap"] / "stability_summary.json").write_text(
            json.dumps({"metrics": {"act_mag": {"100": entry}}})
        )
    assert cells(stability_table(compare(a, b))) == [
        ["metric", "k", "a: Jaccard", "seeds", "b: Jaccard", "seeds"], ["act_mag", "100", "0.7500", "3", "0.5000", "3"],
    ]  # fmt: skip
    assert stability_table(compare(fake(name="c", steps=("score",)), fake(name="d", steps=("score",)))) == ""


@pytest.mark.parametrize("most", [12, 20])
def test_short_names_stay_apart(most: int) -> None:
    """Names in charts are short, keep their ends, and no two are the same."""
    labels = ["a", "x" * 40, "x" * 41, "x" * 42, "a_long_name_of_one_run_1", "a_long_name_of_one_run_2"]
    found = short_names(labels, most)
    assert len(set(found.values())) == len(labels)
    assert max(map(len, found.values())) <= most
    assert found["a"] == "a"
    assert found[labels[4]].endswith("1")
