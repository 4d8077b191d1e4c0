"""A model described: every tensor once, what its files really take, what a token uses."""

import json
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch
import transformers

from esa import arch
from esa.arch import Architecture
from esa.artifact.schemas import SCHEMAS
from esa.errors import ModelError, SpecError
from esa.progress import Silent
from esa.spec import load_spec
from esa.spec.sections import Model
from tests.arch.models import (
    change_config,
    change_tensors,
    data_bytes,
    llama_gguf,
    qwen_moe_gguf,
    save,
)
from tests.conftest import SMALL, build

SPECS = Path(__file__).parents[2] / "specs"
DOWN = "model.layers.1.mlp.down_proj.weight"


def row(found: Architecture, parameter: str) -> dict[str, Any]:
    """Return the row of one parameter."""
    return found.frame.row(by_predicate=pl.col("parameter") == parameter, named=True)


def shape_of(model_type: str, **keys: Any) -> Model:
    """Return a section that is nothing but a shape."""
    return Model(id="owner/model", shape={"model_type": model_type, **SMALL, "num_key_value_heads": 2, **keys})


def test_a_row_per_tensor(architecture: str, tmp_path: Path) -> None:
    """Every parameter of the model has one row, in the model's order, with its shape and number of weights."""
    model = save(architecture, tmp_path)
    frame = arch.run(str(tmp_path)).table.frame
    expected = dict(model.named_parameters())
    assert frame.columns == list(SCHEMAS["arch/1"])
    assert frame["parameter"].to_list() == list(expected)
    assert frame["numel"].to_list() == [parameter.numel() for parameter in expected.values()]
    assert frame["shape"].to_list() == [f"({', '.join(map(str, p.shape))})" for p in expected.values()]
    assert frame["expert"].null_count() == frame.height


def test_bytes_are_those_of_the_files(architecture: str, tmp_path: Path) -> None:
    """The bytes of all tensors add up to what the files hold, in bfloat16, though experts lie there one by one."""
    save(architecture, tmp_path)
    found = arch.run(str(tmp_path))
    assert found.frame["bytes"].sum() == data_bytes(tmp_path) == 2 * found.frame["numel"].sum()
    assert set(found.frame["dtype"]) == {"bfloat16"}
    assert (found.extra, found.notes, found.warnings) == ((), (), ())


@pytest.mark.parametrize("name", ["llama", "mixtral"])
def test_shards_are_read_like_one_file(name: str, tmp_path: Path) -> None:
    """A model in many shards is described as in one file, also where one parameter's experts lie in several."""
    save(name, tmp_path / "whole")
    save(name, tmp_path / "shards", max_shard_size="5kB")
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 3
    whole, shards = (arch.run(str(tmp_path / part)) for part in ("whole", "shards"))
    assert shards.frame.equals(whole.frame)
    assert shards.warnings == ()


def test_a_missing_shard_is_said(tmp_path: Path) -> None:
    """A shard that is not there leaves its parameters without dtype and bytes, and a warning names it."""
    save("llama", tmp_path, max_shard_size="5kB")
    gone = sorted(tmp_path.glob("*.safetensors"))[1]
    gone.unlink()
    progress = Silent()
    found = arch.run(str(tmp_path), progress=progress)
    assert progress.warnings == list(found.warnings)
    assert found.warnings[0] == f"1 of the shards that the index names are not there, such as {gone.name}"
    missing = found.frame.filter(pl.col("bytes").is_null())
    assert f"parameters that the files hold in no form that adds up: {missing.height}, such as" in found.warnings[1]
    assert missing["dtype"].null_count() == missing.height > 0
    assert found.frame["bytes"].sum() == data_bytes(tmp_path)


def test_mixed_dtypes_stand_by_tensor(tmp_path: Path) -> None:
    """Each tensor has the dtype of its file; one whose experts differ names both."""

    def change(tensors: dict[str, torch.Tensor]) -> None:
        tensors["model.norm.weight"] = tensors["model.norm.weight"].float()
        name = next(name for name in tensors if "layers.0" in name and "experts.1" in name and "w1" in name)
        tensors[name] = tensors[name].float()

    save("mixtral", tmp_path)
    change_tensors(tmp_path, change)
    found = arch.run(str(tmp_path))
    assert (row(found, "model.norm.weight")["dtype"], row(found, "model.norm.weight")["bytes"]) == ("float32", 64)
    fused = row(found, "model.layers.0.mlp.experts.gate_up_proj")
    assert (fused["dtype"], fused["bytes"]) == ("bfloat16+float32", 4 * 48 * 16 * 2 + 24 * 16 * 2)
    assert found.frame["bytes"].sum() == data_bytes(tmp_path)


