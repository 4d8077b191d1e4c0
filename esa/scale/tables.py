"""The rows of every table of ``esa scale``: over sizes, over checkpoints, and of the meta-analysis."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from esa.progress import Progress
from esa.scale.laws_table import Fitted, Settings, fit_series
from esa.scale.models import FEW_MODELS, Member
from esa.scale.points import Series, points_of, series_of
from esa.scale.quantities import Wanted
from esa.statistics.multiplicity import holm

# kind -> file, in the order in which they are written
FILES = {
    "laws/1": "laws.csv", "points/1": "points.csv", "fits/1": "fits.csv", "bands/1": "bands.csv",
    "covariates/1": "covariates.csv", "trajectory/1": "trajectory.csv", "emergence/1": "emergence.csv",
    "effects/1": "effects.csv", "meta/1": "meta.csv",
}  # fmt: skip

# What a run was measured with that a law over size must not vary in, as section and key of the spec.
MEASURED_BY = (
    *((section, key) for section in ("calibration", "eval") for key in ("source", "windows", "length", "packing", "bos")),
    ("eval", "sample"), ("model", "dtype"), ("model", "compute"), ("model", "quantization"), ("score", "reduction"),
    ("score", "include"), ("score", "exclude"), ("rank", "mode"), ("rank", "aggregate"),
)  # fmt: skip

Row = dict[str, Any]


@dataclass
class Rows:
    """Rows by the kind of their table, and what is said of them in words."""

    tables: dict[str, list[Row]]
    summary: list[str] = field(default_factory=list)


def size_tables(found: Sequence[Member], over: str, wanted: Wanted, settings: Settings, progress: Progress) -> Rows:
    """Return the rows of ``points/1``, ``laws/1``, ``fits/1``, ``bands/1`` and ``covariates/1`` over the size of models.

    ``changepoint_p_adjusted``: the p of the changepoints after Holm over all series of the table: they measure the same
    few models in many ways, and one of many would bend by chance.
    """
    from esa.scale.covariates import covariate_rows

    points = points_of(found, over, wanted)
    kept = {one.member.model for one in points if one.excluded is None}
    if 0 < len(kept) < FEW_MODELS:
        progress.warn(f"{len(kept)} models: what follows is indicative; {FEW_MODELS} or more carry a law")
    every = list(series_of(points))
    fitted = fit_all(every, over, settings, progress)
    return Rows({
        "points/1": [one.row for one in points],
        **law_tables(fitted),
        "covariates/1": covariate_rows(points, settings),
    })  # fmt: skip


def fit_all(
    every: Sequence[Series], over: str, settings: Settings, progress: Progress, model: str | None = None
) -> list[Fitted]:
    """Return the fits of all series, in their order."""
    progress.start("laws", len(every))
    found = []
    for series in every:
        found.append(fit_series(series, over, settings, model))
        progress.advance()
    progress.finish()
    return found


def law_tables(fitted: Sequence[Fitted]) -> dict[str, list[Row]]:
    """Return the rows of ``laws/1``, ``fits/1`` and ``bands/1``, the changepoints' p adjusted over all of them."""
    laws = [one.law for one in fitted]
    for row, adjusted in zip(laws, holm([row.get("changepoint_p") for row in laws]), strict=True):
        row["changepoint_p_adjusted"] = adjusted
    return {
        "laws/1": laws,
        "fits/1": [row for one in fitted for row in one.fits],
        "bands/1": [row for one in fitted for row in one.bands],
    }


def unlike(found: Sequence[Member]) -> list[str]:
    """Return a warning for every setting of the measurement that differs between the runs that stand in fits.

    And one for a model that stands for base and instruct runs alike, where others may have one of the two.
    """
    kept = [one for one in found if one.excluded is None]
    specs = {one.label: one.run.spec.model_dump(mode="json", exclude_none=True) for one in kept}
    texts = []
    for model in dict.fromkeys(one.model for one in kept):
        variants = {one.variant: one.label for one in kept if one.model == model and one.variant is not None}
        if len(variants) > 1:
            named = ", ".join(f"{label} is {variant}" for variant, label in variants.items())
            texts.append(f"the one vote of {model} is a mean over variants ({named}); --exclude leaves one of them out")
    for section, key in MEASURED_BY:
        values: dict[str, list[str]] = {}
        for label, tree in specs.items():
            values.setdefault(str((tree.get(section) or {}).get(key)), []).append(label)
        if len(values) > 1:
            parts = "; ".join(
                f"{value} in {', '.join(labels[:3])}{', ...' if len(labels) > 3 else ''}"
                for value, labels in values.items()
            )
            texts.append(f"{section}.{key} differs between runs, which a law over size cannot tell from size: {parts}")
    return texts


def meta_tables(found: Sequence[Member], wanted: Wanted, level: float) -> Rows:
    """Return the rows of ``effects/1`` and ``meta/1``: top against random weights over all models."""
    from esa.scale.meta import effect_rows, meta_row, pooled

    made = pooled(found, wanted, level)
    rows = {"effects/1": [row for one in made for row in effect_rows(one)], "meta/1": [meta_row(one) for one in made]}
    return Rows(rows)
