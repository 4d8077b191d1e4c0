"""What goes with a quantity beside size: family, dense or MoE, base or instruct, as rows of ``covariates/1``."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from esa.scale.laws_table import Settings
from esa.scale.models import FEWEST_MODELS, Member
from esa.scale.points import Point, by_series
from esa.statistics.covariates import covariate_effects
from esa.statistics.laws import response_of
from esa.statistics.multiplicity import holm

TERMS = ("family", "kind", "variant")

Row = dict[str, Any]


def varying(found: Sequence[Member]) -> list[str]:
    """Return the covariates that differ between the runs that stand in fits, in the order of ``TERMS``."""
    kept = [one for one in found if one.excluded is None]
    return [term for term in TERMS if len({getattr(one, term) for one in kept}) > 1]


def covariate_rows(points: Sequence[Point], settings: Settings) -> list[Row]:
    """Return the rows of ``covariates/1``: for each quantity and subject the effects of the covariates that differ at all.

    Models of one shape that differ in a covariate (a base model and its instruct version) count as two here. A term that the
    models of a subject cannot carry has one row that says why. ``p_adjusted`` is Holm's over all terms of all quantities
    and subjects: they are the same few models, measured in many ways. See ``esa.statistics.covariates.covariate_effects``.
    """
    members = {id(one.member): one.member for one in points}
    terms = varying(list(members.values()))
    if not terms:
        return []
    rows: list[Row] = []
    for (quantity, subject), of in by_series(points).items():
        kept = [one for one in of if one.excluded is None]
        about = {"quantity": quantity, "subject": subject}
        names = [" ".join([one.member.model, *(str(getattr(one.member, term)) for term in terms)]) for one in kept]
        number = len(set(names))
        if number < FEWEST_MODELS:
            why = f"{number} {'model' if number == 1 else 'models'} with a value, at least {FEWEST_MODELS} are needed"
            counts = {"num_models": number, "num_points": len(kept)}
            rows += [{**about, "term": term, **counts, "why": why} for term in terms]
            continue
        y = [float(one.measured.value or 0.0) for one in kept]
        columns = {term: [getattr(one.member, term) for one in kept] for term in terms}
        found = covariate_effects(
            y, [float(one.x or 0.0) for one in kept], names, columns, response_of(y), settings.permutations,
            settings.seed, settings.level,
        )  # fmt: skip
        rows += [{**about, **asdict(effect)} for effect in found]
    _adjust(rows)
    return rows


def _adjust(rows: Sequence[Row]) -> None:
    """Put Holm's p over all tests of the table into its rows; the levels of a term share one test."""
    tests = {(row["quantity"], row["subject"], row["term"]): row.get("p_value") for row in rows}
    adjusted = dict(zip(tests, holm(list(tests.values())), strict=True))
    for row in rows:
        if row.get("p_value") is not None:
            row["p_adjusted"] = adjusted[row["quantity"], row["subject"], row["term"]]
