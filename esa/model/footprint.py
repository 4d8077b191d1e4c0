"""A model without its weights: its parameters from the configuration alone, for predictions that touch nothing."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from huggingface_hub.errors import StrictDataclassError

from esa.errors import ModelError
from esa.model.anatomy import ParameterInfo, describe, text_config
from esa.model.explaining import explained, quiet
from esa.model.quantizing import saved_bytes
from esa.model.sources import find_source, pinned
from esa.spec.sections import Model as ModelSection

BASE_BYTES = 400_000_000  # of the process itself: Python, torch, transformers, polars; not the libraries' mapped files
ITEM_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


@dataclass(frozen=True)
class Footprint:
    """What a prediction needs: every parameter described, and the sizes of the states between the blocks."""

    table: dict[str, ParameterInfo]
    num_blocks: int
    hidden_size: int
    vocabulary: int
    intermediate_size: int
    num_heads: int
    item_bytes: int
    load_bytes: int
    on_disk: bool = False  # the blocks: one in memory at a time
    saved_bytes: int = 0  # by weights that are held as codes

    @property
    def num_parameters(self) -> int:
        """Return the number of weights, a tied tensor once."""
        return sum(info.numel for info in self.table.values())

    @property
    def weight_bytes(self) -> int:
        """Return the bytes of the weights that are in memory at once, in the compute dtype."""
        if not self.on_disk:
            return self.num_parameters * self.item_bytes - self.saved_bytes
        outside, block = self.sizes(self.table)
        return (outside + block) * self.item_bytes

    @staticmethod
    def sizes(table: Mapping[str, ParameterInfo]) -> tuple[int, int]:
        """Return how many of some weights lie outside the blocks, and in the largest block."""
        blocks: dict[int | None, int] = {}
        for info in table.values():
            blocks[info.block] = blocks.get(info.block, 0) + info.numel
        return blocks.pop(None, 0), max(blocks.values(), default=0)


def footprint(section: ModelSection) -> Footprint:
    """Return the footprint of the model that ``section`` names, from ``model.shape`` or else its local configuration.

    Nothing is loaded and the network is not asked. Raises ModelError for a hub id without ``model.shape``.
    """
    model = skeleton(configuration(section), section)
    # A GGUF file is held in float32 as a whole while it is copied into the model.
    copied = section.shape is None and find_source(section.id).gguf is not None
    return footprint_of(model, section, describe(model), copied=copied)


def footprint_of(
    model: Any, section: ModelSection, table: dict[str, ParameterInfo], *, copied: bool = False
) -> Footprint:
    """Return the footprint of a model at hand, its parameters described by ``table``; ``copied``: from a float32 copy."""
    text = text_config(model)
    hidden, heads = text.hidden_size, getattr(text, "num_attention_heads", 1)
    compute = section.dtype if section.compute == "auto" else section.compute
    weights = sum(info.numel for info in table.values())
    kind = section.quantization
    beside = max(4 * weights * copied, weights * ITEM_BYTES[section.dtype] * (section.null == "random"))
    # A GGUF file is quantised when all of it is in memory, another model as it is read.
    read = weights * ITEM_BYTES[section.dtype] - (0 if copied else saved_bytes(model, kind, ITEM_BYTES[section.dtype]))
    return Footprint(
        table=table, num_blocks=text.num_hidden_layers, hidden_size=hidden, vocabulary=text.vocab_size,
        intermediate_size=getattr(text, "intermediate_size", None) or 4 * hidden, num_heads=heads,
        item_bytes=ITEM_BYTES[compute], on_disk=section.residency == "disk",
        load_bytes=0 if section.residency == "disk" else read + beside,
        saved_bytes=saved_bytes(model, kind, ITEM_BYTES[compute]),
    )  # fmt: skip


def skeleton(config: Any, section: ModelSection) -> Any:
    """Return the model that a configuration describes, every parameter on the meta device: shapes without numbers.

    Raises ModelError for a configuration of no causal language model, and for a ``model.shape`` that makes no model.
    """
    try:
        with torch.device("meta"), quiet(), explained(section):
            return transformers.AutoModelForCausalLM.from_config(config, trust_remote_code=section.trust_remote_code)
    except (TypeError, AttributeError, ArithmeticError) as error:  # a key is missing, or is no number
        if section.shape is None:
            raise
        raise ModelError(f"makes no {type(config).__name__[:-6]} model: {error}", where="model.shape") from error


def configuration(section: ModelSection, *, fetch: bool = False) -> Any:
    """Return the configuration that ``model.shape`` states, or else the one among the model's files.

    ``fetch``: ask the hub for the file of a hub id, at the commit that its revision means. Raises ModelError where there is
    none.
    """
    if section.shape is not None:
        shape = {key: list(value) if isinstance(value, tuple) else value for key, value in section.shape.items()}
        try:
            return transformers.AutoConfig.for_model(**shape)
        except StrictDataclassError as error:
            raise ModelError(_reason(error), where="model.shape") from None
        except (ValueError, TypeError, ArithmeticError) as error:
            raise ModelError(str(error).splitlines()[0], where="model.shape") from None
    source = find_source(section.id)
    if not source.local and not fetch:
        raise ModelError(
            f"'{section.id}' is on the hub; its memory can be predicted from model.shape alone",
            where="model.shape",
            hint="copy the keys of its config.json, model_type first, as the specs in specs/ do",
        )
    commit = pinned(section.id, section.revision)
    try:
        with quiet(), explained(section):
            return transformers.AutoConfig.from_pretrained(
                source.location,
                revision=commit.sha if commit else None,
                local_files_only=commit is not None and commit.unasked is not None,
                trust_remote_code=section.trust_remote_code,
                **source.arguments(),
            )
    except StrictDataclassError as error:
        raise ModelError(
            f"the configuration of '{section.id}' does not hold: {_reason(error)}", where="model.id"
        ) from None


def _reason(error: Exception) -> str:
    """Return what a configuration class says of a value: the last line, behind the name of the exception."""
    return str(error).strip().splitlines()[-1].strip().partition(": ")[2]
