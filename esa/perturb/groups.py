"""Ordered lists of targets with a name: from a ranking, or from what a person typed."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import polars as pl

from esa.errors import TargetError
from esa.model import ParameterInfo, find_parameter, locate
from esa.perturb.heads import Heads
from esa.perturb.targets import AnyTarget, addressed, names_of, parse_target, target_at


@dataclass(frozen=True)
class Group:
    """An ordered list of targets with a name: what a ranking says of a metric, seed, group and draw.

    ``ranks``: each target's rank within its unit; a K takes those of rank at most K. ``scores``: where the ranking has them.
    """

    metric: str | None
    seed: int | None
    name: str
    draw: int | None
    targets: tuple[AnyTarget, ...]
    ranks: tuple[int, ...]
    scores: tuple[float | None, ...] = ()

    @property
    def size(self) -> int:
        """Return the largest K."""
        return max(self.ranks)

    @property
    def names(self) -> list[str]:
        """Return the parameters that its targets touch, each once, in the order they come."""
        return names_of(self.targets)

    def members(self, k: int) -> tuple[int, ...]:
        """Return the positions of the targets of rank at most ``k``."""
        return tuple(position for position, rank in enumerate(self.ranks) if rank <= k)


def groups_from_ranking(
    ranking: pl.DataFrame,
    table: Mapping[str, ParameterInfo],
    where: str,
    seeds: str = "all",
    heads: Heads | None = None,
) -> list[Group]:
    """Return the groups of a ranking in the order they stand; ``seeds = "first"`` keeps the first seed's and the seedless.

    A row is a weight by its ``index``, or what its ``indices`` say: ``(507, 1229)``, the row ``(507, :)``, the tensor ``:``,
    ``@expert=3`` or ``@head=3``.
    Raises TargetError for a parameter that the model does not have, an index outside it, a row without an address, or a target
    that stands twice in a group.
    """
    if ranking.is_empty():
        raise TargetError("holds no row", where=where)
    if seeds == "first":
        known = ranking["seed"].drop_nulls()
        if len(known):
            ranking = ranking.filter(pl.col("seed").is_null() | (pl.col("seed") == known[0]))
    found: dict[str, ParameterInfo] = {}
    keys = ["metric", "seed", "group", "draw"]
    groups = []
    for (metric, seed, name, draw), part in ranking.group_by(keys, maintain_order=True):
        targets: dict[AnyTarget, None] = {}
        ranks = []
        for parameter, index, indices, rank in part.select("parameter", "index", "indices", "rank").iter_rows():
            if parameter is None or rank is None or rank < 1:
                raise TargetError(
                    f"a row of {name or 'the list'} has parameter {parameter} and rank {rank}", where=where
                )
            info = found.get(parameter) or found.setdefault(parameter, find_parameter(parameter, table, where))
            target = _target(info, index, indices, table, heads, where)
            if target in targets:
                raise TargetError(f"{addressed(target, table)} stands twice in {name or 'the list'}", where=where)
            targets[target] = None
            ranks.append(rank)
        groups.append(Group(metric, seed, name or "targets", draw, tuple(targets), tuple(ranks), tuple(part["score"])))
    return groups


def _target(
    info: ParameterInfo,
    index: int | None,
    indices: str | None,
    table: Mapping[str, ParameterInfo],
    heads: Heads | None,
    where: str,
) -> AnyTarget:
    """Return what a row of a ranking addresses."""
    if index is not None:
        return info.name, locate(info, [index], where)
    if not (indices or "").strip():
        raise TargetError(
            f"a row of {info.name} has neither index nor indices", where=where, hint="a whole tensor has the indices :"
        )
    assert indices is not None
    if indices.strip().startswith("@"):
        return parse_target(f"{info.name}:{indices.strip()}", table, heads, where)
    return target_at(info, indices, where)


def group_from_addresses(
    addresses: Sequence[str], table: Mapping[str, ParameterInfo], heads: Heads | None = None
) -> list[Group]:
    """Return the one group of the targets that a person named, each once."""
    targets = tuple(dict.fromkeys(parse_target(text, table, heads) for text in addresses))
    return [Group(None, None, "targets", None, targets, tuple(range(1, len(targets) + 1)))]
