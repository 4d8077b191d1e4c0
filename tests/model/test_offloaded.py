"""A model whose parameters accelerate keeps elsewhere gives no gradients: it is refused, not scored wrongly."""

from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import cpu_offload, disk_offload

from esa import score
from esa.errors import ModelError
from esa.model import load_model, prepare
from esa.spec.sections import Model
from tests.conftest import build, make_tokenizer, tiny_spec
from tests.score.naive import dense, engine_scores, unequal_windows


def offloaded(how: str, folder: Path) -> Any:
    """Return a tiny model whose parameters wait in a dictionary in memory, or on disk."""
    model = build("llama")
    if how == "disk":
        return disk_offload(model, str(folder), execution_device=torch.device("cpu"))
    return cpu_offload(model, execution_device=torch.device("cpu"))


@pytest.mark.parametrize("how", ["cpu", "disk"])
def test_offloaded_parameters_are_refused(how: str, tmp_path: Path) -> None:
    """It computes, and its backward pass reaches no parameter that anybody holds: the error says so, and what does work."""
    model = offloaded(how, tmp_path)
    assert model(input_ids=torch.tensor([[1, 2, 3]])).logits.isfinite().all()
    with pytest.raises(ModelError) as caught:
        prepare(model, make_tokenizer(), tiny_spec().model, torch.device("cpu"))
    assert str(caught.value) == (
        "model.id: model.embed_tokens.weight is not in memory: an offloaded model gives no gradients\n"
        'hint: model.residency = "disk" reads blocks from their files, and gives them'
    )


def test_a_spread_model_is_the_same_model(folder_model: Path) -> None:
    """device_map = "auto" leaves accelerate to place the modules: forward metrics and logits are those of one device."""
    one, spread = (
        load_model(Model(id=str(folder_model), device="cpu", device_map=way))  # type: ignore[arg-type]
        for way in ("none", "auto")
    )
    assert spread.facts["fingerprint"] == one.facts["fingerprint"]
    metrics = ["act_mag", "wanda", "super_activation"]
    expected, found = (engine_scores(loaded, unequal_windows(), metrics) for loaded in (one, spread))
    for metric in metrics:
        for name, values in dense(expected[metric]).items():
            assert torch.equal(dense(found[metric])[name], values), (metric, name)


def test_gradients_of_a_spread_model_are_refused(folder_model: Path, tmp_path: Path) -> None:
    """Metrics that need a backward pass are refused before anything is loaded."""
    spec = tiny_spec(model={"id": str(folder_model), "device_map": "auto"}, score={"metrics": ["act_mag", "ggn_obd"]})
    with pytest.raises(ModelError, match="'auto' is for forward passes; ggn_obd needs gradients"):
        score.run(spec, root=tmp_path / "out")
    assert not (tmp_path / "out").exists()
