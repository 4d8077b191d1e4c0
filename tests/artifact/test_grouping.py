"""Which runs the arguments of esa report are."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from esa import report
from esa.artifact import Step
from esa.artifact.grouping import Grouped, group, joined
from esa.errors import ArtifactError
from esa.report.comparison import Comparison
from tests.planted_runs import Planted

Maker = Callable[..., Any]
SMALL = {"metrics": ("act_mag",), "methods": ({"method": "zero"},)}


def shown(found: Grouped) -> list[tuple[str, ...]]:
    """Return the steps of each run."""
    return [tuple(run.folders) for run in found.runs]


def again(folder: Path, inputs: dict[str, str], **keys: Any) -> Path:
    """Return a copy of a step's folder under another id, made from other steps."""
    manifest = json.loads((folder / "manifest.json").read_text())
    step = Step(manifest["step"], report_spec(folder), {**inputs, **keys})
    copy = folder.parent / f"{step.step}-{step.id}"
    shutil.copytree(folder, copy)
    (copy / "manifest.json").write_text(json.dumps({**manifest, "run": step.id, "inputs": inputs}))
    return copy


def report_spec(folder: Path) -> Any:
    """Return the spec that a step ran under."""
    from esa.spec import spec_from_dict

    return spec_from_dict(json.loads((folder / "manifest.json").read_text())["spec"])


def test_one_run_is_one_however_it_is_given(fake: Maker) -> None:
    """A run folder, its step folders, and both together are one run."""
    made = fake(**SMALL)
    folders = list(made.folders.values())
    for sources in ([made.run], folders, folders[::-1], [made.run, folders[0]], [folders[1], folders[1]]):
        found = group(sources)
        assert len(found.runs) == 1
        assert found.between == []
    assert group([made.run]).runs[0].source == made.run
    assert group(folders).runs[0].source is None


def test_each_run_folder_is_a_run_in_the_order_given(fake: Maker) -> None:
    """Run folders keep their order; one without a step in common with another is still a run of its own."""
    a, b = fake(name="a", **SMALL), fake(name="b", steps=("score",), metrics=("act_mag", "magnitude"))
    assert [run.name for run in group([a.run, b.run]).runs] == ["a", "b"]
    assert [run.name for run in group([b.run, a.run]).runs] == ["b", "a"]
    c = fake(name="c", steps=("rank",))
    assert shown(group([b.run, c.run])) == [("score",), ("rank",)]


def test_step_folders_go_to_the_run_they_were_made_from(fake: Maker) -> None:
    """Mixed step folders of two runs come apart by the ids of their inputs; the first argument of a run gives its place."""
    a, b = fake(name="a", **SMALL), fake(name="b", metrics=("magnitude",), methods=({"method": "zero"},))
    mixed = [
        b.folders["perturb"], a.folders["score"], b.folders["rank"], a.folders["perturb"], a.folders["rank"], b.folders["overlap"],
    ]  # fmt: skip
    found = group(mixed)
    assert [(run.name, tuple(run.folders)) for run in found.runs] == [
        ("b", ("rank", "perturb", "overlap")),
        ("a", ("score", "rank", "perturb")),
    ]
    joined = group([a.run, b.folders["score"], b.folders["rank"]])
    assert shown(joined) == [("score", "rank", "perturb", "overlap"), ("score", "rank")]


def test_a_second_step_of_one_ranking_makes_a_second_run(fake: Maker) -> None:
    """Two perturb steps of one ranking are two runs that share score, rank and what else was made from those."""
    made = fake(**SMALL)
    other = again(made.folders["perturb"], {"rank": made.folders["rank"].name.removeprefix("rank-"), "more": "x"})
    found = group([*made.folders.values(), other])
    assert shown(found) == [("score", "rank", "perturb", "overlap")] * 2
    one, two = found.runs
    assert one.folders["rank"] == two.folders["rank"]
    assert (one.folders["perturb"], two.folders["perturb"]) == (made.folders["perturb"], other)
    assert shown(group([made.run, other])) == [("score", "rank", "perturb", "overlap"), ("score", "rank", "perturb")]
    assert Comparison(found).labels == ["fake_run", f"fake_run-{two.inputs['perturb']}"]


def test_what_cannot_be_grouped_is_a_run_of_its_own(fake: Maker) -> None:
    """A perturb step whose ranking is not at hand stands alone beside others."""
    a, b = fake(name="a", **SMALL), fake(name="b", metrics=("magnitude",), methods=({"method": "zero"},))
    assert shown(group([a.run, b.folders["perturb"]])) == [("score", "rank", "perturb", "overlap"), ("perturb",)]


