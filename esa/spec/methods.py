"""The tables of ``[[perturb]]``: every method with its options."""

from itertools import product
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from esa.errors import EsaError
from esa.registry import canonical
from esa.spec.values import Counts, GroupName, OneOrMany, Section, distinct, one_or_many

Number = Annotated[float, Field(allow_inf_nan=False)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Share = Annotated[float, Field(gt=0, le=1)]
RelativeTo = Literal["weight", "tensor_std", "absolute"]
UnitName = Literal["joint", "single", "leave_one_out", "cumulative", "pairs"]


class Perturb(Section):
    """What every method of perturbation shares."""

    unit: Annotated[tuple[UnitName, ...], BeforeValidator(one_or_many), AfterValidator(distinct)] = Field(
        default=("joint",),
        min_length=1,
        description="joint: all K at once; single: each of the K alone; leave_one_out: all but one; cumulative: the first 1, 2,"
        " 4, ... K; pairs: every two of them",
    )
    groups: Annotated[tuple[GroupName, ...], AfterValidator(distinct)] | None = Field(
        default=None, description="only these groups of the ranking; all by default"
    )
    k: Annotated[Counts, Field()] | None = Field(default=None, description="only these K; those of rank.k by default")
    propagation: bool = Field(
        default=False, description="also write how far every block's output moves, first token and rest apart"
    )

    def options(self) -> dict[str, Any]:
        """Return the method's own options: what, with the method's name, defines the effect."""
        shared = {"method", "repeats", *Perturb.model_fields}
        return {key: value for key, value in self.model_dump(exclude_none=True).items() if key not in shared}

    def expanded(self) -> list[Self]:
        """Return one table per combination of the options that are lists, the last one varying fastest."""
        lists = {key: value for key, value in self.options().items() if isinstance(value, tuple)}
        return [self.model_copy(update=dict(zip(lists, values, strict=True))) for values in product(*lists.values())]


class Drawing(Perturb):
    """A method that draws: it is repeated."""

    repeats: int = Field(default=5, ge=1, description="independent draws of the perturbation")

    @property
    def draws(self) -> bool:
        """Tell whether repeats differ."""
        return True


class Zero(Perturb):
    """w <- 0."""

    method: Literal["zero"]


class ZeroKeepPeak(Perturb):
    """w <- 0, its contribution given back at the peak tokens."""

    method: Literal["zero_keep_peak"]


class Mean(Perturb):
    """w <- mean of its tensor, input or output."""

    method: Literal["mean"]
    over: OneOrMany[Literal["tensor", "input", "output"]] = Field(
        default="tensor", description="what the mean is taken over"
    )


class Scale(Perturb):
    """w <- factor w."""

    method: Literal["scale"]
    factor: OneOrMany[Number] = Field(default=1.2, description="multiplies the weight")


class SignFlip(Perturb):
    """w <- -factor w."""

    method: Literal["sign_flip"]
    factor: OneOrMany[Positive] = Field(default=1.0, description="multiplies the flipped weight")


class Gradient(Perturb):
    """w <- w +/- epsilon abs(w) sign(g), g the gradient of the calibration loss."""

    method: Literal["gradient"]
    epsilon: OneOrMany[Positive] = Field(default=0.1, description="size of the step in units of abs(w)")
    direction: OneOrMany[Literal["aligned", "opposed"]] = Field(
        default="aligned", description="aligned: along the gradient, the loss rises; opposed: against it"
    )


class Adaptive(Perturb):
    """w <- w - sign(w) d, d such that the ranking metric predicts the median target's damage for every target, at most abs(w)."""

    method: Literal["adaptive"]
    strength: OneOrMany[Positive] = Field(
        default=1.0, description="predicted damage in units of the median target's when that is zeroed"
    )


class Quantize(Perturb):
    """w <- nearest of 2^bits - 1 levels, symmetric, the largest abs(w) of its output the outermost."""

    method: Literal["quantize"]
    bits: OneOrMany[Annotated[int, Field(ge=2, le=16)]] = Field(default=4, description="bits of a level's number")


class Clamp(Perturb):
    """w <- sign(w) min(abs(w), the quantile of its tensor's abs(w))."""

    method: Literal["clamp"]
    quantile: OneOrMany[Share] = Field(default=0.99, description="of abs(w) over the tensor: what is beyond is cut")


class GaussNoise(Drawing):
    """w <- w + sigma r e."""

    method: Literal["gauss_noise"]
    sigma: OneOrMany[Positive] = Field(default=0.05, description="standard deviation in units of r")
    relative_to: OneOrMany[RelativeTo] = Field(
        default="weight", description="r: abs(w), the tensor's standard deviation, or 1"
    )


class Correlated(Drawing):
    """w <- w + sigma r e, one e shared by a row, a column, a layer or a component."""

    method: Literal["correlated"]
    sigma: OneOrMany[Positive] = Field(default=0.05, description="standard deviation in units of r")
    relative_to: OneOrMany[RelativeTo] = Field(
        default="weight", description="r: abs(w), the tensor's standard deviation, or 1"
    )
    shared_by: OneOrMany[Literal["row", "column", "layer", "component"]] = Field(
        default="row", description="the weights that move together"
    )


class Swap(Drawing):
    """w <-> a random other weight of the same tensor."""

    method: Literal["swap"]


class BitFlip(Drawing):
    """Flip real bits of the stored number."""

    method: Literal["bit_flip"]
    of: Literal["weight", "scale"] = Field(
        default="weight", description="the weight's own bits (its code where quantised), or its row's or block's scale"
    )
    prob: OneOrMany[Share] | None = Field(default=None, description="probability of each bit")
    bits: OneOrMany[Annotated[int, Field(ge=1, le=32)]] | None = Field(
        default=None, description="this many distinct random bits"
    )
    bit: OneOrMany[Annotated[int, Field(ge=0, le=31)]] | None = Field(
        default=None, description="this bit; 0 is the least significant"
    )

    @model_validator(mode="after")
    def _exactly_one(self) -> "BitFlip":
        given = [key for key in ("prob", "bits", "bit") if getattr(self, key) is not None]
        if len(given) != 1:
            raise ValueError(f"bit_flip needs exactly one of prob, bits, bit; given: {', '.join(given) or 'none'}")
        return self

    def options(self) -> dict[str, Any]:
        """Return the options that define the effect; ``of`` where it is not the weight itself."""
        found = super().options()
        return {key: value for key, value in found.items() if (key, value) != ("of", "weight")}

    @property
    def draws(self) -> bool:
        """Tell whether repeats differ: a fixed position leaves nothing to chance."""
        return self.bit is None


TABLES: dict[str, type[Perturb]] = {
    "zero": Zero,
    "zero_keep_peak": ZeroKeepPeak,
    "mean": Mean,
    "scale": Scale,
    "sign_flip": SignFlip,
    "gradient": Gradient,
    "adaptive": Adaptive,
    "quantize": Quantize,
    "clamp": Clamp,
    "gauss_noise": GaussNoise,
    "correlated": Correlated,
    "swap": Swap,
    "bit_flip": BitFlip,
}


def _method_alias(value: Any) -> Any:
    if not isinstance(value, dict) or not isinstance(value.get("method"), str):
        return value
    try:
        return {**value, "method": canonical("method", value["method"])}
    except EsaError as error:
        raise ValueError(error.what) from None


AnyPerturb = Annotated[
    Annotated[
        Zero
        | ZeroKeepPeak
        | Mean
        | Scale
        | SignFlip
        | Gradient
        | Adaptive
        | Quantize
        | Clamp
        | GaussNoise
        | Correlated
        | Swap
        | BitFlip,
        Field(discriminator="method"),
    ],
    BeforeValidator(_method_alias),
]
