"""Whether a disk has room for what is about to be written."""

import shutil
from pathlib import Path

from esa.errors import ArtifactError

_UNITS = ("kB", "MB", "GB", "TB")


def require_space(folder: Path, num_bytes: int, what: str) -> None:
    """Raise ArtifactError if the disk under ``folder`` has fewer than ``num_bytes`` free for ``what``.

    ``folder`` need not exist yet: its nearest existing parent is asked. A quota may leave a user less than the disk has;
    then the write itself fails, as on any disk that fills up meanwhile, and leaves no half of a file.
    """
    nearest = folder.absolute()
    while not nearest.exists():
        nearest = nearest.parent
    free = shutil.disk_usage(nearest).free
    if num_bytes > free:
        raise ArtifactError(
            f"needs {size_text(num_bytes)} for {what}, {size_text(free)} free",
            where=str(folder),
            hint="esa runs lists what lies in outputs/ and esa runs rm deletes from it; -o writes to another disk",
        )


def size_text(num_bytes: int) -> str:
    """Return a size as people read it: ``9,961 B``, ``312 kB``, ``12.4 GB`` (powers of 1000)."""
    if num_bytes < 10_000:
        return f"{num_bytes:,} B"
    size, unit = num_bytes / 1000, 0
    while size >= 999.5 and unit < len(_UNITS) - 1:
        size, unit = size / 1000, unit + 1
    return f"{size:.1f} {_UNITS[unit]}" if size < 99.95 else f"{size:,.0f} {_UNITS[unit]}"