def test_an_overlap_of_two_runs_stands_between_them(fake: Maker) -> None:
    """An overlap step made from the rankings of two runs belongs to neither; of one ranking, to its run."""
    a, b = fake(name="a", **SMALL), fake(name="b", metrics=("magnitude",), methods=({"method": "zero"},))
    ranks = {f"{n}:rank": made.folders["rank"].name.removeprefix("rank-") for n, made in enumerate((a, b))}
    both = again(a.folders["overlap"], ranks)
    found = group([a.run, b.run, both])
    assert [one.folders["overlap"] for one in found.between] == [both]
    assert len(found.runs) == 2
    assert shown(group([a.folders["rank"], b.folders["rank"], a.folders["overlap"]])) == [
        ("rank", "overlap"),
        ("rank",),
    ]
    assert len(group([a.run, both]).runs) == 2  # the ranking of b is not at hand: a second overlap of a's


def test_a_run_twice_and_runs_of_one_name_have_labels_of_their_own(fake: Maker, tmp_path: Path) -> None:
    """The first keeps the name; the others add the id of their last step, and a number where that is the same too."""
    made = fake(**SMALL)
    id = made.folders["perturb"].name.removeprefix("perturb-")
    labels = Comparison(group([made.run, made.run, made.run])).labels
    assert labels == ["fake_run", f"fake_run-{id}", f"fake_run-{id}-2"]
    result = report.run([made.run, made.run], root=tmp_path / "reports")
    assert f"`fake_run` and `fake_run-{id}` are the same steps" in result.markdown


def test_the_folder_has_a_bounded_name(fake: Maker) -> None:
    """The report's folder names the runs as long as there is room, then counts them."""
    made = fake(**SMALL, name="n" * 60)
    assert Comparison(group([made.run] * 2)).name == "n" * 36 + "+1_more"
    short = fake(**SMALL, name="short")
    assert Comparison(group([short.run] * 3)).name == "short+short+short"
    assert len(Comparison(group([short.run] * 20)).name) <= 72


def test_faults_are_told_as_for_one_run(fake: Maker, tmp_path: Path) -> None:
    """An unfinished step, an edited table and a foreign folder stop a comparison as they stop a report."""
    a, b = fake(name="a", **SMALL), fake(name="b", metrics=("magnitude",), methods=({"method": "zero"},))
    table = b.folders["perturb"] / "damage.csv"
    before = table.read_text()
    table.write_text(before.replace("ok", "OK", 1))
    with pytest.raises(ArtifactError, match="is not the file that the step wrote"):
        report.run([a.run, b.run], root=tmp_path / "reports")
    table.write_text(before)
    (b.folders["rank"] / "manifest.json").unlink()
    with pytest.raises(ArtifactError, match="is not a finished step"):
        report.run([a.run, b.run], root=tmp_path / "reports")
    with pytest.raises(ArtifactError, match="names no finished step"):
        group([])


def test_a_campaign_by_another_models_ranking_is_crossed(tmp_path: Path) -> None:
    """A perturb step in one model by another's list joins neither run, in any order; in the ranking's own model it joins."""
    chain = ("score", "rank", "perturb", "overlap")
    a = Planted(tmp_path, "a", ks=(1, 10), draws=1, steps=chain)
    b = Planted(tmp_path, "b", model_seed=1, ks=(1, 10), draws=1, steps=chain)
    runs = [a.write(), b.write()]
    other = b.cross(a)
    for sources in ([*runs, other], [other, *runs], [*a.folders.values(), other, *b.folders.values()]):
        found = group(sources)
        assert sorted(run.name for run in found.runs) == ["a", "b"]
        assert [run.folders["perturb"] for run in found.runs if run.name == "a"] == [a.folders["perturb"]]
        assert [one.folders for one in found.crossed] == [{"perturb": other}]
        assert not found.lone
    assert group(list(a.folders.values())).lone
    shown_beside = Comparison(group([*runs, other]))
    assert ([run.name for run in shown_beside.runs], len(shown_beside.between)) == (["a", "b"], 1)


@pytest.mark.parametrize(
    ("names", "name"),
    [
        (["a", "b"], "a_b"),
        (["family-00", "family-01", "family-11"], "family_3_runs"),
        (["family-00", "family-01"], "family-00_family-01"),
        (["family-00", "family-01", "other-02"], "family-00_family-01_other-02"),
        (["x" * 30, "y" * 30, "z" * 30], f"{'x' * 30}_{'y' * 30}_1_more"),
        (["x" * 100], "x" * 36),
    ],
)
def test_several_names_make_one(names: list[str], name: str) -> None:
    """Joined as they are, cut where they are too long together, and counted where they are one sweep's."""
    assert joined(names, "_") == name
