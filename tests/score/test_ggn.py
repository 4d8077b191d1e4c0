"""The Gauss-Newton diagonal: sampled labels against the formula, the formula against the exact matrix of a tiny model."""

from functools import cache

import pytest
import torch
from torch import Tensor

from esa.score.labels import sampled_labels
from tests.conftest import load
from tests.score.naive import Tensors, assert_scores, engine_scores, load_double, sampled_diagonal, unequal_windows
from tests.score.test_curvature import flat, split, very_tiny

RESAMPLES = 200


@pytest.mark.parametrize("metric", ["ggn_diag", "ggn_obd"])
@pytest.mark.parametrize("resamples", [1, 4])
def test_ggn_equals_its_formula(architecture: str, metric: str, resamples: int) -> None:
    """Score and standard error are those of the same labels, one summed loss at a time, on every architecture."""
    loaded, windows = load_double(architecture), unequal_windows()
    found = engine_scores(loaded, windows, [metric], resamples=resamples)[metric]
    means, errors = sampled_diagonal(loaded, windows, resamples)
    factors = {n: loaded.parameters()[n].detach() ** 2 / 2 if metric == "ggn_obd" else torch.ones(()) for n in means}
    assert_scores({n: s.score for n, s in found.items()}, {n: factors[n] * mean for n, mean in means.items()})
    if resamples == 1:
        assert all(scores.stderr is None for scores in found.values())
    else:
        expected = {n: factors[n] * error for n, error in errors.items()}
        assert_scores({n: s.stderr for n, s in found.items()}, expected, rtol=2e-3)


@cache
def exact() -> Tensors:
    """Return diag(sum_t J_t' (diag p - p p') J_t) / sum T of the very tiny model: J_t the logits' Jacobian at position t."""
    loaded, windows, _, _ = very_tiny()
    weights = {name: p for name, p in loaded.parameters().items() if p.ndim == 2}
    total = torch.zeros(216)
    for ids in windows.ids:
        logits = loaded.model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, :-1]
        for row in logits:
            parts = [
                torch.autograd.grad(value, list(weights.values()), retain_graph=True, allow_unused=True)
                for value in row
            ]
            jacobian = torch.stack(
                [
                    torch.cat(
                        [torch.zeros(w.numel()) if g is None else g.reshape(-1) for g, w in zip(part, weights.values())]
                    )
                    for part in parts
                ]
            )  # (V, weights)
            p = row.detach().softmax(-1)
            metric = torch.diag(p) - p[:, None] * p
            total = total + (jacobian * (metric @ jacobian)).sum(0)
    return split(total / windows.num_predicted, weights)


@cache
def estimated(resamples: int, seed: int = 0, metric: str = "ggn_diag") -> tuple[Tensor, Tensor]:
    """Return the engine's scores and standard errors of the very tiny model."""
    loaded, windows, _, _ = very_tiny()
    found = engine_scores(loaded, windows, [metric], resamples=resamples, seed=seed)[metric]
    names = list(exact())
    return flat({n: found[n].score for n in names}), flat({n: found[n].stderr for n in names})


def error(resamples: int) -> float:
    """Return the root mean square error of the estimate."""
    return float((estimated(resamples)[0] - flat(exact())).square().mean().sqrt())


def test_the_estimate_converges_to_the_exact_diagonal() -> None:
    """A hundred times the draws leave about a tenth of the error."""
    assert 0.03 < error(RESAMPLES) / error(2) < 0.3
    assert error(RESAMPLES) < 0.1 * float(flat(exact()).max())


@pytest.mark.parametrize("metric", ["ggn_diag", "ggn_obd"])
def test_the_standard_error_is_honest(metric: str) -> None:
    """Over three seeds the truth lies within two standard errors in 90 to 99 % of the entries."""
    weights = very_tiny()[0].parameters()
    factors = {n: weights[n].detach() ** 2 / 2 if metric == "ggn_obd" else torch.ones(()) for n in exact()}
    truth = flat({name: factors[name] * diagonal for name, diagonal in exact().items()})
    moving = truth > 1e-12
    inside = [
        ((found - truth).abs() <= 2 * stderr)[moving].double().mean()
        for found, stderr in (estimated(RESAMPLES, seed, metric) for seed in range(3))
    ]
    assert 0.90 <= float(sum(inside) / 3) <= 0.99


def test_labels_follow_the_model() -> None:
    """Drawn labels have the frequencies of the model's own probabilities, and depend on seed, window and draw alone."""
    probabilities = torch.tensor([0.5, 0.25, 0.125, 0.125])
    logits = probabilities.log().expand(1, 20001, 4)
    labels = sampled_labels(logits, 0, 0, 0)
    assert labels.shape == (20000,)
    shares = torch.bincount(labels, minlength=4) / 20000
    torch.testing.assert_close(shares, probabilities, atol=0.015, rtol=0)
    assert torch.equal(labels, sampled_labels(logits, 0, 0, 0))
    for other in [(1, 0, 0), (0, 1, 0), (0, 0, 1)]:
        assert not torch.equal(labels, sampled_labels(logits, *other))


def test_an_impossible_label_is_never_drawn() -> None:
    """Tokens of probability zero, at either end of the vocabulary too, do not occur."""
    logits = torch.tensor([-torch.inf, 0.0, -torch.inf, 0.0, -torch.inf]).expand(1, 2001, 5)
    assert set(sampled_labels(logits, 0, 0, 0).tolist()) == {1, 3}


def test_text_and_sampled_labels_share_a_pass() -> None:
    """Scored together with the text's own gradients, the sampled ones keep their bits."""
    loaded, windows = load("llama_tied"), unequal_windows()
    together = engine_scores(loaded, windows, ["grad_squared", "ggn_diag", "fisher_obd"], resamples=3)
    for metric in ("grad_squared", "ggn_diag"):
        alone = engine_scores(loaded, windows, [metric], resamples=3)[metric]
        assert all(torch.equal(scores.score, together[metric][name].score) for name, scores in alone.items())
