"""How much memory a step may take: what the spec allows, or else what the machine has."""

import os
from pathlib import Path

import torch

from esa.spec.sections import Model as ModelSection

_SHARE = 0.8  # of the machine's memory: others live there too
_CGROUP = Path("/sys/fs/cgroup/memory.max")


def memory_room(section: ModelSection, device: torch.device) -> int:
    """Return the bytes that ``model.memory_budget`` allows, or without it four fifths of the device's memory.

    Only how a step goes about its work depends on it, no number that it writes.
    """
    if section.memory_budget is not None:
        return section.memory_budget
    if device.type == "cuda":
        return int(_SHARE * torch.cuda.get_device_properties(device).total_memory)
    return int(_SHARE * _machine_bytes())


def _machine_bytes() -> int:
    """Return the machine's memory, or the container's share of it where that is smaller."""
    physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = _CGROUP.read_text(encoding="ascii").strip() if _CGROUP.exists() else "max"
    return min(physical, int(limit)) if limit.isdecimal() else physical