def test_a_tied_tensor_is_counted_once(tmp_path: Path) -> None:
    """A tied tensor has one row under its first name; a second copy of it in the files is no parameter's."""
    save("llama_tied", tmp_path)
    change_tensors(
        tmp_path, lambda tensors: tensors.update({"lm_head.weight": tensors["model.embed_tokens.weight"].clone()})
    )
    found = arch.run(str(tmp_path))
    tied = row(found, "model.embed_tokens.weight")
    assert (tied["tied"], tied["uses"]) == (True, "model.embed_tokens.weight lm_head.weight")
    assert [one.name for one in found.extra] == ["lm_head.weight"]
    assert found.frame["numel"].sum() == sum(p.numel() for p in build("llama_tied").parameters())


def test_what_is_no_parameter_is_extra(tmp_path: Path) -> None:
    """Tensors of the files that are no parameters are kept apart, and names without the base model's prefix are found."""

    def change(tensors: dict[str, torch.Tensor]) -> None:
        for name in list(tensors):
            tensors[name.removeprefix("transformer.")] = tensors.pop(name)
        tensors["h.0.attn.bias"] = torch.ones(1, 1, 8, 8, dtype=torch.bool)

    save("gpt2", tmp_path)
    change_tensors(tmp_path, change)
    found = arch.run(str(tmp_path))
    assert [(one.name, one.dtype, one.num_bytes) for one in found.extra] == [("h.0.attn.bias", "bool", 64)]
    assert found.frame["bytes"].sum() == data_bytes(tmp_path) - 64


def test_a_tensor_of_another_size_has_no_bytes(tmp_path: Path) -> None:
    """A file tensor that does not add up to its parameter gives neither dtype nor bytes: nothing is guessed."""
    save("llama", tmp_path)
    change_tensors(tmp_path, lambda tensors: tensors.update({DOWN: torch.ones(3, 3)}))
    found = arch.run(str(tmp_path))
    assert (row(found, DOWN)["dtype"], row(found, DOWN)["bytes"]) == (None, None)
    assert found.warnings == (
        f"parameters that the files hold in no form that adds up: 1, such as {DOWN}; their dtype and bytes are null",
    )


def test_a_quantized_checkpoint_keeps_its_parts_together(tmp_path: Path) -> None:
    """Packed weights, scales and zero points belong to the weight of their module, and all bytes are counted."""

    def change(tensors: dict[str, torch.Tensor]) -> None:
        module = DOWN.removesuffix(".weight")
        del tensors[DOWN]
        tensors[f"{module}.qweight"] = torch.ones(3, 16, dtype=torch.int32)
        tensors[f"{module}.scales"] = torch.ones(1, 16, dtype=torch.float16)

    save("llama", tmp_path)
    change_config(tmp_path, quantization_config={"quant_method": "gptq", "bits": 4})
    change_tensors(tmp_path, change)
    found = arch.run(str(tmp_path))
    assert (row(found, DOWN)["dtype"], row(found, DOWN)["bytes"]) == ("gptq", 3 * 16 * 4 + 16 * 2)
    assert found.frame["bytes"].sum() == data_bytes(tmp_path)
    assert found.warnings == ()


@pytest.mark.parametrize(
    ("dtype", "expected", "why"),
    [
        ("float16", "float16", "the configuration's dtype"),
        (None, "bfloat16", "model.dtype; the configuration names none"),
    ],
)
def test_without_weights_the_configuration_speaks(dtype: str | None, expected: str, why: str, tmp_path: Path) -> None:
    """A folder without safetensors is described from its configuration; a note says whose dtype is meant."""
    save("phi3", tmp_path)
    (tmp_path / "model.safetensors").unlink()
    change_config(tmp_path, dtype=dtype)
    found = arch.run(Model(id=str(tmp_path), dtype="bfloat16"))
    assert found.files is None
    assert found.notes == (f"no weights at hand: dtype and bytes are those of {expected} ({why})",)
    assert set(found.frame["dtype"]) == {expected}
    assert found.frame["bytes"].sum() == 2 * found.frame["numel"].sum()


