"""What a finished step says of itself: ``manifest.json``."""

import importlib.metadata
import json
import os
import platform
import re
import resource
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from esa import __version__
from esa.artifact.files import write_text
from esa.errors import ArtifactError

MANIFEST = "manifest.json"
_PACKAGES = (
    "torch", "transformers", "tokenizers", "safetensors", "gguf", "accelerate", "numpy", "scipy", "polars", "altair",
    "vl-convert-python", "pydantic", "typer", "huggingface_hub", "datasets", "bitsandbytes",
)  # fmt: skip
_ABSOLUTE = re.compile(r"(?:(?<=[=:,\"'\[])|^)[/~][^:,=\"'\]]*")  # also within --out=/a/b, model.id=/a/b and file:/a/b


def environment() -> dict[str, Any]:
    """Return versions, hardware and the commit of the code: what a reader needs to repeat a step.

    No host name, user, environment variable or path enters.
    """
    packages = {}
    for name in _PACKAGES:
        try:
            packages[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {
        "esa": __version__,
        "python": platform.python_version(),
        "packages": packages,
        "hardware": {"system": platform.system(), "machine": platform.machine(), "cores": os.cpu_count()},
        "git": _git_state(),
    }


def _git_state() -> dict[str, Any] | None:
    """Return commit and dirty flag of the checkout that this code runs from, or None outside one."""
    here = Path(__file__).resolve().parent
    try:
        commit = _git(here, "rev-parse", "HEAD")
        tracked = _git(here, "ls-files", "--error-unmatch", str(Path(__file__).resolve()))
        dirty = _git(here, "status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.CalledProcessError):
        return None
    return {"commit": commit, "dirty": bool(dirty)} if tracked else None


def _git(folder: Path, *arguments: str) -> str:
    done = subprocess.run(["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def now() -> str:
    """Return the time in UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def peak_memory_bytes() -> int:
    """Return the largest resident size of this process so far, in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def command_line() -> list[str]:
    """Return the words of the command, the program as ``esa``, absolute paths by their last part."""
    return ["esa", *(_ABSOLUTE.sub(lambda match: Path(match[0]).name, word) for word in sys.argv[1:])]


def write_manifest(folder: Path, content: dict[str, Any]) -> None:
    """Write the manifest: the last file of a step, and the sign that it is complete."""
    write_text(folder / MANIFEST, json.dumps(content, indent=2, allow_nan=False) + "\n")


def read_manifest(folder: Path) -> dict[str, Any]:
    """Return the manifest of a finished step. Raises ArtifactError if the step is not finished."""
    path = folder / MANIFEST
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        what = "is not a finished step: it has no manifest.json" if folder.is_dir() else "no such folder"
        raise ArtifactError(what, where=str(folder)) from None
    except (OSError, ValueError) as error:
        raise ArtifactError(f"cannot be read: {error}", where=str(path)) from None
    if not isinstance(content, dict) or "step" not in content:
        raise ArtifactError("is not a manifest of esa", where=str(path))
    return content
