"""Curvature group by group: unbiased, less of it in memory, and as few groups as a budget allows."""

import pytest
import torch

from esa.errors import SpecError
from esa.model import ParameterInfo, eligible
from esa.model.footprint import BASE_BYTES, footprint_of
from esa.progress import Silent
from esa.score import curvature
from esa.score.engine import Effort, Engine, load_metrics
from esa.score.memory import effort_of
from esa.score.metric import Metric
from esa.score.probe_groups import max_groups, probe_groups
from tests.conftest import load, tiny_spec
from tests.score.naive import engine_scores, unequal_windows
from tests.score.test_curvature import dense_hessian, flat, split, very_tiny, window_nll


def test_groups_are_whole_neighbouring_blocks_and_hold_everything_once(architecture: str) -> None:
    """Every parameter is in one group, no block is torn, and the groups follow the blocks."""
    chosen = eligible(load(architecture).table)
    for number in range(1, max_groups(chosen) + 1):
        groups = probe_groups(chosen, number)
        assert len(groups) == number
        assert sorted(name for group in groups for name in group) == sorted(chosen)
        blocks = [sorted({-1 if info.block is None else info.block for info in group.values()}) for group in groups]
        assert [block for part in blocks for block in part] == list(range(-1, 3))
    largest = [max(sum(info.numel for info in g.values()) for g in probe_groups(chosen, n)) for n in (4, 2, 1)]
    assert largest[0] < largest[1] < largest[2]


def test_more_groups_than_blocks_are_refused() -> None:
    """The error says how many there can be."""
    with pytest.raises(SpecError, match=r"score.probe_groups: 5; at most 4, the blocks with weights to score"):
        probe_groups(eligible(load("llama").table), 5)


@pytest.mark.parametrize("metric", ["hutchinson_diag", "obd", "taylor2"])
def test_groups_converge_to_the_same_diagonal(metric: str) -> None:
    """In two groups the estimate comes to the exact diagonal as well, with less variance: other groups' products are gone."""
    loaded, windows, diagonal, _ = very_tiny()
    weights = {name: loaded.parameters()[name].detach() for name in diagonal}
    found = engine_scores(loaded, windows, [metric], probes=300, probe_groups=2)[metric]
    whole = engine_scores(loaded, windows, [metric], probes=300)[metric]
    truth = diagonal
    if metric != "hutchinson_diag":
        truth = {name: w**2 * diagonal[name] / 2 for name, w in weights.items()}
    if metric == "taylor2":
        truth = {name: truth[name] - weights[name] * gradient for name, gradient in mean_gradient().items()}
    exact = flat(truth)
    signed, stderr = (flat({name: getattr(found[name], key) for name in truth}) for key in ("signed", "stderr"))
    moving = stderr > 1e-9
    assert 0.90 <= float(((signed - exact).abs() <= 2 * stderr)[moving].double().mean()) <= 0.99
    assert float(stderr.sum()) < float(flat({name: whole[name].stderr for name in truth}).sum())


def mean_gradient() -> dict[str, torch.Tensor]:
    """Return the gradient of L of the very tiny model."""
    loaded, windows, diagonal, _ = very_tiny()
    weights = [loaded.parameters()[name] for name in diagonal]
    total = sum(
        (len(ids) - 1) / windows.num_predicted * window_nll(loaded, ids) for ids in windows.ids
    )  # fmt: skip
    return dict(zip(diagonal, torch.autograd.grad(total, weights), strict=True))


def test_taylor2_predicts_what_the_exact_hessian_predicts() -> None:
    """With the exact diagonal in the estimate's place the score is abs(-g w + h w^2 / 2); its sign is kept."""
    loaded, windows, diagonal, _ = very_tiny()
    found = engine_scores(loaded, windows, ["taylor2"], probes=300)["taylor2"]
    gradient = mean_gradient()
    weights = {name: loaded.parameters()[name].detach() for name in diagonal}
    exact = flat({n: w**2 * diagonal[n] / 2 - gradient[n] * w for n, w in weights.items()})
    signed, stderr, score = (flat({n: getattr(found[n], c) for n in diagonal}) for c in ("signed", "stderr", "score"))
    assert torch.equal(score, signed.abs())
    assert float(((signed - exact).abs() <= 3 * stderr + 1e-6).double().mean()) > 0.98
    assert float(torch.corrcoef(torch.stack([signed, exact]))[0, 1]) > 0.95


