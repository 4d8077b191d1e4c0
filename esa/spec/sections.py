"""The sections of a spec: every key, its type, its default and what it may be."""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from esa.spec.methods import AnyPerturb
from esa.spec.texts import ALLOWED as SOURCES
from esa.spec.values import (
    Bos,
    Bytes,
    Counts,
    GroupName,
    Lengths,
    MethodName,
    MetricName,
    Section,
    Seed,
    Source,
    TaskName,
    Unit,
    distinct,
    number_or_auto,
    one_or_many,
)

Share = Annotated[float, Field(gt=0, lt=1)]


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

    null: Literal["none", "shuffled", "random"] = Field(
        default="none",
        description="shuffled: the entries of every matrix permuted; random: initialised afresh; what a detector may not find",
    )
    null_seed: Seed = Field(default=0, description="of the permutation or the initialisation")

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
        for key in ("quantization", "device_map"):
            if self.null != "none" and getattr(self, key) != "none":
                raise ValueError(f"null = '{self.null}' is made of numbers in one place; {key}: allowed: none")
        if self.null != "none" and self.residency == "disk":
            raise ValueError(f"null = '{self.null}' changes the whole model in memory; residency: allowed: memory")
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
    texts: Annotated[tuple[Source, ...], BeforeValidator(one_or_many), AfterValidator(distinct)] | None = Field(
        default=None, min_length=1, description="esa eval measures on each of these; eval.source by default"
    )
    lengths: Lengths | None = Field(
        default=None,
        min_length=1,
        description="esa eval measures at each of these, over windows x length tokens; eval.length by default",
    )
    seeds: Annotated[tuple[Seed, ...], AfterValidator(distinct)] = Field(
        default=(0,),
        min_length=1,
        description="esa eval measures on the windows that each of these draws; more than one needs sample = 'random'",
    )
    tasks: Annotated[tuple[TaskName, ...], BeforeValidator(one_or_many), AfterValidator(distinct)] = Field(
        default=("language_modeling",), min_length=1, description="names from the task registry"
    )
    task_sources: dict[TaskName, Source] | None = Field(
        default=None,
        description="where a task's items come from, such as file:items.jsonl; its own hf: dataset by default",
    )
    task_items: int | None = Field(default=None, ge=1, description="only the first items of each task; all by default")
    prompts: int = Field(default=8, ge=1, description="of generation: windows that are continued")
    new_tokens: int = Field(default=32, ge=1, description="of generation: tokens of a greedy continuation")
    rewrites: int = Field(
        default=20,
        ge=0,
        description="weights rewritten to the adjacent number, which measures the noise floor; 0: no floor",
    )


class Ensemble(Section):
    """Several metrics combined into one, called ensemble: of N weights rank 1 has the highest score."""

    metrics: Annotated[tuple[MetricName, ...], AfterValidator(distinct)] = Field(
        default=(), description="of score.metrics, two or more; none: no ensemble"
    )
    rule: Literal["mean_rank", "borda", "quantile_product"] = Field(
        default="mean_rank",
        description="mean_rank: 1 over the mean rank; borda: sum of max(0, depth + 1 - rank); quantile_product: odds of the"
        " product of the quantiles 1 - rank / (N + 1)",
    )
    depth: int = Field(default=4096, ge=1, description="of borda: ranks beyond it give nothing")

    @model_validator(mode="after")
    def _several(self) -> "Ensemble":
        if len(self.metrics) == 1:
            raise ValueError(f"an ensemble of '{self.metrics[0]}' alone is that metric; allowed: none, or two and more")
        return self


