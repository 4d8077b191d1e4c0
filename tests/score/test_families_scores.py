"""On every family of decoders: each matrix is scored once, on its own inputs, and a planted super weight comes first."""

from collections import Counter
from functools import cache
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from esa import rank, score
from esa.artifact import read_table
from esa.eval import Evaluator
from esa.model import LoadedModel, eligible, parse_address
from esa.perturb.apply import Target, applied, plan_changes
from esa.progress import Recording
from esa.registry import METRICS
from esa.score.engine import Effort, Engine, load_metrics
from esa.score.peaks import PROJECTIONS
from tests.conftest import tiny_spec
from tests.eval.edits import compare_standing
from tests.families import FAMILIES, build_family, load_family, short_name
from tests.score.naive import engine_scores, unequal_windows
from tests.score.test_planted import rank_of, speak, strongest

every_family = pytest.mark.parametrize("name", FAMILIES)
TELLING = ("act_mag", "wanda", "ggn_obd")


def emitted(loaded: LoadedModel, metrics: list[str]) -> tuple[dict[str, Counter[str]], Recording]:
    """Return how often each parameter was scored by each metric, and what the engine said."""
    counts: dict[str, Counter[str]] = {metric: Counter() for metric in metrics}
    said = Recording(None)

    def emit(metric: Any, info: Any, *_: Any) -> None:
        counts[metric.name][info.name] += 1

    Engine(loaded, eligible(loaded.table), load_metrics(metrics), emit, said, Effort(probes=1)).run(
        unequal_windows(), 0
    )
    return counts, said


@every_family
def test_every_matrix_is_scored_once(name: str) -> None:
    """Every metric scores each matrix once that it has a meaning for and no other, and says of how many it has none."""
    family, loaded = FAMILIES[name], load_family(name)
    chosen = eligible(loaded.table)
    metrics = [metric for metric in METRICS if not (metric == "super_activation" and family.untold)]
    closing = {n for n, info in chosen.items() if info.component in PROJECTIONS and info.input_axis is not None}
    if not closing:
        metrics.remove("super_activation")
    counts, said = emitted(loaded, metrics)
    seen = {n for n in chosen if short_name(n) not in family.unseen.split()}
    for metric in metrics:
        expected = {"act_mag": seen, "wanda": seen, "super_activation": closing}.get(metric, set(chosen))
        assert counts[metric] == Counter(expected), metric
    warned = [text for text in said.warnings if "has no meaning" in text]
    assert len(warned) == (2 if family.unseen else 0)
    for metric, text in zip(("act_mag", "wanda"), warned, strict=False):
        assert text.startswith(
            f"{metric} scores {len(seen)} of {len(chosen)} tensors; it has no meaning for the others, such as "
        )


def gated(module: Any, opened: Tensor) -> Tensor:
    """Return what the second half of a gated MLP reads, ``(tokens, d_ff)``, of what the first half gave."""
    gate, up = opened.chunk(2, dim=-1)
    return F.silu(gate) * up


def clamped(module: Any, opened: Tensor) -> Tensor:
    """Return the same of GPT-OSS, whose gates and ups take turns and are clamped."""
    gate, up = opened[..., ::2].clamp(max=module.limit), opened[..., 1::2].clamp(-module.limit, module.limit)
    return (up + 1) * gate * torch.sigmoid(gate * module.alpha)


def fused_inputs(module: Any, args: tuple[Tensor, ...]) -> list[tuple[nn.Parameter, int, Tensor]]:
    """Return parameter, expert and inputs ``(tokens, d_in)`` of every product in a module of fused experts."""
    hidden, found = args[0].reshape(-1, args[0].shape[-1]), []
    for expert, (opening, closing) in enumerate(zip(module.gate_up_proj, module.down_proj, strict=True)):
        if len(args) == 1:  # Llama-4: the tokens come once for every expert, scaled by the router, or by zero
            x = hidden.view(len(module.gate_up_proj), -1, hidden.shape[-1])[expert]
            middle = gated(module, torch.einsum("td,do->to", x, opening))
        elif hasattr(module, "gate_up_proj_bias"):
            x = hidden[(args[1] == expert).any(-1)]
            middle = clamped(module, torch.einsum("td,do->to", x, opening) + module.gate_up_proj_bias[expert])
        else:
            x = hidden[(args[1] == expert).any(-1)]
            middle = gated(module, torch.einsum("td,od->to", x, opening))
            assert closing.shape[0] == x.shape[1]
        found += [(module.gate_up_proj, expert, x), (module.down_proj, expert, middle)]
    return found


