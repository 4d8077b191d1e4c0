"""zero_keep_peak: the weights are zero, and the peak tokens do not notice."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from esa.data import TokenWindows
from esa.errors import TargetError
from esa.eval import Evaluator
from esa.model import LoadedModel
from esa.perturb.apply import applied, plan_changes
from esa.perturb.hooks import hooked
from esa.perturb.targets import Target
from tests.conftest import VOCABULARY, load
from tests.eval.edits import compare_standing
from tests.perturb.planted import HEAD, TOP, frame, perturb, ranking, rows, spec

PLACES = {  # several weights of one output, and one of another
    "llama": ("model.layers.1.mlp.down_proj.weight", [(5, 7), (5, 9), (3, 2)]),
    "gpt2": ("transformer.h.1.mlp.c_proj.weight", [(7, 5), (9, 5), (2, 3)]),
    "gpt_neox": ("gpt_neox.layers.0.attention.query_key_value.weight", [(5, 7), (5, 9), (40, 2)]),
    "phi3": ("model.embed_tokens.weight", [(5, 7), (9, 7), (40, 2), (41, 2), (42, 2), (43, 3)]),
    "llama_tied": ("model.embed_tokens.weight", [(t, 7) for t in range(0, 96, 2)] + [(t, 3) for t in range(0, 96, 3)]),
}


def eval_windows() -> TokenWindows:
    """Return four windows in two batches of unequal length."""
    draw = torch.Generator().manual_seed(4)
    ids = tuple(tuple(torch.randint(0, VOCABULARY, (n,), generator=draw).tolist()) for n in (9, 9, 6, 6))
    return TokenWindows(ids, "drawn", "lines", 9, False, 4, 0)


def naive_logits(loaded: LoadedModel, ids: tuple[int, ...], name: str, places: list[tuple[int, int]]) -> Tensor:
    """Return one window's logits with the weights zeroed and each output's peak position put right, one by one."""
    weight = loaded.parameters()[name].detach().clone()

    def replace(module: Any, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        x, y = args[0][0], output[0].clone()
        if isinstance(module, torch.nn.Embedding):
            x = torch.nn.functional.one_hot(x, len(weight)).float()
        matrix = weight if isinstance(module, torch.nn.Linear) else weight.T  # (outputs, inputs)
        pairs = places if isinstance(module, torch.nn.Linear) else [(j, i) for i, j in places]
        for row in {row for row, _ in pairs}:
            without = y[:, row].clone()
            for j in [column for other, column in pairs if other == row]:
                without -= x[:, j] * matrix[row, j]
            peak = max(range(len(y)), key=lambda t: abs(float(y[t, row])))
            without[peak] = y[peak, row]
            y[:, row] = without
        return y[None]

    modules = [loaded.model.get_submodule(use.removesuffix(".weight")) for use in loaded.table[name].uses]
    handles = [module.register_forward_hook(replace) for module in modules]
    with torch.no_grad():
        logits: Tensor = loaded.model(input_ids=torch.tensor([ids]), use_cache=False).logits[0]
    for handle in handles:
        handle.remove()
    return logits


def places_in(rows: int, columns: int, inside: str) -> list[tuple[int, int]]:
    """Return the places of row 5, of column 7, or all, of a tensor."""
    every = [(i, j) for i in range(rows) for j in range(columns)]
    return [(i, j) for i, j in every if {"row": i == 5, "column": j == 7, "tensor": True}[inside]]


REGIONS = {
    f"{architecture}, {inside} of {name.rpartition('.')[0].rpartition('.')[2]}": (
        architecture, name, places_in(*shape, inside)
    )
    for architecture, name, shape in (
        ("llama", "model.layers.1.mlp.down_proj.weight", (16, 24)),
        ("gpt2", "transformer.h.1.mlp.c_proj.weight", (64, 16)),
        ("phi3", "model.embed_tokens.weight", (96, 16)),
    )
    for inside in ("row", "column", "tensor")
}  # fmt: skip
CASES = {key: (key, *value) for key, value in PLACES.items()} | REGIONS


@pytest.mark.parametrize("pieces", [1 << 24, 20])
@pytest.mark.parametrize("case", CASES)
def test_only_the_peak_tokens_keep_the_contribution(case: str, pieces: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The evaluated NLL is that of the intact output at each window's peak token and the zeroed weights' elsewhere.

    Of single weights, whole rows, columns and tensors, however many contributions exist at once.
    """
    architecture, name, places = CASES[case]
    monkeypatch.setattr("esa.perturb.hooks._PARTS", pieces)
    loaded, windows = load(architecture), eval_windows()
    shape = loaded.table[name].shape
    targets: list[Target] = [(name, int(np.ravel_multi_index(place, shape))) for place in places]
    expected = []
    for ids in windows.ids:
        logits = naive_logits(loaded, ids, name, places)[:-1].log_softmax(-1)
        expected.append(float(-logits[torch.arange(len(ids) - 1), torch.tensor(ids[1:])].sum()))
    evaluator = Evaluator(loaded, windows, batch_tokens=18)
    evaluator.remember()
    changes = plan_changes(loaded, targets, "zero_keep_peak", {}, np.random.default_rng(0))
    with applied(loaded, changes), hooked(loaded, "zero_keep_peak", changes):
        found = compare_standing(evaluator, name).nll
    with applied(loaded, changes):
        zeroed = compare_standing(evaluator, name).nll
    assert found == pytest.approx(expected, rel=1e-5)
    assert zeroed != pytest.approx(expected, rel=1e-4)


