"""What the files at hand store: every tensor's name, dtype, number of elements and bytes, from the headers alone."""

import json
import math
import re
from dataclasses import dataclass
from pathlib import Path

from safetensors import safe_open

from esa.arch.gguf_header import read_header
from esa.errors import ModelError
from esa.model.sources import ModelSource

_WHOLE, _INDEX = "model.safetensors", "model.safetensors.index.json"
_DTYPES = {
    "F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2", "I64": "int64", "I32": "int32", "I16": "int16", "I8": "int8", "U64": "uint64",
    "U32": "uint32", "U16": "uint16", "U8": "uint8", "BOOL": "bool",
}  # fmt: skip


@dataclass(frozen=True)
class StoredTensor:
    """A tensor of a file: ``dtype`` by torch's name (``bfloat16``) or ggml's (``q4_1``), ``num_bytes`` as they lie there."""

    name: str
    dtype: str
    numel: int
    num_bytes: int


@dataclass(frozen=True)
class StoredFiles:
    """The weight files of a local model: their tensors, GGUF's name of the architecture, and shards that are not there."""

    tensors: tuple[StoredTensor, ...]
    gguf_architecture: str | None = None
    missing: tuple[str, ...] = ()


def read_stored(source: ModelSource) -> StoredFiles | None:
    """Return what the weight files of a local model hold, or None where there are none that esa reads.

    A folder's ``model.safetensors`` is read, else the shards that its index names. Only headers are read, whatever the
    size of the files. Raises ModelError for an index that is none; safetensors' own error for a file that is cut.
    """
    if not source.local:
        return None
    folder = Path(source.location)
    if source.gguf:
        architecture, found = read_header(folder / source.gguf)
        tensors = tuple(StoredTensor(one.name, _ggml_dtype(one.type), one.numel, one.num_bytes) for one in found)
        return StoredFiles(tensors, architecture)
    if (folder / _WHOLE).is_file():
        return StoredFiles(tuple(_safetensors(folder / _WHOLE)))
    if (folder / _INDEX).is_file():
        shards = _shards(folder / _INDEX)
        here = [name for name in shards if (folder / name).is_file()]
        tensors = tuple(tensor for name in here for tensor in _safetensors(folder / name))
        return StoredFiles(tensors, missing=tuple(name for name in shards if name not in here))
    return None


def _shards(index: Path) -> list[str]:
    """Return the names of the files that an index of shards names."""
    try:
        return sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (ValueError, KeyError, TypeError, AttributeError):
        raise ModelError("is not an index of shards: it has no weight_map", where=str(index)) from None


def _safetensors(path: Path) -> list[StoredTensor]:
    tensors = []
    with safe_open(path, framework="pt") as file:
        for name in file.keys():  # noqa: SIM118 - safe_open is no dict
            header = file.get_slice(name)
            dtype, numel = header.get_dtype(), math.prod(header.get_shape())
            tensors.append(StoredTensor(name, _DTYPES.get(dtype, dtype.lower()), numel, numel * _bits(dtype) // 8))
    return tensors


def _bits(dtype: str) -> int:
    """Return the bits of an element: the first number in safetensors' name of its dtype (``BF16``, ``F8_E4M3``, ``F4``)."""
    number = re.search(r"\d+", dtype)
    return int(number[0]) if number else 8  # BOOL


def _ggml_dtype(name: str) -> str:
    return _DTYPES.get(name, name.lower())
