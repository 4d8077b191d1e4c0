"""What ``--dry-run`` says of a campaign: how many cases each table has, and the smallest p that each test can reach."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from esa.spec import Spec

if TYPE_CHECKING:
    from esa.model import ParameterInfo

_OF_METRICS = ("top_k", "bottom_k", "matched_k")


@dataclass(frozen=True)
class _Count:
    """A table of ``[[perturb]]`` in numbers; ``hurts`` and ``random``: its tests of those claims."""

    cases: int
    hurts: int
    random: int
    words: str


def num_lists(spec: Spec, table: "Mapping[str, ParameterInfo]") -> int:
    """Return how many lists of K weights a ranking of a model has: one, or one per tensor, block or component."""
    from esa.model import eligible

    if spec.rank.mode == "global":
        return 1
    chosen = eligible(dict(table), spec.score.include, spec.score.exclude).values()
    of = {"per_layer": "name", "per_block": "block", "per_component": "component"}[spec.rank.mode]
    return len({getattr(info, of) for info in chosen})


def campaign_lines(spec: Spec, num_targets: int | None = None, lists: int = 1) -> list[str]:
    """Return how many cases there are at most, table by table; ``num_targets``: of those given by address.

    ``lists``: of how many lists the ranking takes its K (``num_lists``).
    """
    counts = list(_counts(spec, num_targets, lists))
    lines = [
        f"the intact model, {spec.eval.rewrites} rewrites for the noise floor, and at most"
        f" {sum(count.cases for count in counts):,} cases, each {spec.eval.windows} windows of {spec.eval.length} tokens,"
        " from the first block that changed"
    ]
    if any(section.model_dump()["method"] == "gradient" for section in spec.perturb):
        lines.append(
            f"the gradient over {spec.calibration.windows} windows of {spec.calibration.length} tokens, backward"
        )
    return lines + ([f"{count.words}: {count.cases:,}" for count in counts] if len(counts) > 1 else [])


def p_value_lines(spec: Spec, num_targets: int | None = None, lists: int = 1) -> list[str]:
    """Return the smallest p of each claim's test, alone and adjusted over the tests of the screen."""
    from esa.statistics.permutation import is_exact, smallest_monte_carlo_p, smallest_sign_flip_p

    counts = list(_counts(spec, num_targets, lists))
    statistics, number, rank, confirm = spec.statistics, spec.eval.windows, spec.rank, spec.confirm
    flips = "all" if is_exact(number, statistics.permutations) else f"{statistics.permutations:,}"
    hurts = smallest_sign_flip_p(number, statistics.permutations, "greater")
    lines = [
        f"hurts: {hurts:.3g}, {flips} sign flips of {number} windows"
        + _adjusted(hurts, sum(count.hurts for count in counts), statistics.fdr)
    ]
    if (tests := sum(count.random for count in counts)) > 0:
        random = smallest_monte_carlo_p(rank.draws)
        lines.append(
            f"more than random: {random:.3g}, {rank.draws} draws of random_k" + _adjusted(random, tests, statistics.fdr)
        )
    if confirm.metric is not None and num_targets is None:
        smallest = smallest_monte_carlo_p(confirm.draws)
        lines.append(
            f"confirmatory, {confirm.metric} {confirm.method} k = {confirm.k}: {smallest:.3g}, {confirm.draws} draws of"
            f" random_k{_reach(smallest, confirm.alpha, 'confirm.alpha')}"
        )
    return lines


def _adjusted(smallest: float, num_tests: int, level: float) -> str:
    from esa.statistics.permutation import smallest_adjusted_p

    if num_tests < 2:
        return _reach(smallest, level, "statistics.fdr")
    every, single = (smallest_adjusted_p(smallest, num_tests, reached) for reached in (num_tests, 1))
    return (
        f"; adjusted over {num_tests:,} tests {every:.3g} where all reach it, {single:.3g} where one alone does"
        + _reach(every, level, "statistics.fdr")
    )


def _reach(smallest: float, level: float, key: str) -> str:
    return f": never at most {key} = {level:g}" if smallest > level else ""


def _counts(spec: Spec, num_targets: int | None, lists: int) -> Iterator[_Count]:
    """Yield what each table asks for on a ranking by the spec, or on addresses, and what the confirmatory test adds."""
    from esa.perturb.units import num_parts

    for number, section in enumerate(spec.perturb):
        groups = _num_groups(spec, section.groups or spec.rank.groups) if num_targets is None else {"targets": 1}
        wanted = section.k or (spec.rank.k if num_targets is None else (num_targets,))
        sizes = sorted({k if num_targets is None else min(k, num_targets) for k in wanted})
        tables = len(section.expanded())
        parts = {unit: num_parts(unit, sizes, lists if num_targets is None else 1) for unit in section.unit}
        repeats = _repeats(section)
        every, named = sum(groups.values()), sum(count for name, count in groups.items() if name != "random_k")
        doses = f", {tables} combinations of options" if tables > 1 else ""
        words = f"perturb.{number} {section.model_dump()['method']} {', '.join(section.unit)}{doses}"
        yield _Count(
            every * tables * sum(parts.values()) * repeats,
            named * tables * sum(parts.values()),
            groups.get("top_k", 0) * tables * parts.get("joint", 0) if "random_k" in groups else 0,
            words,
        )
    if num_targets is None:
        yield from _confirmed(spec)


def _confirmed(spec: Spec) -> Iterator[_Count]:
    """Yield the cases that the confirmatory test alone needs: draws beyond ``rank.draws``, and what no table has.

    Where a table has its groups, one of the table's tests is no part of the screen; else its top group is one more.
    """
    from esa.perturb.evidence.confirmation import confirmed_table

    table, rank, confirm = confirmed_table(spec), spec.rank, spec.confirm
    if table is None:
        return
    held = any(
        section.expanded()[0].options() == table.options()
        and type(section) is type(table)
        and "joint" in section.unit
        and confirm.k in (section.k or rank.k)
        and {"top_k", "random_k"} <= set(section.groups or rank.groups)
        for section in spec.perturb
    )
    draws = max(0, confirm.draws - rank.draws) if held else 1 + max(confirm.draws, rank.draws)
    yield _Count(
        draws * _repeats(table),
        int(not held),
        -int(held),
        f"confirm, {confirm.draws} draws of random_k at k = {confirm.k}",
    )


def _num_groups(spec: Spec, names: Sequence[str]) -> dict[str, int]:
    """Return how many groups of each name a ranking by the spec has."""
    seeds = len(spec.score.seeds) if spec.rank.seeds == "all" else 1
    metrics = len(spec.score.metrics) + bool(spec.score.ensemble.metrics)
    return {name: (metrics if name in _OF_METRICS else spec.rank.draws) * seeds for name in names}


def _repeats(section: Any) -> int:
    """Return how often each part is drawn."""
    return int(section.repeats) if getattr(section, "draws", False) else 1
