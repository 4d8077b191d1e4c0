"""Which metric tells the truth, where the truth is known: a trained Llama, its exact Hessian, and every weight zeroed.

    python -m tests.score.test_exact_hessian

prints Spearman's correlation with the true change of the loss, and the overlap of the top 1 %, metric by metric.
"""

from functools import cache

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaConfig

from esa.data import TokenWindows
from esa.model import LoadedModel
from tests.score.naive import engine_scores, in_double

VOCABULARY, NUM_WINDOWS, LENGTH, STEPS = 32, 64, 14, 500
SEEDS = (0, 1)
SCORED = ("magnitude", "act_mag", "wanda", "grad_squared", "fisher_obd", "ggn_obd", "obd", "grad_x_weight")
CHUNK = 256  # rows of the Hessian at once

Array = npt.NDArray[np.float64]


def markov_text(seed: int) -> Tensor:
    """Return windows of a second-order Markov chain, ``(windows, tokens)``: the next token hangs on the last two."""
    draw = np.random.default_rng(seed)
    chances = draw.dirichlet(np.full(VOCABULARY, 0.1), size=(VOCABULARY, 4)).cumsum(
        -1
    )  # (last, one before mod 4, next)
    ids = np.zeros((NUM_WINDOWS, LENGTH), dtype=np.int64)
    ids[:, :2] = draw.integers(0, VOCABULARY, (NUM_WINDOWS, 2))
    for t in range(2, LENGTH):
        below = chances[ids[:, t - 1], ids[:, t - 2] % 4] < draw.random((NUM_WINDOWS, 1))
        ids[:, t] = below.sum(-1).clip(max=VOCABULARY - 1)
    return torch.from_numpy(ids)


@cache
def trained(seed: int) -> tuple[LoadedModel, TokenWindows]:
    """Return a Llama trained on its windows to where the gradient is small, as optimal brain damage assumes; float64."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=12, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2, max_position_embeddings=64, tie_word_embeddings=False, initializer_range=0.2,
        bos_token_id=0, eos_token_id=0, pad_token_id=0,
    )  # fmt: skip
    model = AutoModelForCausalLM.from_config(config)
    ids = markov_text(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-2, total_steps=STEPS)
    for _ in range(STEPS):
        optimizer.zero_grad()
        mean_nll(model, ids).backward()
        optimizer.step()
        schedule.step()
    loaded = in_double(model.eval())
    loaded.model.set_attn_implementation("eager")  # the fused kernel has no second derivative
    windows = tuple(tuple(window) for window in ids.tolist())
    return loaded, TokenWindows(windows, "drawn", "lines", LENGTH, False, NUM_WINDOWS, 0)


def mean_nll(model: torch.nn.Module, ids: Tensor) -> Tensor:
    """Return the mean NLL per predicted token, nats."""
    logp = model(input_ids=ids, use_cache=False).logits[:, :-1].log_softmax(-1)
    return -logp.gather(-1, ids[:, 1:, None]).mean()


def chosen(loaded: LoadedModel) -> dict[str, torch.nn.Parameter]:
    """Return the block's matrices: 1,440 weights."""
    return {name: p for name, p in loaded.parameters().items() if p.ndim == 2 and ".layers." in name}


@cache
def derivatives(seed: int) -> tuple[Array, Array, Array]:
    """Return weights, gradient and the exact diagonal of the Hessian, over the chosen matrices in turn."""
    loaded, windows = trained(seed)
    weights = list(chosen(loaded).values())
    gradients = torch.autograd.grad(mean_nll(loaded.model, torch.tensor(windows.ids)), weights, create_graph=True)
    diagonal = []
    for gradient, weight in zip(gradients, weights, strict=True):
        flat = gradient.reshape(-1)
        for rows in torch.eye(len(flat), dtype=flat.dtype).split(CHUNK):
            (found,) = torch.autograd.grad(flat, weight, (rows,), retain_graph=True, is_grads_batched=True)
            diagonal.append((found.flatten(1) * rows).sum(1))
    return flat_array(weights), flat_array(gradients), flat_array(diagonal)


@cache
def true_changes(seed: int) -> Array:
    """Return the change of the mean NLL as each weight of the chosen matrices in turn is zero, nats."""
    loaded, windows = trained(seed)
    ids, changes = torch.tensor(windows.ids), []
    with torch.no_grad():
        base = float(mean_nll(loaded.model, ids))
        for parameter in chosen(loaded).values():
            flat = parameter.view(-1)
            for number, value in enumerate(flat.tolist()):
                flat[number] = 0
                changes.append(float(mean_nll(loaded.model, ids)) - base)
                flat[number] = value
    return np.array(changes)


