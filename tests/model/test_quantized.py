"""bitsandbytes models: what their codes stand for, what a description says of them, and what is refused."""

import importlib
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import bitsandbytes
import pytest
import torch
from bitsandbytes.functional import dequantize_4bit, has_avx512bf16, int8_vectorwise_dequant
from torch import Tensor
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from esa.errors import EsaError, ModelError, SpecError
from esa.model import describe, fingerprint, load_model, prepare
from esa.model.footprint import footprint_of, skeleton
from esa.model.quantized import Nf4Weight, QuantizedWeight, Scales
from esa.model.quantizing import _without_kernels, library, quantization_of
from tests.conftest import make_tokenizer, tiny_spec
from tests.quantized import DOWN, EMBEDDING, KINDS, UP, dense_twin, load_quantized, weight_of, wide_model

IDS = torch.arange(1, 13)[None]


def naive_codes(weight: QuantizedWeight) -> list[int]:
    """Return every code, read bit by bit as bitsandbytes documents the storage."""
    if weight.kind == "int8":
        found: list[int] = weight.layer.weight.data.reshape(-1).tolist()
        return found
    return [half for byte in weight.layer.weight.data.reshape(-1).tolist() for half in (byte >> 4, byte & 15)]


def naive_numbers(weight: QuantizedWeight) -> Tensor:
    """Return level times scale, one by one, float64."""
    codes = naive_codes(weight)
    if weight.kind == "int8":
        scales, width = weight.layer.state.SCB.tolist(), weight.info.shape[1]
        found = [scales[i // width] * code / 127 for i, code in enumerate(codes)]
    else:
        state = weight.layer.weight.quant_state
        levels, scales = state.code.tolist(), state.absmax.tolist()
        found = [levels[code] * scales[i // 64] for i, code in enumerate(codes)]
    return torch.tensor(found, dtype=torch.float64).view(weight.info.shape)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_values_are_what_the_codes_stand_for(name: str, kind: str) -> None:
    """Numbers equal level times scale, written out, those of bitsandbytes' own functions, and the ones read by index."""
    loaded = load_quantized(kind, name)
    found = [weight for weight in loaded.weights.values() if isinstance(weight, QuantizedWeight)]
    assert len(found) == 2 * (7 if name == "llama" else 4)
    for weight in found:
        values = weight.values()
        assert values.shape == weight.info.shape
        assert torch.allclose(values.double(), naive_numbers(weight), rtol=1e-6, atol=0)
        own = (
            dequantize_4bit(weight.layer.weight.data, weight.layer.weight.quant_state)
            if kind == "nf4"
            else int8_vectorwise_dequant(weight.layer.state.CB, weight.layer.state.SCB)
        )
        assert torch.equal(values, own)
        assert torch.equal(weight.stored(torch.arange(weight.info.numel)).view(values.shape), values)
        codes = naive_codes(weight)
        assert weight.held(torch.tensor([0, 1, 7])).tolist() == [codes[i] for i in (0, 1, 7)]


@pytest.mark.parametrize("compute", ["float32", "bfloat16"])
def test_nf4_layers_multiply_by_the_values(compute: str) -> None:
    """A layer's output is its input times ``values()``, in the compute dtype."""
    loaded = load_quantized("nf4", dtype="bfloat16", compute=compute)
    weight = weight_of(loaded, DOWN)
    x = torch.randn(3, 128, generator=torch.Generator().manual_seed(0)).to(getattr(torch, compute))
    with torch.no_grad():
        assert torch.equal(weight.layer(x), torch.nn.functional.linear(x, weight.values()))
    assert weight.values().dtype == loaded.weights[EMBEDDING].parameter.dtype == getattr(torch, compute)


@pytest.mark.parametrize("kind", KINDS)
def test_the_description_is_of_the_numbers(kind: str) -> None:
    """Shapes, sizes, axes and components are those of the numbers; what bitsandbytes leaves alone is as it was."""
    for name in ("llama", "mixtral"):
        plain = prepare(wide_model(name), make_tokenizer(), tiny_spec().model, torch.device("cpu"))
        loaded = load_quantized(kind, name)
        assert loaded.table == plain.table
        assert loaded.facts["num_parameters"] == plain.facts["num_parameters"]
        assert loaded.facts["quantization"] == kind
        for each, weight in loaded.weights.items():
            linear = isinstance(loaded.model.get_submodule(weight.info.layer), torch.nn.Linear)
            assert isinstance(weight, QuantizedWeight) == (linear and each != "lm_head.weight"), each
            if not isinstance(weight, QuantizedWeight):
                assert torch.equal(weight.values(), plain.weights[each].values()), each
    info = load_quantized(kind, "gpt2").table["transformer.h.0.attn.c_attn.weight"]
    assert (info.shape, info.numel, info.output_axis, info.input_axis) == ((192, 64), 12288, 0, 1)


@pytest.mark.parametrize("kind", KINDS)
def test_every_way_to_a_model_gives_the_same_codes(kind: str, tmp_path: Path) -> None:
    """A folder quantised as it is read, a model quantised in memory, and a quantised checkpoint are one model."""
    model = wide_model("gpt2")
    model.save_pretrained(tmp_path / "plain")
    make_tokenizer().save_pretrained(tmp_path / "plain")
    section = tiny_spec(model={"id": str(tmp_path / "plain"), "quantization": kind, "device": "cpu"}).model
    read = load_model(section)
    read.model.save_pretrained(tmp_path / "codes")
    make_tokenizer().save_pretrained(tmp_path / "codes")
    again = load_model(section.model_copy(update={"id": str(tmp_path / "codes")}))
    made = load_quantized(kind, model=model)
    assert read.facts["fingerprint"] == made.facts["fingerprint"] == again.facts["fingerprint"]
    with torch.no_grad():
        assert torch.equal(read.model(IDS).logits, made.model(IDS).logits)
    with pytest.raises(ModelError) as raised:
        load_model(section.model_copy(update={"id": str(tmp_path / "codes"), "quantization": "none"}))
    assert raised.value.what == f"'none', but the model's linear maps are stored as {kind} codes"
    assert raised.value.hint == f"--set model.quantization='{kind}'"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_predicted_bytes_are_those_held(name: str, kind: str) -> None:
    """The weights' bytes are predicted from the configuration and from the model at hand, codes and scales counted."""
    loaded = load_quantized(kind, name)
    held = sum(piece.nbytes for weight in loaded.weights.values() for piece in weight.pieces())
    section = tiny_spec(model={"id": "tiny", "quantization": kind}).model
    meta = skeleton(wide_model(name).config, section)
    assert footprint_of(meta, section, describe(meta)).weight_bytes == held
    assert footprint_of(loaded.model, section, loaded.table).weight_bytes == held
    assert footprint_of(loaded.model, section, loaded.table).load_bytes == held


@pytest.mark.parametrize("kind", KINDS)
def test_codes_stay_where_they_are(kind: str) -> None:
    """A forward pass leaves codes and scales as they are; a CPU with AVX512-BF16 would have repacked those of NF4."""
    loaded = load_quantized(kind)
    before = fingerprint(loaded.weights)
    held = {name: weight.parameter.data_ptr() for name, weight in loaded.weights.items()}
    with torch.no_grad():
        loaded.model(IDS)
    assert fingerprint(loaded.weights) == before == loaded.facts["fingerprint"]
    assert {name: weight.parameter.data_ptr() for name, weight in loaded.weights.items()} == held


def quantise_down(model: Any, *, double: bool) -> Any:
    """Put one NF4 layer into a model by hand, its scales quantised or not, and return it."""
    made = bitsandbytes.nn.Linear4bit(128, 64, bias=False, compute_dtype=torch.float32, quant_type="nf4").eval()
    values = model.get_parameter(DOWN).data
    made.weight = bitsandbytes.nn.Params4bit(values, quant_type="nf4", compress_statistics=double, module=made).to(
        "cpu"
    )
    model.model.layers[1].mlp.down_proj = made
    return made


@pytest.mark.skipif(not has_avx512bf16(), reason="no CPU repacks weights here")
def test_a_repacked_model_is_refused() -> None:
    """A model whose codes were moved by a forward pass is refused, and it is a forward pass that moves them."""
    model = wide_model()
    made = quantise_down(model, double=False)
    before = made.weight.data.clone()
    with torch.no_grad():
        model(IDS)
    assert before.flatten().tolist() != made.weight.data.flatten().tolist()
    with pytest.raises(ModelError) as raised:
        load_quantized("nf4", model=model)
    assert raised.value.what == f"{DOWN} was repacked for this CPU by a forward pass, its scales rounded to bfloat16"


def nearest(levels: Tensor, value: float) -> float:
    """Return the level nearest to a value, by trying all."""
    return min(levels.tolist(), key=lambda level: abs(level - value))


@pytest.mark.parametrize("kind", KINDS)
def test_a_number_becomes_the_nearest_code(kind: str) -> None:
    """Numbers within the scale and beyond it take the nearest of all levels, and no other weight changes."""
    loaded = load_quantized(kind)
    weight = weight_of(loaded, DOWN)
    draw = torch.Generator().manual_seed(3)
    index = torch.randperm(weight.info.numel, generator=draw)[:300].sort().values
    wanted = torch.randn(300, generator=draw) * 0.2
    wanted[:4] = torch.tensor([9.0, -9.0, 0.0, 1e-30])
    before = weight.values().reshape(-1).clone()
    weight.write(index, wanted)
    levels = torch.arange(-127, 128) / 127 if kind == "int8" else weight.layer.weight.quant_state.code
    scales = weight.scales[index // (128 if kind == "int8" else 64)]
    expected = [nearest(levels * scale, float(value)) for value, scale in zip(wanted, scales, strict=True)]
    assert weight.stored(index).tolist() == pytest.approx(expected, rel=1e-6)
    after = weight.values().reshape(-1)
    assert set((after != before).nonzero().flatten().tolist()) <= set(index.tolist())
    assert torch.equal(weight.encode(index, weight.stored(index)), weight.held(index))


@pytest.mark.parametrize("kind", KINDS)
def test_what_no_code_is_nearest_to(kind: str) -> None:
    """NaN and infinity are refused; under a scale of zero, where every code is zero, a weight keeps its own."""
    loaded = load_quantized(kind)
    weight = weight_of(loaded, UP)
    for value, text in ((torch.nan, "nan"), (torch.inf, "inf")):
        with pytest.raises(EsaError) as raised:
            weight.write(torch.tensor([3]), torch.tensor([value]))
        assert raised.value.what == f"{UP}: no {kind} code is nearest to {text}"
    index = torch.tensor([0, 1, 5])
    Scales(weight).write(index[:1], torch.zeros(1))
    held = weight.held(index)
    weight.write(index, torch.tensor([0.5, 0.0, -1.0]))
    assert torch.equal(weight.held(index), held)
    assert weight.stored(index).tolist() == [0, 0, 0]


def test_the_adjacent_code_is_the_next_away_from_zero() -> None:
    """NF4 codes 0 and 15 and int8 codes -127 and 127 are the outermost: from there it goes towards zero."""
    index = torch.arange(6)
    nf4, int8 = (weight_of(load_quantized(kind), UP) for kind in KINDS)
    nf4.put(index, torch.tensor([0, 1, 6, 8, 14, 15]))
    assert nf4.adjacent(index).tolist() == [1, 0, 5, 9, 15, 14]
    int8.put(index, torch.tensor([-128, -127, -3, 3, 126, 127]))
    assert int8.adjacent(index).tolist() == [-127, -126, -4, 4, 127, 126]


@pytest.mark.parametrize("kind", KINDS)
def test_the_fingerprint_covers_codes_and_scales(kind: str) -> None:
    """One code, or one bit of one scale, changes the fingerprint; bringing it back brings it back."""
    loaded = load_quantized(kind)
    weight, index = weight_of(loaded, DOWN), torch.tensor([65])
    before, held = fingerprint(loaded.weights, {DOWN}), weight.held(index)
    weight.put(index, held ^ 1)
    assert fingerprint(loaded.weights, {DOWN}) != before
    weight.restore(index, held)
    assert fingerprint(loaded.weights, {DOWN}) == before
    scales = Scales(weight)
    scale = scales.held(index)
    scales.write(index, (scale.view(torch.int32) ^ 1).view(torch.float32))
    assert fingerprint(loaded.weights, {DOWN}) != before
    scales.restore(index, scale)
    assert fingerprint(loaded.weights, {DOWN}) == before


def test_double_quantisation_is_read() -> None:
    """Where the scales are codes too, numbers equal bitsandbytes' own, weights can be written, scales cannot."""
    model = wide_model()
    made = quantise_down(model, double=True)
    loaded = load_quantized("nf4", model=model)
    weight = weight_of(loaded, DOWN)
    assert torch.equal(weight.values(), dequantize_4bit(made.weight.data, made.weight.quant_state))
    before = fingerprint(loaded.weights, {DOWN})
    weight.write(torch.tensor([70]), torch.zeros(1))
    assert weight.stored(torch.tensor([70])).tolist() == [0]
    assert fingerprint(loaded.weights, {DOWN}) != before
    with pytest.raises(EsaError) as raised:
        weight.scales  # noqa: B018
    assert raised.value.what == f"the scales of {DOWN} are quantised themselves, with others of its tensor"


def test_a_layer_that_multiplies_by_other_numbers_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where bitsandbytes dequantises wrongly, as its AVX-512 code does where blocks run across rows, loading says so."""
    right = Nf4Weight.values
    monkeypatch.setattr(Nf4Weight, "values", lambda self: right(self).roll(64))
    with pytest.raises(ModelError) as raised:
        load_quantized("nf4")
    assert raised.value.what == (
        "bitsandbytes' kernel for this processor multiplies model.layers.0.self_attn.q_proj.weight by other numbers than its"
        " codes stand for (rows of 64 weights, blocks of 64)"
    )
    assert raised.value.hint == "--set model.quantization='int8'"


def test_what_cannot_be_read_is_refused(tmp_path: Path) -> None:
    """FP4 is refused by name, and so is a layer that is not quantised yet."""
    wide_model().save_pretrained(tmp_path)
    config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="fp4")
    model = AutoModelForCausalLM.from_pretrained(tmp_path, quantization_config=config, device_map={"": "cpu"})
    with pytest.raises(ModelError) as raised:
        quantization_of(model)
    first = "model.layers.0.self_attn.q_proj"
    assert raised.value.what == f"{first} is fp4; linear maps that are all int8, or all nf4, can be read"
    model = wide_model()
    model.model.layers[0].self_attn.q_proj = bitsandbytes.nn.Linear8bitLt(64, 64, has_fp16_weights=False)
    with pytest.raises(ModelError, match=f"{first} is not quantised yet; linear maps that are all int8"):
        quantization_of(model)


def test_bitsandbytes_may_be_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without bitsandbytes an unquantised model loads, and a quantised one says what to install."""
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    prepare(wide_model(), make_tokenizer(), tiny_spec().model, torch.device("cpu"))
    with pytest.raises(ModelError) as raised:
        load_quantized("nf4")
    assert raised.value.what.startswith("bitsandbytes cannot be imported: ")
    assert (raised.value.where, raised.value.hint) == ("model.quantization", "pip install 'esa[quant]'")
    assert raised.value.exit_code == 3


KERNELS = """
import sys
from pathlib import Path
Path(sys.argv[1], "kernels.py").write_text(
    "def get_kernel(*args, **kwargs):\\n    print('asked the hub', args)\\n    raise OSError('no network')\\n"
)
sys.path.insert(0, sys.argv[1])
from esa.model.quantizing import library
assert library().__name__ == "bitsandbytes"
import kernels
assert kernels.get_kernel
"""


def test_the_package_that_fetches_kernels_is_out_of_sight(monkeypatch: pytest.MonkeyPatch) -> None:
    """While bitsandbytes is imported ``kernels`` cannot be; before and afterwards it is as it was, there or not."""
    fake = types.ModuleType("kernels")
    monkeypatch.setitem(sys.modules, "kernels", fake)
    with _without_kernels(), pytest.raises(ImportError):
        importlib.import_module("kernels")
    assert importlib.import_module("kernels") is fake
    monkeypatch.delitem(sys.modules, "kernels")
    with _without_kernels():
        pass
    assert "kernels" not in sys.modules


@pytest.mark.slow
def test_importing_bitsandbytes_asks_nobody(tmp_path: Path) -> None:
    """The package that would fetch a kernel is not asked, nothing is printed, and it can be imported afterwards."""
    done = subprocess.run([sys.executable, "-c", KERNELS, str(tmp_path)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_int8_layers_do_not_repeat_themselves(caplog: pytest.LogCaptureFixture) -> None:
    """bitsandbytes' remark on the cast of inputs, made at every product, is not passed on: the loader says it once."""
    said: list[str] = []
    loaded = load_quantized("int8")
    with torch.no_grad():
        loaded.model(IDS)
    said += [record.getMessage() for record in caplog.records]
    assert said == []
    assert library() is bitsandbytes


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_may_be_prepared_again(kind: str) -> None:
    """A second preparation leaves one hook on each layer, and the same codes."""
    loaded = load_quantized(kind)
    again = load_quantized(kind, model=loaded.model)
    assert again.facts["fingerprint"] == loaded.facts["fingerprint"]
    assert len(weight_of(again, DOWN).layer._forward_hooks) == 1


def test_the_twin_of_a_quantised_model_is_dense() -> None:
    """The helper that other tests lean on gives a model of plain numbers with the same logits."""
    loaded: Any = load_quantized("nf4")
    with torch.no_grad():
        assert torch.equal(loaded.model(IDS).logits, dense_twin(loaded).model(IDS).logits)


@pytest.mark.parametrize("kind", KINDS)
def test_disk_residency_is_refused(kind: str) -> None:
    """Blocks that come from files hold numbers: with codes the spec is refused."""
    with pytest.raises(SpecError) as raised:
        tiny_spec(model={"id": "tiny", "quantization": kind, "residency": "disk"})
    text = f"residency = 'disk' reads blocks of numbers from their files, no {kind} codes; allowed: memory"
    assert text in str(raised.value)
