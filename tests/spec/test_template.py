"""The commented spec holds every key there is, and its comments are true."""

import itertools
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from esa.artifact.steps import readers
from esa.registry import METHODS, METRICS, SELECTORS
from esa.spec import Spec, load_spec, load_sweep, spec_from_dict
from esa.spec.methods import TABLES, Drawing, Perturb
from esa.spec.template import EXAMPLES, WIDTH, spec_template

TEXT = spec_template(readers, name="my_run", model="smollm2-135m")
LINE = re.compile(r"(?P<mark>#{0,2}) ?(?P<key>[a-z_.]+) = (?P<rest>.*)")
TABLE = re.compile(r"(?P<mark>#{0,2}) ?\[\[?(?P<table>[a-z.]+)\]\]?")


def keys() -> Iterator[tuple[tuple[str, str], tuple[str, str, str]]]:
    """Yield table (of a method: its name) and key, and behind it mark, value and words, of every key in the template."""
    table, lines = "", [*TEXT.splitlines(), ""]
    for place, line in enumerate(lines):
        if found := TABLE.fullmatch(line):
            table = found["table"]
        elif found := LINE.fullmatch(line):
            value, _, words = found["rest"].partition("  # ") if "  # " in found["rest"] else (found["rest"], "", "")
            if found["key"] == "method" and table == "perturb":
                table = tomllib.loads(f"x = {value}")["x"]
            below = itertools.takewhile(lambda other: other.startswith("#   "), lines[place + 1 :])
            said = " ".join([words, *below]).replace("#", " ")
            yield (table, found["key"]), (found["mark"], value.strip(), " ".join(said.split()))


FOUND = dict(keys())


def fields() -> dict[tuple[str, str], Any]:
    """Return every key of the spec's models: by section, and for methods their own and, of the first, the shared ones."""
    known: dict[tuple[str, str], Any] = {}
    for key, field in Spec.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            for name, inner in field.annotation.model_fields.items():
                below = getattr(inner.annotation, "model_fields", None)
                known |= (
                    {(key, name): inner} if below is None else {(f"{key}.{name}", one): f for one, f in below.items()}
                )
        elif key != "perturb":
            known["", key] = field
    for number, (method, section) in enumerate(TABLES.items()):
        shared = () if number == 0 else Perturb.model_fields
        known |= {(method, name): field for name, field in section.model_fields.items() if name not in shared}
    return known


def uncommented(text: str, mark: str = "# ") -> str:
    """Take the mark away from every key and table behind it."""
    pattern = rf"^{mark}(?=[a-z_.]+ = |\[\[?[a-z.]+\]\]?$)"
    return re.sub(pattern, "", text, flags=re.MULTILINE)


def tree(spec: Spec, *without: str) -> dict[str, Any]:
    """Return a spec as nested dicts."""
    return spec.model_dump(exclude=set(without))


def test_every_key_is_there_and_no_other() -> None:
    """Each key of each section and method stands in the template once, `extends` and `[sweep]` beside them."""
    extra = {("", "extends"), ("sweep", "score.keep"), ("sweep", "model.dtype")}
    assert set(FOUND) == {*fields(), *extra}
    assert len(list(keys())) == len(FOUND)
    assert list(TABLES) == list(METHODS)


def test_it_runs_as_it_is(tmp_path: Path) -> None:
    """What stands without a comment is a whole spec: a name, a model, one method, and nothing else."""
    (tmp_path / "s.toml").write_text(TEXT)
    given = {"name": "my_run", "model": {"id": "smollm2-135m"}, "perturb": [{"method": "zero"}]}
    assert load_spec(tmp_path / "s.toml") == spec_from_dict(given)
    assert {key for key, (mark, _, _) in FOUND.items() if not mark} == {
        ("", "name"),
        ("model", "id"),
        ("zero", "method"),
    }


def test_what_stands_behind_one_mark_is_the_default(tmp_path: Path) -> None:
    """With every single mark taken away the sections are those of an empty spec, and each method is as it is alone."""
    (tmp_path / "s.toml").write_text(uncommented(TEXT))
    loaded = load_spec(tmp_path / "s.toml")
    bare = spec_from_dict({"name": "my_run", "model": {"id": "smollm2-135m"}})
    assert tree(loaded, "perturb") == tree(bare, "perturb")
    given: dict[str, Any] = {"bit_flip": {"bits": 1}}
    alone = [{"method": method, **given.get(method, {})} for method in METHODS]
    assert loaded.perturb == spec_from_dict({**tree(bare, "perturb"), "perturb": alone}).perturb


def test_the_comparison_can_fail() -> None:
    """Another default in the template is found by the comparison."""
    changed = TEXT.replace("# windows = 8 ", "# windows = 9 ")
    assert changed != TEXT
    assert tomllib.loads(uncommented(changed))["calibration"]["windows"] == 9
    assert tomllib.loads(changed).get("calibration") == {}


@pytest.mark.parametrize(("table", "key"), list(fields()))
def test_the_mark_says_whether_there_is_a_default(table: str, key: str) -> None:
    """A key behind one mark has a default, one behind two has none, one without is required."""
    field, mark = fields()[table, key], FOUND[table, key][0]
    if field.is_required():
        assert mark == ("#" if key == "method" and table != "zero" else "")
    elif field.default is None:
        assert mark == ("#" if (table, key) == ("bit_flip", "bits") else "##")
    else:
        assert mark == "#"