@cache
def scores(seed: int) -> dict[str, Array]:
    """Return what every metric gives each chosen weight: the engine's, and those with the exact diagonal."""
    loaded, windows = trained(seed)
    names = tuple(chosen(loaded))

    def flat(found: dict[str, dict[str, object]], metric: str) -> Array:
        return flat_array([found[metric][name].score for name in names])  # type: ignore[attr-defined]

    found = engine_scores(loaded, windows, SCORED, include=names, resamples=8, probes=4)
    means = engine_scores(loaded, windows, ["grad_x_weight"], include=names, reduction="mean")
    w, g, h = derivatives(seed)
    return {
        "obd, exact diagonal": np.abs(w**2 * h / 2),
        "taylor2, exact diagonal": np.abs(-g * w + w**2 * h / 2),
        "curvature, exact diagonal": np.abs(h),
        **{metric: flat(found, metric) for metric in SCORED},
        "grad_x_weight, mean": flat(means, "grad_x_weight"),
    }


def flat_array(parts: list[Tensor] | tuple[Tensor, ...]) -> Array:
    """Return tensors as one float64 vector."""
    return torch.cat([part.detach().double().reshape(-1) for part in parts]).numpy()


def spearman(seed: int, metric: str) -> float:
    """Return Spearman's correlation of a metric with the size of the true change."""
    from scipy.stats import spearmanr

    return float(spearmanr(scores(seed)[metric], np.abs(true_changes(seed))).statistic)


def top_overlap(seed: int, metric: str, share: float = 0.01) -> float:
    """Return which part of the truly largest changes the metric's largest scores hold."""
    number = int(len(true_changes(seed)) * share)
    truth = set(np.argsort(-np.abs(true_changes(seed)))[:number].tolist())
    return len(truth & set(np.argsort(-scores(seed)[metric])[:number].tolist())) / number


def test_the_exact_diagonal_is_a_second_difference() -> None:
    """The diagonal that the claims rest on equals (L(w + e) - 2 L(w) + L(w - e)) / e^2, weight by weight."""
    loaded, windows = trained(0)
    ids, h = torch.tensor(windows.ids), derivatives(0)[2]
    (name, parameter), start = list(chosen(loaded).items())[-1], len(h) - list(chosen(loaded).values())[-1].numel()
    assert name.endswith("down_proj.weight")
    for number in (0, 100, 287):
        losses = []
        for step in (1e-3, -1e-3, 0.0):
            with torch.no_grad():
                before = parameter.view(-1)[number].clone()
                parameter.view(-1)[number] += step
                losses.append(float(mean_nll(loaded.model, ids)))
                parameter.view(-1)[number] = before
        assert (losses[0] - 2 * losses[2] + losses[1]) / 1e-6 == pytest.approx(h[start + number], rel=1e-2, abs=1e-6)


@pytest.mark.parametrize("seed", SEEDS)
def test_obd_with_the_exact_diagonal_beats_raw_curvature_and_magnitude(seed: int) -> None:
    """In the order of all weights and among the top 1 % curvature times w^2 is far ahead of either factor alone."""
    for other in ("curvature, exact diagonal", "magnitude"):
        assert spearman(seed, "obd, exact diagonal") > spearman(seed, other) + 0.1
        assert top_overlap(seed, "obd, exact diagonal") > top_overlap(seed, other) + 0.25
    assert spearman(seed, "obd, exact diagonal") > 0.95


@pytest.mark.parametrize("seed", SEEDS)
def test_the_metrics_come_in_the_order_of_the_definitions(seed: int) -> None:
    """obd with the exact diagonal, then the Gauss-Newton one, the Fisher one, and far behind the raw ones; windows beat the mean."""
    order = ("obd, exact diagonal", "ggn_obd", "fisher_obd", "curvature, exact diagonal", "grad_squared")
    found = [spearman(seed, metric) for metric in order]
    assert found == sorted(found, reverse=True)
    assert spearman(seed, "grad_x_weight") > spearman(seed, "grad_x_weight, mean") + 0.05
    assert spearman(seed, "ggn_obd") > spearman(seed, "magnitude") > spearman(seed, "curvature, exact diagonal")


def main() -> None:
    """Print the table."""
    torch.set_num_threads(1)
    print(f"{'':<27}{'Spearman, top 1 % by seed':>26}")
    for metric in sorted(scores(0), key=lambda name: -spearman(0, name)):
        print(f"{metric:<27}", "   ".join(f"{spearman(s, metric):.2f} {top_overlap(s, metric):.2f}" for s in (0, 1, 2)))


if __name__ == "__main__":
    main()
