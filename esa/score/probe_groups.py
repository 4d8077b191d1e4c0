"""Split the parameters whose curvature is probed into groups that are taken one after the other."""

from collections.abc import Mapping

from esa.errors import SpecError
from esa.model import ParameterInfo

Group = dict[str, ParameterInfo]


def probe_groups(chosen: Mapping[str, ParameterInfo], number: int) -> list[Group]:
    """Return ``number`` groups of neighbouring blocks, as equal in weights as whole blocks allow.

    What lies outside the blocks is a block of its own, the first. Probes are non-zero on one group at a time: the estimate
    stays unbiased (its variance even loses the products with the other groups), and only one group's gradients,
    products and accumulators exist. Cost: the graph of the whole model once per group.
    Raises SpecError for more groups than blocks.
    """
    blocks: dict[int, Group] = {}
    for name, info in chosen.items():
        blocks.setdefault(-1 if info.block is None else info.block, {})[name] = info
    ordered = [blocks[number] for number in sorted(blocks)]
    if number > len(ordered):
        raise SpecError(
            [
                f"score.probe_groups: {number}; at most {len(ordered)}, the blocks with weights to score (outside them: one)"
            ]
        )
    sizes = [sum(info.numel for info in block.values()) for block in ordered]
    groups: list[Group] = []
    start, left = 0, sum(sizes)
    for remaining in range(number, 0, -1):
        stop, held = start + 1, sizes[start]
        while stop <= len(ordered) - remaining and held + sizes[stop] / 2 <= left / remaining:
            held += sizes[stop]
            stop += 1
        if remaining == 1:
            stop, held = len(ordered), left
        groups.append({name: info for block in ordered[start:stop] for name, info in block.items()})
        start, left = stop, left - held
    return groups


def max_groups(chosen: Mapping[str, ParameterInfo]) -> int:
    """Return the largest number of groups there can be."""
    return len({info.block for info in chosen.values()})
