"""The sections of a spec: defaults that DESIGN.md names, values that hold together, and nothing that can change."""

from typing import Any

import pytest
from pydantic import ValidationError

from esa.errors import SpecError
from esa.spec import Spec, spec_from_dict
from esa.spec.methods import BitFlip, GaussNoise
from esa.spec.sections import Model


def spec(**sections: Any) -> Spec:
    """Return a spec of the least that must be said, and ``sections``."""
    return spec_from_dict({"name": "x", "model": {"id": "m"}, **sections})


DEFAULTS = {
    "model.dtype": "float32", "model.compute": "auto", "model.device": "auto", "model.quantization": "none",
    "model.trust_remote_code": False, "calibration.source": "builtin:prose", "calibration.windows": 8,
    "calibration.length": 256, "calibration.sample": "random", "calibration.bos": "auto",
    "eval.source": "builtin:prose_eval", "eval.windows": 64, "eval.length": 128, "eval.sample": "first",
    "score.metrics": ("act_mag", "grad_x_weight"), "score.seeds": (0,), "score.probes": 16, "score.keep": 4096,
    "rank.mode": "global", "rank.k": (1, 10, 100), "rank.groups": ("top_k", "random_k", "bottom_k"), "rank.draws": 19,
    "rank.seeds": "first", "overlap.by": ("weight",), "overlap.p": None, "perturb": (),
}  # fmt: skip


@pytest.mark.parametrize("key", DEFAULTS)
def test_defaults_are_those_of_the_design(key: str) -> None:
    """A key that is not given has the default that the design names."""
    found: Any = spec()
    for part in key.split("."):
        found = getattr(found, part)
    assert found == DEFAULTS[key]


@pytest.mark.parametrize(
    ("given", "bytes_"),
    [(5_000_000, 5_000_000), ("8 GB", 8 * 10**9), ("7.5 GiB", int(7.5 * 2**30)), ("512MiB", 512 * 2**20), (None, None)],
)
def test_a_budget_is_bytes_or_text(given: object, bytes_: int | None) -> None:
    """memory_budget is a number of bytes, or a number with a unit of thousands or of 1024."""
    assert spec(model={"id": "m", "memory_budget": given}).model.memory_budget == bytes_


@pytest.mark.parametrize("given", ["8", "8 gb", "-1 GB", "many", "8 GB GB", ""])
def test_a_budget_without_a_unit_is_refused(given: str) -> None:
    """The error names the value and what is allowed."""
    with pytest.raises(SpecError) as caught:
        spec(model={"id": "m", "memory_budget": given})
    assert caught.value.problems == [
        f"spec: model.memory_budget: '{given}' is not a size; allowed: bytes without quotes, or a number with MB, GB, TB, MiB,"
        " GiB, TiB"
    ]


METHOD_DEFAULTS = [
    ("scale", {"factor": 1.2}),
    ("sign_flip", {"factor": 1.0}),
    ("gauss_noise", {"sigma": 0.05, "relative_to": "weight"}),
    ("mean", {"over": "tensor"}),
    ("zero", {}),
]


@pytest.mark.parametrize(("method", "options"), METHOD_DEFAULTS)
def test_a_method_has_its_options(method: str, options: dict[str, object]) -> None:
    """A method's options are its own keys with their defaults, without what all methods share."""
    section = spec(perturb=[{"method": method, "groups": ["top_k"], "k": 3, "unit": "single"}]).perturb[0]
    assert section.options() == options


def test_methods_that_draw_are_repeated() -> None:
    """Noise and random bits are drawn five times by default; a fixed bit leaves nothing to chance."""
    assert GaussNoise(method="gauss_noise").repeats == 5
    assert BitFlip(method="bit_flip", prob=0.1).draws
    assert BitFlip(method="bit_flip", bits=1).draws
    assert not BitFlip(method="bit_flip", bit=14).draws


BIT_FLIPS = [
    ({}, "none"),
    ({"prob": 0.1, "bits": 2}, "prob, bits"),
    ({"bits": 2, "bit": 0}, "bits, bit"),
    ({"prob": 0.1, "bits": 2, "bit": 0}, "prob, bits, bit"),
]


@pytest.mark.parametrize(("options", "given"), BIT_FLIPS)
def test_bit_flip_takes_exactly_one_way(options: dict[str, object], given: str) -> None:
    """bit_flip without one of prob, bits and bit, or with more than one, is refused."""
    with pytest.raises(SpecError) as caught:
        spec(perturb=[{"method": "bit_flip", **options}])
    assert caught.value.problems == [f"spec: perturb.0: bit_flip needs exactly one of prob, bits, bit; given: {given}"]


@pytest.mark.parametrize("options", [{"prob": 1.0}, {"prob": 1e-9}, {"bits": 1}, {"bits": 32}, {"bit": 0}, {"bit": 31}])
def test_bit_flip_takes_each_way_alone(options: dict[str, object]) -> None:
    """Each of the three ways to choose bits is taken alone, to the ends of its range."""
    assert spec(perturb=[{"method": "bit_flip", **options}]).perturb[0].options() == options