def without_default() -> list[tuple[str, str]]:
    """Name the keys that stand with an example."""
    return [key for key in fields() if FOUND[key][0] == "##"]


@pytest.mark.parametrize(("table", "key"), without_default())
def test_an_example_is_allowed(tmp_path: Path, table: str, key: str) -> None:
    """A key without default stands with an example, which a spec takes."""
    value = tomllib.loads(f"x = {FOUND[table, key][1]}")["x"]
    prefix = "perturb" if table in METHODS else table
    assert value == EXAMPLES[f"{prefix}.{key}".lstrip(".")]
    one: dict[str, Any] = {"name": "x", "model": {"id": "m"}}
    if table in METHODS:
        one["perturb"] = [{"method": table, key: value}]
    elif table:
        one[table] = {**one.get(table, {}), key: value}
    else:
        one[key] = value
    spec_from_dict(one)


@pytest.mark.parametrize(("table", "key"), [key for key in fields() if key[1] != "method"])
def test_every_key_says_what_it_may_be_and_who_reads_it(table: str, key: str) -> None:
    """Behind each key stand its type, the steps that read it where they are not those of its section, and its meaning."""
    allowed, _, meaning = FOUND[table, key][2].removeprefix("[").partition("] ")
    dotted = f"{table}.{key}".lstrip(".")
    assert meaning
    assert meaning == " ".join((fields()[table, key].description or "").split())
    kind, _, by = allowed.rpartition("; ") if "; " in allowed else (allowed, "", "")
    assert kind
    section = re.search(rf"Read by ([a-z, ]+)\.\n\[{table}\]\n", TEXT) if table and table not in METHODS else None
    who = [] if table in METHODS else readers(dotted)
    if dotted == "name":
        assert by == "every step"
    elif not who:
        assert by == ("" if table in METHODS else "--dry-run")
    else:
        assert (by or (section[1] if section else "")) == ", ".join(who)


def test_registered_names_are_all_named() -> None:
    """The lists of names are those of the registry."""
    assert f"[list of {', '.join(METRICS)}; score, overlap]" in FOUND["score", "metrics"][2]
    assert f"[list of {', '.join(SELECTORS)}]" in FOUND["rank", "groups"][2]
    assert all((method, "method") in FOUND for method in METHODS)
    drawing = [method for method, section in TABLES.items() if issubclass(section, Drawing)]
    assert f"{', '.join(drawing)} draw: they have repeats" in TEXT


TYPES = {
    ("calibration", "windows"): "[integer >= 1]", ("score", "peak_ratio"): "[number > 0]", ("overlap", "p"): "[number > 0 and < 1]",
    ("model", "dtype"): '["float32" or "bfloat16" or "float16"]', ("model", "trust_remote_code"): "[true or false]",
    ("calibration", "bos"): '[true or false or "auto"]', ("rank", "k"): "[integer >= 1, or a list of such; ",
    ("score", "seeds"): "[list of integers >= 0; ", ("score", "include"): "[list of texts]", ("bit_flip", "bit"): "[integer >= 0 and <= 31, or a list of such]",
    ("model", "memory_budget"): '[number of bytes, or text such as "8 GB"; ', ("model", "shape"): "[table; --dry-run]",
    ("score", "probe_groups"): '[integer >= 1 or "auto"]', ("eval", "lengths"): "[integer >= 2, or a list of such; ",
}  # fmt: skip


@pytest.mark.parametrize("key", TYPES)
def test_types_are_told_in_the_words_of_toml(key: tuple[str, str]) -> None:
    """Ranges, alternatives and lists read as they are written in a spec."""
    assert TYPES[key] in FOUND[key][2]


def test_sweep_and_extends_work(tmp_path: Path) -> None:
    """The sweep and the base spec that stand as examples do what their comments say."""
    head, sweep = TEXT.split("## [sweep]")
    (tmp_path / "s.toml").write_text(head + uncommented(f"## [sweep]{sweep}", "## "))
    runs = load_sweep(tmp_path / "s.toml")
    assert [one.name for one in runs] == [f"my_run-0{number}" for number in range(4)]
    assert [(one.score.keep, one.model.dtype) for one in runs[:2]] == [(1024, "float32"), (1024, "bfloat16")]
    (tmp_path / "base.toml").write_text("[score]\nkeep = 7\n")
    (tmp_path / "t.toml").write_text(TEXT.replace("## extends", "extends"))
    assert load_spec(tmp_path / "t.toml").score.keep == 7


def test_lines_fit() -> None:
    """No line is wider than 120 columns."""
    assert [line for line in TEXT.splitlines() if len(line) > WIDTH] == []


def test_a_key_without_example_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A key that has neither default nor example stands there all the same, with dots that no spec takes."""
    monkeypatch.delitem(EXAMPLES, "overlap.universe")
    text = spec_template(readers, name="x", model="m")
    assert "## universe = ..." in text
    with pytest.raises(tomllib.TOMLDecodeError):
        tomllib.loads(uncommented(text, "## "))