def test_mixtral_of_its_spec() -> None:
    """From its spec alone Mixtral 8x7B has the published 46.7 billion parameters, 12.9 billion of them active."""
    found = arch.run(load_spec(SPECS / "mixtral_8x7b.toml"))
    assert found.frame["numel"].sum() == 46_702_792_704
    assert found.frame["active"].sum() == 12_879_925_248
    assert (found.facts["num_experts"], found.facts["num_experts_per_tok"]) == (8, 2)
    assert set(found.frame["dtype"]) == {"bfloat16"}


@pytest.mark.parametrize(
    ("spec", "weights"),
    [("llama_3_1_8b", 8_030_261_248), ("mistral_7b_v03", 7_248_023_552), ("phi_3_mini_4k", 3_821_079_552),
     ("pythia_1_4b", 1_414_647_808)],
)  # fmt: skip
def test_published_sizes(spec: str, weights: int) -> None:
    """From their specs alone the research models have the numbers of parameters that their authors publish."""
    found = arch.run(load_spec(SPECS / f"{spec}.toml"))
    assert found.frame["numel"].sum() == found.frame["active"].sum() == weights


def test_defaults_are_no_facts() -> None:
    """What neither a tensor's shape nor the spec states is left open: a class's default says nothing of a model."""
    stated = arch.describe(shape_of("llama")).facts
    assert (stated["context_length"], stated["activation"]) == (64, None)
    assert arch.describe(shape_of("llama", hidden_act="gelu")).facts["activation"] == "gelu"


FACTS: dict[str, dict[str, Any]] = {
    "llama": {"architecture": "LlamaForCausalLM", "num_kv_heads": 2, "head_dim": 4, "intermediate_size": 24},
    "gpt2": {"architecture": "GPT2LMHeadModel", "num_kv_heads": 4, "head_dim": 4, "intermediate_size": 64},
    "gpt_neox": {"num_kv_heads": 4, "head_dim": 4, "intermediate_size": 24, "num_experts": None},
    "phi3": {"num_kv_heads": 2, "head_dim": 4, "intermediate_size": 24},
    "mixtral": {"intermediate_size": None, "expert_intermediate_size": 24, "num_experts": 4, "num_experts_per_tok": 2},
}


@pytest.mark.parametrize("name", FACTS)
def test_facts(name: str, tmp_path: Path) -> None:
    """Depth, width, heads, vocabulary and experts are read, from fused and transposed projections, too."""
    save(name, tmp_path)
    facts = arch.run(str(tmp_path)).facts
    expected = {
        "num_blocks": 3,
        "hidden_size": 16,
        "num_heads": 4,
        "vocab_size": 96,
        "context_length": 64,
        **FACTS[name],
    }
    assert {key: facts[key] for key in expected} == expected


SPARSE: dict[str, tuple[Model, float]] = {
    "mixtral": (shape_of("mixtral", num_local_experts=4, num_experts_per_tok=1), 1 / 4),
    "qwen2_moe": (shape_of("qwen2_moe", num_experts=4, num_experts_per_tok=3, moe_intermediate_size=8), 3 / 4),
    "ernie4_5_moe": (shape_of("ernie4_5_moe", moe_num_experts=4, moe_k=2, moe_intermediate_size=8), 2 / 4),
    "gpt_oss": (shape_of("gpt_oss", num_local_experts=4, num_experts_per_tok=2, head_dim=4), 2 / 4),
    "jamba": (shape_of("jamba", num_experts=4, num_experts_per_tok=2, mamba_d_state=4), 2 / 4),
}


@pytest.mark.parametrize("name", SPARSE)
def test_a_token_uses_some_experts(name: str) -> None:
    """Of routed experts and their biases a token uses its share; of routers, shared experts and all else the whole."""
    section, share = SPARSE[name]
    found = arch.describe(section)
    routed = found.frame.filter(pl.col("layer").str.ends_with(".experts"))
    assert routed.height >= 2
    assert routed["active"].to_list() == [int(numel * share) for numel in routed["numel"]]
    others = found.frame.filter(~pl.col("layer").str.ends_with(".experts"))
    assert others["active"].to_list() == others["numel"].to_list()