class Score(Section):
    """Which metrics, from which seeds, over which weights."""

    metrics: Annotated[tuple[MetricName, ...], AfterValidator(distinct)] = Field(
        default=("act_mag", "grad_x_weight"), min_length=1, description="names from the metric registry"
    )
    seeds: Annotated[tuple[Seed, ...], AfterValidator(distinct)] = Field(
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
    probe_groups: Annotated[Annotated[int, Field(ge=1)] | Literal["auto"], BeforeValidator(number_or_auto)] = Field(
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
    ensemble: Ensemble = Ensemble()

    @model_validator(mode="after")
    def _scored(self) -> "Score":
        missing = [name for name in self.ensemble.metrics if name not in self.metrics]
        if missing:
            raise ValueError(f"ensemble.metrics names '{missing[0]}', which score.metrics does not")
        return self


class Rank(Section):
    """How scores become ordered groups of weights."""

    mode: Literal["global", "per_layer", "per_block", "per_component"] = Field(
        default="global", description="K over all, in each tensor, block or component"
    )
    k: Counts = Field(default=(1, 10, 100), description="how many; a list gives prefixes of one ranking")
    groups: Annotated[tuple[GroupName, ...], AfterValidator(distinct)] = Field(
        default=("top_k", "random_k", "bottom_k"), min_length=1, description="names from the selector registry"
    )
    draws: int = Field(
        default=19,
        ge=1,
        description="independent draws of random_k; 19 are the fewest with which a rank reaches p = 0.05",
    )
    seeds: Literal["first", "all"] = Field(default="first", description="which score seeds are perturbed")
    aggregate: Literal["weight", "output", "input", "tensor"] = Field(
        default="weight", description="rank single weights, or whole outputs, inputs or tensors"
    )
    statistic: Literal["sum", "max", "count"] = Field(
        default="sum",
        description="of an output, input or tensor: sum or maximum of its scores, or its count among the top K",
    )


class Confirm(Section):
    """The one confirmatory test of a run, named before it is seen; every other test is a screen."""

    metric: MetricName | Literal["ensemble"] | None = Field(
        default=None, description="whose top_k is tested against random_k; none: no confirmatory test"
    )
    method: MethodName = Field(default="zero", description="one of the [[perturb]] tables, its first options")
    k: int = Field(default=10, ge=1, description="how many weights")
    draws: int = Field(default=199, ge=1, description="draws of random_k at this K: the smallest p is 1 / (draws + 1)")
    alpha: Share = Field(default=0.05, description="the level of the test")


class Statistics(Section):
    """How effects become intervals and p values."""

    level: Share = Field(default=0.95, description="of intervals")
    resamples: int = Field(default=1999, ge=99, description="bootstrap resamples of windows or items")
    permutations: int = Field(default=9999, ge=99, description="sign flips, where all of them are more than that")
    margin: float = Field(
        default=0.01, gt=0, allow_inf_nan=False, description="nats within which a change is no harm (TOST)"
    )
    fdr: Share = Field(default=0.05, description="false discovery rate of the screen (Benjamini-Hochberg)")
    few_windows: int = Field(default=30, ge=2, description="under so many windows a result is flagged few_windows")


class Faults(Section):
    """A campaign of random bit errors over the model or a part of it."""

    rates: Annotated[tuple[Share, ...], BeforeValidator(one_or_many), AfterValidator(distinct)] = Field(
        default=(), description="bit error rates: the probability that a stored bit is wrong; none: no campaign"
    )
    trials: int = Field(default=100, ge=1, description="fault lists per rate")
    include: tuple[str, ...] = Field(
        default=(), description="globs on the parameter, component=NAME or block=N; empty: every weight"
    )
    exclude: tuple[str, ...] = Field(default=(), description="the same, left out")
    ecc: Literal["none", "secded"] = Field(
        default="none", description="secded: (72,64) over consecutive stored numbers, faults on all 72 bits"
    )
    on_detect: Literal["keep", "zero", "stop"] = Field(
        default="keep",
        description="of a word with a detected error: keep its faults, zero its numbers, or stop, an outcome of its own",
    )
    harm: float = Field(
        default=0.1,
        gt=0,
        allow_inf_nan=False,
        description="nats of damage from which a trial that still works is degraded",
    )


class Truth(Section):
    """The sample of weights on which metrics are held against measured damage."""

    weights: int = Field(default=300, ge=20, description="weights zeroed one by one, the top ones included")
    top: int = Field(default=10, ge=1, description="of them the top ones of every metric, taken for certain")
    strata: int = Field(default=10, ge=2, description="quantiles of every metric that the others are drawn from")


class Overlap(Section):
    """How rankings are compared."""

    by: Annotated[tuple[Unit, ...], BeforeValidator(one_or_many), AfterValidator(distinct)] = Field(
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


class Curve(Section):
    """How agreement grows with K, windows and seeds."""

    level: float = Field(
        default=0.5, gt=0, lt=1, description="chance-corrected Jaccard from which on lists are taken to agree"
    )
    splits: int = Field(default=20, ge=1, description="random halves of the seeds")


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
    confirm: Confirm = Confirm()
    statistics: Statistics = Statistics()
    faults: Faults = Faults()
    truth: Truth = Truth()
    overlap: Overlap = Overlap()
    curve: Curve = Curve()
