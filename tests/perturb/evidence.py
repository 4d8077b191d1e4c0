"""Damage rows and windows that never came from a model: damage is planted per window."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from esa.perturb.evidence.effects import Windows


def damage_row(case: str, **about: Any) -> dict[str, Any]:
    """Return what an effect reads of a row of ``damage/1``."""
    row = {"case": case, "metric": "act_mag", "seed": 0, "group": "top_k", "draw": None, "method": "zero", "options": "{}",
           "dose": None, "repeat": None, "unit": "joint", "k": 5, "target": None}  # fmt: skip
    return {**row, **about}


def measured(damage: Mapping[str, Any], tokens: int) -> Windows:
    """Return windows in which each case costs the given nats per token."""
    number = len(next(iter(damage.values())))
    base = 3.0 * tokens + np.arange(number, dtype=np.float64)
    return Windows(
        base, np.full(number, float(tokens)), {case: base + tokens * np.asarray(d) for case, d in damage.items()}
    )