@pytest.mark.parametrize("options", [{"prob": 0.0}, {"prob": 1.1}, {"bits": 0}, {"bits": 33}, {"bit": -1}, {"bit": 32}])
def test_bit_flip_refuses_what_is_out_of_range(options: dict[str, object]) -> None:
    """A probability outside (0, 1], no bit at all, and a bit that no number has are refused."""
    with pytest.raises(SpecError, match=r"^spec: perturb\.0\.\w+: input should be "):
        spec(perturb=[{"method": "bit_flip", **options}])


COMPUTE = [
    ("float32", "auto", True), ("float32", "float32", True), ("float32", "bfloat16", False),
    ("float32", "float16", False), ("bfloat16", "auto", True), ("bfloat16", "float32", True),
    ("bfloat16", "bfloat16", True), ("bfloat16", "float16", False), ("float16", "bfloat16", False),
    ("float16", "float32", True),
]  # fmt: skip


@pytest.mark.parametrize(("dtype", "compute", "holds"), COMPUTE)
def test_compute_holds_every_stored_number(dtype: str, compute: str, holds: bool) -> None:
    """A compute dtype that cannot hold every number of the storage dtype is refused."""
    model = {"id": "m", "dtype": dtype, "compute": compute}
    if holds:
        assert spec(model=model).model.compute == compute
    else:
        with pytest.raises(SpecError, match=f"compute = '{compute}' cannot hold every {dtype} number"):
            spec(model=model)


def test_a_shape_names_its_kind() -> None:
    """model.shape holds a configuration's own keys, model_type among them."""
    assert spec(model={"id": "m", "shape": {"model_type": "llama", "vocab_size": 3}}).model.shape == {
        "model_type": "llama", "vocab_size": 3,
    }  # fmt: skip
    with pytest.raises(SpecError, match="shape needs model_type, a string such as 'llama'"):
        spec(model={"id": "m", "shape": {"model_type": 3}})


SOURCES = [
    ("builtin:prose", True),
    ("file:a b.txt", True),
    ("file:", False),
    ("prose", False),
    ("http://x", False),
    ("hf:owner/name:test", True),
]


@pytest.mark.parametrize(("source", "holds"), SOURCES)
def test_a_source_is_of_one_of_three_forms(source: str, holds: bool) -> None:
    """A text source is builtin:NAME, file:PATH or hf:..., and any other is refused with all of them spelled out."""
    if holds:
        assert spec(eval={"source": source}).eval.source == source
    else:
        with pytest.raises(SpecError) as caught:
            spec(eval={"source": source})
        assert caught.value.problems == [
            f"spec: eval.source: '{source}' is not a text source; allowed: builtin:NAME, file:PATH,"
            " hf:DATASET[/CONFIG][@REVISION]:SPLIT[:FIELD]"
        ]


def test_a_spec_cannot_be_changed() -> None:
    """No key of a spec or of its sections can be set."""
    found = spec(perturb=[{"method": "zero"}])
    for section, key in ((found, "name"), (found.rank, "k"), (found.perturb[0], "unit"), (found.model, "id")):
        with pytest.raises(ValidationError, match="Instance is frozen"):
            setattr(section, key, "y")


def test_a_spec_holds_no_list() -> None:
    """Every list of the text is a tuple in the spec, also within model.shape."""
    found = spec(
        score={"metrics": ["obd"], "seeds": [1, 2], "include": ["*"]},
        model={"id": "m", "shape": {"model_type": "llama", "layers": ["a"], "rope": {"factors": [1.0]}}},
        perturb=[{"method": "zero", "k": [1]}],
    )

    def lists(value: object) -> list[object]:
        inner = value.values() if isinstance(value, dict) else value if isinstance(value, tuple | list) else ()
        return [*([value] if isinstance(value, list) else []), *(item for part in inner for item in lists(part))]

    assert lists(found.model_dump()) == []
    assert lists({"a": ([1],)}) == [[1]]


def test_equal_sections_hash_alike() -> None:
    """Sections without a table of their own hash by value: equal ones are one key of a dict."""
    one, other = spec(rank={"k": [3]}), spec(rank={"k": 3})
    assert one == other
    assert len({one, other, spec()}) == 2
    assert len({Model(id="m"), Model(id="m"), Model(id="n")}) == 2


@pytest.mark.parametrize("given", ["aut", 0, 1.5])
def test_probe_groups_are_a_number_or_auto(given: object) -> None:
    """What is neither is one error with the value and what is allowed."""
    with pytest.raises(SpecError) as caught:
        spec(score={"probe_groups": given})
    assert caught.value.problems == [
        f"spec: score.probe_groups: {given!r} is not allowed; allowed: an integer of at least 1, 'auto'"
    ]
