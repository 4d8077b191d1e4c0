"""Sums over the table of tensors: every weight once, every group by its make."""

import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest

from esa import arch
from esa.arch import totals
from esa.arch.description import describe
from esa.spec import load_spec
from esa.spec.sections import Model
from tests.arch.models import llama_gguf, save
from tests.conftest import SMALL

SPECS = Path(__file__).parents[2] / "specs"


def frame_of(model_type: str, **keys: object) -> pl.DataFrame:
    """Return the tensors of a tiny model without weights."""
    shape = {"model_type": model_type, **SMALL, "num_key_value_heads": 2, **keys}
    return describe(Model(id="owner/model", dtype="bfloat16", shape=shape)).frame


def test_components_add_up(architecture: str, tmp_path: Path) -> None:
    """Over the components, tensors, weights, shares, active weights and bytes add up to the model's."""
    save(architecture, tmp_path)
    frame = arch.run(str(tmp_path)).frame
    found = totals.component_totals(frame)
    assert found["component"].is_unique().all()
    assert found["tensors"].sum() == frame.height
    for column in ("numel", "active", "bytes"):
        assert found[column].sum() == frame[column].sum()
    assert found["share"].sum() == pytest.approx(1)


def test_a_null_stays_a_null() -> None:
    """Of a component with one tensor of unknown bytes the bytes are unknown, the others' are not."""
    frame = frame_of("llama").with_columns(
        bytes=pl.when(pl.col("parameter") == "model.norm.weight").then(None).otherwise("bytes")
    )
    found = totals.component_totals(frame)
    assert found.filter(pl.col("bytes").is_null())["component"].to_list() == ["norm"]


def test_equal_blocks_stand_together(architecture: str, tmp_path: Path) -> None:
    """The three equal blocks of every tiny model make one group that holds all that is inside blocks."""
    save(architecture, tmp_path)
    frame = arch.run(str(tmp_path)).frame
    (group,) = totals.block_groups(frame)
    inside = frame.filter(pl.col("block").is_not_null())
    assert group.blocks == (0, 1, 2)
    assert 3 * group.numel == inside["numel"].sum()
    assert 3 * group.num_tensors == inside.height
    assert group.num_bytes == (2 * group.numel, 2 * group.numel)


def test_blocks_that_differ_stand_apart() -> None:
    """Blocks of two makes, dense and with experts, attention and state space, are told apart and named."""
    dense_first = totals.block_groups(
        frame_of("deepseek_v3", n_routed_experts=4, num_experts_per_tok=2, moe_intermediate_size=8, n_group=1, topk_group=1,
                 q_lora_rank=8, kv_lora_rank=8, first_k_dense_replace=1)
    )  # fmt: skip
    assert [group.blocks for group in dense_first] == [(0,), (1, 2)]
    assert dense_first[0].active == dense_first[0].numel
    assert (dense_first[1].active or 0) < dense_first[1].numel
    hybrid = totals.block_groups(
        frame_of("jamba", num_hidden_layers=4, num_experts=4, num_experts_per_tok=2, attn_layer_period=2, attn_layer_offset=1,
                 mamba_d_state=4)
    )  # fmt: skip
    assert [totals.ranges(group.blocks) for group in hybrid] == ["0, 2", "1, 3"]


def test_blocks_of_other_types_keep_their_span(tmp_path: Path) -> None:
    """Blocks of equal shapes that a file quantizes differently are one make, with the smallest and the largest bytes."""
    llama_gguf(tmp_path / "a.gguf")
    (group,) = totals.block_groups(arch.run(str(tmp_path / "a.gguf")).frame)
    low, high = group.num_bytes or (0, 0)
    assert high - low == 64 * 96 * (34 - 18) // 32


