"""Null models: the same architecture with nothing learned in it, or with what was learned in the wrong places."""

import copy
from typing import Any

import torch
from torch import Tensor

from esa.errors import ModelError
from esa.model.anatomy import describe
from esa.model.explaining import quiet
from esa.spec import derive_seed, generator
from esa.spec.sections import Model as ModelSection

_VIEWS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}  # bytes of a number -> what is moved for it

WORDS = {"shuffled": "every matrix's entries permuted", "random": "initialised afresh"}


def make_null(model: Any, section: ModelSection) -> None:
    """Turn a model in memory, in its storage dtype, into the null model that ``section.null`` names, in place.

    ``shuffled``: the entries of every weight of two or more dimensions are permuted within their tensor, within each expert
    where experts are fused into one: the multiset of every matrix stays, bit for bit, and with it the distribution of the
    sizes; where each number stands is chance. Vectors (norms, biases) and buffers stay. ``random``: every parameter and every
    stored buffer is what the model's own initialisation makes of its configuration, norms and biases included.
    Tied tensors are drawn once. ``section.null_seed`` decides, on any device. Raises ModelError where the configuration
    makes no model of the same tensors.
    Cost: ``shuffled`` a copy of one tensor at a time; ``random`` a second model in memory until it is copied.
    """
    if section.null == "shuffled":
        _shuffle(model, section.null_seed)
    elif section.null == "random":
        _initialise(model, section.null_seed)


def null_facts(section: ModelSection) -> dict[str, Any]:
    """Return what a manifest says of a null model, nothing of any other."""
    return {} if section.null == "none" else {"null": section.null, "null_seed": section.null_seed}


def null_words(section: ModelSection) -> str:
    """Return how a note calls the null model, empty for any other."""
    if section.null == "none":
        return ""
    return f", {WORDS[section.null]} (model.null = '{section.null}', seed {section.null_seed}),"


def _shuffle(model: Any, seed: int) -> None:
    """Permute the entries of every weight of two or more dimensions, in place."""
    table = describe(model)
    for name, parameter in model.named_parameters():
        if parameter.ndim < 2:
            continue
        draw = generator(seed, "shuffled", name)
        values: Tensor = parameter.detach().cpu().contiguous().clone()
        axis = table[name].expert_axis
        for part in [values] if axis is None else values.unbind(axis):
            flat = part.contiguous().view(-1).view(_VIEWS[part.element_size()])
            draw.shuffle(flat.numpy())
            part.copy_(flat.view(part.dtype).view(part.shape))
        with torch.no_grad():
            parameter.copy_(values)


def _initialise(model: Any, seed: int) -> None:
    """Copy a freshly initialised model of the same configuration over ``model``."""
    first = next(model.parameters())
    with torch.random.fork_rng(devices=[]), quiet():
        torch.default_generator.manual_seed(derive_seed(seed, "random"))
        fresh = type(model)._from_config(copy.deepcopy(model.config), dtype=first.dtype)
    try:
        model.load_state_dict(fresh.state_dict())
    except RuntimeError as error:
        raise ModelError(
            f"the configuration makes a model of other tensors: {str(error).splitlines()[-1].strip()}",
            where="model.null",
            hint="null = 'shuffled' needs no configuration",
        ) from None