def test_only_one_group_is_held_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every call of the probes is given one group, and its scores are out before the next begins."""
    from esa.score import engine

    loaded, original = load("llama"), curvature.hutchinson
    events: list[tuple[str, set[str]]] = []

    def watch(*args: object) -> object:
        events.append(("probe", set(args[2])))  # type: ignore[call-overload]
        return original(*args)  # type: ignore[arg-type]

    def emit(metric: Metric, info: ParameterInfo, *_: object) -> None:
        events.append(("score", {info.name}))

    monkeypatch.setattr(engine, "hutchinson", watch)
    chosen, metrics = eligible(loaded.table), load_metrics(["obd", "taylor2"])
    Engine(loaded, chosen, metrics, emit, Silent(), Effort(1, probe_groups=3)).run(unequal_windows(), seed=0)
    probed = [i for i, (kind, _) in enumerate(events) if kind == "probe"]
    assert len(probed) == 3
    for start, stop in zip(probed, [*probed[1:], len(events)], strict=True):
        group = events[start][1]
        assert [event for event in events[start + 1 : stop] if event[0] != "score"] == []
        assert set().union(*(names for _, names in events[start + 1 : stop])) == group
        assert stop - start - 1 == 2 * len(group)
    assert set().union(*(events[i][1] for i in probed)) == set(chosen)


@pytest.mark.parametrize(("spare", "groups"), [(1e9, 1), (0, None)])
def test_the_budget_sets_the_number_of_groups(spare: float, groups: int | None) -> None:
    """As few groups as fit; where not even a group per block does, the error names both sizes."""
    loaded = load("llama")
    model = footprint_of(loaded.model, tiny_spec().model, loaded.table)
    spec = tiny_spec(model={"id": "tiny", "memory_budget": int(BASE_BYTES + spare)}, score={"metrics": ["obd"]})
    if groups is None:
        with pytest.raises(
            SpecError, match=r"model.memory_budget: 40\d MB; curvature needs 40\d MB even in 4 probe groups"
        ):
            effort_of(spec, model)
    else:
        assert effort_of(spec, model).probe_groups == groups


def test_a_smaller_budget_takes_more_groups() -> None:
    """Between the two the number of groups falls as the budget grows; a number that is given stands."""
    loaded = load("llama")
    model = footprint_of(loaded.model, tiny_spec().model, loaded.table)

    def groups(budget: int, **score: object) -> int:
        spec = tiny_spec(model={"id": "tiny", "memory_budget": budget}, score={"metrics": ["obd"], **score})
        return effort_of(spec, model).probe_groups

    found = []
    for budget in range(BASE_BYTES, BASE_BYTES + 1_000_000, 10_000):
        try:
            found.append(groups(budget))
        except SpecError:
            continue
    assert found[0] > found[-1] == 1
    assert found == sorted(found, reverse=True)
    assert groups(BASE_BYTES * 2, probe_groups=3) == 3


def test_exact_block_diagonal_is_what_a_group_sees() -> None:
    """The variance of a group's estimate has the Hessian's entries within the group alone."""
    loaded, windows, _, _ = very_tiny()
    weights = {name: p for name, p in loaded.parameters().items() if p.ndim == 2}
    loaded.model.set_attn_implementation("eager")
    hessian = sum(
        ((len(ids) - 1) / windows.num_predicted) ** 2
        * dense_hessian(window_nll(loaded, ids), list(weights.values())) ** 2
        for ids in windows.ids
    )
    loaded.model.set_attn_implementation("sdpa")
    groups = probe_groups({name: loaded.table[name] for name in weights}, 2)
    member = torch.cat([torch.full((w.numel(),), int(name in groups[1])) for name, w in weights.items()])
    within = hessian * (member[:, None] == member[None, :])
    predicted = split((within.sum(1) - within.diagonal()).div(300).sqrt(), weights)
    found = engine_scores(loaded, windows, ["hutchinson_diag"], probes=300, probe_groups=2)["hutchinson_diag"]
    ratio = flat({n: found[n].stderr for n in weights}) / flat(predicted)
    assert float(ratio[flat(predicted) > 1e-6].median()) == pytest.approx(1, abs=0.1)
