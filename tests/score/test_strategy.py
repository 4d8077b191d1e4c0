"""Accumulators in files: they take their room at once, and pieces of them go where the weights are."""

import os
from pathlib import Path
from typing import Any

import pytest
import torch

from esa.score import grad_x_weight
from esa.score.metric import Statistics
from esa.score.scored import ScoredTensor
from esa.score.strategy import Strategy
from tests.conftest import load

CPU = torch.device("cpu")


def test_a_file_takes_its_room_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk gives all of an accumulator's bytes before it is used: no write into it can find the disk full."""
    sizes = []
    mapped = torch.from_file

    def watched(name: str, **options: Any) -> torch.Tensor:
        sizes.append(os.stat(name).st_blocks * 512)
        return mapped(name, **options)

    monkeypatch.setattr(torch, "from_file", watched)
    zeros = Strategy(in_files=1, folder=tmp_path).zeros((300, 1000), CPU)
    assert sizes[0] >= zeros.numel() * 4
    assert not zeros.any()
    assert list(tmp_path.iterdir()) == []


def test_small_ones_stay_in_memory(tmp_path: Path) -> None:
    """Accumulators below the limit open no file."""
    folder = tmp_path / "none"
    assert Strategy(in_files=1000, folder=folder).zeros((10, 10), CPU).shape == (10, 10)
    assert not folder.exists()


def test_pieces_are_scored_where_the_weights_are() -> None:
    """Sums that lie elsewhere, as those in files do beside weights on a GPU, follow piece by piece."""
    info = load("llama").table["lm_head.weight"]
    elsewhere = torch.device("meta")
    weight = torch.empty(info.shape, device=elsewhere)
    tensor = ScoredTensor(
        grad_x_weight.METRIC, info, weight, Statistics(gradients={"mean_abs_gradient": torch.ones(info.shape)})
    )
    assert {part.scores.score.device for part in tensor.pieces()} == {elsewhere}
