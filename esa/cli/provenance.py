"""A manifest in words: where a step's numbers come from, as label and text."""

import re
import shlex
from collections.abc import Mapping
from typing import Any

from esa.cli.plain import duration

_MODEL = ("id", "revision", "commit", "architecture", "dtype", "compute", "quantization")
_PACKAGES = ("torch", "transformers", "polars")
_SHORT = 12  # digits of a hash that a person is shown
_HASH = re.compile(r"[0-9a-f]{12,}")
Line = tuple[str, str]


def provenance(manifest: Mapping[str, Any]) -> list[Line]:
    """Return what a finished step's manifest says of it, but for its tables; what it does not say is left out."""
    lines = [
        ("finished", _time(manifest)),
        ("command", shlex.join(map(str, _list(manifest.get("argv"))))),
        ("software", _software(manifest)),
        ("hardware", _hardware(manifest)),
        ("model", _model(_dict(manifest.get("model")))),
        *(("text", _text(entry)) for entry in _entries(manifest.get("data"))),
        ("seeds", ", ".join(map(str, _list(manifest.get("seeds"))))),
        ("made from", inputs_text(_dict(manifest.get("inputs")))),
        *(("note", str(text)) for text in _list(manifest.get("notes"))[:3]),
        *(("warning", str(text)) for text in _list(manifest.get("warnings"))),
    ]
    checksum = _dict(manifest.get("checksum"))
    if checksum:
        restored = "every weight was restored" if checksum.get("restored") else "NOT every weight was restored"
        lines.append(("checksum", f"{restored}, {checksum.get('num_tensors')} tensors compared"))
    return [(label, text) for label, text in lines if text]


def inputs_text(inputs: Mapping[str, Any]) -> str:
    """Return the steps, files and commits that a step was made from, by the start of their hash, and settings in full.

    A setting that is empty, such as metrics where none is named, goes without saying.
    """
    told = {str(name): str(value) for name, value in inputs.items() if str(value)}
    return ", ".join(
        name if value in name else f"{name} {value[:_SHORT] if _HASH.fullmatch(value) else value}"
        for name, value in told.items()
    )


def _time(manifest: Mapping[str, Any]) -> str:
    created = str(manifest.get("created", ""))[:19].replace("T", " ")
    peak = manifest.get("peak_memory_bytes")
    parts = [f"{created} UTC" if created else "", f"in {duration(manifest.get('seconds'))}"]
    parts.append(f"peak {peak / 1e9:.2f} GB" if isinstance(peak, int) else "")
    return ", ".join(part for part in parts if part)


def _software(manifest: Mapping[str, Any]) -> str:
    git, packages = _dict(manifest.get("git")), _dict(manifest.get("packages"))
    commit = (
        f" (commit {str(git['commit'])[:_SHORT]}{', with uncommitted changes' if git.get('dirty') else ''})"
        if git
        else ""
    )
    found = [f"esa {manifest.get('esa')}{commit}", f"Python {manifest.get('python')}"]
    return ", ".join([*found, *(f"{name} {packages[name]}" for name in _PACKAGES if name in packages)])


def _hardware(manifest: Mapping[str, Any]) -> str:
    machine, model = _dict(manifest.get("hardware")), _dict(manifest.get("model"))
    parts = [f"{machine.get('system')} {machine.get('machine')}", f"{machine.get('cores')} cores"] if machine else []
    if model.get("device"):
        parts.append(f"computed on {model.get('accelerator') or model['device']}")
    return ", ".join(parts)


def _model(model: Mapping[str, Any]) -> str:
    if not model:
        return ""
    parts = [str(model[key]) for key in _MODEL if model.get(key) not in (None, "none")]
    if isinstance(model.get("num_parameters"), int):
        parts.insert(1, f"{model['num_parameters']:,} weights")
    return ", ".join([*dict.fromkeys(parts), f"fingerprint {str(model.get('fingerprint'))[:_SHORT]}"])


def _text(entry: Mapping[str, Any]) -> str:
    seed = f"seed {entry['seed']}: " if entry.get("seed") is not None else ""
    bos = "" if entry.get("bos") is None else "with BOS, " if entry["bos"] else "no BOS, "
    size = f"{entry.get('windows')} windows of {entry.get('length')} tokens"
    return f"{seed}{entry.get('source')}, {size}, {bos}sha256 {str(entry.get('sha256'))[:_SHORT]}"


def _entries(data: object) -> list[Mapping[str, Any]]:
    return [entry for entry in (data if isinstance(data, list) else [data]) if isinstance(entry, dict)]


def _dict(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _list(value: object) -> list[Any]:
    return value if isinstance(value, list) else []