@pytest.mark.parametrize(
    ("numbers", "text"),
    [([], ""), ([3], "3"), ([0, 1, 2, 3], "0-3"), ([0, 1, 3, 5, 6], "0-1, 3, 5-6"), ([10, 11], "10-11")],
)
def test_ranges(numbers: list[int], text: str) -> None:
    """Consecutive numbers are written as a range."""
    assert totals.ranges(numbers) == text


FUSED = {
    "llama": [],
    "gpt2": [("attn.qkv", (16, 48), 3, "query, key, value", None)],
    "gpt_neox": [("attn.qkv", (48, 16), 3, "query, key, value", None)],
    "phi3": [("attn.qkv", (32, 16), 3, "query, key, value", None), ("mlp.gate_up", (48, 16), 3, "gate, up", None)],
    "mixtral": [("expert.gate_up", (4, 48, 16), 3, "gate, up", 4), ("expert.down", (4, 16, 24), 3, "down", 4)],
}  # fmt: skip


@pytest.mark.parametrize("name", FUSED)
def test_fused_parts(name: str, tmp_path: Path) -> None:
    """Fused projections and experts are named with what they hold; separate projections and biases are none."""
    save(name, tmp_path)
    found = totals.fused_parts(arch.run(str(tmp_path)).frame)
    expected = [totals.FusedPart(*part) for part in FUSED[name]]  # type: ignore[arg-type]
    assert sorted(found, key=str) == sorted(expected, key=str)


def test_tied_parts(tmp_path: Path) -> None:
    """A tied tensor is named with all its names, the address first."""
    save("llama_tied", tmp_path)
    assert totals.tied_parts(arch.run(str(tmp_path)).frame) == [("model.embed_tokens.weight", "lm_head.weight")]
    assert totals.tied_parts(frame_of("llama", tie_word_embeddings=False)) == []


def test_sizes_by_hand() -> None:
    """The size in each number format is the definition's, counted by hand on one block."""
    frame = pl.DataFrame(
        {"numel": [96, 128, 16], "block": [None, 0, 0], "shape": ["(12, 8)", "(2, 8, 8)", "(16)"]},
        schema={"numel": pl.Int64, "block": pl.Int64, "shape": pl.String},
    )
    assert totals.sizes(frame) == {
        "float32": 4 * 240,
        "bfloat16": 2 * 240,
        "int8": 128 + 4 * 16 + 2 * 112,
        "nf4": 64 + 4 * 2 + 2 * 112,
    }


def test_sizes_of_a_large_model() -> None:
    """Llama-3.1-8B takes the published 16.06 GB in bfloat16 and less than a third of that in four bits and embeddings."""
    found = totals.sizes(describe(load_spec(SPECS / "llama_3_1_8b.toml").model).frame)
    assert found["bfloat16"] == 16_060_522_496
    assert found["nf4"] == 6_979_321_856 * 9 // 16 + 2 * (8_030_261_248 - 6_979_321_856)


def test_scored_and_left_out() -> None:
    """Tensors of two dimensions or more are scored by default, the others are not, and none is forgotten."""
    frame = frame_of("llama")
    assert set(totals.not_scored(frame)["component"]) == {"norm"}
    assert totals.scored(frame).height + totals.not_scored(frame).height == frame.height


def test_names_without_block() -> None:
    """Names that differ in their block alone are written once."""
    frame = pl.DataFrame({"parameter": ["m.3.a.3.w", "m.4.a.3.w", "head"], "block": [3, 4, None]})
    assert totals.names_without_block(frame) == ["m.*.a.3.w", "head"]


def test_totals_read_the_table_alone() -> None:
    """Sums over a table at hand need no model: the module loads no torch."""
    source = Path(totals.__file__).read_text(encoding="utf-8")
    assert "torch" not in source.split('"""', 2)[2]
    code = (
        "import sys, importlib.util as u; s = u.spec_from_file_location('t', sys.argv[1]); m = u.module_from_spec(s);"
        " sys.modules['t'] = m; s.loader.exec_module(m); print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code, totals.__file__], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
