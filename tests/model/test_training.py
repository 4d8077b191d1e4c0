"""How far a model was trained is read from the files beside its weights, and from a revision's name."""

import json
from pathlib import Path
from typing import Any

import pytest

from esa.errors import EsaError
from esa.model.loading import load_model
from esa.model.sources import ModelSource
from esa.model.training import training_facts
from esa.spec.sections import Model
from tests.conftest import build, make_tokenizer

LINE = {
    "step": 350, "steps": 1400, "num_tokens": 358400, "size": "1.3m", "seed": 1, "train_nll": 3.5, "held_out_nll": 3.9,
    "unigram_nll": 5.8, "bigram_nll": 4.0, "text_sha256": "ab",
}  # fmt: skip


def local(folder: Path, **files: Any) -> dict[str, Any]:
    """Return the facts of a folder with these files."""
    for name, content in files.items():
        (folder / f"{name}.json").write_text(content if isinstance(content, str) else json.dumps(content))
    return training_facts(ModelSource(str(folder), None, local=True), None)


def test_the_family_s_file_is_read(tmp_path: Path) -> None:
    """Step, tokens, seed and losses are taken over; what has no meaning elsewhere is not."""
    assert local(tmp_path, training=LINE) == {
        "step": 350, "num_tokens": 358400, "seed": 1, "train_nll": 3.5, "held_out_nll": 3.9, "unigram_nll": 5.8,
        "bigram_nll": 4.0,
    }  # fmt: skip
    assert "train_nll" not in local(tmp_path, training=LINE | {"train_nll": None}), "an untrained model has no loss yet"


def test_the_trainer_s_file_is_read(tmp_path: Path) -> None:
    """The Trainer's step counts; tokens where it counted them."""
    assert local(tmp_path, trainer_state={"global_step": 500, "num_input_tokens_seen": 0}) == {"step": 500}
    state = {"global_step": 500, "num_input_tokens_seen": 9000, "log_history": []}
    assert local(tmp_path, trainer_state=state) == {"step": 500, "num_tokens": 9000}


def test_a_revision_says_its_step() -> None:
    """``step1000`` and ``step1000-tokens4B`` are steps; a branch, a commit, and a local folder's revision are none."""
    hub = ModelSource("EleutherAI/pythia-70m", None, local=False)
    found = {
        name: training_facts(hub, name)
        for name in (
            "step1000",
            "step-20",
            "step1000-tokens4B",
            "main",
            "a" * 40,
            None,
            "stage1-step7-tokens5B",
            "stage2-ingredient1-step7-tokens5B",
        )
    }
    assert found == {
        "step1000": {"step": 1000}, "step-20": {"step": 20}, "step1000-tokens4B": {"step": 1000}, "main": {}, "a" * 40: {},
        None: {}, "stage1-step7-tokens5B": {"step": 7}, "stage2-ingredient1-step7-tokens5B": {},
    }  # fmt: skip


def test_nothing_is_known_of_most_models(tmp_path: Path) -> None:
    """A folder without such a file has no facts."""
    assert local(tmp_path) == {}


@pytest.mark.parametrize(
    ("content", "what"),
    [
        ("{", "cannot be read"),
        ("[1]", "is not a JSON object"),
        ({"step": "350"}, "step is '350'; allowed: a whole number"),
        ({"step": True}, "step is True; allowed: a whole number"),
        ({"held_out_nll": "low"}, "held_out_nll is 'low'; allowed: a finite number, or null where training diverged"),
        ({"held_out_nll": float("nan")}, "held_out_nll is nan; allowed: a finite number"),
    ],
)
def test_a_file_that_says_nothing_sensible(tmp_path: Path, content: Any, what: str) -> None:
    """It is refused with its path, the key and what is allowed."""
    with pytest.raises(EsaError) as caught:
        local(tmp_path, training=content)
    assert str(caught.value).startswith(f"{tmp_path / 'training.json'}: {what}")


def test_a_loaded_model_carries_its_training(tmp_path: Path) -> None:
    """The facts enter the manifest's model; the shape and the active weights of a mixture stand beside them."""
    build("mixtral").save_pretrained(tmp_path)
    make_tokenizer().save_pretrained(tmp_path)
    (tmp_path / "training.json").write_text(json.dumps(LINE))
    facts = load_model(Model(id=str(tmp_path), device="cpu")).facts
    assert facts["training"]["step"] == 350
    experts, used = facts["shape"]["num_experts"], facts["shape"]["num_experts_per_tok"]
    inside = sum(one.numel() for name, one in build("mixtral").named_parameters() if ".experts." in name)
    assert facts["active_parameters"] == facts["num_parameters"] - inside + inside * used // experts
    assert used < experts
