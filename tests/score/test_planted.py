"""A weight that was planted is found, by the metrics that should find it and by intervention."""

from functools import cache

import numpy as np
import pytest
import torch
from torch import nn

from esa.data import TokenWindows
from esa.eval import Evaluator
from esa.model import LoadedModel, prepare
from esa.perturb.apply import Target, applied, plan_changes
from esa.registry import METRICS
from tests.conftest import VOCABULARY, build, make_tokenizer, tiny_spec
from tests.eval.edits import compare_standing
from tests.score.naive import engine_scores

FIRST = {
    "down": ("magnitude", "act_mag", "wanda", "super_activation", "obd"),
    "value": ("magnitude", "act_mag", "wanda", "ggn_obd", "obd"),
}
BEHIND = {  # best and worst share of the weights that score at least as high: raw curvature shrinks as a weight grows
    "grad_x_weight": (0, 0.02),
    "ggn_obd": (0, 0.01),
    "fisher_obd": (0, 0.02),
    "taylor2": (0, 0.02),
    "grad_squared": (0.4, 1),
    "ggn_diag": (0.3, 1),
    "hutchinson_diag": (0.3, 1),
}
# The other weights are 0.2 standard normal, the largest about 0.8; 64 and 128 make one path dominate a random model.
# Behind the weight of an MLP's output projection comes a norm: its gradient fades, so that ggn_obd has it among the top 1 %.
DOWN = {
    "llama": ("model.layers.1.mlp.down_proj.weight", (5, 7), 64.0),
    "llama_tied": ("model.layers.1.mlp.down_proj.weight", (5, 7), 64.0),
    "gpt2": ("transformer.h.1.mlp.c_proj.weight", (7, 5), 128.0),
    "gpt_neox": ("gpt_neox.layers.1.mlp.dense_4h_to_h.weight", (5, 7), 64.0),
    "phi3": ("model.layers.1.mlp.down_proj.weight", (5, 7), 64.0),
    "mixtral": (
        "model.layers.1.mlp.experts.down_proj",
        (1, 5, 7),
        64.0,
    ),  # expert 2's compete with weights that turn routes
}
# Behind a value projection comes none: every saliency has the weight first.
VALUE = {
    "llama": ("model.layers.0.self_attn.v_proj.weight", (3, 5), 8.0),
    "llama_tied": ("model.layers.0.self_attn.v_proj.weight", (3, 5), 14.0),
    "gpt2": ("transformer.h.0.attn.c_attn.weight", (5, 35), 8.0),  # columns 32 to 47 are the values
    "gpt_neox": ("gpt_neox.layers.0.attention.query_key_value.weight", (10, 5), 8.0),  # rows 8 to 11: head 0's values
    "phi3": ("model.layers.0.self_attn.qkv_proj.weight", (27, 5), 8.0),  # rows 24 to 31 are the values
    "mixtral": ("model.layers.0.self_attn.v_proj.weight", (3, 5), 8.0),
}


def speak(model: nn.Module, number: int = 8, length: int = 16) -> TokenWindows:
    """Return text that the model itself draws: on it the intact model is the best one, and damage a loss."""
    draw = torch.Generator().manual_seed(0)
    ids = torch.randint(0, VOCABULARY, (number, 1), generator=draw)
    while ids.shape[1] < length:
        with torch.no_grad():
            chances = model(input_ids=ids, use_cache=False).logits[:, -1].softmax(-1)
        ids = torch.cat([ids, torch.multinomial(chances, 1, generator=draw)], dim=1)
    return TokenWindows(tuple(tuple(row) for row in ids.tolist()), "itself", "stream", length, False, number, 0)


@cache
def planted(
    architecture: str, where: str
) -> tuple[LoadedModel, TokenWindows, dict[str, dict[str, torch.Tensor]], Target]:
    """Return a random model with one large weight, its own text, every metric's scores, and the weight."""
    name, place, value = {"down": DOWN, "value": VALUE}[where][architecture]
    model = build(architecture)
    weight = dict(model.named_parameters())[name]
    with torch.no_grad():
        weight[place] = value
    loaded = prepare(model, make_tokenizer(), tiny_spec().model, torch.device("cpu"))
    windows = speak(model)
    metrics = METRICS if where == "down" else FIRST[where]
    found = engine_scores(loaded, windows, list(metrics), probes=16, resamples=16, peak_ratio=5.0)
    scores = {metric: {name: s.score for name, s in tensors.items()} for metric, tensors in found.items()}
    return loaded, windows, scores, (name, int(np.ravel_multi_index(place, weight.shape)))


def rank_of(scores: dict[str, torch.Tensor], target: Target) -> int:
    """Return how many weights of the model score at least as high."""
    own = scores[target[0]].reshape(-1)[target[1]]
    return sum(int((tensor >= own).sum()) for tensor in scores.values())


def strongest(scores: dict[str, torch.Tensor], number: int) -> list[Target]:
    """Return the weights that score highest over all tensors."""
    rows = [
        (float(value), (name, int(index)))
        for name, tensor in scores.items()
        for value, index in zip(*tensor.reshape(-1).topk(number), strict=True)
    ]
    return [target for _, target in sorted(rows, reverse=True)[:number]]


@pytest.mark.parametrize(("where", "metric"), [(where, metric) for where, names in FIRST.items() for metric in names])
def test_the_planted_weight_comes_first(architecture: str, where: str, metric: str) -> None:
    """By these metrics the planted weight is number 1 of the whole model, on every architecture."""
    _, _, scores, target = planted(architecture, where)
    assert rank_of(scores[metric], target) == 1


def test_every_metric_meets_the_planted_weight() -> None:
    """A metric that enters the registry is told where the planted weight stands by it."""
    assert {*FIRST["down"], *BEHIND} == set(METRICS)


@pytest.mark.parametrize("metric", BEHIND)
def test_other_metrics_see_less_of_it(architecture: str, metric: str) -> None:
    """Gradient times weight has it among the top 2 %; raw gradients and curvature, which shrink as it grows, far behind."""
    best, worst = BEHIND[metric]
    _, _, scores, target = planted(architecture, "down")
    share = rank_of(scores[metric], target) / sum(tensor.numel() for tensor in scores[metric].values())
    assert best <= share <= worst


@pytest.mark.parametrize("where", FIRST)
def test_zeroing_it_does_the_most_damage(architecture: str, where: str) -> None:
    """Of itself, the 8 strongest by each of four metrics, and 40 of its own matrix, zeroing it raises the NLL most."""
    loaded, windows, scores, target = planted(architecture, where)
    evaluator = Evaluator(loaded, windows, batch_tokens=2048)
    base = evaluator.remember().mean_nll
    others = {t for metric in ("magnitude", "act_mag", "obd", "ggn_obd") for t in strongest(scores[metric], 8)}
    others |= {(target[0], index) for index in range(0, 400, 10) if index < loaded.table[target[0]].numel}

    def damage(one: Target) -> float:
        with applied(loaded, plan_changes(loaded, [one], "zero", {}, np.random.default_rng(0))):
            return compare_standing(evaluator, one[0]).mean_nll - base

    done = {one: damage(one) for one in others | {target}}
    assert max(done, key=lambda one: abs(done[one])) == target
    assert done[target] > 0.1
