"""Which runs are of one model, what they are called, and which stand in no fit, with the reason."""

from pathlib import Path
from typing import Any

import pytest

from esa.artifact.grouping import group
from esa.errors import ArtifactError
from esa.scale.models import Member, members, require_models
from esa.scale.models_file import Override, read_models
from tests.planted_runs import Planted, family


def of(root: Path, made: list[Planted], **given: Any) -> list[Member]:
    """Return the planted runs as members."""
    return members(group([root / "outputs" / one.name for one in made]).runs, **given)


def write(root: Path, *knobs: dict[str, Any]) -> list[Planted]:
    """Write a score step per set of knobs."""
    made = [Planted(root, **{"steps": ("score",), **one}) for one in knobs]
    for one in made:
        one.write()
    return made


def test_training_seeds_of_one_shape_are_one_model(tmp_path: Path) -> None:
    """Two seeds of a width are one model under what their ids share; another width is another one."""
    made = write(
        tmp_path,
        *({"name": f"a{width}_{seed}", "width": width, "model_id": f"models/llama-{width}-seed{seed}"} for width in (4, 8) for seed in (0, 1)),
    )  # fmt: skip
    assert [one.model for one in of(tmp_path, made)] == ["llama-4", "llama-4", "llama-8", "llama-8"]


def test_equal_sizes_of_another_shape_are_two_models(tmp_path: Path) -> None:
    """As many weights in other shapes are another model, and a name that both would have gets their size or a number."""
    facts = {"shape": {"model_type": "llama", "num_blocks": 9}}
    made = write(tmp_path, {"name": "a", "model_id": "x/m"}, {"name": "b", "model_id": "y/m", "facts": facts})
    found = of(tmp_path, made)
    assert found[0].num_parameters == found[1].num_parameters
    assert len({one.model for one in found}) == 2


def test_a_base_model_and_its_instruct_version_are_one_model(tmp_path: Path) -> None:
    """They share a shape, so they are no two witnesses of a law; the variant tells them apart."""
    made = write(
        tmp_path,
        {"name": "a", "model_id": "SmolLM2-135M"},
        {"name": "b", "model_id": "SmolLM2-135M-Instruct", "chat_template": True},
    )
    found = of(tmp_path, made)
    assert [(one.model, one.variant) for one in found] == [("SmolLM2-135M", "base"), ("SmolLM2-135M", "instruct")]


def test_what_a_manifest_does_not_say_is_unknown(tmp_path: Path) -> None:
    """A run of older days has no family, kind and variant; it joins the one model of its architecture and size."""
    old = {"shape": None, "chat_template": None, "active_parameters": None}
    made = write(tmp_path, {"name": "new", "model_id": "m"}, {"name": "old", "model_id": "m", "facts": old})
    new, found = of(tmp_path, made)
    assert (found.family, found.kind, found.variant, found.active_parameters) == (None, None, None, None)
    assert found.model == new.model
    assert (new.family, new.kind) == ("llama", "dense")


def test_experts_make_a_mixture(tmp_path: Path) -> None:
    """A model with experts is of the kind moe."""
    made = write(tmp_path, {"name": "a", "num_experts": 4, "model_type": "mixtral", "active_parameters": 900})
    (found,) = of(tmp_path, made)
    assert (found.family, found.kind, found.active_parameters) == ("mixtral", "moe", 900)


def test_a_model_that_does_not_beat_the_bigram_is_left_out(tmp_path: Path) -> None:
    """Its held-out NLL and the bigram's are named; one that just beats it stays."""
    made = write(
        tmp_path,
        {"name": "poor", "training": {"held_out_nll": 5.0, "bigram_nll": 5.0}},
        {"name": "good", "training": {"held_out_nll": 4.999, "bigram_nll": 5.0}},
    )
    poor, good = of(tmp_path, made)
    assert poor.excluded == "learnt too little: held-out NLL 5.000, a bigram's is 5.000"
    assert good.excluded is None


def test_earlier_checkpoints_are_no_replicates(tmp_path: Path) -> None:
    """Over sizes the last checkpoint of a model and training seed stands for it; over checkpoints all of them stay."""
    made = write(
        tmp_path,
        *({"name": f"s{step}", "model_id": f"m/checkpoint-{step}", "training": {"step": step, "seed": 0}} for step in (10, 40, 20)),
    )  # fmt: skip
    assert [one.excluded for one in of(tmp_path, made)] == [
        "an earlier checkpoint: step 10 of 40", None, "an earlier checkpoint: step 20 of 40",
    ]  # fmt: skip
    assert {one.excluded for one in of(tmp_path, made, checkpoints=True)} == {None}


def test_steps_of_two_training_runs_are_not_compared(tmp_path: Path) -> None:
    """Of one shape and no known seed, a shorter training elsewhere is a replicate; beside its finished model a step is not."""
    facts = (("a/checkpoint-10", 10), ("b/checkpoint-40", 40), ("b", None), ("c", 20))
    made = write(
        tmp_path,
        *({"name": f"r{n}", "model_id": id, "training": {} if step is None else {"step": step}} for n, (id, step) in enumerate(facts)),
    )  # fmt: skip
    assert [one.excluded for one in of(tmp_path, made)] == [
        None, "a checkpoint: step 40; the finished model is there, too", None, None,
    ]  # fmt: skip


