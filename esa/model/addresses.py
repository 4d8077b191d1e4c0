"""One weight, one address: ``model.layers.11.mlp.down_proj.weight:507,1229``."""

import math
from collections.abc import Mapping, Sequence

from esa.errors import TargetError
from esa.model.anatomy import ParameterInfo
from esa.registry import suggest


def format_indices(indices: Sequence[int]) -> str:
    """Return ``(507, 1229)``."""
    return f"({', '.join(str(i) for i in indices)})"


def unravel(index: int, shape: Sequence[int]) -> tuple[int, ...]:
    """Return the coordinates of a row-major ``index`` in a tensor of ``shape``."""
    coordinates = []
    for size in reversed(shape):
        index, position = divmod(index, size)
        coordinates.append(position)
    return tuple(reversed(coordinates))


def ravel(indices: Sequence[int], shape: Sequence[int]) -> int:
    """Return the row-major index of coordinates in a tensor of ``shape``."""
    index = 0
    for position, size in zip(indices, shape, strict=True):
        index = index * size + position
    return index


def address(name: str, index: int, shape: Sequence[int]) -> str:
    """Return the address a person types: ``name:i,j``."""
    return f"{name}:{','.join(str(i) for i in unravel(index, shape))}"


def parse_address(text: str, table: Mapping[str, ParameterInfo], where: str = "--target") -> tuple[str, int]:
    """Return parameter and row-major index of an address.

    Raises TargetError for a malformed address, an unknown parameter (with the nearest name), or an index outside.
    """
    name, separator, numbers = text.rpartition(":")
    parts = [part.strip() for part in numbers.split(",")]
    if not separator or not all(part.isdecimal() for part in parts):
        raise TargetError(f"'{text}' is not an address; allowed: PARAMETER:I,J", where=where)
    info = find_parameter(name, table, where)
    return info.name, locate(info, [int(part) for part in parts], where)


def find_parameter(name: str, table: Mapping[str, ParameterInfo], where: str) -> ParameterInfo:
    """Return the parameter that goes by ``name``; the module's name stands for its weight, a tied name for its tensor.

    Raises TargetError with the nearest names.
    """
    for candidate in (name, f"{name}.weight"):
        if candidate in table:
            return table[candidate]
        for info in table.values():
            if candidate in info.uses:
                return info
    known = [use for info in table.values() for use in info.uses]
    raise TargetError(
        f"'{name}' is not a parameter of the model{suggest(name, known)}",
        where=where,
        hint=f"it has {len(table)} parameters, from {known[0]} to {known[-1]}",
    )


def locate(info: ParameterInfo, indices: Sequence[int], where: str) -> int:
    """Return the row-major index of ``indices`` (one: already row-major), checked against the tensor's shape."""
    shape = info.shape
    if len(indices) == 1 and len(shape) != 1:
        if not 0 <= indices[0] < info.numel:
            raise TargetError(f"index {indices[0]} is outside {info.name}, of {info.numel} weights", where=where)
        return indices[0]
    if len(shape) == 3 and len(indices) == 2:
        raise TargetError(
            f"{format_indices(indices)} has two numbers; {info.name}, of shape {format_indices(shape)}, takes three",
            where=where,
        )
    if len(indices) != len(shape) or any(not 0 <= i < size for i, size in zip(indices, shape, strict=True)):
        raise TargetError(
            f"{format_indices(indices)} is outside {info.name}, of shape {format_indices(shape)}", where=where
        )
    assert math.prod(shape) == info.numel
    return ravel(indices, shape)
