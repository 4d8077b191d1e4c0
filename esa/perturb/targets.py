"""What can be changed together under one name: a weight, or a row, column, head, expert, tensor, component of them."""

import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase

import torch
from torch import Tensor

from esa.errors import TargetError
from esa.model import LoadedModel, ParameterInfo, address, find_parameter, locate
from esa.model.anatomy import COMPONENTS
from esa.perturb.heads import Heads, head_ranges
from esa.registry import suggest

Target = tuple[str, int]  # a single weight: parameter, row-major index
Range = tuple[int, int]  # from, up to but without
Box = tuple[Range, ...]  # of one parameter: a range per axis

GRAMMAR = (
    "NAME:I,J (: for a whole axis), NAME, NAME:@expert=N, NAME:@head=N, or of NAME-GLOB, component=GLOB, block=GLOB,"
    " expert=N, head=N some, joined by commas"
)
_GLOB = re.compile(r"[*?\[]")
_INDICES = re.compile(r"(\d+|:)(,(\d+|:))*")
_FILTERS = ("component", "block", "expert", "head")


@dataclass(frozen=True)
class Region:
    """Weights that are changed together: ``text``, their canonical address, and the boxes of each parameter that they fill.

    Two regions are the same if their texts are. Never a list of weights: a tensor of 10^8 of them is one box.
    """

    text: str
    boxes: tuple[tuple[str, Box], ...] = field(compare=False)

    @property
    def names(self) -> tuple[str, ...]:
        """Return the parameters it touches, each once."""
        return tuple(dict.fromkeys(name for name, _ in self.boxes))

    @property
    def num_weights(self) -> int:
        """Return how many weights it holds."""
        return sum(math.prod(stop - start for start, stop in box) for _, box in self.boxes)

    def holds(self, name: str, place: Sequence[int]) -> bool:
        """Tell whether the weight of ``name`` at coordinates ``place`` is one of its own."""
        return any(
            name == other and all(start <= i < stop for i, (start, stop) in zip(place, box, strict=True))
            for other, box in self.boxes
        )


AnyTarget = Target | Region


def parse_target(
    text: str, table: Mapping[str, ParameterInfo], heads: Heads | None = None, where: str = "--target"
) -> AnyTarget:
    """Return what a text addresses: a single weight as parameter and row-major index, anything larger as a region.

    ``NAME:507,1229`` a weight (``NAME:I`` by its row-major index); ``NAME:507,:`` a row, ``NAME::,1229`` a column,
    ``NAME:3,507,:`` one of expert 3, in storage; ``NAME`` or ``NAME:`` the tensor; ``NAME:@expert=3``, ``NAME:@head=3`` its
    part of an expert or a head. A selection, ``component=mlp.down,block=11``: all parameters that every part of it matches,
    NAME a glob, as in ``score.include``; of them, with ``expert=N`` or ``head=N``, what belongs to that expert or head.
    What fills one tensor, or a box of indices in it, goes by that address however it was written.
    ``heads``: those of the model (``heads_of``), None where nothing is known of them.
    Raises TargetError for a malformed text, an unknown parameter, an index outside, or a selection of nothing.
    """
    name, colon, tail = (part.strip() for part in text.partition(":"))
    if colon and tail.startswith("@"):
        return _selected(text, [name, *tail[1:].split(",")], table, heads, where)
    if not colon and re.search(r"[=*?]", text):
        return _selected(text, text.split(","), table, heads, where)
    tail = re.sub(r"\s", "", tail)
    if not name or "[" in name or not (tail == "" or _INDICES.fullmatch(tail)):
        raise TargetError(f"'{text}' is not an address; allowed: {GRAMMAR}", where=where)
    return target_at(find_parameter(name, table, where), tail, where)


