"""The Hessian's diagonal: the probes against the formula, the formula against the exact diagonal of a very tiny model."""

from functools import cache

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaConfig

from esa.data import TokenWindows
from esa.errors import ModelError
from esa.model import LoadedModel
from esa.score import curvature
from esa.spec.sections import Score
from tests.conftest import load
from tests.score.naive import (
    Tensors,
    assert_scores,
    engine_scores,
    in_double,
    load_double,
    probed_diagonal,
    unequal_windows,
    window_nll,
)

INCLUDE = {
    "llama": ("model.layers.0.self_attn.k_proj.weight", "model.layers.2.mlp.down_proj.weight"),
    "llama_tied": ("model.embed_tokens.weight", "model.layers.1.self_attn.q_proj.weight"),
    "gpt2": ("transformer.wpe.weight", "transformer.h.1.mlp.c_proj.weight"),
    "gpt_neox": ("gpt_neox.layers.0.attention.query_key_value.weight",),
    "phi3": ("model.layers.1.mlp.gate_up_proj.weight", "lm_head.weight"),
    "mixtral": ("model.layers.1.mlp.gate.weight", "model.layers.2.mlp.experts.down_proj"),
}
PROBES = 300


@pytest.mark.parametrize("metric", ["hutchinson_diag", "obd"])
def test_curvature_equals_its_formula(architecture: str, metric: str) -> None:
    """On every architecture score, sign and standard error are those of the same probes multiplied one by one."""
    loaded, windows, names = load_double(architecture), unequal_windows(), INCLUDE[architecture]
    found = engine_scores(loaded, windows, [metric], probes=3, include=names)[metric]
    expected = probed_diagonal(loaded, windows, names, probes=3)
    half_square = {n: loaded.parameters()[n].detach() ** 2 / 2 if metric == "obd" else torch.ones(()) for n in names}
    signed = {name: half_square[name] * mean for name, (mean, _) in expected.items()}
    stderr = {name: half_square[name] * error for name, (_, error) in expected.items()}
    assert_scores({n: s.signed for n, s in found.items()}, signed, rtol=1e-3)
    assert_scores({n: s.score for n, s in found.items()}, {n: s.abs() for n, s in signed.items()}, rtol=1e-3)
    assert_scores({n: s.stderr for n, s in found.items()}, stderr, rtol=2e-3)
    assert any(bool((s < 0).any()) for s in signed.values())


@cache
def very_tiny() -> tuple[LoadedModel, TokenWindows, Tensors, Tensors]:
    """Return a model of 216 weights, its windows, the exact diagonal of its Hessian, and the variance of one probe.

    The variance of the estimate with one probe per window is ``sum_n a_n^2 sum_{j != i} H_n,ij^2``.
    """
    torch.manual_seed(3)
    config = LlamaConfig(
        vocab_size=12, hidden_size=4, intermediate_size=6, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=16, tie_word_embeddings=False, attn_implementation="sdpa",
    )  # fmt: skip
    model = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.copy_(torch.randn(parameter.shape) * 0.5)
    loaded, windows = in_double(model), unequal_windows(12, (7, 4))
    weights = {name: p for name, p in loaded.parameters().items() if p.ndim == 2}
    model.set_attn_implementation("eager")
    diagonal, variance = torch.zeros(216), torch.zeros(216)
    for ids in windows.ids:
        hessian = dense_hessian(window_nll(loaded, ids), list(weights.values()))
        share = (len(ids) - 1) / windows.num_predicted
        diagonal = diagonal + share * hessian.diagonal()
        variance = variance + share**2 * (hessian**2).sum(1).sub(hessian.diagonal() ** 2)
    model.set_attn_implementation("sdpa")
    return loaded, windows, split(diagonal, weights), split(variance, weights)


def dense_hessian(loss: Tensor, weights: list[Tensor]) -> Tensor:
    """Return the whole Hessian, one row per weight."""
    flat = torch.cat([g.reshape(-1) for g in torch.autograd.grad(loss, weights, create_graph=True)])
    rows = [torch.autograd.grad(entry, weights, retain_graph=True, allow_unused=True) for entry in flat]
    return torch.stack(
        [
            torch.cat([torch.zeros_like(w).reshape(-1) if r is None else r.reshape(-1) for r, w in zip(row, weights)])
            for row in rows
        ]
    )


def split(flat: Tensor, weights: Tensors) -> Tensors:
    """Return a flat vector in the weights' shapes."""
    parts = flat.split([w.numel() for w in weights.values()])
    return {name: part.view(w.shape) for part, (name, w) in zip(parts, weights.items(), strict=True)}


@cache
def estimated(probes: int) -> dict[str, tuple[Tensor, Tensor]]:
    """Return the engine's signed diagonal and standard error of the very tiny model."""
    loaded, windows, _, _ = very_tiny()
    found = engine_scores(loaded, windows, ["hutchinson_diag"], probes=probes)["hutchinson_diag"]
    return {name: (scores.signed, scores.stderr) for name, scores in found.items()}


def flat(tensors: Tensors) -> Tensor:
    """Return tensors as one vector."""
    return torch.cat([tensor.double().reshape(-1) for tensor in tensors.values()])


def error(probes: int) -> float:
    """Return the root mean square error of the estimated diagonal."""
    truth = very_tiny()[2]
    return float((flat({name: estimated(probes)[name][0] for name in truth}) - flat(truth)).square().mean().sqrt())


def test_the_estimate_converges_to_the_exact_diagonal() -> None:
    """A hundred times the probes leave about a tenth of the error, and little of it beside the diagonal itself."""
    assert 0.05 < error(PROBES) / error(3) < 0.2
    assert error(PROBES) < 0.05 * float(flat(very_tiny()[2]).abs().max())


