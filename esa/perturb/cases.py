"""Plan a campaign: which sets of weights are changed how, and which damage rows each case serves."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import polars as pl

from esa.artifact import parse_indices, to_json
from esa.errors import EsaError, SpecError, TargetError
from esa.eval import case_id
from esa.model import LoadedModel, ParameterInfo, address, find_parameter, locate, parse_address
from esa.model.quantized import QuantizedWeight
from esa.perturb.apply import Target, scales_of
from esa.perturb.hooks import check_hooked
from esa.perturb.methods import bit_width
from esa.progress import Progress
from esa.spec import Spec
from esa.spec.methods import BitFlip, Drawing, Mean, Perturb

_DOSES = ("factor", "sigma", "prob", "bits")


@dataclass(frozen=True)
class Group:
    """An ordered list of weights with a name: what a ranking says of a metric, seed, group and draw.

    ``ranks``: each target's rank within its unit; a K takes those of rank at most K. ``scores``: where the ranking has them.
    """

    metric: str | None
    seed: int | None
    name: str
    draw: int | None
    targets: tuple[Target, ...]
    ranks: tuple[int, ...]
    scores: tuple[float | None, ...] = ()

    @property
    def size(self) -> int:
        """Return the largest K."""
        return max(self.ranks)

    def top(self, k: int) -> tuple[Target, ...]:
        """Return the targets of rank at most ``k``."""
        return tuple(target for target, rank in zip(self.targets, self.ranks, strict=True) if rank <= k)


@dataclass
class Case:
    """One evaluation: a method with its options and repeat, on a set of weights."""

    id: str
    method: str
    options: dict[str, Any]
    repeat: int
    targets: tuple[Target, ...]


@dataclass(frozen=True)
class Use:
    """One row of ``damage/1``: a case seen as a group's K."""

    case: str
    section: Perturb
    group: Group
    k: int
    repeat: int | None


@dataclass
class Plan:
    """The distinct cases in order, and the damage rows they give, in order."""

    cases: dict[str, Case] = field(default_factory=dict)
    uses: list[Use] = field(default_factory=list)


