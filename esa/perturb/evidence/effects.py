"""What a campaign measured, as effects: the damage of a set of weights per window, repeats averaged."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
# What tells one effect of a damage table from another; the repeats of one are its cases.
KEYS = ("metric", "seed", "group", "draw", "method", "options", "unit", "k", "target")


@dataclass(frozen=True)
class Windows:
    """The evaluation windows: NLL sums of the intact model and of every case (None: nonfinite), and predicted tokens."""

    base: Array
    num_tokens: Array
    nll: Mapping[str, Sequence[float] | None]

    def difference(self, case: str) -> Array | None:
        """Return a case's NLL sums minus the intact model's, ``(N,)`` nats; None where it is nonfinite."""
        found = self.nll[case]
        return None if found is None else np.asarray(found, dtype=np.float64) - self.base


@dataclass(frozen=True)
class Effect:
    """The damage of one set of weights by one method: per window the mean over repeats of the NLL sums' differences.

    ``differences`` is None where a repeat left NaN or infinite logits. ``name`` tells its random streams from others'.
    """

    about: Mapping[str, Any]
    cases: tuple[str, ...]
    dose: float | None
    differences: Array | None
    num_tokens: Array

    @property
    def name(self) -> str:
        """Return what the random streams of its intervals are called by: its cases."""
        return "+".join(self.cases)

    @property
    def estimate(self) -> float | None:
        """Return the damage: ``sum d / sum T``, nats per token; None where it is nonfinite."""
        return None if self.differences is None else float(self.differences.sum() / self.num_tokens.sum())

    @property
    def order(self) -> float:
        """Return the damage as something to rank by: a nonfinite model is worse than any other."""
        found = self.estimate
        return float("inf") if found is None else found

    def where(self, *keys: str) -> tuple[Any, ...]:
        """Return some of what tells it from others."""
        return tuple(self.about[key] for key in keys)


def effects(damage: Iterable[Mapping[str, Any]], windows: Windows) -> list[Effect]:
    """Return the effects of a damage table in the order of their first rows."""
    found: dict[tuple[Any, ...], list[Mapping[str, Any]]] = {}
    for row in damage:
        found.setdefault(tuple(row[key] for key in KEYS), []).append(row)
    result = []
    for key, rows in found.items():
        parts = [windows.difference(row["case"]) for row in rows]
        known = [part for part in parts if part is not None]
        mean = np.mean(known, axis=0) if len(known) == len(parts) else None
        cases = tuple(str(row["case"]) for row in rows)
        result.append(Effect(dict(zip(KEYS, key, strict=True)), cases, rows[0]["dose"], mean, windows.num_tokens))
    return result


class Together:
    """The effects of weights changed together, joint or cumulative, so that a group finds those it is held against."""

    def __init__(self, found: Sequence[Effect], most_draws: int | None = None) -> None:
        """Take the effects; of random draws those numbered below ``most_draws``, all for None."""
        self._by: dict[tuple[Any, ...], list[Effect]] = {}
        for one in found:
            beyond = most_draws is not None and (one.about["draw"] or 0) >= most_draws
            if one.about["unit"] in ("joint", "cumulative") and not beyond:
                self._by.setdefault(one.where("group", "unit", "method", "options", "k"), []).append(one)

    def others(self, like: Effect, group: str) -> list[Effect]:
        """Return the effects of another group under the same unit, method, options and k: of the same metric and seed.

        Random groups have no metric; a metric that reads no data has no seed, and the random groups of the first seed stand
        for it.
        """
        found = self._by.get((group, *like.where("unit", "method", "options", "k")), [])
        found = [one for one in found if one.about["metric"] in (like.about["metric"], None)]
        seed = like.about["seed"]
        if seed is None and found:
            seed = found[0].about["seed"]
        return [one for one in found if one.about["seed"] == seed]
