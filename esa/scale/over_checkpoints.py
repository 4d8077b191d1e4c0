"""The rows of ``esa scale --over checkpoints``: quantities and laws over training, and what became of the critical weights."""

import itertools
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from esa.progress import Progress
from esa.scale.checkpoints import Checkpoint, Trajectory, trajectories
from esa.scale.following import (
    Followed,
    emergence_rows,
    followed,
    gaps,
    num_unlisted,
    summary,
    trajectory_rows,
)
from esa.scale.laws_table import Fitted, Settings
from esa.scale.models import Member
from esa.scale.points import Point, Series, series_of
from esa.scale.quantities import Measured, Wanted, measure
from esa.scale.tables import Rows, fit_all, law_tables
from esa.statistics.laws import LAWS, model_means
from esa.statistics.series import SHORTEST, series_changepoints

OVER = "checkpoints"
UNTRAINED = "step 0: nothing is learnt yet, and the axis is logarithmic"


def checkpoint_tables(found: Sequence[Member], wanted: Wanted, settings: Settings, progress: Progress) -> Rows:
    """Return the rows of ``points/1``, the laws' tables, ``trajectory/1`` and ``emergence/1`` over training.

    Each training run is a group of its own: ``model`` of ``points/1`` and ``laws/1`` names it, x is the tokens seen (or the
    steps, where a checkpoint's tokens are unknown), and every checkpoint has one vote in its laws. To the quantities of
    :data:`esa.scale.quantities.QUANTITIES` come ``final_jaccard`` and ``consecutive_jaccard``. Of 20 checkpoints and more
    the changepoint is sought as a shift of level (see :func:`with_shift`), of fewer as a change of slope.
    Raises ArtifactError as :func:`esa.scale.checkpoints.trajectories` does. Cost: reads every table once; then about 0.3 s
    per training run, quantity and subject.
    """
    weights: list[Followed] = []
    points: list[Point] = []
    fitted: list[Fitted] = []
    for trajectory in trajectories(found):
        progress.note(trajectory.words)
        for text in gaps(trajectory):
            progress.warn(text)
        own = followed(trajectory, wanted)
        rows = points_over(trajectory, own, wanted)
        every = list(series_of([_by_label(one) for one in rows]))
        laws = fit_all(every, OVER, settings, progress, trajectory.model)
        fitted += [with_shift(one, series) for one, series in zip(laws, every, strict=True)]
        points += rows
        weights += own
    progress.warn(
        "checkpoints of one training run follow from each other: intervals and p values of its laws describe this run, and"
        " say nothing of another"
    )
    if left := num_unlisted(weights):
        progress.note(
            f"trajectory and emergence list the first weights of each list; {left:,} further ones are counted only"
        )
    return Rows(
        {
            "points/1": [one.row for one in points],
            **law_tables(fitted),
            "trajectory/1": [row for one in weights for row in trajectory_rows(one)],
            "emergence/1": [row for one in weights for row in emergence_rows(one)],
        },
        summary(weights),
    )


def points_over(trajectory: Trajectory, weights: Sequence[Followed], wanted: Wanted) -> list[Point]:
    """Return every value of every checkpoint in the order of time: its quantities, then its lists' agreement with others."""
    agreement: dict[int, list[Measured]] = {}
    for lists in weights:
        for checkpoint, measured in lists.agreement():
            agreement.setdefault(checkpoint.step, []).append(measured)
    made = []
    for checkpoint in trajectory.checkpoints:
        member = replace(checkpoint.member, model=trajectory.model)
        x = _x_of(checkpoint, trajectory)
        own = measure(member.run, replace(wanted, num_parameters=member.num_parameters))
        for one in [*own, *agreement.get(checkpoint.step, [])]:
            made.append(Point(member, x or None, one, one.excluded or (None if x else UNTRAINED)))
    return made


def _x_of(checkpoint: Checkpoint, trajectory: Trajectory) -> float:
    return float((checkpoint.step if trajectory.x_name == "step" else checkpoint.num_tokens) or 0)


def _by_label(point: Point) -> Point:
    """Return a point under its checkpoint's own name: what has one vote in a law of a training run."""
    return replace(point, member=replace(point.member, model=point.member.label))


def with_shift(fitted: Fitted, series: Series) -> Fitted:
    """Return a long series' fits with the largest shift of level in the place of the change of slope.

    Of 20 checkpoints and more: the residuals of the response from the preferred law (from its mean, where there is none), in
    the order of time, are cut where their level shifts (:func:`esa.statistics.series.series_changepoints`), and of several
    shifts the one with the largest change of level stands in ``changepoint``: the x of the first checkpoint behind it, and
    as ``changepoint_low`` and ``changepoint_high`` the checkpoints between which it lies. Slopes and p are empty, ``flags``
    says ``level_shift``. Shorter series are returned as they are.
    """
    if series.num_models < SHORTEST:
        return fitted
    means = model_means(series.points)
    order = np.argsort(means.x)
    x, z = means.x[order], means.response[order]
    law = fitted.law.get("law")
    if law is not None:
        values = [row["value"] for row in fitted.fits if row["model"] == law]
        expected = LAWS[law](x, values)
        z = z - (np.log(expected) if fitted.law["response"] == "log" else expected)
    cuts = [0, *series_changepoints(z.tolist()).places, len(z)]
    levels = [float(z[a:b].mean()) for a, b in itertools.pairwise(cuts)]
    columns = ("changepoint", "changepoint_low", "changepoint_high", "slope_below", "slope_above", "changepoint_p")
    row = {**fitted.law, **dict.fromkeys(columns)}
    if len(levels) > 1:
        place = cuts[1 + int(np.argmax(np.abs(np.diff(levels))))]
        flags = ",".join(filter(None, [fitted.law.get("flags"), "level_shift"]))
        row |= {"changepoint": x[place], "changepoint_low": x[place - 1], "changepoint_high": x[place], "flags": flags}
    return replace(fitted, law=row)