def by_hand(loaded: LoadedModel) -> dict[str, Tensor]:
    """Return act_mag of every matrix that a module multiplies its input with, float64, from hooks and einsums."""
    names = {id(parameter): name for name, parameter in loaded.parameters().items()}
    tokens = unequal_windows().num_tokens
    found: dict[str, Tensor] = {}

    def add(parameter: nn.Parameter, pattern: str, x: Tensor, expert: int | None = None) -> None:
        weight = parameter.detach().double()
        name = names[id(parameter)]
        total = found.setdefault(name, torch.zeros_like(weight))
        part, matrix = (total, weight) if expert is None else (total[expert], weight[expert])
        part += torch.einsum(pattern, x.detach().double().abs(), matrix.abs()) / tokens

    def watch(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        given = [value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)]
        if isinstance(getattr(module, "gate_up_proj", None), nn.Parameter):
            for parameter, expert, x in fused_inputs(module, tuple(given)):
                outward = x.shape[-1] == parameter.shape[2] and not transposed(module)
                add(parameter, "td,od->od" if outward else "td,do->do", x, expert)
        elif hasattr(module, "split_expert_shape") or hasattr(module, "mlp"):  # DBRX: matrices on top of each other
            for expert in range(4):
                rows = slice(24 * expert, 24 * expert + 24)
                x = given[0].reshape(-1, 16)[(given[1] == expert).any(-1)]
                mlp = module.mlp
                middle = F.silu(x @ mlp.w1[rows].T) * (x @ mlp.v1[rows].T)
                for parameter, pattern, values in (
                    (mlp.w1, "td,od->od", x),
                    (mlp.v1, "td,od->od", x),
                    (mlp.w2, "td,do->do", middle),
                ):
                    total = found.setdefault(names[id(parameter)], torch.zeros_like(parameter, dtype=torch.float64))
                    weight = parameter.detach().double()[rows].abs()
                    total[rows] += torch.einsum(pattern, values.detach().double().abs(), weight) / tokens
        elif isinstance(module, nn.Embedding):
            add(module.weight, "td,do->do", F.one_hot(given[0].reshape(-1), module.num_embeddings))
        else:
            pattern = "td,do->do" if isinstance(module, Conv1D) else "td,od->od"
            add(module.weight, pattern, given[0].reshape(-1, given[0].shape[-1]))

    def watched(module: Any) -> bool:
        table = isinstance(module, nn.Embedding) and type(module).__name__ != "OPTLearnedPositionalEmbedding"
        plain = isinstance(module, nn.Linear | Conv1D) or table
        routes = type(module).__name__.endswith("Router") and isinstance(getattr(module, "weight", None), nn.Parameter)
        fused = isinstance(getattr(module, "gate_up_proj", None), nn.Parameter)
        return plain or routes or fused or type(module).__name__ == "DbrxExperts"

    hooks = [
        module.register_forward_pre_hook(watch, with_kwargs=True)
        for module in loaded.model.modules()
        if watched(module)
    ]
    with torch.no_grad():
        for ids in unequal_windows().ids:
            loaded.model(input_ids=torch.tensor([ids]), use_cache=False)
    for hook in hooks:
        hook.remove()
    return found


def transposed(module: Any) -> bool:
    """Tell whether a module stores its experts (in, out): GPT-OSS and Llama-4, as their forward reads them."""
    return hasattr(module, "gate_up_proj_bias") or type(module).__name__ == "Llama4TextExperts"


# Matrices that a method of their module multiplies, out of reach of a hook on its input.
OUT_OF_REACH = {
    "mamba": {"mixer.dt_proj"}, "jamba": {"mamba.dt_proj"}, "opt": {"model.decoder.embed_positions"},
}  # fmt: skip


@every_family
def test_scores_read_the_input_axis(name: str) -> None:
    """act_mag is, weight by weight, that of an einsum written by hand over the inputs that hooks on the modules see."""
    loaded = load_family(name)
    found = engine_scores(loaded, unequal_windows(), ["act_mag"])["act_mag"]
    expected = by_hand(loaded)
    missing = {short_name(each) for each in set(found) - set(expected)}
    assert missing == OUT_OF_REACH.get(name, set())
    for each, truth in expected.items():
        torch.testing.assert_close(
            found[each].score.double(), truth, rtol=1e-5, atol=1e-7, msg=lambda t, each=each: f"{each}: {t}"
        )
    for each, scores in found.items():
        info = loaded.table[each]
        weight = loaded.parameters()[each].detach()
        if (
            info.expert_axis is None
            and not info.tied
            and short_name(each) not in FAMILIES[name].components.get("expert.down", "")
        ):
            inputs = (scores.score / weight.abs()).nan_to_num()
            spread = (inputs - inputs.mean(info.output_axis, keepdim=True)).abs().max()
            assert spread <= 1e-4 * inputs.abs().max() or "expert." in info.component, each


