"""The tensors that a ranking was drawn from: the universe of its null, and the axes of its outputs and inputs."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from esa.artifact import STDIO, Table
from esa.errors import ArtifactError

ANATOMY = "anatomy.json"
OUTSIDE = "outside"  # the block of a tensor that belongs to none, such as the embedding
MODE_COLUMNS = {"per_layer": "parameter", "per_block": "block", "per_component": "component"}


@dataclass(frozen=True)
class Entry:
    """One stored tensor: where it is, its shape, and which axes are its outputs and inputs (None: it has none)."""

    parameter: str
    shape: tuple[int, ...]
    numel: int
    layer: str | None = None
    block: int | None = None
    component: str | None = None
    output_axis: int | None = None
    input_axis: int | None = None

    @property
    def has_axes(self) -> bool:
        """Tell whether outputs and inputs are known; a vector's output and input is its one index."""
        return len(self.shape) < 2 or (self.output_axis is not None and self.input_axis is not None)

    def unit(self, mode: str) -> str | None:
        """Return the unit of selection that the tensor is in, or None where the mode's units are not whole tensors."""
        if mode == "global":
            return ""
        column = MODE_COLUMNS.get(mode)
        if column is None:
            return None
        value = getattr(self, column)
        return str(value) if value is not None else OUTSIDE

    def group(self, by: str) -> str:
        """Return the layer, block or component that the tensor is in."""
        if by == "layer":
            return self.layer if self.layer is not None else owner(self.parameter)
        value = getattr(self, by)
        return str(value) if value is not None else OUTSIDE

    def dropped(self, by: str) -> tuple[int, int]:
        """Return ``(size, stride)`` of the axis that vanishes when a weight becomes its output or input.

        A weight's output is its address without the input axis, so that an expert's outputs stay apart; (1, 1) where
        nothing vanishes.
        """
        axis = self.input_axis if by == "output" else self.output_axis
        if len(self.shape) < 2 or axis is None:
            return 1, 1
        return self.shape[axis], int(np.prod(self.shape[axis + 1 :], dtype=np.int64))


Anatomy = tuple[Entry, ...]


def without_axis(index: NDArray[np.int64], size: NDArray[np.int64], stride: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the row-major offsets that are left of ``index`` when the axis of that size and stride is taken away."""
    return index // (size * stride) * stride + index % stride


def owner(parameter: str) -> str:
    """Return the module that owns a parameter, for lists that do not say: its name without ``.weight`` or ``.bias``."""
    return parameter.removesuffix(".weight").removesuffix(".bias")


def anatomy_of(table: Table, source: str | Path) -> Anatomy | None:
    """Return the anatomy that came with a ranking, or None.

    It is in the Parquet file's metadata, else in ``anatomy.json`` in the folder.
    Raises ArtifactError if there is one that cannot be read.
    """
    if "anatomy" in table.meta:
        return parse_anatomy(table.meta["anatomy"], str(source))
    if str(source) == STDIO:
        return None
    path = Path(source)
    beside = (path if path.is_dir() else path.parent) / ANATOMY
    if not beside.is_file():
        return None
    return parse_anatomy(beside.read_text(encoding="utf-8"), str(beside))


def parse_anatomy(text: str, name: str) -> Anatomy:
    """Return the entries of a JSON list of objects with the fields of ``Entry``. Raises ArtifactError."""
    try:
        return tuple(_entry(item) for item in json.loads(text))
    except (ValueError, TypeError, KeyError) as error:
        raise ArtifactError(f"its anatomy cannot be read: {type(error).__name__}: {error}", where=name) from None


def _entry(item: Mapping[str, Any]) -> Entry:
    shape = tuple(int(size) for size in item["shape"])
    axes = [_axis(item.get(key), len(shape)) for key in ("output_axis", "input_axis")]
    return Entry(
        parameter=item["parameter"],
        shape=shape,
        numel=int(np.prod(shape, dtype=np.int64)),
        layer=item.get("layer"),
        block=item.get("block"),
        component=item.get("component"),
        output_axis=axes[0],
        input_axis=axes[1],
    )


def _axis(axis: int | None, ndim: int) -> int | None:
    """Return an axis counted from the front."""
    if axis is None:
        return None
    if not -ndim <= axis < ndim:
        raise ValueError(f"axis {axis} of a tensor of {ndim} dimensions")
    return axis % ndim
