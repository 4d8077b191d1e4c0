"""What a criterion is held to: a quantity's value with its interval, or what it would need; and of what it is computed."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import polars as pl
from pydantic import BaseModel, ConfigDict, Field

from esa.artifact.gather import Gathered

Runs = Sequence[tuple[str, Gathered]]  # with their labels


class Options(BaseModel):
    """Of which metric, metrics, method and k a criterion's quantity is computed, where that is not what ``[confirm]`` names."""

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid")

    metric: str | None = None
    metrics: tuple[str, ...] | None = Field(default=None, min_length=2, max_length=2)
    method: str | None = None
    k: int | None = Field(default=None, ge=1)


@dataclass(frozen=True)
class Found:
    """A quantity: its value (infinite where a model broke), the ends of its interval, and the numbers behind it in words.

    ``best``: the best value that the artifacts could have given, where that is limited, as in words ``needs`` (what a
    better one is) and ``has``.
    """

    value: float
    why: str
    low: float | None = None
    high: float | None = None
    best: float | None = None
    needs: str = ""
    has: str = ""


@dataclass(frozen=True)
class Needs:
    """There is no such quantity here: what the artifacts would have to hold."""

    what: str


Answer = Found | Needs


@dataclass(frozen=True)
class Subject:
    """The effect that a quantity is computed of: the top weights of a metric, a method, and how many weights at once."""

    metric: str
    method: str
    k: int

    def __str__(self) -> str:
        return f"{self.metric}, {self.method}, k = {self.k:,}"


def subjects(run: Gathered, wanted: Options) -> list[Subject]:
    """Return what a run is judged by: the metric that the options or ``[confirm]`` name, else each of its metrics.

    Method and k: those of the options, else of ``[confirm]``; where no metric is named there and the run has no such k or
    method, its largest k and its first method.
    """
    confirm = run.spec.confirm
    method, k = wanted.method or confirm.method, wanted.k or confirm.k
    metrics = [name for name in (wanted.metric or confirm.metric,) if name is not None]
    if not metrics:
        metrics = _metrics(run)
        methods, ks = _methods(run), list(run.spec.rank.k)
        method = method if wanted.method or method in methods or not methods else methods[0]
        k = k if wanted.k or k in ks else max(ks)
    return [Subject(metric, method, k) for metric in metrics]


def of_claim(run: Gathered, claim: str, subject: Subject) -> dict[str, Any] | None:
    """Return the claim of that name on the joint top weights of a subject, of the first seed and options; None for none."""
    for row in claims(run, claim):
        if (row["metric"], row["method"], row["k"]) == (subject.metric, subject.method, subject.k):
            return row
    return None


def claims(run: Gathered, claim: str) -> Iterator[dict[str, Any]]:
    """Yield the rows of ``tests/1`` with one claim on joint top weights, in their order."""
    table = run.table("perturb", "tests/1")
    if table is not None:
        kept = (pl.col("claim") == claim) & (pl.col("group") == "top_k") & (pl.col("unit") == "joint")
        yield from table.filter(kept).iter_rows(named=True)


def joint(run: Gathered, group: str, metric: str | None, method: str, k: int) -> list[dict[str, Any]]:
    """Return the joint cases of a group in ``damage/1``, its first seed and the method's first options alone."""
    if run.damage is None:
        return []
    rows = run.damage.filter(
        (pl.col("unit") == "joint") & (pl.col("group") == group) & pl.col("metric").eq_missing(pl.lit(metric, pl.String))
        & (pl.col("method") == method) & (pl.col("k") == k)
    ).to_dicts()  # fmt: skip
    return [row for row in rows if (row["options"], row["seed"]) == (rows[0]["options"], rows[0]["seed"])]


def _metrics(run: Gathered) -> list[str]:
    """Return the metrics of a run's top weights, else of its scores."""
    for table in (run.damage, run.ranking):
        if table is not None and (found := _names(table.filter(pl.col("group") == "top_k"), "metric")):
            return found
    return _names(run.tensors, "metric") if run.tensors is not None else []


def _methods(run: Gathered) -> list[str]:
    return _names(run.damage, "method") if run.damage is not None else []


def _names(table: pl.DataFrame, column: str) -> list[str]:
    return [str(name) for name in table[column].drop_nulls().unique(maintain_order=True)]
