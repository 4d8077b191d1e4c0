"""Files are written whole or not at all."""

import os
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from esa.artifact import make_table, replacing, sha256_of, write_json, write_table, write_text
from esa.errors import ArtifactError


@pytest.fixture
def locked() -> Iterator[Path]:
    """Return a folder in which this process may not write: root, who may, is nobody for a while."""
    with tempfile.TemporaryDirectory() as name:  # not below tmp_path, which only its owner may enter
        os.chmod(name, 0o555)
        user = os.geteuid()
        if user == 0:
            os.seteuid(65534)
        yield Path(name)
        os.seteuid(user)


def test_a_file_takes_its_name_at_the_end(tmp_path: Path) -> None:
    """While a file is written its name still holds the old text; then it holds the new one, and nothing else is left."""
    path = tmp_path / "a.txt"
    write_text(path, "old")
    with replacing(path) as temporary:
        temporary.write_text("new", encoding="utf-8")
        assert path.read_text(encoding="utf-8") == "old"
        assert temporary.parent == path.parent
        assert temporary.suffix == path.suffix
    assert path.read_text(encoding="utf-8") == "new"
    assert os.listdir(tmp_path) == ["a.txt"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, OSError])
@pytest.mark.parametrize("existing", [True, False])
def test_a_failure_leaves_the_old_file(tmp_path: Path, error: type[BaseException], existing: bool) -> None:
    """Whatever is raised while writing, the old file stays, or none appears, and no temporary one is left."""
    path = tmp_path / "a.txt"
    if existing:
        write_text(path, "old")

    def write_half() -> None:
        with replacing(path) as temporary:
            temporary.write_text("half", encoding="utf-8")
            raise error

    with pytest.raises((error, ArtifactError)):
        write_half()
    assert os.listdir(tmp_path) == (["a.txt"] if existing else [])
    assert not existing or path.read_text(encoding="utf-8") == "old"


def test_an_error_inside_keeps_its_kind(tmp_path: Path) -> None:
    """What the writing code raises comes out as it is; only the system's errors become esa's."""
    with pytest.raises(ZeroDivisionError), replacing(tmp_path / "a"):
        _ = 1 / 0
    with pytest.raises(ArtifactError) as caught, replacing(tmp_path / "a"):
        raise OSError(28, "No space left on device")
    assert str(caught.value) == f"{tmp_path / 'a'}: cannot be written: No space left on device"


def test_nan_in_json_leaves_the_old_file(tmp_path: Path) -> None:
    """JSON of NaN is refused before the old file is touched."""
    path = tmp_path / "a.json"
    write_json(path, {"a": 1})
    with pytest.raises(ValueError, match="Out of range float values"):
        write_json(path, {"a": float("nan")})
    assert path.read_text(encoding="utf-8") == '{\n  "a": 1\n}\n'
    assert os.listdir(tmp_path) == ["a.json"]


def test_folders_are_made_and_rights_are_ordinary(tmp_path: Path) -> None:
    """Missing folders are made, and a file has the rights that any new file would have, not those of a temporary one."""
    path, plain = tmp_path / "a" / "b" / "c.txt", tmp_path / "plain.txt"
    write_text(path, "x")
    plain.write_text("x", encoding="utf-8")
    assert stat.S_IMODE(path.stat().st_mode) == stat.S_IMODE(plain.stat().st_mode)


def test_a_locked_folder_is_an_error(locked: Path) -> None:
    """A folder that may not be written to is one clear error, and nothing is left in it."""
    with pytest.raises(ArtifactError) as caught:
        write_table(make_table("eval/1", []), locked / "t.csv")
    assert str(caught.value) == f"{locked / 't.csv'}: cannot be written: Permission denied"
    assert os.listdir(locked) == []


def test_a_file_in_place_of_a_folder_is_an_error(tmp_path: Path) -> None:
    """A path below a file, or onto a folder, cannot be written."""
    write_text(tmp_path / "file", "x")
    with pytest.raises(ArtifactError, match="file/t.csv: cannot be written: (Not a directory|File exists)"):
        write_text(tmp_path / "file" / "t.csv", "y")
    (tmp_path / "folder").mkdir()
    with pytest.raises(ArtifactError, match="folder: cannot be written: Is a directory"):
        write_text(tmp_path / "folder", "y")
    assert sorted(os.listdir(tmp_path)) == ["file", "folder"]


def test_a_hash_is_that_of_the_bytes(tmp_path: Path) -> None:
    """sha256_of is the sha256 of the file's bytes."""
    (tmp_path / "a").write_bytes(b"abc")
    assert sha256_of(tmp_path / "a") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
