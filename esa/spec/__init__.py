"""TOML specs: their sections, their loading, and the seeds that drive every draw."""

from esa.spec.loading import apply_overrides, dump_spec, load_spec, load_sweep, spec_from_dict
from esa.spec.sections import Spec
from esa.spec.seeds import derive_seed, generator

__all__ = [
    "Spec",
    "apply_overrides",
    "derive_seed",
    "dump_spec",
    "generator",
    "load_spec",
    "load_sweep",
    "spec_from_dict",
]