def test_the_hook_is_gone_afterwards() -> None:
    """After a campaign, and after one that breaks off, no module has a hook."""
    loaded = load("llama")
    changes = plan_changes(
        loaded, [("model.layers.1.mlp.down_proj.weight", 3)], "zero_keep_peak", {}, np.random.default_rng()
    )
    with pytest.raises(KeyboardInterrupt), hooked(loaded, "zero_keep_peak", changes):
        raise KeyboardInterrupt
    assert not any(module._forward_hooks for module in loaded.model.modules())


def test_zero_and_zero_keep_peak_stand_side_by_side(tmp_path: Any) -> None:
    """A campaign measures both on the same weights: two cases, two damages, and an untied head is a linear map."""
    loaded = load("llama")
    result = perturb(
        spec({"method": "zero"}, {"method": "zero_keep_peak"}), ranking(rows("act_mag", 0, "top_k", TOP)), tmp_path,
        loaded=loaded,
    )  # fmt: skip
    damage = frame(result)
    assert HEAD in {name for name, _ in TOP}
    assert damage["method"].to_list() == ["zero", "zero", "zero_keep_peak", "zero_keep_peak"]
    assert damage["nll"].n_unique() == 4


@pytest.mark.parametrize(
    ("architecture", "name", "what"),
    [
        ("llama", "model.layers.0.input_layernorm.weight", "LlamaRMSNorm"),
        ("mixtral", "model.layers.1.mlp.gate.weight", "MixtralTopKRouter"),
        ("mixtral", "model.layers.1.mlp.experts.down_proj", "MixtralExperts"),
    ],
)
def test_what_has_no_output_to_give_back_to_is_refused(architecture: str, name: str, what: str, tmp_path: Any) -> None:
    """A norm, a router and fused experts are refused with the reason, before anything is evaluated."""
    with pytest.raises(TargetError) as caught:
        perturb(spec({"method": "zero_keep_peak"}), [f"{name}:3"], tmp_path, loaded=load(architecture))
    assert caught.value.where == "perturb.0.method"
    said = "zero_keep_peak gives contributions back to the outputs of linear maps and embeddings"
    assert caught.value.what == f"{name} belongs to {what}; {said}"
    assert not list(tmp_path.rglob("*.toml"))
