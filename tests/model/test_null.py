"""Null models: shuffled ones keep every number and no place, random ones come from the configuration alone."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

import esa.score
from esa.artifact import read_manifest
from esa.errors import EsaError, ModelError
from esa.model import LoadedModel, load_model
from esa.model.footprint import footprint_of
from esa.model.null import make_null
from esa.report.provenance import _UNUSUAL
from esa.spec import derive_seed
from tests.conftest import CONFIGS, build, load, tiny_spec

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def numbers(loaded: LoadedModel) -> dict[str, torch.Tensor]:
    """Return copies of every parameter."""
    return {name: parameter.detach().clone() for name, parameter in loaded.model.named_parameters()}


def sorted_bits(values: torch.Tensor) -> list[int]:
    """Return the bit patterns of a tensor, sorted: its exact multiset."""
    return sorted(values.reshape(-1).view(torch.int16 if values.element_size() == 2 else torch.int32).tolist())


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_shuffled_keeps_the_multiset_of_every_matrix(architecture: str, dtype: torch.dtype) -> None:
    """Every matrix holds the same bits elsewhere, every vector stays, and the storage dtype too."""
    before, after = numbers(load(architecture, dtype)), numbers(load(architecture, dtype, null="shuffled"))
    assert set(before) == set(after)
    for name, values in after.items():
        assert values.dtype == before[name].dtype == dtype
        assert sorted_bits(values) == sorted_bits(before[name])
        moved = not torch.equal(values, before[name])
        assert moved == (values.ndim >= 2)


def test_shuffled_stays_within_each_expert() -> None:
    """Where experts are fused into one tensor, each keeps its own numbers, as experts in tensors of their own would."""
    before, after = load("mixtral"), load("mixtral", null="shuffled")
    fused = [name for name, info in before.table.items() if info.expert_axis is not None]
    assert fused
    for name in fused:
        axis = before.table[name].expert_axis
        assert axis is not None
        pairs = list(zip(numbers(before)[name].unbind(axis), numbers(after)[name].unbind(axis), strict=True))
        assert len(pairs) == 4
        for old, new in pairs:
            assert sorted_bits(old) == sorted_bits(new)
            assert not torch.equal(old, new)


def test_a_tied_tensor_is_shuffled_once() -> None:
    """Embedding and head of a tied model are still one tensor, and the logits are those of it."""
    loaded = load("llama_tied", null="shuffled")
    model = loaded.model
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert sorted_bits(model.lm_head.weight.detach()) == sorted_bits(build("llama_tied").lm_head.weight.detach())


@pytest.mark.parametrize("null", ["shuffled", "random"])
def test_the_seed_decides(null: str) -> None:
    """One seed gives the same bits twice, another seed others; both differ from the model itself, and say which they are."""
    one, again, other = (load("llama", null=null, null_seed=seed) for seed in (1, 1, 2))
    prints = [loaded.facts["fingerprint"] for loaded in (one, again, other, load("llama"))]
    assert prints[0] == prints[1]
    assert len(set(prints)) == 3
    assert (one.facts["null"], one.facts["null_seed"]) == (null, 1)
    assert not {"null", "null_seed"} & set(load("llama").facts)


@pytest.mark.parametrize("name", ["llama", "gpt2", "mixtral", "llama_tied"])
def test_random_is_the_models_own_initialisation(name: str) -> None:
    """Every parameter, norms included, is what the configuration alone gives under the seed; no trained number is left."""
    trained = load(name)
    with torch.no_grad():
        for parameter in trained.model.parameters():
            parameter.copy_(torch.full_like(parameter, 7.0))
    make_null(trained.model, tiny_spec(model={"id": "tiny", "null": "random"}).model)
    found = numbers(trained)
    assert not any(bool((values == 7.0).any()) for values in found.values())
    torch.manual_seed(derive_seed(0, "random"))
    own = dict(AutoModelForCausalLM.from_config(CONFIGS[name]()).named_parameters())
    assert set(own) == set(found)
    for key, values in found.items():
        assert torch.equal(values, own[key].detach())


@pytest.mark.parametrize("null", ["shuffled", "random"])
def test_no_other_draw_is_moved(null: str) -> None:
    """The global random state is the same before and after."""
    model = build("llama")
    before = torch.get_rng_state()
    make_null(model, tiny_spec(model={"id": "tiny", "null": null}).model)
    assert torch.equal(torch.get_rng_state(), before)


def test_random_is_drawn_in_the_storage_dtype() -> None:
    """Computed in float32 over a 16-bit storage, every number is one that the storage can hold."""
    loaded = load("llama", torch.bfloat16, compute="float32", null="random")
    for values in numbers(loaded).values():
        assert values.dtype == torch.float32
        assert torch.equal(values, values.bfloat16().float())


def test_a_configuration_of_other_tensors_is_refused() -> None:
    """A model that was changed after its configuration cannot be initialised from it."""
    model = build("llama")
    model.config = copy.deepcopy(model.config)
    model.config.intermediate_size = 32
    with pytest.raises(ModelError, match="the configuration makes a model of other tensors: .*size mismatch"):
        make_null(model, tiny_spec(model={"id": "tiny", "null": "random"}).model)


REFUSED = {
    "quantization": (
        {"quantization": "int8"},
        "null = 'shuffled' is made of numbers in one place; quantization: allowed: none",
    ),
    "device_map": (
        {"device_map": "auto"},
        "null = 'shuffled' is made of numbers in one place; device_map: allowed: none",
    ),
    "residency": (
        {"residency": "disk"},
        "null = 'shuffled' changes the whole model in memory; residency: allowed: memory",
    ),
}


@pytest.mark.parametrize("key", REFUSED)
def test_what_a_null_model_cannot_be_is_refused_by_the_spec(key: str) -> None:
    """Codes, several devices and blocks on disk are refused before anything is loaded, and the text says what is allowed."""
    given, text = REFUSED[key]
    with pytest.raises(EsaError) as caught:
        tiny_spec(model={"id": "tiny", "null": "shuffled", **given})
    assert text in str(caught.value)


def test_a_loaded_null_model_says_so(folder_model: Path) -> None:
    """From files, too: the note names the kind and the seed, and the numbers are those of the model in memory."""
    notes: list[str] = []

    class Noting(esa.progress.Silent):
        def note(self, text: str) -> None:
            notes.append(text)

    section = tiny_spec(model={"id": str(folder_model), "device": "cpu", "null": "shuffled", "null_seed": 3}).model
    loaded = load_model(section, Noting())
    assert notes == [
        f"loading {folder_model} as float32, every matrix's entries permuted (model.null = 'shuffled', seed 3),"
        " on cpu (named by model.device)"
    ]
    assert loaded.facts["fingerprint"] == load("llama", null="shuffled", null_seed=3).facts["fingerprint"]


def test_any_step_runs_on_a_null_model(folder_model: Path, tmp_path: Path) -> None:
    """A score step of the null model is a step of its own, and its manifest says what was scored."""
    runs = {
        null: esa.score.run(tiny_spec(model={"id": str(folder_model), "null": null}), root=tmp_path)
        for null in ("none", "shuffled", "random")
    }
    assert len({run.id for run in runs.values()}) == 3
    stated: dict[str, Any] = {null: read_manifest(run.folder)["model"] for null, run in runs.items()}
    assert [stated[null].get("null") for null in runs] == [None, "shuffled", "random"]
    assert len({model["fingerprint"] for model in stated.values()}) == 3
    assert set(_UNUSUAL) >= {"null", "null_seed"}


def test_a_second_model_is_predicted() -> None:
    """While a random null model is made there are two models in memory; a shuffled one needs no second."""
    loaded = load("llama")
    load_bytes = {
        null: footprint_of(loaded.model, tiny_spec(model={"id": "t", "null": null}).model, loaded.table).load_bytes
        for null in ("none", "shuffled", "random")
    }
    assert load_bytes["shuffled"] == load_bytes["none"]
    assert load_bytes["random"] == 2 * load_bytes["none"]