def test_no_earlier_checkpoint_stands_in_for_a_model_that_came_to_nothing(tmp_path: Path) -> None:
    """A last step that learnt too little leaves its training run without a model; so does one whose loss is unknown."""
    losses: tuple[dict[str, float], ...] = ({"held_out_nll": 4.0}, {"held_out_nll": 6.0}, {})
    made = write(
        tmp_path,
        *(
            {
                "name": f"r{n}", "model_id": "m" if n < 2 else "diverged",
                "training": {"step": n + 1, "seed": 0, "bigram_nll": 5.0, **found},
            }
            for n, found in enumerate(losses)
        ),
    )  # fmt: skip
    early, last, unknown = of(tmp_path, made)
    assert early.excluded == "an earlier checkpoint: step 1 of 2"
    assert last.excluded == "learnt too little: held-out NLL 6.000, a bigram's is 5.000"
    assert str(unknown.excluded).startswith("its training log knows a bigram's held-out NLL and not the model's")


def test_a_person_s_word_goes_before_the_manifest_s(tmp_path: Path) -> None:
    """Family and variant are taken from the overrides, and an exclusion carries their reason."""
    made = write(tmp_path, {"name": "a"}, {"name": "b"}, {"name": "c"})
    words = {"a": Override(family="mine", variant="instruct"), "b": Override(exclude="a bad run")}
    a, b, c = of(tmp_path, made, overrides=words, exclude=["c"])
    assert (a.family, a.variant, b.excluded, c.excluded) == ("mine", "instruct", "a bad run", "left out by --exclude")


def test_an_unknown_name_is_refused(tmp_path: Path) -> None:
    """A label that no run has is an error that lists the labels."""
    made = write(tmp_path, {"name": "a"}, {"name": "b"})
    with pytest.raises(ArtifactError, match="'x' is none of the runs; they are a, b") as caught:
        of(tmp_path, made, exclude=["x"])
    assert caught.value.where == "--exclude"


def test_fewer_than_three_models_are_refused_by_name(tmp_path: Path) -> None:
    """Two models of two seeds each are two models; what was left out is named, too."""
    made = family(tmp_path, [4, 6], training_seeds=(0, 1), steps=("score",))
    found = of(tmp_path, made, exclude=["w6_seed1"])
    with pytest.raises(ArtifactError) as caught:
        require_models(found, {one.label: 1.0 for one in found})
    assert caught.value.what == (
        "2 models (w4, w6) of 4 runs; a law needs at least 3 models; left out: w6_seed1: left out by --exclude"
    )


def test_a_file_of_models_is_read(tmp_path: Path) -> None:
    """Empty fields say nothing, a reason leaves a run out, blank lines are skipped."""
    path = tmp_path / "models.csv"
    path.write_text('run,variant,exclude\na,instruct,\n\nb,,"broken, see log"\n')
    assert read_models(path) == {"a": Override(variant="instruct"), "b": Override(exclude="broken, see log")}


@pytest.mark.parametrize(
    ("text", "where", "what"),
    [
        ("run,famly\n", ":1", "column 'famly' (did you mean 'family'?); known: run, family, variant, exclude"),
        ("run,family,family\na,b,c\n", ":1", "column 'family' stands here a second time"),
        ("family\n", ":1", "has no column 'run'; known: run, family, variant, exclude"),
        ("run,family\na,b,c\n", ":2", "3 fields under 2 columns"),
        ("run,family\n,b\n", ":2", "names no run"),
        ("run\na\na\n", ":3", "'a' stands here a second time"),
    ],
)
def test_a_file_of_models_that_does_not_hold_is_refused(tmp_path: Path, text: str, where: str, what: str) -> None:
    """Each fault is named with its line."""
    path = tmp_path / "models.csv"
    path.write_text(text)
    with pytest.raises(ArtifactError) as caught:
        read_models(path)
    assert (caught.value.where, caught.value.what) == (f"{path}{where}", what)


def test_the_refusal_says_what_helps_a_model_that_learnt_too_little(tmp_path: Path) -> None:
    """Where training came to nothing no option helps, and the hint says so; it speaks of one run in the singular."""
    training = {"held_out_nll": 5.0, "bigram_nll": 4.0}
    found = of(tmp_path, write(tmp_path, {"name": "w4", "width": 4, "training": training}))
    with pytest.raises(ArtifactError) as caught:
        require_models(found, {"w4": 1.0})
    assert caught.value.what == (
        "0 models of 1 run; a law needs at least 3 models; left out: w4: learnt too little: held-out NLL 5.000, a bigram's is"
        " 4.000"
    )
    assert caught.value.hint == (
        "name runs of more models; training seeds of one architecture count as one model; one that learnt too little counts"
        " once it is trained longer, no option lets it in"
    )
