"""What the top weights of one model cost beyond random ones, with its standard error: the effects of ``esa scale --meta``."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import polars as pl

from esa.artifact import find_table
from esa.artifact.gather import Gathered
from esa.artifact.steps import verified_path
from esa.scale.quantities.damages import label, num_doses
from esa.scale.quantities.measured import Wanted
from esa.statistics.bootstrap import ratios

Array = npt.NDArray[np.float64]
LEVEL = 0.95
_ABOUT = ("method", "options", "k")


class Subject(NamedTuple):
    """What an effect is of: the list, what was done to it, and how many weights."""

    metric: str
    method: str
    options: str
    k: int

    @property
    def text(self) -> str:
        """Return the words of it that tables carry: ``act_mag, zero, top 10``."""
        return f"{self.metric}, {label(self.method, self.options)}, top {self.k:,}"


class Effect(NamedTuple):
    """What the top K weights cost beyond as many random ones, in nats per token; ``excluded`` says why there is no number.

    ``low`` and ``high``: its interval, by Student's t with the degrees of freedom of ``stderr``. ``collapsed``: a top list left
    the model guessing (perplexity over half the vocabulary), so that the effect is bounded by what there was to lose.
    """

    value: float | None = None
    stderr: float | None = None
    low: float | None = None
    high: float | None = None
    excluded: str | None = None
    collapsed: bool = False


def contrast(num_tokens: Array, top: Array, drawn: Array, floor: float | None = None, level: float = LEVEL) -> Effect:
    """Return the effect of the top weights over random ones on the same windows, with its standard error.

    With l_tn and l_rn the NLL sums (nats) of window n under top list t and random draw r, and T_n its predicted tokens::

        d_n = mean_t l_tn - mean_r l_rn,    effect = sum_n d_n / sum_n T_n
        stderr^2 = s_w^2 + s_r^2 / R + s_t^2 / A + floor^2

    the difference of the two damages, the intact model cancelled out: ``exp(effect)`` is the factor by which perplexity is
    higher. s_w is the linearised standard error of that ratio over windows (the infinitesimal jackknife); s_r^2 the
    variance between the draws' mean NLL per token, s_t^2 that between the top lists' (0 where there is one: another
    calibration text's list is then not accounted for); ``floor`` the run's noise floor in nats, what rounding alone does.
    The windows' share of s_r^2 and s_t^2 is counted in s_w too: the error is, if anything, too large. Degrees of freedom
    after Welch and Satterthwaite: ``stderr^4 / sum_i (part_i^2 / df_i)``.

    Args: num_tokens ``(N,)``; top ``(A, N)``, a list per score seed, or per repeat of a method that draws; drawn
    ``(R, N)``, a random draw each. Returns: Effect; excluded under two windows or two draws, whose spread is unknown, and
    where nothing has any spread. Cost: one pass over the windows.
    Source: of the standard error, Davison and Hinkley, Bootstrap Methods and their Application, 1997, section 2.7; of the
    degrees of freedom, Satterthwaite, "An approximate distribution of estimates of variance components", Biometrics
    Bulletin 2, 1946.
    """
    if len(num_tokens) < 2:
        return Effect(excluded=f"{len(num_tokens)} window: its spread is unknown")
    if len(drawn) < 2:
        return Effect(
            excluded=f"{len(drawn)} random draw{'' if len(drawn) == 1 else 's'}: at least 2 tell their spread"
        )
    from scipy.special import stdtrit

    total = float(num_tokens.sum())
    difference = top.mean(axis=0) - drawn.mean(axis=0)
    effect, error = ratios(difference[None], num_tokens[None])
    parts = [
        (float(error[0]) ** 2, len(num_tokens) - 1),
        *(_between(part.sum(axis=1) / total) for part in (drawn, top)),
    ]
    variance = sum(part for part, _ in parts) + (floor or 0.0) ** 2
    if variance <= 0:
        return Effect(excluded="no spread over windows or draws, and no noise floor: it has no standard error")
    under = sum(part**2 / freedom for part, freedom in parts if part > 0)
    reach = variance**0.5 * float(stdtrit(variance**2 / under if under > 0 else np.inf, (1 + level) / 2))
    value = float(effect[0])
    return Effect(value, variance**0.5, value - reach, value + reach)


def _between(means: Array) -> tuple[float, int]:
    """Return the variance of the mean of independent values and its degrees of freedom; none of one value."""
    return (float(means.var(ddof=1)) / len(means), len(means) - 1) if len(means) > 1 else (0.0, 1)


def subjects(run: Gathered, wanted: Wanted) -> list[Subject]:
    """Return the lists, methods and K of a run of which top and random weights were changed together, in the damage's order."""
    damage = _joint(run)
    if damage is None:
        return []
    drawn = set(damage.filter(pl.col("group") == "random_k").select(_ABOUT).rows())
    top = damage.filter((pl.col("group") == "top_k") & pl.col("metric").is_not_null())
    found = dict.fromkeys(Subject(*row) for row in top.select("metric", *_ABOUT).rows())
    doses = num_doses(top)
    return [
        one for one in found
        if one[1:] in drawn and wanted.metric(one.metric) and wanted.k(one.k)
        and wanted.method(one.method, doses[one.method])
    ]  # fmt: skip


def _joint(run: Gathered) -> pl.DataFrame | None:
    damage = run.damage
    return None if damage is None else damage.filter(pl.col("unit") == "joint")


def effects(run: Gathered, wanted: Wanted) -> dict[Subject, Effect]:
    """Return the effect of every subject of a run that is ``wanted``, in nats per token (see :func:`contrast`).

    The units are the score seeds of the top list, or, of a single list, the repeats of a method that draws; and the random
    draws, their repeats averaged. A subject with a case that is not finite has no effect: a number without the worst case
    would flatter the model. Raises ArtifactError if ``windows/1`` is missing or was changed since its step wrote it.
    Cost: one read of that table.
    """
    damage, found = _joint(run), subjects(run, wanted)
    if damage is None or not found:
        return {}
    windows = find_table(verified_path(run.folders["perturb"], "windows/1"), "windows/1").frame
    by_case = {
        str(case): part.sort("window")
        for (case,), part in windows.partition_by("case", as_dict=True, maintain_order=True).items()
    }
    return {one: _effect(one, damage, by_case) for one in found}


def _effect(subject: Subject, damage: pl.DataFrame, by_case: dict[str, pl.DataFrame]) -> Effect:
    about = damage.filter(
        (pl.col("method") == subject.method) & (pl.col("options") == subject.options) & (pl.col("k") == subject.k)
    )
    top = about.filter((pl.col("group") == "top_k") & (pl.col("metric") == subject.metric))
    drawn = about.filter(pl.col("group") == "random_k")
    for name, part in (("top", top), ("random", drawn)):
        broken = part.filter((pl.col("outcome") == "nonfinite") | pl.col("nll").is_null()).height
        if broken:
            return Effect(
                excluded=f"nonfinite: {broken} of {part.height} {name} {'case' if part.height == 1 else 'cases'}"
            )
    by = "seed" if top["seed"].n_unique() > 1 else "repeat"
    tops, draws = _units(top, [by], by_case), _units(drawn, ["seed", "draw"], by_case)
    num_tokens = by_case[str(top["case"][0])]["num_tokens"].to_numpy().astype(float)
    floors = [floor for floor in top["noise_floor"].to_list() if floor is not None]
    found = contrast(num_tokens, tops, draws, max(floors, default=None))
    return found._replace(collapsed=bool(top["outcome"].is_in(["collapsed", "uniform"]).any()))


def _units(rows: pl.DataFrame, by: Sequence[str], by_case: dict[str, pl.DataFrame]) -> Array:
    """Return the NLL sums of each unit's windows ``(units, N)``, averaged over its cases."""
    return np.stack([
        np.mean([by_case[str(case)]["nll"].to_numpy() for case in part["case"]], axis=0)
        for part in rows.partition_by(*by, maintain_order=True)
    ])  # fmt: skip


def over_training_seeds(by_run: Mapping[str, Effect], level: float = LEVEL) -> Effect:
    """Return the effect of one model from those of its training seeds: models, not seeds, are what a mean is taken over.

    Runs of one architecture that differ by the seed of their training alone are no independent models, so each model has
    one vote: the plain mean of its m seeds' effects, with ::

        stderr^2 = mean_i stderr_i^2 + s^2 / m,    s^2 the variance between the seeds' effects

    The first part is not divided by m, as the seeds are measured on the same windows, whose error they share. A seed
    without an effect leaves its model without one: the worst seed is not dropped. One seed is returned as it is.
    ``by_run``: run's label -> effect.
    """
    found = list(by_run.values())
    for run, one in by_run.items():
        if one.excluded is not None and len(found) > 1:
            return Effect(excluded=f"{run}: {one.excluded}")
    if len(found) == 1:
        return found[0]
    from scipy.special import stdtrit

    values = np.asarray([one.value for one in found], dtype=float)
    within = float(np.mean([float(one.stderr or 0.0) ** 2 for one in found]))
    between, freedom = _between(values)
    variance = within + between
    degrees = variance**2 / (between**2 / freedom) if between > 0 else np.inf
    mean, reach = float(values.mean()), variance**0.5 * float(stdtrit(degrees, (1 + level) / 2))
    return Effect(mean, variance**0.5, mean - reach, mean + reach, collapsed=any(one.collapsed for one in found))
