"""A model whose blocks stay on disk is the same model: every number equal, one block in memory at a time."""

import gc
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from esa import perturb, score
from esa.artifact import find_table
from esa.errors import ModelError
from esa.model import LoadedModel, fingerprint, load_model
from esa.perturb.apply import applied, plan_changes
from esa.score.strategy import Strategy
from esa.spec import generator
from esa.spec.sections import Model
from tests.conftest import build, make_tokenizer, tiny_spec
from tests.score.naive import dense, engine_scores, unequal_windows

NOISE = {"sigma": 0.5, "relative_to": "weight"}
METRICS = [
    "magnitude",
    "act_mag",
    "wanda",
    "super_activation",
    "grad_x_weight",
    "grad_squared",
    "fisher_obd",
    "ggn_diag",
]


@pytest.fixture
def folder(architecture: str, tmp_path: Path) -> Path:
    """Return the folder of a tiny model of each architecture."""
    build(architecture).save_pretrained(tmp_path / "model")
    make_tokenizer().save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def both(folder: Path, **section: Any) -> tuple[LoadedModel, LoadedModel]:
    """Return the model in memory, and with its blocks on disk."""
    memory, disk = (
        load_model(Model(id=str(folder), device="cpu", residency=residency, **section))  # type: ignore[arg-type]
        for residency in ("memory", "disk")
    )
    return memory, disk


def blocks_here(loaded: LoadedModel) -> set[int]:
    """Return the numbers of the blocks that have a parameter in memory."""
    return {n for n, block in enumerate(loaded.stack.blocks) if any(not p.is_meta for p in block.parameters())}


def test_every_score_is_the_same(folder: Path) -> None:
    """Every metric's scores of every tensor equal those of the model in memory, bit for bit, in waves too."""
    memory, disk = both(folder)
    expected = engine_scores(memory, unequal_windows(), METRICS, rounds=2)
    for strategy in (Strategy(), Strategy(waves=2)):
        found = engine_scores(disk, unequal_windows(), METRICS, rounds=2, strategy=strategy)
        for metric in METRICS:
            assert found[metric].keys() == expected[metric].keys()
            for name, values in dense(expected[metric]).items():
                assert torch.equal(dense(found[metric])[name], values), (metric, name)


def test_one_block_is_in_memory(folder: Path) -> None:
    """While a block's modules run, forward and backward, it alone has its parameters in memory."""
    _, disk = both(folder)
    seen: list[set[int]] = []
    for number, block in enumerate(disk.stack.blocks):
        child = next(module for module in block.modules() if not list(module.children()))

        def note(_: Any, __: Any, ___: Any, number: int = number) -> None:
            seen.append(blocks_here(disk))
            assert seen[-1] == {number}

        child.register_forward_hook(note)
    engine_scores(disk, unequal_windows(), ["act_mag", "grad_x_weight"])
    assert len(seen) == 3 * 2 * len(disk.stack)  # windows, forward twice


@pytest.mark.parametrize(("dtype", "compute"), [("bfloat16", "auto"), ("bfloat16", "float32"), ("float16", "float32")])
def test_dtypes_are_those_of_memory(tmp_path: Path, dtype: str, compute: str) -> None:
    """Storage and compute dtype are as in memory: fingerprint and logits are equal."""
    build("llama").save_pretrained(tmp_path)
    make_tokenizer().save_pretrained(tmp_path)
    memory, disk = both(tmp_path, dtype=dtype, compute=compute)
    assert memory.facts["fingerprint"] == disk.facts["fingerprint"] == fingerprint(disk.weights)
    assert {name: weight.dtype for name, weight in memory.weights.items()} == {
        name: weight.dtype for name, weight in disk.weights.items()
    }
    ids = torch.tensor([[1, 2, 3, 4]])
    assert torch.equal(memory.model(input_ids=ids).logits, disk.model(input_ids=ids).logits)


def test_a_change_outlasts_its_block(folder: Path) -> None:
    """A number that was written is there after its block has left and come back, and the old bits come back as well."""
    _, disk = both(folder)
    name = next(name for name, info in disk.table.items() if info.block == 0 and len(info.shape) >= 2)
    weight, index = disk.weights[name], torch.tensor([3, 5])
    before, held = fingerprint(disk.weights), weight.held(index)
    weight.write(index, torch.tensor([7.0, float("nan")]))
    assert disk.disk is not None
    disk.disk.bring(1)
    found: Tensor = weight.held(index)
    assert found[0] == 7.0
    assert found[1].isnan()
    disk.disk.bring(1)
    weight.write(index, held)
    disk.disk.leave()
    assert fingerprint(disk.weights) == before


