"""What a spec asks of a model that cannot be had, said before anything is loaded."""

from esa.errors import ModelError
from esa.score.engine import load_metrics
from esa.score.metric import Needs
from esa.spec import Spec


def require_derivatives(spec: Spec) -> None:
    """Raise ModelError for a metric whose derivatives the spec's model does not give.

    Second ones: of layers of codes, or a block at a time from disk. First ones: in float16, below whose smallest number, 6e-8,
    most of them vanish; of a model spread over several devices.
    """
    model = spec.model
    metrics = load_metrics(spec.score.metrics)
    first = [metric.name for metric in metrics if metric.needs >= Needs.BACKWARD]
    second = [metric.name for metric in metrics if metric.needs == Needs.DOUBLE_BACKWARD]
    if model.residency == "disk" and second:
        raise ModelError(
            f"'disk' holds one block at a time; {_needs(second)} second derivatives, and with them a graph of all blocks",
            where="model.residency",
            hint='set model.residency = "memory", or score ggn_diag and ggn_obd, which need a first derivative alone',
        )
    if model.quantization != "none" and second:
        raise ModelError(
            f"{_needs(second)} second derivatives; {model.quantization} layers pass gradients back through a function"
            " of their codes that has none",
            where="score.metrics",
            hint="score curvature with model.quantization = 'none' and give that ranking to esa perturb, or score ggn_obd",
        )
    if model.device_map != "none" and first:
        raise ModelError(
            f"'{model.device_map}' is for forward passes; {_needs(first)} gradients",
            where="model.device_map",
            hint='leave model.device_map out, with model.residency = "disk" where the model does not fit',
        )
    if "float16" in (model.compute, model.dtype if model.compute == "auto" else model.compute):
        require_range(first)


def require_range(names: list[str]) -> None:
    """Raise ModelError where metrics need gradients of a model that computes in float16."""
    if names:
        raise ModelError(
            f"'float16' cannot hold the gradients that {', '.join(names)} need{'s' * (len(names) == 1)}: those under 6e-8"
            " become zero",
            where="model.compute",
            hint='set model.compute = "float32", which holds every float16 weight exactly, or dtype = "bfloat16"',
        )


def _needs(names: list[str]) -> str:
    return f"{', '.join(names)} need{'s' * (len(names) == 1)}"
