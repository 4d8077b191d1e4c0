"""Refuse, when cases are planned, what a method cannot do to the targets: bits, scales, axes and hooks that are not there."""

from esa.errors import EsaError, SpecError
from esa.model import LoadedModel
from esa.model.quantized import QuantizedWeight
from esa.perturb.apply import scales_of
from esa.perturb.groups import Group
from esa.perturb.hooks import check_hooked
from esa.perturb.informed import check_informed
from esa.perturb.methods import bit_width
from esa.spec import Spec
from esa.spec.methods import BitFlip, Mean, Perturb


def require_scales(spec: Spec) -> None:
    """Raise SpecError where scales are to be flipped of a model that has none: known before it is loaded."""
    for number, section in enumerate(spec.perturb):
        if isinstance(section, BitFlip) and section.of == "scale" and spec.model.quantization == "none":
            raise SpecError(
                [f"perturb.{number}.of: 'scale' is of quantised weights; model.quantization is 'none'"],
                hint="set model.quantization = 'int8' or 'nf4', or leave of out: the weight's own bits are flipped",
            )


def check_possible(section: Perturb, method: str, group: Group, loaded: LoadedModel, where: str) -> None:
    """Raise EsaError where the method of one table without lists cannot be applied to a group; ``where``: such as perturb.0."""
    if isinstance(section, BitFlip):
        _check_bits(section, group, loaded, where)
    check_hooked(method, group.names, loaded, f"{where}.method")
    check_informed(section, group, loaded, where)
    if isinstance(section, Mean) and section.over != "tensor":
        _check_axes(str(section.over), group, loaded, where)


def _check_axes(over: str, group: Group, loaded: LoadedModel, where: str) -> None:
    for name in group.names:
        info = loaded.table[name]
        if info.output_axis is None or info.input_axis is None:
            raise EsaError(f"{name}, of shape {info.shape}, has no {over}s", where=f"{where}.over")


def _check_bits(section: BitFlip, group: Group, loaded: LoadedModel, where: str) -> None:
    for name in group.names:
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
