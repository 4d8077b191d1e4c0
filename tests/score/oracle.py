"""Print every metric's largest difference from the slow transcription of its formula, and the coverage of its standard error.

    python -m tests.score.oracle

First table: tiny models in float64, windows of unequal lengths, all architectures; difference over the tensor's largest score.
Second: a model of 216 weights whose Hessian and Gauss-Newton matrix are known exactly.
"""

import torch

from esa.registry import METRICS
from tests.conftest import CONFIGS
from tests.score.naive import (
    CURVED,
    FIRST_ORDER,
    Tensors,
    engine_scores,
    first_order,
    gradients,
    load_double,
    mean_over_windows,
    probed_diagonal,
    unequal_windows,
)
from tests.score.test_curvature import INCLUDE, flat, very_tiny
from tests.score.test_ggn import exact
from tests.score.test_probe_groups import mean_gradient

REFERENCE = {
    "magnitude": "abs(w)",
    "act_mag": "hooks on every module, float64 sums",
    "wanda": "hooks on every module, float64 sums",
    "super_activation": "hooks, weight by weight",
    "grad_x_weight": "autograd.grad per window",
    "grad_squared": "autograd.grad per window",
    "fisher_obd": "autograd.grad per window",
    "ggn_diag": "autograd.grad of each summed loss on the same labels",
    "ggn_obd": "the same, times w^2 / 2",
    "hutchinson_diag": "the same probes, one product at a time",
    "obd": "the same, times w^2 / 2",
    "taylor2": "the same, with the gradient of L",
}


def largest(found: Tensors, expected: Tensors) -> float:
    """Return the largest difference over the largest score of its tensor."""
    return max(
        float((scores.double() - expected[name]).abs().max() / expected[name].abs().max().clamp(min=1e-300))
        for name, scores in found.items()
        if float(expected[name].abs().max()) > 0
    )


def differences(architecture: str) -> dict[str, float]:
    """Return each metric's largest relative difference on one architecture."""
    loaded, windows = load_double(architecture), unequal_windows()
    found = engine_scores(loaded, windows, FIRST_ORDER, peak_ratio=1.0)
    expected = first_order(loaded, windows)
    rows = {metric: largest({n: s.score for n, s in found[metric].items()}, expected[metric]) for metric in FIRST_ORDER}
    names = INCLUDE[architecture]
    curved = engine_scores(loaded, windows, CURVED, probes=3, include=names)
    diagonal = {name: mean for name, (mean, _) in probed_diagonal(loaded, windows, names, probes=3).items()}
    weights = {name: loaded.parameters()[name].detach() for name in names}
    slopes = gradients(loaded, windows)
    slope = {name: mean_over_windows(windows, [g[name] for g in slopes]) for name in names}
    expected_curved = {
        "hutchinson_diag": {n: h.abs() for n, h in diagonal.items()},
        "obd": {n: (weights[n] ** 2 * h / 2).abs() for n, h in diagonal.items()},
        "taylor2": {n: (weights[n] ** 2 * h / 2 - slope[n] * weights[n]).abs() for n, h in diagonal.items()},
    }
    for metric in CURVED:
        rows[metric] = largest({n: s.score for n, s in curved[metric].items()}, expected_curved[metric])
    return rows


def coverage(metric: str, truth: Tensors, effort: dict[str, int], seeds: int) -> list[float]:
    """Return the share of entries within two standard errors of the truth, seed by seed."""
    loaded, windows, _, _ = very_tiny()
    shares = []
    for seed in range(seeds):
        found = engine_scores(loaded, windows, [metric], seed=seed, **effort)[metric]
        signed = flat({n: found[n].score if found[n].signed is None else found[n].signed for n in truth})
        stderr = flat({n: found[n].stderr for n in truth})
        moving = stderr > 1e-9
        shares.append(float(((signed - flat(truth)).abs() <= 2 * stderr)[moving].double().mean()))
    return shares


def main() -> None:
    """Print both tables."""
    torch.set_num_threads(1)
    rows = {architecture: differences(architecture) for architecture in CONFIGS}
    print(f"{'metric':<17}{'largest difference':>19}  {'on':<11} naive reference")
    for metric in METRICS:
        worst = max(rows, key=lambda architecture: rows[architecture][metric])
        print(f"{metric:<17}{rows[worst][metric]:>19.1e}  {worst:<11} {REFERENCE[metric]}")
    loaded, _, diagonal, _ = very_tiny()
    weights = {name: loaded.parameters()[name].detach() for name in diagonal}
    half = {name: w**2 / 2 for name, w in weights.items()}
    slope = mean_gradient()
    truths = {
        "ggn_diag": exact(),
        "ggn_obd": {n: half[n] * d for n, d in exact().items()},
        "hutchinson_diag": diagonal,
        "obd": {n: half[n] * h for n, h in diagonal.items()},
        "taylor2": {n: half[n] * h - slope[n] * weights[n] for n, h in diagonal.items()},
    }
    print(f"\n{'metric':<17}{'draws':<16}{'truth within 2 stderr':>22}   seed by seed (5 seeds)")
    for metric, truth in truths.items():
        efforts = (
            [{"resamples": number} for number in (32, 100, 200)]
            if "ggn" in metric
            else [{"probes": 32}, {"probes": 200}]
        )
        if "ggn" not in metric:
            efforts.append({"probes": 200, "probe_groups": 2})
        for effort in efforts:
            shares = coverage(metric, truth, effort, seeds=5)
            text = " ".join(f"{key}={value}" for key, value in effort.items()).replace("probe_groups", "groups")
            print(f"{metric:<17}{text:<20}{sum(shares) / 5:>18.1%}   {' '.join(f'{share:.1%}' for share in shares)}")


if __name__ == "__main__":
    main()
