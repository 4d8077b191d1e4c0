"""The sections of a spec: every key, its type, its default and what it may be."""

import re
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from esa.errors import EsaError
from esa.registry import canonical
from esa.spec.texts import ALLOWED as SOURCES
from esa.spec.texts import parse_source


def _registered(kind: str) -> BeforeValidator:
    def check(value: Any) -> Any:
        if not isinstance(value, str):
            return value
        try:
            return canonical(kind, value)
        except EsaError as error:
            raise ValueError(error.what) from None

    return BeforeValidator(check)


def _distinct(values: tuple[Any, ...]) -> tuple[Any, ...]:
    if len(set(values)) != len(values):
        raise ValueError(f"names a value twice: {list(values)}")
    return values


def _one_or_many(value: Any) -> Any:
    return (value,) if isinstance(value, int | str) else value


def _number_or_auto(value: Any) -> Any:
    if value != "auto" and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
        raise ValueError(f"{value!r} is not allowed; allowed: an integer of at least 1, 'auto'")
    return value


def _bos(value: Any) -> Any:
    if not isinstance(value, bool) and value != "auto":
        raise ValueError(f"{value!r} is not allowed; allowed: true, false, 'auto'")
    return value


def _source(value: str) -> str:
    parse_source(value)  # raises ValueError
    return value


MetricName = Annotated[str, _registered("metric")]
GroupName = Annotated[str, _registered("group")]
Seed = Annotated[int, Field(ge=0)]
Source = Annotated[str, AfterValidator(_source)]
Bos = Annotated[bool | Literal["auto"], BeforeValidator(_bos)]
Counts = Annotated[
    tuple[Annotated[int, Field(ge=1)], ...],
    BeforeValidator(_one_or_many),
    AfterValidator(_distinct),
    Field(min_length=1),
]
Lengths = Annotated[tuple[Annotated[int, Field(ge=2)], ...], BeforeValidator(_one_or_many), AfterValidator(_distinct)]
_UNITS = {"MB": 10**6, "GB": 10**9, "TB": 10**12, "MiB": 1 << 20, "GiB": 1 << 30, "TiB": 1 << 40}


def _bytes(value: Any) -> Any:
    """Return ``"8 GB"`` as a number of bytes."""
    if not isinstance(value, str):
        return value
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(MB|GB|TB|MiB|GiB|TiB)", value.strip())
    if match is None:
        raise ValueError(
            f"'{value}' is not a size; allowed: bytes without quotes, or a number with {', '.join(_UNITS)}"
        )
    return int(float(match[1]) * _UNITS[match[2]])


Bytes = Annotated[int, BeforeValidator(_bytes), Field(ge=1)]
Unit = Literal["weight", "output", "input", "layer", "block", "component"]


class Section(BaseModel):
    """A strict, frozen table of a spec: unknown keys are refused."""

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid", protected_namespaces=())


class Model(Section):
    """Which model, in which precision, where."""

    id: str = Field(min_length=1, description="built-in alias (smollm2-135m), hub id, local folder, or .gguf file")
    revision: str | None = Field(default=None, description="commit, tag or branch of a hub model")
    dtype: Literal["float32", "bfloat16", "float16"] = Field(
        default="float32", description="storage dtype: where the bits live"
    )
    compute: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        default="auto", description="compute dtype; auto is the storage dtype; float32 over a 16-bit storage is exact"
    )
    device: str = Field(
        default="auto", pattern=r"^(auto|cpu|mps|cuda(:\d+)?)$", description="auto, cpu, mps, cuda or cuda:N"
    )
    quantization: Literal["none", "int8", "nf4"] = Field(
        default="none",
        description="none: weights are held as dtype; int8, nf4: linear maps but the head as bitsandbytes' codes (extra quant)",
    )
    residency: Literal["memory", "disk"] = Field(
        default="memory",
        description="memory: the whole model; disk: one block at a time, read from safetensors when its turn comes",
    )
    device_map: Literal["none", "auto"] = Field(
        default="none", description="none: one device; auto: spread over this machine's GPUs, for forward passes"
    )
    trust_remote_code: bool = Field(default=False, description="run Python code from the model's repository")
    memory_budget: Bytes | None = Field(
        default=None,
        description="bytes that a step may hold, such as '8 GB': passes, score.probe_groups = 'auto' and evaluations keep to it",
    )
    shape: dict[str, Any] | None = Field(
        default=None,
        description="the configuration's own keys, model_type first: predicts memory without the network; checked at load",
    )

    @model_validator(mode="after")
    def _consistent(self) -> "Model":
        if self.compute not in ("auto", "float32", self.dtype):
            raise ValueError(
                f"compute = '{self.compute}' cannot hold every {self.dtype} number; allowed: auto, float32, {self.dtype}"
            )
        if self.shape is not None and not isinstance(self.shape.get("model_type"), str):
            raise ValueError("shape needs model_type, a string such as 'llama'")
        if self.residency == "disk" and (self.quantization != "none" or self.device_map != "none"):
            what = f"{self.quantization} codes" if self.quantization != "none" else "blocks on several devices"
            raise ValueError(f"residency = 'disk' reads blocks of numbers from their files, no {what}; allowed: memory")
        return self


