"""Which weights a backward pass reaches."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from esa.model.loading import LoadedModel


@contextmanager
def differentiable(loaded: LoadedModel, names: Mapping[str, object]) -> Iterator[None]:
    """Let exactly the named parameters require gradients for a while; frozen ones too, others not."""
    before = {name: weight.requires_grad for name, weight in loaded.weights.items()}
    try:
        for name, weight in loaded.weights.items():
            weight.requires_grad = name in names
        yield
    finally:
        for name, weight in loaded.weights.items():
            weight.requires_grad = before[name]
