"""Which rows and columns of an attention's projections belong to a head."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from esa.errors import TargetError
from esa.model import LoadedModel, ParameterInfo
from esa.model.anatomy import text_config

Ranges = list[tuple[int, int]]


@dataclass(frozen=True)
class Heads:
    """The heads of a model's attention, from its configuration: how many of queries, how wide, and how q, k and v are fused."""

    number: int
    width: int
    fused: str | None  # a name of LAYOUTS


def heads_of(loaded: LoadedModel) -> Heads | None:
    """Return the heads of a model, None where its configuration does not give one number of them."""
    config = text_config(loaded.model)
    number, hidden = getattr(config, "num_attention_heads", None), getattr(config, "hidden_size", None)
    if not isinstance(number, int) or number < 1:
        return None
    width = getattr(config, "head_dim", None)
    if not isinstance(width, int):
        if not isinstance(hidden, int) or hidden % number:
            return None
        width = hidden // number
    return Heads(number, width, _fused(config))


def _fused(config: Any) -> str | None:
    """Return how a family lays queries, keys and values out in one matrix; None where that is not known."""
    split, interleaved = "split", "grouped"
    known = {
        "gpt2": split, "openai-gpt": split, "phi3": split, "mpt": split, "dbrx": split, "gpt_neox": interleaved,
        "bloom": interleaved,
    }  # fmt: skip
    if config.model_type == "falcon":
        return split if config.multi_query and not config.new_decoder_architecture else interleaved
    if config.model_type == "gpt_bigcode":
        return split if config.multi_query else interleaved
    return known.get(config.model_type)


def _split(head: int, heads: Heads, num_kv: int) -> Ranges:
    """Return a head's rows where all queries stand first, then all keys, then all values."""
    width, group = heads.width, head // (heads.number // num_kv)
    starts = [head * width, (heads.number + group) * width, (heads.number + num_kv + group) * width]
    return [(start, start + width) for start in starts]


def _grouped(head: int, heads: Heads, num_kv: int) -> Ranges:
    """Return a head's rows where each key head stands behind its queries, and its values behind it."""
    width, shared = heads.width, heads.number // num_kv
    start = head // shared * (shared + 2) * width
    places = [head % shared, shared, shared + 1]
    return [(start + place * width, start + (place + 1) * width) for place in places]


LAYOUTS: dict[str, Callable[[int, Heads, int], Ranges]] = {"split": _split, "grouped": _grouped}


def head_ranges(
    info: ParameterInfo, head: int, heads: Heads | None, text: str, where: str
) -> list[tuple[int, tuple[int, int]]]:
    """Return axis and range of what belongs to a head in a parameter: rows of q, k and v, columns of o; none of other components.

    Keys and values that several heads of queries share belong to each of them. Rows are outputs and columns inputs, wherever
    they are stored; a bias of q, k and v counts, one of o is of no head. Raises TargetError for a head that the model does not
    have, and for a projection that is not made of heads of one width, or fused in a way that is not known.
    """
    if info.component not in ("attn.q", "attn.k", "attn.v", "attn.qkv", "attn.o"):
        return []
    if heads is None:
        raise TargetError(f"'{text}': the configuration does not say how many heads the model has", where=where)
    if head >= heads.number:
        raise TargetError(f"'{text}': there are {heads.number} heads, 0 to {heads.number - 1}", where=where)
    axis = info.input_axis if info.component == "attn.o" else info.output_axis
    if axis is None:
        return []  # a bias of o
    number, rest = divmod(info.shape[axis], heads.width)
    if not rest and info.component in ("attn.q", "attn.o") and number == heads.number:
        return [(axis, (head * heads.width, (head + 1) * heads.width))]
    if not rest and info.component in ("attn.k", "attn.v") and heads.number % number == 0:
        group = head // (heads.number // number)
        return [(axis, (group * heads.width, (group + 1) * heads.width))]
    num_kv, odd = divmod(number - heads.number, 2)
    if info.component == "attn.qkv" and heads.fused and not (rest or odd) and 0 < num_kv <= heads.number:
        return [(axis, one) for one in LAYOUTS[heads.fused](head, heads, num_kv)]
    raise TargetError(
        f"'{text}': which part of {info.name}, of shape {info.shape}, belongs to which of the {heads.number} heads of"
        f" {heads.width} is not known",
        where=where,
        hint="component=attn.o,head=N is the head's part of the output alone, where its columns are known",
    )
