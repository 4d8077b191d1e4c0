"""Propagation: what every block's output does under a perturbation, against whole forward passes with hooks."""

from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch
from torch import Tensor

from esa.artifact import Journal
from esa.data import eval_windows
from esa.model import LoadedModel, fingerprint
from esa.perturb.propagation import Movements
from tests.conftest import load
from tests.eval.edits import WINDOWS, edit_of, evaluator_of, places
from tests.perturb.planted import BOTTOM, DOWN, HEAD, TOP, UP, frame, perturb, ranking, rows, spec

COLUMNS = ("relative_change", "cosine", "max_abs_change")
ASKED = {"method": "zero", "propagation": True, "groups": ["top_k"]}


def block_outputs(loaded: LoadedModel, windows: Any) -> list[list[Tensor]]:
    """Return every block's output ``(tokens, d_model)`` by window, from hooks on whole forward passes, float64."""
    found: list[list[Tensor]] = []
    for ids in windows.ids:
        outputs: list[Tensor] = []
        hooks = [
            block.register_forward_hook(
                lambda _, __, out, into=outputs: into.append((out[0] if isinstance(out, tuple) else out)[0].double())
            )
            for block in loaded.stack.blocks
        ]
        with torch.no_grad():
            loaded.model(input_ids=torch.tensor([ids]), use_cache=False)
        for hook in hooks:
            hook.remove()
        found.append(outputs)
    return [[outputs[block] for outputs in found] for block in range(len(loaded.stack))]


def naive(intact: list[list[Tensor]], changed: list[list[Tensor]]) -> list[list[list[float]]]:
    """Return per block, for the first token and the rest, the three numbers, position by position."""
    result = []
    for before, after in zip(intact, changed, strict=True):
        result.append([])
        for part in (slice(0, 1), slice(1, None)):
            pairs = [(h, m) for a, b in zip(before, after, strict=True) for h, m in zip(a[part], b[part], strict=True)]
            relative = [float((m - h).norm() / h.norm()) for h, m in pairs]
            cosine = [float(torch.nn.functional.cosine_similarity(h, m, dim=0)) for h, m in pairs]
            largest = max(float((m - h).abs().max()) for h, m in pairs)
            result[-1].append([sum(relative) / len(pairs), sum(cosine) / len(pairs), largest])
    return result


@contextmanager
def zeroed(loaded: LoadedModel, targets: list[tuple[str, int]]) -> Any:
    """Zero weights by hand for a while."""
    parameters, before = loaded.parameters(), {}
    with torch.no_grad():
        for name, index in targets:
            before[name, index] = parameters[name].view(-1)[index].clone()
            parameters[name].view(-1)[index] = 0
        yield
        for (name, index), value in before.items():
            parameters[name].view(-1)[index] = value


def numbers(table: pl.DataFrame) -> list[list[float]]:
    """Return a table's three numbers, row by row."""
    return [list(row) for row in table.select(COLUMNS).iter_rows()]


def flat(found: list[list[list[float]]]) -> list[list[float]]:
    """Return the rows of blocks in turn."""
    return [part for block in found for part in block]


def assert_close(found: list[list[float]], expected: list[list[float]]) -> None:
    """Raise AssertionError unless all numbers agree to what float32 states allow."""
    assert len(found) == len(expected)
    for left, right in zip(found, expected, strict=True):
        assert left == pytest.approx(right, rel=1e-4, abs=1e-7)


def test_the_comparison_can_fail() -> None:
    """A number that is off by a thousandth is noticed."""
    with pytest.raises(AssertionError):
        assert_close([[1.0, 1.0, 1.0]], [[1.001, 1.0, 1.0]])


@pytest.mark.parametrize("place", ["block 0", "block 1", "embedding", "blocks 1 and 2", "everywhere"])
def test_movements_are_those_of_whole_forward_passes(architecture: str, place: str) -> None:
    """On every architecture, windows of unequal lengths in several batches: as hooks on the whole model see it."""
    loaded = load(architecture)
    names = places(loaded)[place]
    edit, evaluator = edit_of(loaded, *names), evaluator_of(loaded, batch_tokens=24)
    movements = Movements(1)
    evaluator.follow([edit], movements.watch)
    intact = block_outputs(loaded, WINDOWS)
    with edit.make(frozenset(names)):
        changed = block_outputs(loaded, WINDOWS)
    found = movements.record(0, len(loaded.stack))
    assert_close(flat(found), flat(naive(intact, changed)))  # type: ignore[arg-type]
    first = evaluator.first_block(names)
    assert flat(found[:first]) == [[0.0, 1.0, 0.0]] * 2 * first
    assert all(change > 0 for change, _, _ in flat(found[first:]))  # type: ignore[operator]