@cache
def planted(name: str) -> tuple[LoadedModel, Any, dict[str, dict[str, Tensor]], Target]:
    """Return a family's model with one large value weight, its own text, the scores of the telling metrics, and the weight."""
    parameter, place, value = FAMILIES[name].value  # type: ignore[misc]
    model = build_family(name)
    weight = dict(model.named_parameters())[parameter]
    with torch.no_grad():
        weight[place] = value
    loaded = load_family(name, model)
    windows = speak(model)
    found = engine_scores(loaded, windows, list(TELLING), resamples=16)
    scores = {metric: {each: s.score for each, s in tensors.items()} for metric, tensors in found.items()}
    return loaded, windows, scores, (parameter, int(np.ravel_multi_index(place, weight.shape)))


with_values = pytest.mark.parametrize("name", [name for name, family in FAMILIES.items() if family.value])


@with_values
@pytest.mark.parametrize("metric", TELLING)
def test_a_planted_value_weight_comes_first(name: str, metric: str) -> None:
    """One large weight among those that make an attention's values is number 1 of the whole model."""
    _, _, scores, target = planted(name)
    assert rank_of(scores[metric], target) == 1


@with_values
def test_its_damage_is_the_largest(name: str) -> None:
    """Zeroing it raises the NLL more than zeroing any of the strongest by three metrics, or others of its matrix."""
    loaded, windows, scores, target = planted(name)
    evaluator = Evaluator(loaded, windows, batch_tokens=2048)
    base = evaluator.remember().mean_nll
    others = {one for metric in TELLING for one in strongest(scores[metric], 5)}
    others |= {(target[0], index) for index in range(0, 128, 16)}

    def damage(one: Target) -> float:
        with applied(loaded, plan_changes(loaded, [one], "zero", {}, np.random.default_rng(0))):
            return compare_standing(evaluator, one[0]).mean_nll - base

    done = {one: damage(one) for one in others | {target}}
    assert max(done, key=lambda one: abs(done[one])) == target
    assert done[target] > 0.02


@pytest.mark.parametrize("name", ["mixtral", "qwen3_moe", "gpt_oss", "llama4"])
def test_usage_is_recorded_per_expert(name: str, tmp_path: Any) -> None:
    """The tables tell of every expert which share of the tokens reached it; together they make the experts per token."""
    loaded = load_family(name)
    spec = tiny_spec(score={"metrics": ["act_mag"], "include": ["component=expert.*"]})
    result = score.run(spec, loaded=loaded, root=tmp_path)
    table = read_table(result.folder / "tensors.parquet", "tensors/1").frame
    per_token = 1 if name == "llama4" else 2
    for _, rows in table.filter(pl.col("expert").is_not_null()).group_by("parameter"):
        assert sorted(rows["expert"]) == [0, 1, 2, 3]
        assert rows["usage"].sum() == pytest.approx(per_token)
        assert rows["usage"].n_unique() > 1
    assert table["expert"].null_count() == 6  # two tensors in each of three blocks, whole


@pytest.mark.parametrize("name", ["mixtral", "qwen3_moe", "gpt_oss", "llama4"])
def test_experts_have_addresses(name: str, tmp_path: Any) -> None:
    """A score, a rank and a perturbation of an expert's weight speak of (expert, row, column)."""
    loaded = load_family(name)
    target = next(
        n for n, info in loaded.table.items() if info.component == "expert.down" and info.input_axis is not None
    )
    with torch.no_grad():
        loaded.parameters()[target][2, 3, 5] = 500.0
    spec = tiny_spec(
        score={"metrics": ["magnitude"], "include": ["component=expert.*"]}, rank={"mode": "per_layer", "k": [1]}
    )
    scored = score.run(spec, loaded=loaded, root=tmp_path)
    rows = rank.run(scored.folder, spec=spec, root=tmp_path).table.frame
    (found,) = rows.filter((pl.col("group") == "top_k") & (pl.col("parameter") == target)).to_dicts()
    assert (found["expert"], found["indices"]) == (2, "(2, 3, 5)")
    assert parse_address(f"{target}:2,3,5", loaded.table) == (target, found["index"])
    before = loaded.parameters()[target].detach().clone()
    with applied(loaded, plan_changes(loaded, [(target, found["index"])], "zero", {}, np.random.default_rng(0))):
        assert (loaded.parameters()[target] != before).nonzero().tolist() == [[2, 3, 5]]
    assert torch.equal(loaded.parameters()[target], before)


def test_stacked_experts_are_scored_by_row_and_column(tmp_path: Any) -> None:
    """DBRX lays its experts on top of each other in matrices of two dimensions: their rows tell the expert, no column does."""
    loaded = load_family("dbrx")
    spec = tiny_spec(score={"metrics": ["act_mag"], "include": ["component=expert.*"]})
    table = read_table(score.run(spec, loaded=loaded, root=tmp_path).folder / "tensors.parquet", "tensors/1").frame
    assert table["expert"].null_count() == len(table) == 9
    assert set(table["shape"]) == {"(96, 16)"}
    assert table["usage"].null_count() == 9
