"""The formulas of DESIGN section 3, transcribed the slow way: hooks, dense gradients, float64."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from esa.data import TokenWindows
from esa.model import LoadedModel, eligible, prepare
from esa.progress import Silent
from esa.score.curvature import rademacher
from esa.score.engine import Effort, Engine, load_metrics
from esa.score.labels import sampled_labels
from esa.score.metric import Scores
from esa.score.scored import ScoredTensor
from esa.score.strategy import Strategy
from tests.conftest import VOCABULARY, build, make_tokenizer, tiny_spec

LENGTHS = (9, 12, 5)  # unequal, so that every weight T_n counts
FIRST_ORDER = (
    "magnitude", "act_mag", "wanda", "super_activation", "grad_x_weight", "grad_squared", "fisher_obd", "ggn_diag",
    "ggn_obd",
)  # fmt: skip
CURVED = ("hutchinson_diag", "obd", "taylor2")

Tensors = dict[str, Tensor]


def in_double(model: nn.Module) -> LoadedModel:
    """Return a model as esa holds it, its weights in float64."""
    return prepare(model.double(), make_tokenizer(), tiny_spec().model, torch.device("cpu"))


def load_double(name: str) -> LoadedModel:
    """Return a tiny architecture in float64."""
    return in_double(build(name))


def unequal_windows(vocabulary: int = VOCABULARY, lengths: Sequence[int] = LENGTHS) -> TokenWindows:
    """Return windows of different lengths."""
    draw = torch.Generator().manual_seed(1)
    ids = tuple(tuple(torch.randint(0, vocabulary, (length,), generator=draw).tolist()) for length in lengths)
    return TokenWindows(ids, "drawn", "lines", max(lengths), False, len(ids), 0)


def engine_scores(
    loaded: LoadedModel,
    windows: TokenWindows,
    metrics: Sequence[str],
    probes: int = 3,
    include: tuple[str, ...] = (),
    reduction: str = "window",
    seed: int = 0,
    strategy: Strategy | None = None,
    **effort: Any,
) -> dict[str, dict[str, Scores]]:
    """Return every metric's dense scores as the engine hands them to the reducers."""
    found: dict[str, dict[str, Scores]] = {metric: {} for metric in metrics}

    def emit(metric: Any, info: Any, weight: Tensor, scores: ScoredTensor, usage: Tensor | None) -> None:
        found[metric.name][info.name] = scores.whole

    chosen = eligible(loaded.table, include)
    effort_ = Effort(probes, **effort)
    engine = Engine(loaded, chosen, load_metrics(metrics, reduction), emit, Silent(), effort_, strategy or Strategy())
    engine.run(windows, seed=seed)
    return found


def dense(found: dict[str, Scores]) -> Tensors:
    """Return the scores alone."""
    return {name: scores.score for name, scores in found.items()}


def window_nll(loaded: LoadedModel, ids: Sequence[int]) -> Tensor:
    """Return a window's mean NLL over its predicted tokens, nats, float64."""
    logits = loaded.model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, :-1].double()
    return -logits.log_softmax(-1)[torch.arange(len(ids) - 1), torch.tensor(ids[1:])].mean()


def gradients(loaded: LoadedModel, windows: TokenWindows) -> list[Tensors]:
    """Return each window's gradients of its mean NLL, float64."""
    weights = {name: loaded.parameters()[name] for name in eligible(loaded.table)}
    found = [torch.autograd.grad(window_nll(loaded, ids), list(weights.values())) for ids in windows.ids]
    return [{name: g.double() for name, g in zip(weights, each, strict=True)} for each in found]


def mean_over_windows(windows: TokenWindows, values: Sequence[Tensor]) -> Tensor:
    """Return mean_n: weighted by the predicted tokens."""
    predicted = [len(ids) - 1 for ids in windows.ids]
    return sum(t * value for t, value in zip(predicted, values, strict=True)) / sum(predicted)  # type: ignore[return-value]