def test_no_change_is_left_behind(folder: Path) -> None:
    """What a perturbation restored is no change any more: campaigns of any length read blocks as fast as before."""
    _, disk = both(folder)
    name = next(name for name, info in disk.table.items() if info.block == 1 and len(info.shape) >= 2)
    for repeat in range(3):
        changes = plan_changes(disk, [(name, 7), (name, repeat)], "gauss_noise", NOISE, generator(repeat, "noise"))
        with applied(disk, changes):
            assert disk.disk is not None
            assert disk.disk.changes
        assert not disk.disk.changes


def test_a_read_that_is_broken_off_leaves_no_half_block(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A Ctrl-C while a block is read: none of it is in memory, and the model goes on as before."""
    _, disk = both(folder)
    assert disk.disk is not None
    before = fingerprint(disk.weights)
    disk.disk.leave()
    read, count = disk.disk._read, iter(range(100))

    def interrupted(name: str) -> Tensor:
        if next(count) == 2:
            raise KeyboardInterrupt
        return read(name)

    monkeypatch.setattr(disk.disk, "_read", interrupted)
    with pytest.raises(KeyboardInterrupt):
        disk.disk.bring(1)
    assert blocks_here(disk) == set()
    monkeypatch.undo()
    assert fingerprint(disk.weights) == before


def test_a_run_from_disk_writes_the_same_tables(folder: Path, tmp_path: Path) -> None:
    """Score and damage tables are equal byte for byte, under the same step ids: where weights wait changes no number."""
    found = {}
    for residency in ("memory", "disk"):
        spec = tiny_spec(
            model={"id": str(folder), "residency": residency},
            score={"metrics": ["act_mag", "grad_x_weight"]},
            rank={"k": [1, 4]},
            perturb=[{"method": "zero"}, {"method": "gauss_noise", "repeats": 2}],
        )
        scored = score.run(spec, root=tmp_path / residency)
        top = find_table(scored.folder, "scores/1").frame.filter(pl_top()).head(3)
        targets = [f"{row['parameter']}:{row['index']}" for row in top.to_dicts()]
        damage = perturb.run(spec, targets, root=tmp_path / residency)
        found[residency] = scored.id, damage.id, {
            file.name: file.read_bytes() for step in (scored.folder, damage.folder) for file in step.glob("*.[cp]*")
        }  # fmt: skip
    assert found["memory"] == found["disk"]
    assert len(found["disk"][2]) >= 6


def pl_top() -> Any:
    """Return the filter of the highest scores within blocks."""
    import polars as pl

    return pl.col("stratum").is_in(["top", "all"]) & pl.col("parameter").str.contains(r"\.[012]\.")


def test_converted_tensors_have_a_folder_that_goes_with_the_model(tmp_path: Path) -> None:
    """Experts that are fused on loading lie in a folder of their own until the model is gone."""
    build("mixtral").save_pretrained(tmp_path)
    make_tokenizer().save_pretrained(tmp_path)
    _, disk = both(tmp_path)
    assert disk.disk is not None
    files = {Path(stored.file) for name, stored in disk.disk.stored.items() if "experts" in name}
    assert files
    assert all(file.exists() and file.parent != tmp_path for file in files)
    parent = next(iter(files)).parent
    del disk
    gc.collect()
    assert not parent.exists()


def test_a_gguf_file_is_refused(tmp_path: Path) -> None:
    """A GGUF file is no safetensors: the error says what to do."""
    (tmp_path / "m.gguf").write_bytes(b"GGUF")
    with pytest.raises(ModelError) as caught:
        load_model(Model(id=str(tmp_path / "m.gguf"), residency="disk", device="cpu"))
    assert (caught.value.where, caught.value.what) == (
        "model.residency", "'disk' reads safetensors; m.gguf is a GGUF file",
    )  # fmt: skip


def test_curvature_is_refused(folder_model: Path, tmp_path: Path) -> None:
    """A second derivative needs the graph of all blocks at once: refused before anything is read or written."""
    spec = tiny_spec(model={"id": str(folder_model), "residency": "disk"}, score={"metrics": ["act_mag", "obd"]})
    with pytest.raises(ModelError) as caught:
        score.run(spec, root=tmp_path / "out")
    assert f"{caught.value.where}: {caught.value.what}" == (
        "model.residency: 'disk' holds one block at a time; obd needs second derivatives, and with them a graph of all blocks"
    )
    assert not (tmp_path / "out").exists()
