"""super_activation finds the planted writers of massive activations, one after the other, and tells erasers apart."""

from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    GraniteConfig,
    Llama4TextConfig,
    LlamaConfig,
    Olmo2Config,
    Qwen2MoeConfig,
)

from esa.errors import ModelError, SpecError
from esa.model import LoadedModel, eligible, fingerprint, prepare
from esa.model.footprint import footprint_of
from esa.progress import Silent
from esa.score.engine import Effort, Engine, load_metrics
from esa.score.memory import effort_of
from esa.score.metric import Scores
from esa.score.peaks import PeakWatch
from esa.score.streaming import Window, forward_pass
from esa.score.super_activation import super_activation
from tests.conftest import SMALL, build, load, make_tokenizer, tiny_spec
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
    before = fingerprint(loaded.weights)
    engine, scores = search(loaded, rounds=20)
    found = [one["address"] for one in engine.super_weights]
    assert sorted(found) == sorted(f"{DOWN}:{i},{j}" for i, j in places)
    assert [one["round"] for one in engine.super_weights] == [1, 2, 3]
    assert all(one["peak_ratio"] >= 20 and one["weight"] in values for one in engine.super_weights)
    assert fingerprint(loaded.weights) == before
    order = scores[DOWN].score.reshape(-1).argsort(descending=True)[:3].tolist()
    assert sorted(order) == sorted(i * 24 + j for i, j in places)


def test_an_innocent_model_has_no_candidate() -> None:
    """Without a planted weight no block stands out: every score is zero, the signed growths are there."""
    engine, scores = search(load("llama"), rounds=20)
    assert engine.super_weights == []
    assert len(scores) == 3
    assert all(float(found.score.max()) == 0 and bool((found.signed != 0).any()) for found in scores.values())


def test_rounds_limit_the_search() -> None:
    """With one round there is one finding, and in a row the masked weights score what they add to the peak that was seen."""
    places, values = GEOMETRIES["gather"]
    engine, scores = search(planted(places, values), rounds=1)
    assert len(engine.super_weights) == 1
    assert (
        engine.super_weights[0]["address"]
        == f"{DOWN}:{','.join(map(str, divmod(int(scores[DOWN].score.argmax()), 24)))}"
    )
    assert sum(float(scores[DOWN].score[place]) > 10 for place in places) >= 2


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
    """A choice of weights without any MLP output projection is an error before any pass, and names the components."""
    loaded = load("llama")
    spec = tiny_spec(score={"metrics": ["super_activation"], "include": ["component=attn.*"]})
    with pytest.raises(SpecError) as caught:
        effort_of(spec, footprint_of(loaded.model, spec.model, loaded.table))
    assert caught.value.problems == [
        "score.metrics: super_activation scores mlp.down and expert.down; none of them is among the weights to score"
    ]


def test_rounds_that_run_out_are_said() -> None:
    """Where the last allowed round still found a weight, a warning says that there may be more; where the search ended, none."""
    places, values = GEOMETRIES["fan_out"]
    assert search(planted(places, values), rounds=2)[0].progress.warnings == [
        "the last of 2 rounds still found a weight: there may be more (score.rounds)"
    ]
    assert search(planted(places, values), rounds=9)[0].progress.warnings == []


def test_a_channel_that_writes_alone_is_a_candidate() -> None:
    """A projection of zeros but for one large weight has no median channel to stand above, and is found."""
    loaded = planted([(5, 7)], (LARGE,))
    with torch.no_grad():
        weight = loaded.parameters()[DOWN]
        kept = weight[5, 7].clone()
        weight.zero_()
        weight[5, 7] = kept
    engine, scores = search(loaded, rounds=1)
    assert [one["address"] for one in engine.super_weights] == [f"{DOWN}:5,7"]
    assert scores[DOWN].facts["peak_ratio"] is None


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_activations_that_are_no_numbers_are_refused(value: float) -> None:
    """NaN and infinity end in an error that names the block, not in scores of zero."""
    loaded = load("llama")
    with torch.no_grad():
        loaded.parameters()["model.layers.1.mlp.up_proj.weight"][3, 4] = value
    with pytest.raises(
        ModelError, match=r"layers.1.mlp.down_proj.weight or the hidden state behind block 1 is NaN or infinite"
    ):
        search(loaded, rounds=1)


BETWEEN = {  # what stands between the projection and the residual stream
    "a norm": Gemma2Config(**SMALL, num_key_value_heads=2, head_dim=4, query_pre_attn_scalar=4),
    "a norm, other order": Olmo2Config(**SMALL, num_key_value_heads=2),
    "a factor": GraniteConfig(**SMALL, num_key_value_heads=2, residual_multiplier=0.25),
    "a gate": Qwen2MoeConfig(
        **SMALL, num_key_value_heads=2, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=12,
        shared_expert_intermediate_size=24, decoder_sparse_step=1, mlp_only_layers=[],
    ),
    "nothing": LlamaConfig(**SMALL, num_key_value_heads=2),
}  # fmt: skip