def target_at(info: ParameterInfo, indices: str, where: str) -> AnyTarget:
    """Return what ``507,1229``, ``507,:``, ``:`` or nothing (the tensor) addresses in a parameter; parentheses may stand around.

    Raises TargetError for another text, or an index outside the tensor.
    """
    bare = re.sub(r"\s", "", indices)
    bare = bare[1:-1].removesuffix(",") if bare.startswith("(") and bare.endswith(")") else bare
    if bare and not _INDICES.fullmatch(bare):
        raise TargetError(
            f"{indices} of {info.name} is neither a weight nor a row, column or tensor; allowed: 507,1229  507,:  :,1229  :",
            where=where,
        )
    parts = bare.split(",") if bare else [":"]
    if ":" not in parts:
        return info.name, locate(info, [int(part) for part in parts], where)
    if set(parts) == {":"} and len(parts) in (1, len(info.shape)):
        return Region(info.name, ((info.name, _whole(info)),))
    outside = [
        int(part) >= size for part, size in zip(parts, info.shape, strict=False) if part != ":"
    ]  # of those that have an axis
    if len(parts) != len(info.shape) or any(outside):
        shape = ", ".join(map(str, info.shape))
        raise TargetError(f"({', '.join(parts)}) is outside {info.name}, of shape ({shape})", where=where)
    box = tuple(
        (0, size) if part == ":" else (int(part), int(part) + 1) for part, size in zip(parts, info.shape, strict=True)
    )
    return _region("", [(info.name, box)], {info.name: info})


def addressed(target: AnyTarget, table: Mapping[str, ParameterInfo]) -> str:
    """Return a target's canonical address: what a person types, and what it is known by in case ids and tables."""
    return target.text if isinstance(target, Region) else address(target[0], target[1], table[target[0]].shape)


def names_of(targets: Iterable[AnyTarget]) -> list[str]:
    """Return the parameters that targets touch, each once, in the order they come."""
    found: dict[str, None] = {}
    for target in targets:
        for name in target.names if isinstance(target, Region) else target[:1]:
            found.setdefault(name)
    return list(found)


def by_tensor(loaded: LoadedModel, targets: Iterable[AnyTarget]) -> dict[str, Tensor]:
    """Return the distinct row-major indices per tensor, int64 ``(n,)`` on the model's device, in address order.

    That is ``named_parameters()`` order, then ascending index. Overlapping targets count once. Memory: 8 bytes per weight.
    """
    single: dict[str, list[int]] = {}
    pieces: dict[str, list[Tensor]] = {}
    for target in targets:
        if isinstance(target, Region):
            for name, box in target.boxes:
                pieces.setdefault(name, []).append(_indices(box, loaded.table[name].shape))
        else:
            single.setdefault(target[0], []).append(target[1])
    for name, indices in single.items():
        pieces.setdefault(name, []).append(torch.tensor(indices, dtype=torch.int64))
    return {
        name: _distinct(pieces[name], ascending=name not in single).to(loaded.device)
        for name in loaded.table
        if name in pieces
    }


def _distinct(pieces: list[Tensor], *, ascending: bool) -> Tensor:
    """Return the distinct numbers of several tensors, sorted; one that is ``ascending`` already needs no sorting."""
    if len(pieces) == 1 and ascending:
        return pieces[0]
    found: Tensor = torch.unique(torch.cat(pieces))  # sorted
    return found


def _indices(box: Box, shape: Sequence[int]) -> Tensor:
    """Return the row-major indices of a box, ascending."""
    index = torch.zeros(1, dtype=torch.int64)
    for (start, stop), size in zip(box, shape, strict=True):
        index = (index[:, None] * size + torch.arange(start, stop)).view(-1)
    return index


def _whole(info: ParameterInfo) -> Box:
    return tuple((0, size) for size in info.shape)


def _region(text: str, boxes: list[tuple[str, Box]], table: Mapping[str, ParameterInfo]) -> Region:
    """Return the region of boxes; what indices and colons can say in one tensor goes by that, else by ``text``."""
    if len(boxes) == 1:
        name, box = boxes[0]
        info = table[name]
        axes = [":" if (0, size) == one else str(one[0]) for one, size in zip(box, info.shape, strict=True)]
        if set(axes) <= {":"}:
            text = name
        elif all(axis == ":" or one[1] - one[0] == 1 for axis, one in zip(axes, box, strict=True)):
            text = f"{name}:{','.join(axes)}"
    return Region(text, tuple(boxes))


