"""Planted runs for the comparison of models: a dense one and a mixture, with the axes of their tensors as esa rank records them."""

import json
from pathlib import Path
from typing import Any

from esa.arch.comparison.sources import Labelled, labelled
from esa.artifact.grouping import group
from tests.planted_runs import Planted


def with_axes(made: Planted) -> Path:
    """Write the run and the record of its tensors' axes, and return its folder: an embedding's outputs are its columns."""
    folder = made.write()
    entries = []
    for one in made.parameters:
        output, into = (1, 0) if one.component == "embed" else (len(one.shape) - 2, len(one.shape) - 1)
        axes = {"output_axis": output, "input_axis": into, "expert_axis": one.expert_axis}
        entries.append(
            {"parameter": one.name, "shape": one.shape, "block": one.block, "component": one.component, **axes}
        )
    (made.folders["rank"] / "anatomy.json").write_text(json.dumps(entries))
    return folder


def opened(*folders: Path) -> list[Labelled]:
    """Return runs as a comparison reads them."""
    return labelled(group(folders).runs)


def dense(root: Path, **knobs: Any) -> Planted:
    """Return a dense model of four blocks, not yet written."""
    return Planted(root, **{"name": "dense", "blocks": 4, "ks": (1, 10, 20), **knobs})


def mixture(root: Path, **knobs: Any) -> Planted:
    """Return a mixture of four blocks of five experts, not yet written."""
    return Planted(root, **{"name": "moe", "blocks": 4, "num_experts": 5, "ks": (1, 10, 20), "width": 4, **knobs})
