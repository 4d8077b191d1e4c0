"""What names an evaluated case: the intact model, or a change of it."""

import hashlib
from typing import Any

from esa.artifact import to_json


def case_id(method: str, options: dict[str, Any], targets: list[str], repeat: int) -> str:
    """Return the first 12 hex of sha256 over method, options, sorted targets and repeat."""
    text = to_json([method, options, sorted(targets), repeat])
    return hashlib.sha256(text.encode()).hexdigest()[:12]


INTACT = case_id("intact", {}, [], 0)
