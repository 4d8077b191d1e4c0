"""Headers are read as the libraries that own the formats read them, and nothing else is."""

import struct
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from esa.arch.gguf_header import read_header
from esa.arch.stored import StoredTensor, read_stored
from esa.errors import ModelError
from esa.model.sources import ModelSource, find_source
from tests.arch.models import data_bytes, llama_gguf, qwen_moe_gguf


@pytest.mark.parametrize("write", [llama_gguf, qwen_moe_gguf])
def test_a_gguf_header_is_that_of_gguf_s_own_reader(write: object, tmp_path: Path) -> None:
    """Names, types, numbers of weights and bytes are those that gguf's own reader finds."""
    path = tmp_path / "a.gguf"
    write(path)  # type: ignore[operator]
    assert_same_header(path)


def test_the_real_gguf_header() -> None:
    """The header of the built-in model's file is read as gguf's own reader reads it."""
    source = find_source("smollm2-135m")
    assert_same_header(Path(source.location) / str(source.gguf))


def assert_same_header(path: Path) -> None:
    """Hold the header against gguf's own reader."""
    expected = [(one.name, one.tensor_type.name, one.n_elements, one.n_bytes) for one in gguf.GGUFReader(path).tensors]
    _, found = read_header(path)
    assert [(one.name, one.type, one.numel, one.num_bytes) for one in found] == expected


def test_a_wrong_header_is_noticed(tmp_path: Path) -> None:
    """The comparison with gguf's own reader fails where one type is another."""
    path = tmp_path / "a.gguf"
    llama_gguf(path)
    data = bytearray(path.read_bytes())
    place = data.index(b"output_norm.weight") + len(b"output_norm.weight") + 4 + 8
    data[place] = 1  # F16
    other = tmp_path / "b.gguf"
    other.write_bytes(data)
    names = [read_header(one)[1] for one in (path, other)]
    assert [a.type for a, b in zip(*names, strict=True) if a != b] == ["F32"]


def test_every_kind_of_metadata_is_stepped_over(tmp_path: Path) -> None:
    """Scalars, texts, and arrays of numbers, texts and arrays before the tensors do not shift what is read."""
    path = tmp_path / "a.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_bool("a.flag", True)
    writer.add_uint8("a.byte", 7)
    writer.add_int16("a.short", -7)
    writer.add_uint64("a.long", 1 << 40)
    writer.add_float64("a.real", 0.5)
    writer.add_string("a.text", "with \N{GREEK SMALL LETTER ALPHA}")
    writer.add_array("a.numbers", [1, 2, 3])
    writer.add_array("a.texts", ["one", "", "three"])
    writer.add_array("a.nested", [[1, 2], [3]])
    writer.add_tensor("t", np.ones((3, 5), dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    architecture, (tensor,) = read_header(path)
    assert architecture == "llama"
    assert (tensor.name, tensor.type, tensor.numel, tensor.num_bytes) == ("t", "F32", 15, 60)


@pytest.mark.parametrize(
    "head", [b"GGML" + struct.pack("<I", 3), b"GGUF" + struct.pack("<I", 1), b"GGUF" + struct.pack(">I", 3)]
)
def test_another_version_is_refused(head: bytes, tmp_path: Path) -> None:
    """A file of another format, version or byte order is refused by name."""
    path = tmp_path / "a.gguf"
    path.write_bytes(head + bytes(64))
    with pytest.raises(ModelError, match="is no GGUF file of version 2 or 3, little-endian"):
        read_header(path)


def test_safetensors_of_every_width(tmp_path: Path) -> None:
    """Elements, bytes and torch's name of the dtype are read for every width."""
    dtypes = [
        torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16, torch.int8,
        torch.uint8, torch.bool, torch.float8_e4m3fn, torch.float8_e5m2,
    ]  # fmt: skip
    tensors = {f"t{number:02d}": torch.zeros(3, 2, dtype=dtype) for number, dtype in enumerate(dtypes)}
    save_file(tensors, tmp_path / "model.safetensors")
    files = read_stored(ModelSource(str(tmp_path), None, local=True))
    assert files is not None
    assert sorted(files.tensors, key=lambda one: one.name) == [
        StoredTensor(name, str(tensor.dtype).removeprefix("torch."), 6, 6 * tensor.dtype.itemsize)
        for name, tensor in tensors.items()
    ]
    assert sum(one.num_bytes for one in files.tensors) == data_bytes(tmp_path)


def test_without_files_nothing_is_stored(tmp_path: Path) -> None:
    """A hub id and a folder without safetensors have nothing stored."""
    assert read_stored(ModelSource("owner/model", None, local=False)) is None
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    assert read_stored(ModelSource(str(tmp_path), None, local=True)) is None