def inputs(loaded: LoadedModel, windows: TokenWindows) -> dict[str, list[tuple[Tensor, Tensor]]]:
    """Return, per parameter and use, the mean of abs(x) and of x^2 over all tokens, ready to broadcast over the weight."""
    seen: list[tuple[nn.Parameter, int, Any, Tensor]] = []  # parameter, input axis, expert, inputs (tokens, d_in)

    def hook(module: nn.Module) -> Callable[..., None]:
        def watch(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            given = [*args, *kwargs.values()]
            if hasattr(module, "gate_up_proj"):
                hidden, routes = given[0].reshape(-1, given[0].shape[-1]), given[1]
                for expert, (opening, closing) in enumerate(zip(module.gate_up_proj, module.down_proj, strict=True)):
                    routed = hidden[(routes == expert).any(-1)]
                    gate, up = (routed @ opening.T).chunk(2, dim=-1)
                    seen.append((module.gate_up_proj, 2, expert, routed))
                    seen.append((module.down_proj, 2, expert, F.silu(gate) * up))
                    assert closing.shape[1] == up.shape[1]
            elif isinstance(module, nn.Embedding):
                seen.append((module.weight, 0, None, F.one_hot(given[0].reshape(-1), module.num_embeddings)))
            else:
                x = given[0].reshape(-1, given[0].shape[-1])
                seen.append((module.weight, 0 if isinstance(module, Conv1D) else 1, None, x))

        return watch

    hooks = [
        module.register_forward_pre_hook(hook(module), with_kwargs=True)
        for module in loaded.model.modules()
        if isinstance(module, nn.Linear | Conv1D | nn.Embedding)
        or (hasattr(module, "gate_up_proj") and isinstance(module.gate_up_proj, nn.Parameter))
        or type(module).__name__.endswith("Router")
    ]  # fmt: skip
    with torch.no_grad():
        for ids in windows.ids:
            loaded.model(input_ids=torch.tensor([ids]), use_cache=False)
    for handle in hooks:
        handle.remove()
    names = {id(parameter): name for name, parameter in loaded.parameters().items()}
    uses: dict[str, dict[int, tuple[Tensor, Tensor]]] = {}
    for parameter, axis, expert, x in seen:
        shape = [1] * parameter.ndim
        shape[axis] = parameter.shape[axis]
        if expert is not None:
            shape[0] = parameter.shape[0]
        use = uses.setdefault(names[id(parameter)], {}).setdefault(
            axis, (torch.zeros(shape).double(), torch.zeros(shape).double())
        )
        for total, values in zip(use, (x.double().abs(), x.double() ** 2), strict=True):
            part = total if expert is None else total[expert]
            part += values.sum(0).view(part.shape) / windows.num_tokens
    return {name: list(found.values()) for name, found in uses.items()}


def first_order(loaded: LoadedModel, windows: TokenWindows) -> dict[str, Tensors]:
    """Return the scores of every metric without second derivatives, float64."""
    weights = {name: loaded.parameters()[name].detach().double() for name in eligible(loaded.table)}
    each, reaching = gradients(loaded, windows), inputs(loaded, windows)
    predicted = [len(ids) - 1 for ids in windows.ids]
    scores: dict[str, Tensors] = {metric: {} for metric in FIRST_ORDER}
    for name, w in weights.items():
        g = [found[name] for found in each]
        scores["magnitude"][name] = w.abs()
        scores["act_mag"][name] = w.abs() * sum(mean_abs for mean_abs, _ in reaching[name])
        scores["wanda"][name] = w.abs() * sum(square.sqrt() for _, square in reaching[name])
        scores["grad_x_weight"][name] = mean_over_windows(windows, [(w * x).abs() for x in g])
        scores["grad_squared"][name] = mean_over_windows(windows, [x**2 for x in g])
        of_tokens = mean_over_windows(windows, [t * x**2 for t, x in zip(predicted, g, strict=True)])
        scores["fisher_obd"][name] = w**2 * of_tokens / 2
    diagonal, _ = sampled_diagonal(loaded, windows, resamples=1)
    scores["ggn_diag"] = diagonal
    scores["ggn_obd"] = {name: w**2 * diagonal[name] / 2 for name, w in weights.items()}
    scores["super_activation"] = super_activations(loaded, windows)[0]
    return scores


def sampled_diagonal(loaded: LoadedModel, windows: TokenWindows, resamples: int) -> tuple[Tensors, Tensors]:
    """Return the Gauss-Newton diagonal on the engine's own labels and its standard error, float64, one loss at a time.

    Per window the gradient of the SUMMED loss, squared, over T_n; mean over windows weighted by T_n, and over the draws.
    """
    weights = {name: loaded.parameters()[name] for name in eligible(loaded.table)}
    samples: list[list[list[Tensor]]] = []
    for n, ids in enumerate(windows.ids):
        samples.append([])
        for resample in range(resamples):
            logits = loaded.model(input_ids=torch.tensor([ids]), use_cache=False).logits
            labels = sampled_labels(logits, 0, n, resample)
            summed = -logits[0, :-1].double().log_softmax(-1)[torch.arange(len(ids) - 1), labels].sum()
            found = torch.autograd.grad(summed, list(weights.values()))
            samples[-1].append([g.double() ** 2 / (len(ids) - 1) for g in found])
    shares = [(len(ids) - 1) / windows.num_predicted for ids in windows.ids]
    means, errors = {}, {}
    for i, name in enumerate(weights):
        stacks = [torch.stack([sample[i] for sample in window]) for window in samples]
        means[name] = sum(a * s.mean(0) for a, s in zip(shares, stacks, strict=True))
        if resamples > 1:
            spread = [a**2 * s.var(0, correction=1) / resamples for a, s in zip(shares, stacks, strict=True)]
            errors[name] = sum(spread).sqrt()  # type: ignore[union-attr]
    return means, errors


def super_activations(loaded: LoadedModel, windows: TokenWindows, threshold: float = 1.0) -> tuple[Tensors, Tensors]:
    """Return score and signed growth of every MLP output projection, float64, weight by weight as the definition reads."""
    infos = {n: i for n, i in eligible(loaded.table).items() if i.component in ("mlp.down", "expert.down")}
    scores, signed = {}, {}
    for name, info in infos.items():
        weight = loaded.parameters()[name].detach().double()
        ys, xs, streams = [], [], []
        module = loaded.model.get_submodule(info.layer)
        block = loaded.stack.blocks[info.block]  # type: ignore[index]
        hooks = [
            module.register_forward_hook(lambda _, args, y, ys=ys: ys.append(y.reshape(-1, y.shape[-1]).double())),
            module.register_forward_hook(lambda _, args, y, xs=xs: xs.append([*args])),
            block.register_forward_hook(
                lambda _, args, h, streams=streams: streams.append((h[0] if isinstance(h, tuple) else h)[0].double())
            ),
        ]
        with torch.no_grad():
            for ids in windows.ids:
                loaded.model(input_ids=torch.tensor([ids]), use_cache=False)
        for hook in hooks:
            hook.remove()
        lengths = [len(ids) for ids in windows.ids]
        y, h = torch.cat(ys), torch.cat(streams)
        place = int(y.abs().argmax())
        token, channel = divmod(place, y.shape[1])
        window = next(n for n in range(len(lengths)) if token < sum(lengths[: n + 1]))
        maxima = y.abs().amax(0)
        candidate = float(maxima.max() / maxima.median()) >= threshold
        median = h.abs().median()
        growths = torch.zeros(weight.shape, dtype=torch.float64)
        for expert, x in read_at(
            module, xs[window], token - sum(lengths[:window]), info.expert_axis is not None
        ).items():
            matrix = weight if expert is None else weight[expert]
            for j in range(len(x)):
                at = (channel, j) if info.output_axis < info.input_axis else (j, channel)  # type: ignore[operator]
                value = (h[token, channel].abs() - (h[token, channel] - matrix[at] * x[j]).abs()) / median
                growths[at if expert is None else (expert, *at)] = value
        signed[name] = growths
        scores[name] = growths.clamp(min=0) * candidate
    return scores, signed


def read_at(module: Any, given: list[Tensor], token: int, fused: bool) -> dict[int | None, Tensor]:
    """Return what a projection reads at a token: x, or what each routed expert reads times its routing weight."""
    if not fused:
        return {None: given[0].reshape(-1, given[0].shape[-1])[token].double()}
    hidden, index, weights = given
    found: dict[int | None, Tensor] = {}
    for expert, share in zip(index[token].tolist(), weights[token], strict=True):
        gate, up = (module.gate_up_proj[expert] @ hidden[token]).chunk(2)
        found[expert] = (F.silu(gate) * up * share).detach().double()
    return found


def probed_diagonal(
    loaded: LoadedModel, windows: TokenWindows, names: Sequence[str], probes: int
) -> dict[str, tuple[Tensor, Tensor]]:
    """Return mean and standard error of z * (H z) over the engine's own probes, one product at a time, float64."""
    before = loaded.model.config._attn_implementation
    loaded.model.set_attn_implementation("eager")
    weights = [loaded.parameters()[name] for name in names]
    samples: list[list[list[Tensor]]] = []  # window, probe, parameter
    for n, ids in enumerate(windows.ids):
        samples.append([])
        for probe in range(probes):
            z = [rademacher(torch.empty_like(w), 0, n, probe, name) for name, w in zip(names, weights, strict=True)]
            g = torch.autograd.grad(window_nll(loaded, ids), weights, create_graph=True)
            hz = torch.autograd.grad(sum((a * b).sum() for a, b in zip(g, z, strict=True)), weights)
            samples[-1].append([(a * b).double() for a, b in zip(z, hz, strict=True)])
    loaded.model.set_attn_implementation(before)
    shares = [(len(ids) - 1) / windows.num_predicted for ids in windows.ids]
    found = {}
    for i, name in enumerate(names):
        stacks = [torch.stack([sample[i] for sample in window]) for window in samples]
        mean = sum(a * s.mean(0) for a, s in zip(shares, stacks, strict=True))
        variance = sum(a**2 * s.var(0, correction=1) / probes for a, s in zip(shares, stacks, strict=True))
        found[name] = mean, variance.sqrt()
    return found


def assert_scores(found: Tensors, expected: Tensors, rtol: float = 2e-5) -> None:
    """Raise AssertionError, naming the tensor, unless both hold the same tensors with equal numbers but for rounding."""
    assert list(found)
    assert set(found) == set(expected)
    for name, scores in found.items():
        truth = expected[name].expand(scores.shape)
        atol = rtol * 0.05 * float(truth.abs().max())
        torch.testing.assert_close(
            scores.double(), truth, rtol=rtol, atol=atol, msg=lambda text, name=name: f"{name}: {text}"
        )
