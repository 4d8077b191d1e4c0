"""super_activation finds the planted writers of massive activations, one after the other, and tells erasers apart."""

from typing import Any

import pytest
import torch

from esa.errors import SpecError
from esa.model import LoadedModel, eligible, fingerprint, prepare
from esa.progress import Silent
from esa.score.engine import Effort, Engine, load_metrics
from esa.score.metric import Scores
from tests.conftest import build, load, make_tokenizer, tiny_spec
from tests.score.naive import engine_scores, load_double, super_activations, unequal_windows

DOWN = "model.layers.1.mlp.down_proj.weight"
LARGE = 400.0
GEOMETRIES = {
    "fan_out": ([(5, 7), (9, 7), (3, 7)], (LARGE, 0.9 * LARGE, 0.8 * LARGE)),  # one column, as in Phi-3 and Llama-3
    "gather": ([(5, 7), (5, 9), (5, 2)], (LARGE, 0.9 * LARGE, 0.8 * LARGE)),  # one row, as in Llama-13B
}


def planted(places: list[tuple[int, int]], values: tuple[float, ...], name: str = DOWN) -> LoadedModel:
    """Return a tiny Llama with large weights at ``places`` of an output projection."""
    model = build("llama")
    with torch.no_grad():
        for place, value in zip(places, values, strict=True):
            dict(model.named_parameters())[name][place] = value
    return prepare(model, make_tokenizer(), tiny_spec().model, torch.device("cpu"))


def search(
    loaded: LoadedModel,
    rounds: int,
    include: tuple[str, ...] = (),
    lengths: tuple[int, ...] = (9, 12, 5),
    **effort: Any,
) -> tuple[Engine, dict[str, Scores]]:
    """Return the engine after a search, and the scores by parameter."""
    found: dict[str, Scores] = {}

    def emit(metric: Any, info: Any, weight: Any, scores: Scores, usage: Any) -> None:
        found[info.name] = scores

    engine = Engine(
        loaded, eligible(loaded.table, include), load_metrics(["super_activation"]), emit, Silent(),
        Effort(rounds=rounds, **effort),
    )  # fmt: skip
    engine.run(unequal_windows(lengths=lengths), seed=0)
    return engine, found


@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_both_published_geometries_are_found(geometry: str) -> None:
    """Weights that share a column or a row are found one after the other, and the search ends by itself behind the last."""
    places, values = GEOMETRIES[geometry]
    loaded = planted(places, values)
    before = fingerprint(loaded.model)
    engine, scores = search(loaded, rounds=20)
    found = [one["address"] for one in engine.super_weights]
    assert sorted(found) == sorted(f"{DOWN}:{i},{j}" for i, j in places)
    assert [one["round"] for one in engine.super_weights] == [1, 2, 3]
    assert all(one["peak_ratio"] >= 20 and one["weight"] in values for one in engine.super_weights)
    assert fingerprint(loaded.model) == before
    order = scores[DOWN].score.reshape(-1).argsort(descending=True)[:3].tolist()
    assert sorted(order) == sorted(i * 24 + j for i, j in places)


def test_an_innocent_model_has_no_candidate() -> None:
    """Without a planted weight no block stands out: every score is zero, the signed growths are there."""
    engine, scores = search(load("llama"), rounds=20)
    assert engine.super_weights == []
    assert len(scores) == 3
    assert all(float(found.score.max()) == 0 and bool((found.signed != 0).any()) for found in scores.values())


def test_rounds_limit_the_search() -> None:
    """With one round there is one finding, and the masked weights score what they add to the peak that was seen."""
    places, values = GEOMETRIES["fan_out"]
    engine, _ = search(planted(places, values), rounds=1)
    assert len(engine.super_weights) == 1


def test_an_eraser_scores_zero_and_has_a_negative_growth() -> None:
    """A late weight that takes a massive activation away peaks as its writer does; its score is zero."""
    loaded = planted(*GEOMETRIES["gather"])
    with torch.no_grad():
        windows = unequal_windows(lengths=(3,))
        states: list[torch.Tensor] = []
        inputs: list[torch.Tensor] = []
        block = loaded.stack.blocks[2]
        hooks = [
            block.register_forward_hook(lambda _, args, h: states.append((h[0] if isinstance(h, tuple) else h)[0])),
            block.mlp.down_proj.register_forward_pre_hook(lambda _, args: inputs.append(args[0][0])),
        ]
        for ids in windows.ids:
            loaded.model(input_ids=torch.tensor([ids]), use_cache=False)
        for hook in hooks:
            hook.remove()
        h, x = torch.cat(states), torch.cat(inputs)
        token = int(h[:, 5].abs().argmax())
        others = x.abs().clone()
        others[token] = 0
        channel = int((x[token].abs() / others.amax(0)).argmax())  # it speaks at this token above all
        weight = loaded.model.model.layers[2].mlp.down_proj.weight
        weight[5, channel] -= h[token, 5] / x[token, channel]  # what is left there is nothing
    _, scores = search(loaded, rounds=1, lengths=(3,), peak_ratio=5.0)
    eraser = scores["model.layers.2.mlp.down_proj.weight"]
    assert eraser.facts["peak_row"] == 5
    assert float(eraser.facts["peak_ratio"]) >= 5
    assert float(eraser.signed[5, channel]) < -1
    assert float(eraser.score[5, channel]) == 0


def test_scores_of_a_second_round_are_those_of_the_model_without_the_first() -> None:
    """What is found second scores as in a model from which the first is gone, and the first keeps its own score."""
    places, values = GEOMETRIES["fan_out"]
    loaded = planted(places, values)
    _, twice = search(loaded, rounds=2)
    _, once = search(loaded, rounds=1)
    without = planted(places, (0.0, *values[1:]))
    _, alone = search(without, rounds=1)
    expected = torch.maximum(once[DOWN].score, alone[DOWN].score)
    assert torch.equal(twice[DOWN].score, expected)
    assert float(twice[DOWN].score[9, 7]) > float(once[DOWN].score[9, 7])


@pytest.mark.parametrize("architecture_name", ["llama", "gpt2", "mixtral"])
def test_signed_growth_equals_its_formula(architecture_name: str) -> None:
    """Positive and negative growth of every weight are what the definition says, weight by weight."""
    loaded, windows = load_double(architecture_name), unequal_windows()
    found = engine_scores(loaded, windows, ["super_activation"], peak_ratio=1.0)["super_activation"]
    expected = super_activations(loaded, windows)[1]
    assert set(found) == set(expected)
    for name, scores in found.items():
        torch.testing.assert_close(scores.signed.double(), expected[name], rtol=1e-4, atol=1e-5)
    assert any(bool((scores.signed < 0).any()) for scores in found.values())


def test_without_an_output_projection_there_is_nothing_to_score() -> None:
    """A choice of weights without any MLP output projection is an error that names the components."""
    with pytest.raises(SpecError) as caught:
        search(load("llama"), rounds=1, include=("component=attn.*",))
    assert caught.value.problems == [
        "score.metrics: super_activation scores mlp.down and expert.down; none of them is among the weights to score"
    ]


def test_the_bits_come_back_after_an_interruption(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C in a later round leaves the model as it was."""
    from esa.score import rounds

    loaded = planted(*GEOMETRIES["gather"])
    before = fingerprint(loaded.model)

    def interrupt(*args: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(rounds, "forward_pass", interrupt)
    with pytest.raises(KeyboardInterrupt):
        search(loaded, rounds=5)
    assert fingerprint(loaded.model) == before
