"""Cases are evaluated in the order of their blocks, a few together, and a killed campaign goes on where it was."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from esa.artifact import read_manifest
from esa.errors import ArtifactError
from esa.eval import INTACT, Edit, Evaluator, Measured, evaluator
from esa.eval.memory import predicted_peak
from esa.model import LoadedModel, fingerprint
from esa.model.block_stack import BlockStack
from esa.model.footprint import footprint_of
from esa.spec.sections import Eval
from tests.conftest import load
from tests.perturb.planted import TOP, frame, perturb, ranking, rows, spec

NUM_REWRITES = Eval().rewrites
METHODS: tuple[dict[str, Any], ...] = (
    {"method": "zero"},
    {"method": "gauss_noise", "sigma": 0.5, "repeats": 2},
    {"method": "bit_flip", "bits": 2, "repeats": 2, "groups": ["top_k"]},
    {"method": "zero_keep_peak", "unit": "single", "groups": ["top_k"]},
)
FULL = spec(*METHODS)
FILES = ("damage.csv", "windows.csv", "faults.csv")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Return an uninterrupted campaign."""
    return perturb(FULL, ranking(), tmp_path_factory.mktemp("whole"))


@pytest.fixture
def compared(monkeypatch: pytest.MonkeyPatch) -> list[list[int]]:
    """Note the first block of every edit, call by call."""
    calls: list[list[int]] = []
    original = Evaluator.compare

    def compare(self: Evaluator, edits: Sequence[Edit]) -> list[Measured]:
        calls.append([self.first_block(edit.names) for edit in edits])
        return original(self, edits)

    monkeypatch.setattr(Evaluator, "compare", compare)
    return calls


def killed_at(monkeypatch: pytest.MonkeyPatch, name: str, at: int) -> Callable[[], int]:
    """Raise KeyboardInterrupt in the n-th call of a function that the evaluator uses; return how to ask for the calls."""
    original, calls = getattr(evaluator, name), [0]

    def counted(*args: Any) -> Any:
        calls[0] += 1
        if calls[0] == at:
            raise KeyboardInterrupt
        return original(*args)

    monkeypatch.setattr(evaluator, name, counted)
    return lambda: calls[0]


def assert_same_tables(left: Path, right: Path) -> None:
    """Raise AssertionError, naming the file, unless two campaigns wrote the same bytes."""
    for name in FILES:
        assert (left / name).read_bytes() == (right / name).read_bytes(), name


def journalled(folder: Path) -> list[str]:
    """Return the keys of the finished cases and rewrites, in the order they were noted down."""
    lines = [json.loads(line) for line in (folder / "cases.jsonl").read_text().splitlines()]
    return [line["key"] for line in lines if line["key"] not in ("model", INTACT)]


def test_cases_run_in_block_order_and_stand_in_the_plans(tmp_path: Path, compared: list[list[int]]) -> None:
    """First blocks never fall while a campaign runs; its damage stands in the order of groups, sizes and methods."""
    result = perturb(FULL, ranking(), tmp_path)
    starts = [start for call in compared for start in call]
    assert starts == sorted(starts)
    assert {0, 1, 3} <= set(starts), "block 0, block 1 and the head"
    assert {len(call) for call in compared[:-1]} == {8}
    found = frame(result)
    assert found["method"].unique(maintain_order=True).to_list() == [table["method"] for table in METHODS]
    assert found.filter(found["method"] == "zero_keep_peak")["target"].str.split(":").list.first().to_list() == [
        name for name, _ in TOP
    ]
    assert journalled(result.folder) != [*dict.fromkeys(found["case"])]


@pytest.mark.parametrize("together", [1, 3, 50])
def test_tables_do_not_depend_on_how_many_run_together(
    finished: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, compared: list[list[int]], together: int
) -> None:
    """One case at a time or all at once give the same bytes."""
    monkeypatch.setattr("esa.eval.memory.TOGETHER", together)
    assert_same_tables(perturb(FULL, ranking(), tmp_path).folder, finished.folder)
    assert {len(call) for call in compared[:-1]} <= {together}


@pytest.mark.parametrize("spare", [-1, 0, 11_000, 17_000])
def test_tables_do_not_depend_on_the_budget(
    finished: Any, tmp_path: Path, compared: list[list[int]], spare: int
) -> None:
    """Under a tight memory budget fewer cases run together and intact states are computed again, to the same bytes."""
    least = least_budget(load("llama"))
    tight = spec(*METHODS, model={"id": "tiny", "memory_budget": least + spare})
    result = perturb(tight, ranking(), tmp_path)
    assert_same_tables(result.folder, finished.folder)
    assert max(len(call) for call in compared) == {-1: 1, 0: 1, 11_000: 4, 17_000: 6}[spare]
    warnings = read_manifest(result.folder)["warnings"]
    assert [text.partition(" is predicted")[0] for text in warnings] == (
        [f"model.memory_budget: {(least - 1) / 1e6:,.0f} MB; perturb"] if spare < 0 else []
    )