def _selected(
    text: str, parts: Sequence[str], table: Mapping[str, ParameterInfo], heads: Heads | None, where: str
) -> Region:
    """Return the region of a selection: its parts are joined by and."""
    globs: list[str] = []
    filters: dict[str, str] = {}
    for part in (part.strip() for part in parts):
        key, equals, value = part.partition("=")
        if not equals and part:
            globs.append(part if _GLOB.search(part) else find_parameter(part, table, where).name)
        elif key not in _FILTERS or key in filters or (key in ("expert", "head") and not value.isdecimal()):
            wrong = "stands twice" if key in filters else "is not part of a selection"
            near = suggest(key, list(_FILTERS)) if key not in _FILTERS else ""
            raise TargetError(f"'{part}' in '{text}' {wrong}{near}; allowed: {GRAMMAR}", where=where)
        else:
            filters[key] = value
    if "expert" in filters and "head" in filters:
        raise TargetError(f"'{text}' asks for an expert and a head; no weight belongs to both", where=where)
    chosen = [info for info in table.values() if _matches(info, globs, filters)]
    if not chosen:
        near = suggest(filters.get("component", ""), list(COMPONENTS)) if "component" in filters else ""
        raise TargetError(f"'{text}' selects no parameter of the model{near}", where=where)
    if "head" in filters:
        boxes = [
            (info.name, _at(info, axis, one))
            for info in chosen
            for axis, one in head_ranges(info, int(filters["head"]), heads, text, where)
        ]
        missing = "attention projections"
    elif "expert" in filters:
        boxes = list(_expert(chosen, int(filters["expert"])))
        experts = {number for info in chosen for number in _experts(info)}
        missing = f"weights of expert {filters['expert']}; of what it selects there are {len(experts)} experts"
    else:
        boxes, missing = [(info.name, _whole(info)) for info in chosen], ""
    if not boxes:
        raise TargetError(f"'{text}' selects no {missing}", where=where)
    named = globs[0] if len(globs) == 1 and globs[0] in table else None
    settings = ",".join(f"{key}={filters[key]}" for key in _FILTERS if key in filters)
    canonical = f"{named}:@{settings}" if named else ",".join([*sorted(set(globs)), *([settings] if settings else [])])
    return _region(canonical, boxes, table)


def _matches(info: ParameterInfo, globs: Sequence[str], filters: Mapping[str, str]) -> bool:
    """Tell whether a parameter matches every glob, and the component and the block."""
    block = "" if info.block is None else str(info.block)
    return (
        all(any(fnmatchcase(use, glob) for use in info.uses) for glob in globs)
        and fnmatchcase(info.component, filters.get("component", "*"))
        and ("block" not in filters or fnmatchcase(block, filters["block"]))
    )


def _at(info: ParameterInfo, axis: int, one: Range) -> Box:
    """Return the box of one range along an axis, whole along the others."""
    return tuple(one if number == axis else (0, size) for number, size in enumerate(info.shape))


def _expert(chosen: Sequence[ParameterInfo], number: int) -> Iterator[tuple[str, Box]]:
    """Yield what belongs to one expert: its slice of fused parameters, or its own module's whole."""
    for info in chosen:
        if number in _experts(info):
            fused = info.expert_axis is not None
            yield info.name, _at(info, info.expert_axis or 0, (number, number + 1)) if fused else _whole(info)


def _experts(info: ParameterInfo) -> range:
    """Return the experts that a parameter holds weights of: those it fuses, or the one whose module it lies in."""
    if info.expert_axis is not None:
        return range(info.shape[info.expert_axis])
    parts = info.name.split(".")
    if info.component.startswith("expert.") and "experts" in parts:
        own = parts[parts.index("experts") + 1]
        if own.isdecimal():
            return range(int(own), int(own) + 1)
    return range(0)
