"""Tell what finished runs have measured, so that an option that asks for something else is an error and not an empty table."""

from collections.abc import Sequence
from typing import Any

from esa.artifact.gather import Gathered
from esa.errors import ArtifactError
from esa.scale.models import Member
from esa.scale.quantities import Wanted


def require_offered(found: Sequence[Member], wanted: Wanted) -> None:
    """Raise ArtifactError for a metric, method or K asked for that no run has, naming those that there are."""
    runs = [one.run for one in found]
    options: tuple[tuple[str, str, tuple[str, ...] | tuple[int, ...]], ...] = (
        ("--metric", "metric", wanted.metrics), ("--method", "method", wanted.methods), ("-k", "k", wanted.ks),
    )  # fmt: skip
    for option, column, asked in options:
        there = sorted({value for run in runs for value in values(run, column)}) if asked else []
        for one in asked:
            if one not in there:
                known = ", ".join(f"{value:,}" if isinstance(value, int) else value for value in there) or "none"
                named = f"{one:,}" if isinstance(one, int) else f"'{one}'"
                raise ArtifactError(f"no run has {named}; they have: {known}", where=option)


def values(run: Gathered, column: str) -> set[Any]:
    """Return what a run's tables hold of a column; of K also those that its ranking was made for."""
    tables = [run.tensors, run.ranking, run.damage, run.overlap]
    found = {
        value for table in tables if table is not None and column in table.columns
        for value in table[column].drop_nulls().unique().to_list()
    }  # fmt: skip
    return found | (set(run.spec.rank.k) if column == "k" and run.ranking is not None else set())
