"""The runs that a sweep describes: their numbers, how they differ, and those that ``--only`` chooses."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from esa.errors import EsaError

if TYPE_CHECKING:
    from esa.spec import Spec

_PART = re.compile(r"(\d+)(?:-(\d+))?")
_MOST_NAMED = 8


def choose(only: Sequence[str] | None, runs: Sequence["Spec"], path: Path | None) -> list[int]:
    """Return the numbers that ``--only`` chooses, ascending; all of them where it is not given.

    Args: only holds ``3``, ``0-3`` or ``0-3,7``, any number of them, counted from 0; runs are those of the spec at ``path``.
    Raises EsaError for what is no number, and for a number that no run has.
    """
    if not only:
        return list(range(len(runs)))
    chosen: set[int] = set()
    for text in only:
        for part in text.split(","):
            found = _PART.fullmatch(part.strip())
            if found is None:
                raise EsaError(f"'{text}' is not a number; allowed: 3, 0-3, 0-3,7", where="--only")
            first = int(found[1])
            last = int(found[2] or first)
            if last < first:
                raise EsaError(f"'{part.strip()}' ends before it begins; allowed: {last}-{first}", where="--only")
            if last >= len(runs):
                count = f"{len(runs)} runs" if len(runs) > 1 else "one run"
                raise EsaError(
                    f"{last if first < len(runs) else first} is not the number of a run; {path} describes {count},"
                    f" counted from 0: {_named(runs)}",
                    where="--only",
                    hint=f"esa run --spec {path} --dry-run shows which is which" if len(runs) > 1 else None,
                )
            chosen.update(range(first, last + 1))
    return sorted(chosen)


def choose_one(only: Sequence[str] | None, runs: Sequence["Spec"], path: Path | None) -> "Spec":
    """Return the run that ``--only`` chooses. Raises EsaError as ``choose``, and where it chooses several."""
    numbers = choose(only, runs, path)
    if len(numbers) != 1:
        raise EsaError(
            f"{', '.join(only or [])} chooses {len(numbers)} runs where one is needed",
            where="--only",
            hint="esa run takes several",
        )
    return runs[numbers[0]]


def differences(runs: Sequence["Spec"]) -> list[dict[str, str]]:
    """Return of each run the dotted keys in which the runs differ, with its values as TOML; ``name`` apart.

    A key that only some runs have, such as an option of one method, is left out: another key of theirs says why.
    """
    from esa.cli.session import toml_value

    flat = [_flat(run.model_dump(mode="json", exclude_none=True)) for run in runs]
    keys = [key for key in flat[0] if key != "name" and all(key in one for one in flat)]
    differing = [key for key in keys if any(one[key] != flat[0][key] for one in flat)]
    return [{key: toml_value(one[key]) for key in differing} for one in flat]


def member_rows(runs: Sequence["Spec"], numbers: Sequence[int]) -> list[list[str]]:
    """Return a table of the chosen runs, its header first: number, name, and a column per key in which they differ."""
    found = differences(runs)
    return [["only", "run", *found[0]], *([str(n), runs[n].name, *found[n].values()] for n in numbers)]


def described(runs: Sequence["Spec"], number: int) -> str:
    """Return a run's name with what sets it apart: ``x-03 (score.seeds = [1], rank.k = [10])``."""
    changed = ", ".join(f"{key} = {value}" for key, value in differences(runs)[number].items())
    return f"{runs[number].name} ({changed})" if changed else runs[number].name


def _named(runs: Sequence["Spec"]) -> str:
    names = [f"{number} ({run.name})" for number, run in enumerate(runs)]
    return ", ".join(names) if len(names) <= _MOST_NAMED else f"{names[0]}, {names[1]}, ... {names[-1]}"


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return the leaves of nested tables by dotted key; lists of tables by number."""
    leaves: dict[str, Any] = {}
    for key, value in tree.items():
        name = f"{prefix}{key}"
        tables = isinstance(value, list) and value and all(isinstance(item, dict) for item in value)
        below = {str(number): item for number, item in enumerate(value)} if tables else value
        leaves |= _flat(below, f"{name}.") if isinstance(below, dict) else {name: below}
    return leaves