def groups_from_ranking(
    ranking: pl.DataFrame, table: Mapping[str, ParameterInfo], where: str, seeds: str = "all"
) -> list[Group]:
    """Return the groups of a ranking in the order they stand; ``seeds = "first"`` keeps the first seed's and the seedless.

    Raises TargetError for a parameter that the model does not have, an index outside it, or a row without an address.
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
        targets, ranks = [], []
        for parameter, index, indices, rank in part.select("parameter", "index", "indices", "rank").iter_rows():
            if parameter is None or rank is None or rank < 1:
                raise TargetError(
                    f"a row of {name or 'the list'} has parameter {parameter} and rank {rank}", where=where
                )
            info = found.get(parameter) or found.setdefault(parameter, find_parameter(parameter, table, where))
            if index is not None:
                position = locate(info, [index], where)
            elif (numbers := parse_indices(indices or "")) is not None:
                position = locate(info, numbers, where)
            else:
                raise TargetError(
                    f"{indices or 'a row'} of {parameter} is no single weight",
                    where=where,
                    hint="rank weights, not outputs, inputs or tensors",
                )
            targets.append((info.name, position))
            ranks.append(rank)
        if len(set(targets)) < len(targets):
            twice = next(target for target in targets if targets.count(target) > 1)
            raise TargetError(f"{addressed(twice, table)} stands twice in {name or 'the list'}", where=where)
        groups.append(Group(metric, seed, name or "targets", draw, tuple(targets), tuple(ranks), tuple(part["score"])))
    return groups


def group_from_addresses(addresses: Sequence[str], table: Mapping[str, ParameterInfo]) -> list[Group]:
    """Return the one group of the weights that a person named."""
    targets = tuple(dict.fromkeys(parse_address(text, table) for text in addresses))
    return [Group(None, None, "targets", None, targets, tuple(range(1, len(targets) + 1)))]


def plan_cases(
    sections: Sequence[Perturb], groups: Sequence[Group], ks: Sequence[int], loaded: LoadedModel, progress: Progress
) -> Plan:
    """Return every case of the sections on the groups. K larger than a group is the whole group, once, with a note.

    Raises EsaError for a group that no ranking row has, and for a bit that the storage does not have.
    """
    plan = Plan()
    for number, section in enumerate(sections):
        where = f"perturb.{number}"
        chosen = [g for g in groups if section.groups is None or g.name in section.groups or g.name == "targets"]
        if not chosen:
            known = ", ".join(dict.fromkeys(group.name for group in groups))
            raise EsaError(
                f"the ranking has none of {list(section.groups or ())}; it has {known}", where=f"{where}.groups"
            )
        options = section.options()
        method = str(section.model_dump()["method"])
        for group in chosen:
            if isinstance(section, BitFlip):
                _check_bits(section, group, loaded, where)
            check_hooked(method, list(dict.fromkeys(name for name, _ in group.targets)), loaded, f"{where}.method")
            if isinstance(section, Mean) and section.over != "tensor":
                _check_axes(section.over, group, loaded, where)
            wanted = section.k or ks
            if max(wanted) > group.size:
                progress.note(f"{group.metric or 'all'} {group.name}: K is limited to the {group.size} weights at hand")
            sizes = sorted({min(k, group.size) for k in wanted})
            sets: list[tuple[int, tuple[Target, ...]]] = [(k, group.top(k)) for k in sizes]
            if section.unit == "single":
                sets = [(1, (target,)) for target in group.top(sizes[-1])]
            for k, targets in sets:
                for repeat in _repeats(section):
                    _add(plan, section, method, options, group, k, targets, repeat, loaded)
    return plan


def _add(
    plan: Plan,
    section: Perturb,
    method: str,
    options: dict[str, Any],
    group: Group,
    k: int,
    targets: tuple[Target, ...],
    repeat: int | None,
    loaded: LoadedModel,
) -> None:
    names = [addressed(target, loaded.table) for target in targets]
    identity = case_id(method, options, names, repeat or 0)
    plan.cases.setdefault(identity, Case(identity, method, options, repeat or 0, targets))
    plan.uses.append(Use(identity, section, group, k, repeat))


def addressed(target: Target, table: Mapping[str, ParameterInfo]) -> str:
    """Return a target as the address a person types."""
    return address(target[0], target[1], table[target[0]].shape)


def _repeats(section: Perturb) -> list[int | None]:
    if isinstance(section, Drawing) and not (isinstance(section, BitFlip) and not section.draws):
        return list(range(section.repeats))
    return [None]


def dose_of(options: Mapping[str, Any]) -> float | None:
    """Return a method's strength: its factor, sigma, prob or bits."""
    return next((float(options[key]) for key in _DOSES if options.get(key) is not None), None)


def options_text(options: Mapping[str, Any]) -> str:
    """Return options as one line of JSON."""
    return to_json(dict(options))


def require_scales(spec: Spec) -> None:
    """Raise SpecError where scales are to be flipped of a model that has none: known before it is loaded."""
    for number, section in enumerate(spec.perturb):
        if isinstance(section, BitFlip) and section.of == "scale" and spec.model.quantization == "none":
            raise SpecError(
                [f"perturb.{number}.of: 'scale' is of quantised weights; model.quantization is 'none'"],
                hint="set model.quantization = 'int8' or 'nf4', or leave of out: the weight's own bits are flipped",
            )


def _check_axes(over: str, group: Group, loaded: LoadedModel, where: str) -> None:
    for name in {name for name, _ in group.targets}:
        info = loaded.table[name]
        if info.output_axis is None or info.input_axis is None:
            raise EsaError(f"{name}, of shape {info.shape}, has no {over}s", where=f"{where}.over")


def _check_bits(section: BitFlip, group: Group, loaded: LoadedModel, where: str) -> None:
    for name in {name for name, _ in group.targets}:
        weight = loaded.weights[name]
        if section.of == "scale":
            try:
                width, stored = bit_width(scales_of(weight).dtype, name), "has scales of torch.float32"
            except EsaError as error:
                raise type(error)(error.what, where=f"{where}.of", hint=error.hint) from None
        elif isinstance(weight, QuantizedWeight):
            width, stored = weight.code_bits, f"is stored as {weight.code_bits}-bit {weight.kind} codes"
        else:
            width, stored = bit_width(weight.dtype, name), f"is stored as {weight.dtype}"
        for key, highest in (("bit", width - 1), ("bits", width)):
            value = getattr(section, key)
            if value is not None and value > highest:
                raise EsaError(
                    f"{value}, but {name} {stored}: at most {highest}",
                    where=f"{where}.{key}",
                )