class Windows(Section):
    """A text cut into token windows."""

    key: ClassVar[str] = "windows"  # what errors call the section by

    source: Source = Field(default="builtin:prose", description=f"text: {SOURCES}")
    windows: int = Field(default=8, ge=1, description="how many windows")
    length: int = Field(default=256, ge=2, description="tokens of a window, BOS included")
    packing: Literal["stream", "lines"] = Field(
        default="stream", description="stream: consecutive windows; lines: one window per non-empty line"
    )
    bos: Bos = Field(default="auto", description="open each window with BOS; auto asks the tokenizer")
    sample: Literal["random", "first"] = Field(default="random", description="draw windows by seed, or take the first")


class Calibration(Windows):
    """The text that scores are computed on."""

    key: ClassVar[str] = "calibration"


class Eval(Windows):
    """The text that damage is measured on; score seeds never move it."""

    key: ClassVar[str] = "eval"

    source: Source = Field(default="builtin:prose_eval", description=f"text: {SOURCES}")
    windows: int = Field(default=64, ge=1, description="how many windows")
    length: int = Field(default=128, ge=2, description="tokens of a window, BOS included")
    sample: Literal["random", "first"] = Field(default="first", description="draw windows by seed, or take the first")
    batch_tokens: int = Field(default=2048, ge=2, description="tokens evaluated at once")
    texts: Annotated[tuple[Source, ...], BeforeValidator(_one_or_many), AfterValidator(_distinct)] | None = Field(
        default=None, min_length=1, description="esa eval measures on each of these; eval.source by default"
    )
    lengths: Lengths | None = Field(
        default=None,
        min_length=1,
        description="esa eval measures at each of these, over windows x length tokens; eval.length by default",
    )
    rewrites: int = Field(
        default=20,
        ge=0,
        description="weights rewritten to the adjacent number, which measures the noise floor; 0: no floor",
    )


class Score(Section):
    """Which metrics, from which seeds, over which weights."""

    metrics: Annotated[tuple[MetricName, ...], AfterValidator(_distinct)] = Field(
        default=("act_mag", "grad_x_weight"), min_length=1, description="names from the metric registry"
    )
    seeds: Annotated[tuple[Seed, ...], AfterValidator(_distinct)] = Field(
        default=(0,), min_length=1, description="each draws its own calibration windows, probes and random groups"
    )
    reduction: Literal["window", "mean"] = Field(
        default="window",
        description="of grad_x_weight and grad_squared: reduce each window's gradient, or the mean gradient",
    )
    resamples: int = Field(
        default=1,
        ge=1,
        description="draws of the labels per window for ggn_diag and ggn_obd; a standard error from 2 on, honest from 100 on",
    )
    probes: int = Field(
        default=16,
        ge=1,
        description="Rademacher probes per window for curvature; its standard error is honest from 16 on",
    )
    probe_groups: Annotated[Annotated[int, Field(ge=1)] | Literal["auto"], BeforeValidator(_number_or_auto)] = Field(
        default="auto",
        description="groups of blocks that curvature takes one after the other; auto: as few as model.memory_budget allows",
    )
    rounds: int = Field(
        default=1,
        ge=1,
        description="of super_activation, at most: after each the weight found is zeroed for the next",
    )
    peak_ratio: float = Field(
        default=20.0,
        gt=0,
        allow_inf_nan=False,
        description="of super_activation: largest over median channel maximum from which a block is a candidate",
    )
    keep: int = Field(default=4096, ge=1, description="rows kept per tensor and stratum: the largest K ranked exactly")
    dense: bool = Field(default=False, description="also write every score, as safetensors")
    include: tuple[str, ...] = Field(
        default=(),
        description="globs on the parameter, component=NAME or block=N; empty: all of two dimensions or more",
    )
    exclude: tuple[str, ...] = Field(default=(), description="the same, left out")


