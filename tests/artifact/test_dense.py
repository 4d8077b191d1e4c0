"""Dense score maps: what safetensors reads back is what was written, in whatever order it came."""

from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open

from esa.artifact.dense import DenseWriter

TENSORS = {name: np.arange(i, i + 6, dtype=np.float32).reshape(2, 3) for i, name in enumerate(["a.weight", "b", "ü"])}
SHAPES = [(name, values.shape) for name, values in TENSORS.items()]


@pytest.mark.parametrize("order", [["a.weight", "b", "ü"], ["ü", "a.weight"], []])
def test_what_was_written_is_read_back(tmp_path: Path, order: list[str]) -> None:
    """Tensors in any order, some left out, come back bit for bit under their names, with what the file says of itself."""
    path = tmp_path / "dense" / "x.safetensors"
    with DenseWriter(path, SHAPES, {"run": "r", "metric": "m"}) as writer:
        for name in order:
            writer.write(name, TENSORS[name].shape, [TENSORS[name]])
    with safe_open(path, "np") as found:
        assert sorted(found.keys()) == sorted(order)
        assert found.metadata() == {"metric": "m", "run": "r"}
        for name in order:
            np.testing.assert_array_equal(found.get_tensor(name), TENSORS[name])


def test_a_file_that_was_not_finished_is_not_there(tmp_path: Path) -> None:
    """An error in the middle leaves nothing behind."""

    def interrupted() -> None:
        with DenseWriter(tmp_path / "x.safetensors", SHAPES, {}) as writer:
            writer.write("b", TENSORS["b"].shape, [TENSORS["b"]])
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert list(tmp_path.iterdir()) == []


def test_the_same_tensors_give_the_same_bytes(tmp_path: Path) -> None:
    """Two files of the same tensors in the same order are equal."""
    for name in ("one", "two"):
        with DenseWriter(tmp_path / name, SHAPES, {"run": "r"}) as writer:
            for tensor, values in TENSORS.items():
                writer.write(tensor, values.shape, np.array_split(values, 3))
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
