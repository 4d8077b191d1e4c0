"""How many windows and random draws an effect needs, from a finished campaign as the pilot."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from esa.artifact import find_table, read_manifest
from esa.errors import ArtifactError
from esa.eval.identity import INTACT
from esa.statistics.power import draws_for_power, draws_needed, window_sd, windows_needed

EFFECTS = (0.01, 0.05, 0.1)  # nats per token
POWER, ALPHA = 0.8, 0.05
_KEYS = ["group", "method", "options", "unit", "k"]


@dataclass(frozen=True)
class Plan:
    """What effects need where cases are like the pilot's of one group, method, unit and k.

    ``sd``: the median over cases of the standard deviation of one window's mean difference, nats per token. ``windows``: per
    effect; None where over ten million or no spread tells. ``draws``: per effect, of the Monte-Carlo test against the
    pilot's random draws; None where the pilot has fewer than three, or the effect is not beyond them.
    """

    group: str
    method: str
    options: str
    unit: str
    k: int
    num_cases: int
    sd: float | None
    windows: tuple[int | None, ...]
    draws: tuple[int | None, ...]


def plan(folder: Path, effects: Sequence[float] = EFFECTS) -> list[Plan]:
    """Return what each effect needs, in the order of the pilot's damage table: power 0.8, alpha 0.05.

    Windows: of a two-sided paired t test, whose spread is that of per-window differences ``l_n(perturbed) - l_n(intact)``.
    The stronger a perturbation, the wider they spread: the pilot's row nearest to the planned one is the one to read. Draws:
    ``draws_for_power`` at the probability that a random draw reaches the effect, t-distributed around the mean of the
    pilot's random draws of the same method, unit and k. Raises ArtifactError for a folder that is no finished campaign.
    """
    manifest = read_manifest(folder)
    if "damage/1" not in manifest["kinds"].values():
        raise ArtifactError(
            f"holds the step {manifest['step']}; the pilot is a finished perturb step", where=f"--power: {folder}"
        )
    damage = find_table(folder, "damage/1").frame
    windows = find_table(folder, "windows/1").frame
    per_case = {str(case): part.sort("window") for (case,), part in windows.group_by("case", maintain_order=True)}
    intact = per_case[INTACT]
    sizes = intact["num_tokens"].to_list()
    found = []
    for (group, method, options, unit, k), part in damage.group_by(_KEYS, maintain_order=True):
        cases = part["case"].unique(maintain_order=True).to_list()
        finite = [per_case[case]["nll"] for case in cases if not per_case[case]["nll"].null_count()]
        spreads = [window_sd((nll - intact["nll"]).to_list(), sizes) for nll in finite]
        known = [spread for spread in spreads if spread]
        sd = statistics.median(known) if known else None
        drawn = damage.filter(
            pl.col("group") == "random_k", *(pl.col(key) == value for key, value in
            (("method", method), ("options", options), ("unit", unit), ("k", k)))
        )["delta_nll"].drop_nulls().to_list()  # fmt: skip
        needed = tuple(windows_needed(effect, sd, POWER, ALPHA) if sd else None for effect in effects)
        draws = tuple(_draws(effect, drawn) for effect in effects)
        found.append(Plan(str(group), str(method), str(options), str(unit), int(str(k)), len(cases), sd, needed, draws))
    return found


def _draws(effect: float, drawn: Sequence[float]) -> int | None:
    """Return how many random draws let the test see an effect, from those of the pilot."""
    from scipy.special import stdtr

    if len(drawn) < 3:
        return None
    mean, sd, number = statistics.fmean(drawn), statistics.stdev(drawn), len(drawn)
    if not sd:
        return draws_needed(ALPHA) if effect > mean else None
    # A new draw from a normal distribution of which mean and spread are estimated.
    exceedance = float(stdtr(number - 1, -(effect - mean) / (sd * (1 + 1 / number) ** 0.5)))
    return draws_for_power(exceedance, ALPHA, POWER)
