"""What can be named in a spec or on the command line: name -> ``module:attribute``, so that listing costs no import."""

from collections.abc import Sequence
from difflib import get_close_matches
from importlib import import_module
from typing import Any

from esa.errors import EsaError

METRICS: dict[str, str] = {
    "magnitude": "esa.score.magnitude:METRIC",
    "act_mag": "esa.score.act_mag:METRIC",
    "wanda": "esa.score.wanda:METRIC",
    "super_activation": "esa.score.super_activation:METRIC",
    "grad_x_weight": "esa.score.grad_x_weight:METRIC",
    "grad_squared": "esa.score.grad_squared:METRIC",
    "fisher_obd": "esa.score.fisher_obd:METRIC",
    "ggn_diag": "esa.score.ggn_diag:METRIC",
    "ggn_obd": "esa.score.ggn_obd:METRIC",
    "hutchinson_diag": "esa.score.hutchinson_diag:METRIC",
    "obd": "esa.score.obd:METRIC",
    "taylor2": "esa.score.taylor2:METRIC",
}

# Keys of [score] that some metrics alone read: they enter a step's id where one of those is scored.
METRIC_KEYS: dict[str, tuple[str, ...]] = {
    "reduction": ("grad_x_weight", "grad_squared"),
    "resamples": ("ggn_diag", "ggn_obd"),
    "probes": ("hutchinson_diag", "obd", "taylor2"),
    "probe_groups": ("hutchinson_diag", "obd", "taylor2"),
    "rounds": ("super_activation",),
    "peak_ratio": ("super_activation",),
}

SELECTORS: dict[str, str] = {
    "top_k": "esa.rank.selectors:top_k",
    "bottom_k": "esa.rank.selectors:bottom_k",
    "random_k": "esa.rank.selectors:random_k",
    "matched_k": "esa.rank.selectors:matched_k",
}

METHODS: dict[str, str] = {
    "zero": "esa.perturb.methods:zero",
    "zero_keep_peak": "esa.perturb.methods:zero_keep_peak",
    "mean": "esa.perturb.methods:mean",
    "scale": "esa.perturb.methods:scale",
    "sign_flip": "esa.perturb.methods:sign_flip",
    "gradient": "esa.perturb.informed:gradient",
    "adaptive": "esa.perturb.informed:adaptive",
    "quantize": "esa.perturb.methods:quantize",
    "clamp": "esa.perturb.methods:clamp",
    "gauss_noise": "esa.perturb.methods:gauss_noise",
    "correlated": "esa.perturb.methods:correlated",
    "swap": "esa.perturb.methods:swap",
    "bit_flip": "esa.perturb.methods:bit_flip",
}

TASKS: dict[str, str] = {
    "language_modeling": "esa.eval.language_modeling:evaluate",
    "calibration_error": "esa.eval.calibration:evaluate",
    "generation": "esa.eval.generation:evaluate",
    "hellaswag": "esa.eval.hellaswag:TASK",
    "lambada": "esa.eval.lambada:TASK",
}

# The laws that esa scale fits over the size of models, simpler ones first.
FITS: dict[str, str] = {
    name: f"esa.statistics.laws:{name}"
    for name in ("power", "linear", "logarithmic", "exponential", "saturating", "broken_power")
}

ALIASES: dict[str, str] = {
    "activation_magnitude": "act_mag",
    "hessian_diag": "hutchinson_diag",
    "noise": "gauss_noise",
    "gaussian": "gauss_noise",
    "bitflip": "bit_flip",
}

REGISTRIES: dict[str, dict[str, str]] = {
    "metric": METRICS,
    "group": SELECTORS,
    "method": METHODS,
    "task": TASKS,
    "fit": FITS,
}


def unread_keys(metrics: Sequence[str]) -> list[str]:
    """Return the keys of [score] that none of the metrics reads."""
    return [key for key, readers in METRIC_KEYS.items() if not set(readers) & set(metrics)]


def suggest(name: str, known: list[str]) -> str:
    """Return `` (did you mean 'x'?)`` for the nearest known name, or nothing."""
    near = get_close_matches(name, known, n=1, cutoff=0.5)
    return f" (did you mean '{near[0]}'?)" if near else ""


def canonical(kind: str, name: str) -> str:
    """Return the registered name that ``name`` (or its alias) stands for.

    Raises EsaError, with the nearest known name, if there is none.
    """
    table = REGISTRIES[kind]
    found = ALIASES.get(name, name)
    if found not in table:
        known = sorted(table)
        raise EsaError(
            f"'{name}' is not a {kind}{suggest(name, known)}; known: {', '.join(known)}",
            hint="esa --list names them all",
        )
    return found


def load(kind: str, name: str) -> Any:
    """Import and return the object registered under ``name``."""
    module, attribute = REGISTRIES[kind][canonical(kind, name)].split(":")
    return getattr(import_module(module), attribute)