@pytest.mark.parametrize("between", BETWEEN)
def test_growth_is_what_zeroing_the_weight_does(between: str) -> None:
    """On every kind of block the growth of a weight is the change of the residual stream when it is really zeroed."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(BETWEEN[between]).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim >= 2:
                parameter.copy_(torch.randn(parameter.shape) * 0.2)
    loaded = prepare(model, make_tokenizer(), tiny_spec().model, torch.device("cpu"))
    windows, chosen = unequal_windows(), eligible(loaded.table)
    watch = PeakWatch(loaded, chosen, 1.0)
    batches = [torch.tensor([ids]) for ids in windows.ids]
    forward_pass(loaded, [Window(n, ids) for n, ids in enumerate(batches)], None, Silent(), watch)
    assert set(watch.found) == {n for n, info in chosen.items() if info.component in ("mlp.down", "expert.down")}
    measured = 0
    for name, peak in watch.found.items():
        info, weight = loaded.table[name], loaded.parameters()[name]
        signed = super_activation(weight.detach(), peak, *peak.axes)[1]
        outputs: list[torch.Tensor] = []
        hook = loaded.stack.blocks[info.block].register_forward_hook(  # type: ignore[index]
            lambda _, args, h, outputs=outputs: outputs.append(h[0] if isinstance(h, tuple) else h)
        )
        for place in (signed != 0).nonzero().tolist():
            saved = weight.detach()[tuple(place)].clone()
            with torch.no_grad():
                weight[tuple(place)] = 0
                model(input_ids=batches[peak.window], use_cache=False)
                weight[tuple(place)] = saved
            without = float(outputs[-1][0, peak.token, peak.row])
            expected = (abs(peak.hidden) - abs(without)) / peak.median
            assert float(signed[tuple(place)]) == pytest.approx(expected, rel=0.05, abs=2e-3)
            measured += 1
        hook.remove()
        assert (peak.response is None) == (between == "nothing" or "experts" in name)
    assert measured > 30


def test_experts_whose_tokens_cannot_be_told_are_refused() -> None:
    """A mixture that hands its experts no routing is an error that says so."""
    config = Llama4TextConfig(
        **SMALL, num_key_value_heads=2, head_dim=4, num_local_experts=4, num_experts_per_tok=1, interleave_moe_layer_step=1,
        intermediate_size_mlp=24,
    )  # fmt: skip
    torch.manual_seed(0)
    loaded = prepare(
        AutoModelForCausalLM.from_config(config).eval(), make_tokenizer(), tiny_spec().model, torch.device("cpu")
    )
    with pytest.raises(
        ModelError, match="does not tell which tokens its experts see: super_activation has no value for"
    ):
        search(loaded, rounds=1, include=("*experts.down_proj",))


def test_the_bits_come_back_after_an_interruption(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C in a later round leaves the model as it was."""
    from esa.score import rounds

    loaded = planted(*GEOMETRIES["gather"])
    before = fingerprint(loaded.weights)

    def interrupt(*args: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(rounds, "forward_pass", interrupt)
    with pytest.raises(KeyboardInterrupt):
        search(loaded, rounds=5)
    assert fingerprint(loaded.weights) == before


def test_a_search_without_a_finding_says_so() -> None:
    """Where no weight stands out a warning tells the largest ratio and the one that is needed."""
    (warning,) = search(load("llama"), rounds=1)[0].progress.warnings
    assert warning.startswith("super_activation: no weight stands out: the largest peak_ratio is ")
    assert warning.endswith(", 20 is needed (score.peak_ratio); every score is zero, and a top_k of it is no choice")


def test_every_block_that_stands_out_has_a_candidate() -> None:
    """The weights that the rounds found are candidates, and so is the strongest eraser of a late block that peaks as they do."""
    loaded = planted(*GEOMETRIES["gather"])
    with torch.no_grad():
        late = loaded.parameters()["model.layers.2.mlp.down_proj.weight"]
        late[5] = 0
        late[5, 3] = -LARGE
    engine, scores = search(loaded, rounds=20, peak_ratio=10.0)
    found = {one["address"]: one for one in engine.candidates}
    assert set(found) >= {one["address"] for one in engine.super_weights}
    stands_out = {name for name, one in scores.items() if (one.facts["peak_ratio"] or 0) >= 10}
    assert stands_out <= {address.partition(":")[0] for address in found}
    assert "model.layers.2.mlp.down_proj.weight" in stands_out
    for one in engine.candidates:
        if one["round"] == 1:  # what a first look sees is the growth of the largest size in its block
            name, place = one["address"].split(":")
            signed = search(loaded, rounds=1, peak_ratio=10.0)[1][name].signed
            assert one["growth"] == float(signed[tuple(map(int, place.split(",")))]) != 0
    assert all(one["round"] >= 1 and one["peak_ratio"] >= 10 for one in engine.candidates)