class Rank(Section):
    """How scores become ordered groups of weights."""

    mode: Literal["global", "per_layer", "per_block", "per_component"] = Field(
        default="global", description="K over all, in each tensor, block or component"
    )
    k: Counts = Field(default=(1, 10, 100), description="how many; a list gives prefixes of one ranking")
    groups: Annotated[tuple[GroupName, ...], AfterValidator(_distinct)] = Field(
        default=("top_k", "random_k", "bottom_k"), min_length=1, description="names from the selector registry"
    )
    draws: int = Field(default=5, ge=1, description="independent draws of random_k")
    seeds: Literal["first", "all"] = Field(default="first", description="which score seeds are perturbed")
    aggregate: Literal["weight", "output", "input", "tensor"] = Field(
        default="weight", description="rank single weights, or whole outputs, inputs or tensors"
    )
    statistic: Literal["sum", "max", "count"] = Field(
        default="sum",
        description="of an output, input or tensor: sum or maximum of its scores, or its count among the top K",
    )


class Perturb(Section):
    """What every method of perturbation shares."""

    unit: Literal["joint", "single"] = Field(default="joint", description="all K at once, or each of the K alone")
    groups: Annotated[tuple[GroupName, ...], AfterValidator(_distinct)] | None = Field(
        default=None, description="only these groups of the ranking; all by default"
    )
    k: Annotated[Counts, Field()] | None = Field(default=None, description="only these K; those of rank.k by default")

    def options(self) -> dict[str, Any]:
        """Return the method's own options: what, with the method's name, defines the effect."""
        shared = {"method", "repeats", *Perturb.model_fields}
        return {key: value for key, value in self.model_dump(exclude_none=True).items() if key not in shared}


class Drawing(Perturb):
    """A method that draws: it is repeated."""

    repeats: int = Field(default=5, ge=1, description="independent draws of the perturbation")


class Zero(Perturb):
    """w <- 0."""

    method: Literal["zero"]


class ZeroKeepPeak(Perturb):
    """w <- 0, its contribution given back at the peak tokens."""

    method: Literal["zero_keep_peak"]


class Mean(Perturb):
    """w <- mean of its tensor, input or output."""

    method: Literal["mean"]
    over: Literal["tensor", "input", "output"] = Field(default="tensor", description="what the mean is taken over")


class Scale(Perturb):
    """w <- factor w."""

    method: Literal["scale"]
    factor: float = Field(default=1.2, allow_inf_nan=False, description="multiplies the weight")


class SignFlip(Perturb):
    """w <- -factor w."""

    method: Literal["sign_flip"]
    factor: float = Field(default=1.0, gt=0, allow_inf_nan=False, description="multiplies the flipped weight")


class GaussNoise(Drawing):
    """w <- w + sigma r e."""

    method: Literal["gauss_noise"]
    sigma: float = Field(default=0.05, gt=0, allow_inf_nan=False, description="standard deviation in units of r")
    relative_to: Literal["weight", "tensor_std", "absolute"] = Field(
        default="weight", description="r: abs(w), the tensor's standard deviation, or 1"
    )


class BitFlip(Drawing):
    """Flip real bits of the stored number."""

    method: Literal["bit_flip"]
    of: Literal["weight", "scale"] = Field(
        default="weight", description="the weight's own bits (its code where quantised), or its row's or block's scale"
    )
    prob: float | None = Field(default=None, gt=0, le=1, description="probability of each bit")
    bits: int | None = Field(default=None, ge=1, le=32, description="this many distinct random bits")
    bit: int | None = Field(default=None, ge=0, le=31, description="this bit; 0 is the least significant")

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


_METHODS: dict[str, type[Perturb]] = {
    "zero": Zero,
    "zero_keep_peak": ZeroKeepPeak,
    "mean": Mean,
    "scale": Scale,
    "sign_flip": SignFlip,
    "gauss_noise": GaussNoise,
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
    Annotated[Zero | ZeroKeepPeak | Mean | Scale | SignFlip | GaussNoise | BitFlip, Field(discriminator="method")],
    BeforeValidator(_method_alias),
]


class Overlap(Section):
    """How rankings are compared."""

    by: Annotated[tuple[Unit, ...], BeforeValidator(_one_or_many), AfterValidator(_distinct)] = Field(
        default=("weight",),
        min_length=1,
        description="what counts as the same: weight, output, input, layer, block, ...",
    )
    k: Counts | None = Field(default=None, description="at these K; those of rank.k by default")
    p: float | None = Field(
        default=None, gt=0, lt=1, description="persistence of rank-biased overlap; 1 - 1/K by default"
    )
    universe: int | None = Field(
        default=None, ge=1, description="weights the lists were drawn from, where the lists do not say"
    )


class Spec(Section):
    """A whole run: model, texts, scores, ranking, perturbations, comparison."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$", description="names the run's folder")
    question: str | None = Field(default=None, description="the question the run answers; it opens the report")
    model: Model
    calibration: Calibration = Calibration()
    eval: Eval = Eval()
    score: Score = Score()
    rank: Rank = Rank()
    perturb: tuple[AnyPerturb, ...] = Field(default=(), description="one table per method")
    overlap: Overlap = Overlap()
