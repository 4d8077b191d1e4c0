"""A language model as esa sees it: loaded, described weight by weight, and walked block by block."""

from esa.model.addresses import address, find_parameter, format_indices, locate, parse_address, unravel
from esa.model.anatomy import ParameterInfo, describe, eligible, experts_of
from esa.model.block_stack import BlockStack, Prologue
from esa.model.context import check_context
from esa.model.loading import LoadedModel, load_model, model_inputs, prepare, require_same_model
from esa.model.sources import source_hashes
from esa.model.weights import Weight, fingerprint

__all__ = [
    "BlockStack", "LoadedModel", "ParameterInfo", "Prologue", "Weight", "address", "check_context", "describe", "eligible",
    "experts_of", "find_parameter", "fingerprint", "format_indices", "load_model", "locate", "model_inputs", "parse_address",
    "prepare", "require_same_model", "source_hashes", "unravel",
]  # fmt: skip
