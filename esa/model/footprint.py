"""A model without its weights: its parameters from the configuration alone, for predictions that touch nothing."""

from dataclasses import dataclass
from typing import Any

import torch
import transformers

from esa.errors import ModelError
from esa.model.anatomy import ParameterInfo, describe, text_config
from esa.model.loading import explained, quiet
from esa.model.sources import find_source
from esa.spec.sections import Model as ModelSection

BASE_BYTES = 800_000_000  # Python, torch, transformers and polars, their mapped files included
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

    @property
    def num_parameters(self) -> int:
        """Return the number of weights, a tied tensor once."""
        return sum(info.numel for info in self.table.values())

    @property
    def weight_bytes(self) -> int:
        """Return the bytes of the weights in the compute dtype."""
        return self.num_parameters * self.item_bytes


def footprint(section: ModelSection) -> Footprint:
    """Return the footprint of the model that ``section`` names, from ``model.shape`` or else its local configuration.

    Nothing is loaded and the network is not asked. Raises ModelError for a hub id without ``model.shape``.
    """
    config = _config(section)
    with torch.device("meta"), quiet():
        model = transformers.AutoModelForCausalLM.from_config(config)
    table = describe(model)
    text = text_config(model)
    hidden, heads = text.hidden_size, getattr(text, "num_attention_heads", 1)
    compute = section.dtype if section.compute == "auto" else section.compute
    weights = sum(info.numel for info in table.values())
    # A GGUF file is held in float32 as a whole while it is copied into the model.
    extra = weights * 4 if section.shape is None and find_source(section.id).gguf else 0
    return Footprint(
        table=table, num_blocks=text.num_hidden_layers, hidden_size=hidden, vocabulary=text.vocab_size,
        intermediate_size=getattr(text, "intermediate_size", None) or 4 * hidden, num_heads=heads,
        item_bytes=ITEM_BYTES[compute], load_bytes=weights * ITEM_BYTES[section.dtype] + extra,
    )  # fmt: skip


def _config(section: ModelSection) -> Any:
    if section.shape is not None:
        shape = {key: list(value) if isinstance(value, tuple) else value for key, value in section.shape.items()}
        try:
            return transformers.AutoConfig.for_model(**shape)
        except (ValueError, TypeError) as error:
            raise ModelError(str(error).splitlines()[0], where="model.shape") from None
    source = find_source(section.id)
    if not source.local:
        raise ModelError(
            f"'{section.id}' is on the hub; its memory can be predicted from model.shape alone",
            where="model.shape",
            hint="copy the keys of its config.json, model_type first, as the specs in specs/ do",
        )
    with quiet(), explained(section):
        return transformers.AutoConfig.from_pretrained(
            source.location, trust_remote_code=section.trust_remote_code, **source.arguments()
        )
