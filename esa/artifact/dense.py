"""Dense score maps: every score of a model in one safetensors file, written tensor by tensor in any order."""

import json
import math
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType

import numpy as np
import numpy.typing as npt

from esa.artifact.files import replacing

_LENGTH = 8  # bytes that hold the header's length
_LARGEST_OFFSET = 10**18


class DenseWriter:
    """Write float32 tensors as safetensors, one at a time: what is written is not held in memory.

    The format puts the offsets before the data; room for them is reserved by ``names`` and ``shapes`` of all tensors that may
    come, and those that came are entered on closing. The file takes its name when it is closed without an error.
    """

    def __init__(self, path: Path, shapes: Iterable[tuple[str, tuple[int, ...]]], meta: dict[str, str]) -> None:
        self.meta = dict(sorted(meta.items()))
        self._entries: dict[str, dict[str, object]] = {}
        self._offset = 0
        most = {name: _entry(shape, _LARGEST_OFFSET, _LARGEST_OFFSET) for name, shape in shapes}
        room = len(self._header(most))
        self._room = room + -room % 8  # the format wants the data aligned to 8 bytes
        self._replacing = replacing(path)
        self._file = self._replacing.__enter__().open("r+b")
        self._file.write(b"\0" * (_LENGTH + self._room))

    def __enter__(self) -> "DenseWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            header = self._header(self._entries)
            self._file.seek(0)
            self._file.write(self._room.to_bytes(_LENGTH, "little") + header.ljust(self._room))
        self._file.close()
        self._replacing.__exit__(kind, error, trace)

    def write(self, name: str, shape: tuple[int, ...], parts: Iterable[npt.NDArray[np.float32]]) -> None:
        """Append one tensor of ``shape``, its numbers in row-major order, in parts of any shape."""
        start = self._offset
        for part in parts:
            data = np.ascontiguousarray(part, dtype="<f4")
            self._offset += data.nbytes
            self._file.write(data.data)
        assert self._offset - start == 4 * math.prod(shape), name
        self._entries[name] = _entry(shape, start, self._offset)

    def _header(self, entries: dict[str, dict[str, object]]) -> bytes:
        return json.dumps({"__metadata__": self.meta, **entries}, separators=(",", ":")).encode()


def _entry(shape: tuple[int, ...], start: int, stop: int) -> dict[str, object]:
    return {"dtype": "F32", "shape": list(shape), "data_offsets": [start, stop]}