def least_budget(loaded: LoadedModel) -> int:
    """Return the bytes of a campaign of one case at a time that keeps no boundary: 3,072 bytes of states each."""
    return predicted_peak(FULL, footprint_of(loaded.model, FULL.model, loaded.table), 0, remembers=True)


@pytest.mark.parametrize("at", [1, 5, 8, 9, 21, 33])
def test_a_killed_campaign_goes_on_where_it_was(
    finished: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, compared: list[list[int]], at: int
) -> None:
    """Killed while cases run together a campaign loses these alone, restores the model, and writes the same bytes."""
    loaded = load("llama")
    before = fingerprint(loaded.weights)
    with monkeypatch.context() as patch:
        calls = killed_at(patch, "add_batch", 1 + at)  # the first is the intact model's
        with pytest.raises(KeyboardInterrupt):
            perturb(FULL, ranking(), tmp_path, loaded=loaded)
        assert calls() == 1 + at
    assert fingerprint(loaded.weights) == before
    (folder,) = (tmp_path / "tiny").iterdir()
    assert sorted(path.name for path in folder.iterdir()) == ["cases.jsonl", "spec.toml"]
    kept = journalled(folder)
    assert len(kept) == (at - 1) // 8 * 8
    compared.clear()
    result = perturb(FULL, ranking(), tmp_path, loaded=loaded)
    total = NUM_REWRITES + frame(finished)["case"].n_unique()
    assert sum(map(len, compared)) == total - len(kept)
    assert read_manifest(result.folder)["num_reused"] == sum(not key.startswith("floor-") for key in kept)
    assert_same_tables(result.folder, finished.folder)


@pytest.mark.parametrize("at", [1, 4, 30])
def test_a_kill_inside_a_block_restores_the_model(
    finished: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    """Killed while a changed block runs, the model has its bits and no hook, and the campaign goes on."""
    original, calls, loaded = BlockStack.run_block, [0], load("llama")
    before = fingerprint(loaded.weights)

    def run_block(self: BlockStack, *args: Any) -> Tensor:
        calls[0] += 1
        if calls[0] == 3 + at:
            raise KeyboardInterrupt
        return original(self, *args)

    with monkeypatch.context() as patch:
        patch.setattr(BlockStack, "run_block", run_block)
        with pytest.raises(KeyboardInterrupt):
            perturb(FULL, ranking(), tmp_path, loaded=loaded)
    assert fingerprint(loaded.weights) == before
    assert not any(module._forward_hooks for module in loaded.model.modules())
    assert_same_tables(perturb(FULL, ranking(), tmp_path, loaded=loaded).folder, finished.folder)


def test_a_torn_line_of_the_journal_is_evaluated_again(
    finished: Any, tmp_path: Path, compared: list[list[int]]
) -> None:
    """A process that died while writing a line loses that case alone."""
    folder = perturb(FULL, ranking(), tmp_path).folder
    compared.clear()
    (folder / "manifest.json").unlink()
    journal = folder / "cases.jsonl"
    journal.write_bytes(journal.read_bytes()[:-20])
    assert_same_tables(perturb(FULL, ranking(), tmp_path).folder, finished.folder)
    assert [len(call) for call in compared] == [1]


def test_a_journal_of_another_machine_is_refused(tmp_path: Path) -> None:
    """Where the intact model measures other bits than the journal's, nothing is mixed: the step says what to do."""
    folder = perturb(FULL, ranking(), tmp_path).folder
    (folder / "manifest.json").unlink()
    lines = (folder / "cases.jsonl").read_text().splitlines(keepends=True)
    entry = json.loads(lines[1])
    assert entry["key"] == INTACT
    entry["measured"]["nll"][0] += 1e-9
    (folder / "cases.jsonl").write_text("".join([lines[0], json.dumps(entry) + "\n", *lines[2:-1]]))
    with pytest.raises(ArtifactError) as raised:
        perturb(FULL, ranking(), tmp_path)
    assert str(raised.value).startswith(f"{folder / 'cases.jsonl'}: the intact model had an NLL of ")
    assert str(raised.value).endswith(
        "hint: go on with the machine, device, number of threads and torch that began it, or start afresh with --force"
    )
    assert not perturb(FULL, ranking(), tmp_path, force=True).reused


def test_a_finished_journal_needs_no_model(tmp_path: Path, compared: list[list[int]]) -> None:
    """Where every case is in the journal, the tables are built from it and nothing is evaluated."""
    table = ranking(rows("act_mag", 0, "top_k", TOP))
    folder = perturb(spec(), table, tmp_path).folder
    damage = (folder / "damage.csv").read_bytes()
    (folder / "manifest.json").unlink()
    compared.clear()
    assert (perturb(spec(), table, tmp_path).folder / "damage.csv").read_bytes() == damage
    assert compared == []
