"""A disk that is too full is noticed before anything is written."""

import os
import shutil
from collections import namedtuple
from pathlib import Path

import pytest

from esa.artifact import make_table, read_table, tables, write_table
from esa.artifact.space import require_space, size_text
from esa.errors import ArtifactError

Usage = namedtuple("Usage", "total used free")


@pytest.fixture
def free(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Leave 3,100,000,000 bytes free on every disk, and keep which folders were asked about."""
    asked: list[Path] = []

    def disk_usage(path: Path) -> Usage:
        assert path.exists()
        asked.append(path)
        return Usage(10**12, 10**12 - 3_100_000_000, 3_100_000_000)

    monkeypatch.setattr(shutil, "disk_usage", disk_usage)
    return asked


def test_too_little_space_is_an_error(tmp_path: Path, free: list[Path]) -> None:
    """What does not fit is refused with both sizes; what fits to the byte is not."""
    require_space(tmp_path, 3_100_000_000, "dense scores")
    with pytest.raises(ArtifactError) as caught:
        require_space(tmp_path, 12_400_000_000, "dense scores")
    assert str(caught.value) == (
        f"{tmp_path}: needs 12.4 GB for dense scores, 3.1 GB free\n"
        "hint: esa runs lists what lies in outputs/ and esa runs rm deletes from it; -o writes to another disk"
    )


def test_the_nearest_folder_that_exists_is_asked(
    tmp_path: Path, free: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder that is not there yet lies on the disk of the nearest one that is, also below a relative path."""
    require_space(tmp_path / "a" / "b", 1, "x")
    monkeypatch.chdir(tmp_path)
    require_space(Path("outputs/x"), 1, "x")
    assert free == [tmp_path, tmp_path]


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_a_table_that_does_not_fit_is_not_begun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str) -> None:
    """A table that needs more than is free leaves the old file and no other, whatever its format."""
    path = tmp_path / f"t.{suffix}"
    write_table(make_table("windows/1", [{"case": "a"}]), path)
    before = path.read_bytes()
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(1000, 1000, 0))
    with pytest.raises(ArtifactError, match=rf"^{tmp_path}: needs .* for t\.{suffix}, 0 B free"):
        write_table(make_table("windows/1", [{"case": "b" * 50}] * 100), path)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == [path.name]


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_the_size_of_a_table_is_exact(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str) -> None:
    """A table that fits to the byte is written, and one byte less is too little."""
    table = make_table("windows/1", [{"case": "b" * 50}] * 10, {"anatomy": "[1, 2]"})
    write_table(table, tmp_path / f"t.{suffix}")
    size = (tmp_path / f"t.{suffix}").stat().st_size
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(0, 0, size))
    write_table(table, tmp_path / f"u.{suffix}")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(0, 0, size - 1))
    with pytest.raises(ArtifactError, match=f"needs {size_text(size)} for v.{suffix}, {size_text(size - 1)} free"):
        write_table(table, tmp_path / f"v.{suffix}")


def test_the_size_of_a_large_parquet_file_is_near(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of several row groups the first tells how large all will be, within a tenth for rows of one kind."""
    asked: list[int] = []
    monkeypatch.setattr(tables, "_ROW_GROUP", 1000)
    monkeypatch.setattr(tables, "require_space", lambda folder, num_bytes, what: asked.append(num_bytes))
    rows = [{"case": f"{row * 7919 % 10_000:x}", "nll": row**0.5} for row in range(10_000)]
    write_table(make_table("windows/1", rows), tmp_path / "t.parquet")
    assert asked[0] == pytest.approx((tmp_path / "t.parquet").stat().st_size, rel=0.1)
    assert read_table(tmp_path / "t.parquet", "windows/1").frame.height == 10_000


SIZES = [
    (0, "0 B"), (9_961, "9,961 B"), (10_000, "10.0 kB"), (312_400, "312 kB"), (999_499, "999 kB"), (999_500, "1.0 MB"),
    (99_949_999, "99.9 MB"), (99_950_000, "100 MB"), (12_400_000_000, "12.4 GB"), (1_234_500_000_000_000, "1,234 TB"),
]  # fmt: skip


@pytest.mark.parametrize(("num_bytes", "text"), SIZES)
def test_sizes_read_well(num_bytes: int, text: str) -> None:
    """Sizes have three digits or so, and never 1000 of a unit that has a larger one above it."""
    assert size_text(num_bytes) == text