def test_the_standard_error_is_honest() -> None:
    """The truth lies within two standard errors in about 95 % of the entries, and the error is the one theory predicts."""
    _, _, truth, variance = very_tiny()
    difference = flat({name: estimated(PROBES)[name][0] for name in truth}) - flat(truth)
    stderr = flat({name: estimated(PROBES)[name][1] for name in truth})
    moving = flat(variance) > 1e-12
    inside = (difference.abs() <= 2 * stderr)[moving].double().mean()
    assert 0.90 <= float(inside) <= 0.99
    predicted = (flat(variance) / PROBES).sqrt()
    assert float((stderr / predicted)[moving].median()) == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize("metric", ["hutchinson_diag", "obd"])
def test_the_default_number_of_probes_is_enough_for_an_honest_error(metric: str) -> None:
    """With the default of 16 probes too, over five seeds, the truth lies within two standard errors in 90 to 99 %."""
    loaded, windows, diagonal, _ = very_tiny()
    factors = {n: loaded.parameters()[n].detach() ** 2 / 2 if metric == "obd" else torch.ones(()) for n in diagonal}
    truth = flat({name: factors[name] * h for name, h in diagonal.items()})
    inside = []
    for seed in range(5):
        found = engine_scores(loaded, windows, [metric], probes=Score().probes, seed=seed)[metric]
        signed, stderr = (
            flat({name: getattr(found[name], column) for name in diagonal}) for column in ("signed", "stderr")
        )
        inside.append(float(((signed - truth).abs() <= 2 * stderr)[stderr > 1e-9].double().mean()))
    assert 0.90 <= sum(inside) / 5 <= 0.99


def test_obd_is_the_diagonal_times_half_the_squared_weight() -> None:
    """With many probes obd comes within three standard errors of w^2 h / 2 of the exact h, and keeps its sign."""
    loaded, windows, truth, _ = very_tiny()
    found = engine_scores(loaded, windows, ["obd"], probes=PROBES)["obd"]
    exact = flat({name: loaded.parameters()[name].detach() ** 2 * h / 2 for name, h in truth.items()})
    signed, stderr = (flat({name: getattr(found[name], column) for name in truth}) for column in ("signed", "stderr"))
    assert float(((signed - exact).abs() <= 3 * stderr + 1e-6).double().mean()) > 0.98
    assert float(torch.corrcoef(torch.stack([signed, exact]))[0, 1]) > 0.95
    assert torch.equal(flat({name: found[name].score for name in truth}), signed.abs())
    assert bool((signed < 0).any())
    assert bool((signed > 0).any())


@pytest.mark.parametrize("metric", ["hutchinson_diag", "obd"])
def test_one_probe_has_no_standard_error(metric: str) -> None:
    """With a single probe there is a score and its sign, and null where the standard error would stand."""
    loaded, windows, _, _ = very_tiny()
    found = engine_scores(loaded, windows, [metric], probes=1)[metric]
    assert all(scores.stderr is None and scores.signed is not None for scores in found.values())


def test_probes_come_from_their_own_streams() -> None:
    """Each seed, window, probe and parameter draws other signs, always the same ones, all of them one or minus one."""
    like = torch.zeros(40, 50)
    first = curvature.rademacher(torch.empty_like(like), 0, 0, 0, "a")
    assert torch.equal(first, curvature.rademacher(torch.empty_like(like), 0, 0, 0, "a"))
    assert torch.equal(first.abs(), torch.ones_like(like))
    assert abs(float(first.mean())) < 0.07
    for other in [(1, 0, 0, "a"), (0, 1, 0, "a"), (0, 0, 1, "a"), (0, 0, 0, "b")]:
        assert not torch.equal(first, curvature.rademacher(torch.empty_like(like), *other))


def test_attention_is_eager_meanwhile_and_switched_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """Curvature runs with eager attention; the model's own implementation is back afterwards."""
    loaded, seen = load("llama"), []
    original = curvature.window_loss

    def watch(logits: Tensor, ids: Tensor) -> Tensor:
        seen.append(loaded.model.config._attn_implementation)
        return original(logits, ids)

    monkeypatch.setattr(curvature, "window_loss", watch)
    assert loaded.model.config._attn_implementation == "sdpa"
    engine_scores(loaded, unequal_windows(), ["obd"], probes=1, include=("*k_proj*",))
    assert seen == ["eager"] * 3
    assert loaded.model.config._attn_implementation == "sdpa"


def test_attention_is_switched_back_after_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also when a pass breaks off, the model's own attention and its frozen parameters are as before."""
    loaded = load("llama")
    loaded.model.requires_grad_(False)

    def fail(logits: Tensor, ids: Tensor) -> Tensor:
        raise KeyboardInterrupt

    monkeypatch.setattr(curvature, "window_loss", fail)
    with pytest.raises(KeyboardInterrupt):
        engine_scores(loaded, unequal_windows(), ["obd"], probes=1)
    assert loaded.model.config._attn_implementation == "sdpa"
    assert not any(parameter.requires_grad for parameter in loaded.model.parameters())


@pytest.mark.parametrize("metric", ["obd", "grad_squared"])
@pytest.mark.parametrize("owner", ["model", "model.layers.1"])
def test_a_parameter_without_gradient_is_refused(metric: str, owner: str) -> None:
    """A chosen parameter that no gradient reaches is an error with its name, for curvature and gradients alike."""
    model = load("llama").model
    model.get_submodule(owner).unused = torch.nn.Parameter(torch.ones(2, 2))
    with pytest.raises(ModelError, match=rf"^no gradient reaches 1 of the parameters to score: {owner}.unused\n"):
        engine_scores(in_double(model), unequal_windows(), [metric], probes=1)