def test_edits_that_run_together_do_not_meet() -> None:
    """Two edits side by side move the blocks as each does alone."""
    loaded = load("llama")
    evaluator = evaluator_of(loaded)
    edits = [edit_of(loaded, DOWN), edit_of(loaded, UP, factor=0.5)]
    together = Movements(2)
    evaluator.follow(edits, together.watch)
    for number, edit in enumerate(edits):
        alone = Movements(1)
        evaluator.follow([edit], alone.watch)
        assert alone.record(0, 3) == together.record(number, 3)
    assert together.record(0, 3) != together.record(1, 3)


def test_the_table_says_what_zeroing_by_hand_does(tmp_path: Path) -> None:
    """Every row of the cases that ask for it, and of them alone: blocks in order, first token and rest apart."""
    loaded = load("llama")
    before = fingerprint(loaded.weights)
    chosen = spec({**ASKED, "unit": ["joint", "single"]}, {"method": "sign_flip"})
    result = perturb(chosen, ranking(rows("act_mag", 0, "top_k", TOP[:2])), tmp_path, loaded=loaded)
    table = frame(result, "propagation/1")
    assert fingerprint(loaded.weights) == before
    assert table.columns[:2] == ["run", "case"]
    assert table["run"].unique().to_list() == [result.id]
    sets = {("joint", 1): TOP[:1], ("joint", 2): TOP[:2], ("single", 1): TOP[:2]}
    seen = [(row["unit"], row["k"]) for row in table.iter_rows(named=True)][::6]
    assert seen == [("joint", 1), ("joint", 2), ("single", 1), ("single", 1)]
    windows, number = eval_windows(chosen.eval, loaded.tokenizer), 0
    intact = block_outputs(loaded, windows)
    for (unit, _), targets in sets.items():
        for part in [[target] for target in targets] if unit == "single" else [targets]:
            mine = table[6 * number : 6 * number + 6]
            assert mine.select("block", "tokens").rows() == [(b, t) for b in range(3) for t in ("first", "rest")]
            with zeroed(loaded, part):
                assert_close(numbers(mine), flat(naive(intact, block_outputs(loaded, windows))))
            number += 1
    assert table.height == 6 * number
    assert table.filter(pl.col("unit") == "single")["target"].unique(maintain_order=True).to_list() == [
        f"{DOWN}:5,7",
        f"{UP}:0,5",
    ]


def test_a_head_moves_no_block(tmp_path: Path) -> None:
    """What is read behind the blocks leaves every output as it was: 0, 1 and 0, exactly."""
    result = perturb(spec(ASKED), ranking(rows("act_mag", 0, "top_k", [(HEAD, 40)])), tmp_path)
    assert numbers(frame(result, "propagation/1")) == [[0.0, 1.0, 0.0]] * 6


def test_a_state_that_is_not_finite_gives_nulls(tmp_path: Path) -> None:
    """Where a block's output is infinite or NaN its numbers are null, and those of the blocks before are not."""
    table = ranking(rows("act_mag", 0, "top_k", [(DOWN, 127)]))
    blown = {"method": "scale", "factor": 1e42, "propagation": True}
    found = numbers(frame(perturb(spec(blown), table, tmp_path), "propagation/1"))
    assert found[:2] == [[0.0, 1.0, 0.0]] * 2
    assert all(value is None for row in found[2:] for value in row)


def test_nothing_is_written_where_nothing_asks(tmp_path: Path) -> None:
    """Without propagation = true there is no file, and no line of the journal."""
    result = perturb(spec(), ranking(), tmp_path)
    assert not (result.folder / "propagation.csv").exists()
    assert "propagation" not in (result.folder / "cases.jsonl").read_text()


def test_a_killed_step_goes_on_at_the_next_case(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Broken off in the middle of propagation, the step finishes with the same bytes, and runs no finished case again."""
    chosen, table = spec({**ASKED, "unit": "single"}), ranking(rows("act_mag", 0, "top_k", TOP + BOTTOM[:2]))
    whole = perturb(chosen, table, tmp_path / "whole")
    append: Callable[..., None] = Journal.append

    def dies(self: Journal, key: str, entry: dict[str, Any]) -> None:
        append(self, key, entry)
        if key.startswith("propagation-") and sum(name.startswith("propagation-") for name in self.done) == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Journal, "append", dies)
        with pytest.raises(KeyboardInterrupt):
            perturb(chosen, table, tmp_path / "killed")
    counted: list[str] = []

    def counts(self: Journal, key: str, entry: dict[str, Any]) -> None:
        counted.append(key)
        append(self, key, entry)

    monkeypatch.setattr(Journal, "append", counts)
    again = perturb(chosen, table, tmp_path / "killed")
    assert len(counted) == frame(whole).height - 2
    assert all(key.startswith("propagation-") for key in counted)
    for name in ("damage.csv", "propagation.csv"):
        assert (again.folder / name).read_bytes() == (whole.folder / name).read_bytes()