def test_unknown_activity_is_null(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the configuration does not say how many experts a token uses, active is null, and a warning says so."""
    monkeypatch.setattr("esa.model.experts._PER_TOKEN", ("no_such_key",))
    found = arch.describe(SPARSE["mixtral"][0])
    unknown = found.frame.filter(pl.col("active").is_null())
    assert set(unknown["component"]) == {"expert.gate_up", "expert.down"}
    assert found.warnings == ("how many weights a token uses cannot be told from the configuration: active is null",)


def test_experts_that_no_tensor_shows_are_not_counted_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """A configuration with experts and tensors without an axis of them leaves active open for the whole model."""
    monkeypatch.setattr("esa.model.experts.routed_experts", lambda *_: {})
    found = arch.describe(SPARSE["mixtral"][0])
    assert found.frame["active"].null_count() == found.frame.height
    assert len(found.warnings) == 1


def test_a_gguf_s_types_and_bytes(tmp_path: Path) -> None:
    """Of a GGUF file every tensor has its quantization type and the bytes that it takes there."""
    llama_gguf(tmp_path / "a.gguf")
    found = arch.run(str(tmp_path / "a.gguf"))
    assert (row(found, "model.embed_tokens.weight")["dtype"], row(found, "model.embed_tokens.weight")["bytes"]) == (
        "q8_0", 64 * 64 * 34 // 32,
    )  # fmt: skip
    assert (row(found, "lm_head.weight")["dtype"], row(found, "model.norm.weight")["dtype"]) == ("float16", "float32")
    assert [row(found, DOWN.replace("1", block))["dtype"] for block in "01"] == ["q4_0", "q8_0"]
    assert [one.name for one in found.extra] == ["rope_freqs.weight"]
    assert found.warnings == ()


def test_a_gguf_s_experts_are_put_together(tmp_path: Path) -> None:
    """Gate and up of all experts, two tensors of a GGUF file, are one parameter with the bytes of both."""
    qwen_moe_gguf(tmp_path / "a.gguf")
    found = arch.run(str(tmp_path / "a.gguf"))
    fused = row(found, "model.layers.1.mlp.experts.gate_up_proj")
    assert (fused["shape"], fused["dtype"]) == ("(4, 1536, 64)", "q4_0+q8_0")
    assert fused["bytes"] == 4 * 768 * 64 * (18 + 34) // 32
    assert fused["active"] == fused["numel"] // 2
    assert (found.extra, found.warnings) == ((), ())


def test_a_gguf_of_other_experts_is_not_guessed(tmp_path: Path) -> None:
    """Where transformers gives a GGUF's experts another size than the file, their bytes are null and the reader is told."""
    qwen_moe_gguf(tmp_path / "a.gguf", expert_size=32)
    found = arch.run(str(tmp_path / "a.gguf"))
    assert set(found.frame.filter(pl.col("bytes").is_null())["component"]) == {"expert.gate_up", "expert.down"}
    assert "parameters that the files hold in no form that adds up: 4, such as" in found.warnings[0]


def test_the_real_model() -> None:
    """The built-in SmolLM2 has its 134,515,008 weights and the types of its Q4_1 file."""
    found = arch.run("smollm2-135m")
    assert found.frame["numel"].sum() == 134_515_008
    sizes = dict(found.frame.group_by("dtype").agg(pl.col("numel").sum()).iter_rows())
    assert sizes == {"q8_0": 28_311_552, "q4_1": 106_168_320, "float32": 35_136}
    assert found.frame["bytes"].sum() == 96_576_768
    assert (found.extra, found.notes, found.warnings) == ((), (), ())


def test_no_weight_is_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The model is built on the meta device and nothing is loaded into it."""
    save("llama", tmp_path)
    monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", lambda *_, **__: pytest.fail("loaded"))
    monkeypatch.setattr(torch, "randn", lambda *_, **__: pytest.fail("drawn"))
    assert arch.run(str(tmp_path)).frame.height == 30


def test_the_run_follows_what_is_described(tmp_path: Path) -> None:
    """The same model has the same run; another bit in its files or another key of its configuration another."""
    save("llama", tmp_path)
    first, again = arch.run(str(tmp_path)).table, arch.run(str(tmp_path)).table
    assert first.frame.equals(again.frame)
    assert first.meta == again.meta
    run = first.meta["run"]
    assert (len(run), set(first.frame["run"])) == (12, {run})
    change_config(tmp_path, rope_theta=1234.0)
    second = arch.run(str(tmp_path)).table.meta["run"]
    change_tensors(tmp_path, lambda tensors: tensors[DOWN].mul_(2))
    assert len({run, second, arch.run(str(tmp_path)).table.meta["run"]}) == 3


def test_the_table_carries_its_facts(tmp_path: Path) -> None:
    """The table's metadata holds facts, notes and the hash of the model's files."""
    save("llama", tmp_path)
    meta = arch.run(str(tmp_path)).table.meta
    assert json.loads(meta["facts"])["num_blocks"] == 3
    assert json.loads(meta["spec"])["model"]["id"] == str(tmp_path)
    assert set(json.loads(meta["inputs"])) == {"model"}
    assert meta["notes"] == "[]"


def test_a_spec_s_shape_is_held_against_files_at_hand(tmp_path: Path) -> None:
    """Files at hand are described, not a shape; one that contradicts them is refused."""
    save("llama", tmp_path)
    shape = {"model_type": "llama", "hidden_size": 16}
    assert arch.describe(Model(id=str(tmp_path), shape=shape)).files is not None
    with pytest.raises(SpecError, match=r"^model\.shape\.hidden_size: 17 in the spec, 16 in the model's configuration"):
        arch.describe(Model(id=str(tmp_path), shape={**shape, "hidden_size": 17}))


def test_a_shape_speaks_for_what_is_not_here(tmp_path: Path) -> None:
    """A path that leads nowhere is described from model.shape, with a note; without a shape it is refused."""
    section = Model(id=str(tmp_path / "gone"), shape=shape_of("llama").shape)
    assert (
        arch.describe(section).notes[0] == "from model.shape alone: keys that it leaves out have LlamaConfig's defaults"
    )
    with pytest.raises(ModelError, match="no such folder"):
        arch.describe(Model(id=str(tmp_path / "gone")))


BAD_SHAPES = {
    "a wrong type": ({"hidden_size": "x"}, "model.shape: Field 'hidden_size' expected int, got str (value: 'x')"),
    "no head": ({"num_attention_heads": 0}, "model.shape: integer division or modulo by zero"),
    "no multiple": ({"hidden_size": 17}, "model.shape: The hidden size (17) is not a multiple of the number of attention heads (4)."),
    "no model": ({"model_type": "lama"}, "model.shape: Unrecognized model identifier: lama."),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_SHAPES)
def test_a_bad_shape_is_refused(case: str) -> None:
    """A shape that makes no model is an error in words, never a traceback."""
    keys, text = BAD_SHAPES[case]
    with pytest.raises(ModelError) as caught:
        arch.describe(shape_of(**{"model_type": "llama", **keys}))
    assert str(caught.value).startswith(text)


def broken(folder: Path) -> str:
    """Cut a folder's weights in half."""
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    return "cannot be loaded: Error while deserializing header"


def no_index(folder: Path) -> str:
    """Leave an index of shards that is none."""
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text("[]")
    return "is not an index of shards: it has no weight_map"


def no_decoder(folder: Path) -> str:
    """Make the folder that of a model of images."""
    change_config(folder, model_type="vit", architectures=["ViTModel"])
    return "is not a causal language model"


def bad_value(folder: Path) -> str:
    """Give the configuration a value of another type."""
    change_config(folder, hidden_size="sixteen")
    return "does not hold: Field 'hidden_size' expected int, got str (value: 'sixteen')"


@pytest.mark.parametrize("spoil", [broken, no_index, no_decoder, bad_value])
def test_a_bad_folder_is_refused(spoil: Any, tmp_path: Path) -> None:
    """Cut weights, a broken index, a model of another kind and a bad configuration are refused in words."""
    save("llama", tmp_path)
    text = spoil(tmp_path)
    with pytest.raises(ModelError) as caught:
        arch.run(str(tmp_path))
    assert text in str(caught.value)
