"""What a GGUF file says of its tensors: name, type, shape, bytes. Its vocabulary is skipped and no weight is read."""

import math
import mmap
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFValueType

from esa.errors import ModelError

_VERSIONS = (2, 3)  # the versions of 64-bit counts, little-endian: those that transformers reads
_SCALARS = {
    GGUFValueType.UINT8: "<B", GGUFValueType.INT8: "<b", GGUFValueType.UINT16: "<H", GGUFValueType.INT16: "<h",
    GGUFValueType.UINT32: "<I", GGUFValueType.INT32: "<i", GGUFValueType.FLOAT32: "<f", GGUFValueType.BOOL: "<?",
    GGUFValueType.UINT64: "<Q", GGUFValueType.INT64: "<q", GGUFValueType.FLOAT64: "<d",
}  # fmt: skip
_ARCHITECTURE = "general.architecture"


@dataclass(frozen=True)
class HeaderTensor:
    """One tensor of the file: ``type`` is ggml's name of its quantization, such as ``Q4_1``; ``num_bytes`` lie in the file."""

    name: str
    type: str
    numel: int
    num_bytes: int


def read_header(path: Path) -> tuple[str, list[HeaderTensor]]:
    """Return the architecture and the tensors of a GGUF file, in its order.

    gguf's own reader keeps every token of the vocabulary as an array, which takes seconds; this one steps over them.
    Raises ModelError for another format or version; struct.error for a file that ends early.
    Source: the GGUF specification, versions 2 and 3 (ggml project, docs/gguf.md).
    """
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        cursor = _Cursor(data)
        if cursor.take("<4s") != b"GGUF" or cursor.take("<I") not in _VERSIONS:
            raise ModelError("is no GGUF file of version 2 or 3, little-endian", where=str(path))
        num_tensors, num_keys = cursor.take("<Q"), cursor.take("<Q")
        architecture = ""
        for _ in range(num_keys):
            key = cursor.text()
            value = cursor.value(GGUFValueType(cursor.take("<I")))
            if key == _ARCHITECTURE:
                architecture = str(value)
        return architecture, [cursor.tensor() for _ in range(num_tensors)]


class _Cursor:
    """A place in the mapped file that moves on with every read."""

    def __init__(self, data: mmap.mmap) -> None:
        self.data, self.place = data, 0

    def take(self, layout: str) -> Any:
        (value,) = struct.unpack_from(layout, self.data, self.place)
        self.place += struct.calcsize(layout)
        return value

    def text(self) -> str:
        length = self.take("<Q")
        return str(self.take(f"<{length}s"), "utf-8")

    def value(self, kind: GGUFValueType) -> Any:
        """Return a scalar or a text; step over an array."""
        if kind == GGUFValueType.STRING:
            return self.text()
        if kind != GGUFValueType.ARRAY:
            return self.take(_SCALARS[kind])
        item, length = GGUFValueType(self.take("<I")), self.take("<Q")
        if item in _SCALARS:
            self.place += length * struct.calcsize(_SCALARS[item])
            return None
        for _ in range(length):
            if item == GGUFValueType.STRING:
                self.place += 8 + struct.unpack_from("<Q", self.data, self.place)[0]
            else:
                self.value(item)
        return None

    def tensor(self) -> HeaderTensor:
        name = self.text()
        shape = [self.take("<Q") for _ in range(self.take("<I"))]
        kind = GGMLQuantizationType(self.take("<I"))
        self.take("<Q")  # where its data begin
        numel = math.prod(shape)
        block, block_bytes = GGML_QUANT_SIZES[kind]
        return HeaderTensor(name, kind.name, numel, numel // block * block_bytes)
