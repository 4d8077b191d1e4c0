"""A model whose parameters accelerate keeps elsewhere gives no gradients: it is refused, not scored wrongly."""

from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import cpu_offload, disk_offload

from esa.errors import ModelError
from esa.model import prepare
from tests.conftest import build, make_tokenizer, tiny_spec


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
