"""A spec with every key in it, each with its type, its default, the steps that read it, and what it means."""

import json
import textwrap
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from esa.registry import METRICS, SELECTORS, TASKS
from esa.spec.methods import TABLES, Drawing, Perturb
from esa.spec.sections import Spec
from esa.spec.values import num_bytes, one_or_many

Readers = Callable[[str], Sequence[str]]

WIDTH = 120
DEFAULT, EXAMPLE = "# ", "## "  # how a line opens that holds a default, and one that holds an example
_WIDEST = 34  # columns of a key and its value; what is wider has its words on the lines below
_NAMES = {"metrics": METRICS, "groups": SELECTORS, "tasks": TASKS}

# What stands for the value of a key that has no default.
EXAMPLES: dict[str, Any] = {
    "question": "Which weights can the model not live without?",
    "model.revision": "main",
    "model.memory_budget": "8 GB",
    "model.shape": {"model_type": "llama", "hidden_size": 576, "num_hidden_layers": 30},
    "eval.texts": ["builtin:prose_eval", "file:wiki.txt"],
    "eval.lengths": [64, 256],
    "eval.task_items": 100,
    "eval.task_sources": {"hellaswag": "file:items.jsonl"},
    "confirm.metric": "act_mag",
    "perturb.groups": ["top_k"],
    "perturb.k": [5],
    "perturb.prob": 0.001,
    "perturb.bit": 14,
    "overlap.k": [10, 100],
    "overlap.p": 0.9,
    "overlap.universe": 1_000_000,
}
_GIVEN = {"bit_flip": {"bits": 1}}  # of a method: an option without default that it cannot do without
_NOTES = {"bit_flip": "exactly one of prob, bits and bit is given"}

_OPENING = """\
# A spec of esa: from the model to the report, with every key there is.
#
#   esa check FILE                  validate it, and print it with every default filled in
#   esa run --spec FILE --dry-run   passes, memory and outputs; nothing is touched
#   esa run --spec FILE             score, rank, perturb, overlap, report
#
# A key behind one # stands there with its default: take the # away to change it. A key behind ## has no default: its
# value is an example. Behind each: [what it may be] what it means. Where a key changes, the steps that read it are
# computed again, and no others: those that stand above its section, or [behind; these] where they differ.
"""
_EXTENDS = "[text; every step] another spec that this one is laid over; its path is relative to this file"
_SWEEP = """\
# Several runs from one spec, by esa run: each combination of these lists is a run of its own (NAME-00, NAME-01, ...).
## [sweep]
## score.keep = [1024, 4096]
## model.dtype = ["float32", "bfloat16"]
"""
Setting = tuple[str, str]  # key and value behind their mark, and their words


def spec_template(readers: Readers, *, name: str, model: str) -> str:
    """Return a commented TOML spec that runs as it is, with every key of every section and method.

    ``readers`` gives the steps that read a dotted key (``esa.artifact.steps.readers``). What is required is set: ``name``,
    ``model`` and one method, ``zero``. Every other key that has a default stands in a comment with it, behind one ``#``, so
    that taking all of these away changes nothing; a key without default stands behind ``##``, with an example.
    """
    top = [key for key, field in Spec.model_fields.items() if _section(field) is None and key != "perturb"]
    settings = [*_settings(Spec, top, "", readers, {"name": name}), (f'{EXAMPLE}extends = "base.toml"', _EXTENDS)]
    lines = [_OPENING, *_laid_out(settings)]
    for key, field in Spec.model_fields.items():
        if (section := _section(field)) is not None:
            lines += ["", *_table(key, section, readers, {"id": model} if key == "model" else {})]
        elif key == "perturb":
            lines += ["", *_methods(readers)]
    return "\n".join([*lines, "", _SWEEP])


def _section(field: FieldInfo) -> type[BaseModel] | None:
    found = field.annotation
    return found if isinstance(found, type) and issubclass(found, BaseModel) else None


def _table(key: str, section: type[BaseModel], readers: Readers, given: Mapping[str, Any]) -> Iterator[str]:
    """Yield a section: its words, its head, its keys."""
    inner = {name: below for name, field in section.model_fields.items() if (below := _section(field)) is not None}
    own = [name for name in section.model_fields if name not in inner]
    found = [tuple(readers(f"{key}.{name}")) for name in own]
    usual = max(found, key=found.count)
    yield f"# {_first_line(section)} Read by {', '.join(usual)}."
    yield f"[{key}]"
    yield from _laid_out(_settings(section, own, f"{key}.", readers, given, usual))
    for name, below in inner.items():
        yield from ("", *_table(f"{key}.{name}", below, readers, {}))


def _methods(readers: Readers) -> Iterator[str]:
    """Yield a table per method: the first one set, with the keys that all share, the others as comments."""
    usual = tuple(readers("perturb"))
    drawing = [method for method, section in TABLES.items() if issubclass(section, Drawing)]
    yield "# What is done to the weights: a table per method, as many as you like, and one method as often as you like."
    *shared_keys, last = Perturb.model_fields
    yield f"# {', '.join(shared_keys)} and {last} are keys of each. Read by {', '.join(usual)}."
    yield f"# {', '.join(drawing)} draw: they have repeats."
    yield "# An option may be a list: a table for each of its values."
    for number, (method, section) in enumerate(TABLES.items()):
        own = [key for key in section.model_fields if key not in (*Drawing.model_fields, "method")]
        shared = [*(["repeats"] if method in drawing else []), *(Perturb.model_fields if number == 0 else [])]
        mark = "" if number == 0 else DEFAULT
        words = "; ".join([_first_line(section).rstrip("."), *([_NOTES[method]] if method in _NOTES else [])])
        settings = [(f'{mark}method = "{method}"', words)]
        settings += _settings(
            section, [*own, *shared], "perturb.", lambda _: usual, _GIVEN.get(method, {}), usual, given_mark=mark
        )
        yield from () if number == 0 else ("",)
        yield f"{mark}[[perturb]]"
        yield from _laid_out(settings)


def _settings(
    section: type[BaseModel],
    keys: Iterable[str],
    prefix: str,
    readers: Readers,
    given: Mapping[str, Any],
    usual: Sequence[str] = (),
    given_mark: str = "",
) -> Iterator[Setting]:
    """Yield every key with its value, its type, its meaning, and the steps that read it where they are not the usual ones."""
    schema = section.model_json_schema()["properties"]
    for key in keys:
        field, dotted = section.model_fields[key], f"{prefix}{key}"
        if key in given:
            line = f"{given_mark}{key} = {_toml(given[key])}"
        elif field.is_required() or field.default is None:
            line = f"{EXAMPLE}{key} = {_toml(EXAMPLES[dotted]) if dotted in EXAMPLES else '...'}"
        else:
            line = f"{DEFAULT}{key} = {_toml(field.default)}"
        who = tuple(readers(dotted))
        by = "" if who == tuple(usual) else f"; {', '.join(who)}" if who else "; --dry-run"
        by = "; every step" if dotted == "name" else by
        yield line, f"[{_type(key, field, schema[key])}{by}] {field.description or ''}".strip()


def _laid_out(settings: Iterable[Setting]) -> Iterator[str]:
    """Yield the lines of a table, words aligned behind the keys, or below a key that is too wide for that."""
    settings = list(settings)
    indent = max((len(line) for line, _ in settings if len(line) <= _WIDEST), default=0) + 2
    for line, words in settings:
        parts = textwrap.wrap(words, WIDTH - indent - 2, break_long_words=False, break_on_hyphens=False)
        aside = len(line) <= _WIDEST
        yield f"{line:<{indent}}# {parts[0]}" if aside else line
        yield from (f"#{' ' * (indent - 1)}  {part}" for part in parts[1 if aside else 0 :])


def _type(key: str, field: FieldInfo, schema: Mapping[str, Any]) -> str:
    """Return what a key may be, in the words of TOML."""
    if key in _NAMES:
        return f"list of {', '.join(_NAMES[key])}"
    if _has_validator(field, num_bytes):
        return 'number of bytes, or text such as "8 GB"'
    if not _has_validator(field, one_or_many):
        return _words(schema)
    items = next((one for one in (schema, *schema.get("anyOf", ())) if "items" in one), schema)["items"]
    return f"{_words(items)}, or a list of such"


def _words(schema: Mapping[str, Any], plural: str = "") -> str:
    if "anyOf" in schema:
        return " or ".join(_words(one, plural) for one in schema["anyOf"] if one.get("type") != "null")
    if "oneOf" in schema:  # one value or a list of such
        return f"{_words(schema['oneOf'][0], plural)}, or a list of such"
    if "enum" in schema:
        return " or ".join(map(_toml, schema["enum"]))
    if "const" in schema:
        return _toml(schema["const"])
    kind = str(schema.get("type"))
    if kind == "array":
        return f"list of {_words(schema['items'], 's')}"
    words = {"string": f"text{plural}", "boolean": "true or false", "object": "table"}.get(kind, f"{kind}{plural}")
    bounds = (("minimum", ">="), ("exclusiveMinimum", ">"), ("maximum", "<="), ("exclusiveMaximum", "<"))
    limits = [f"{sign} {schema[bound]:g}" for bound, sign in bounds if bound in schema]
    return f"{words} {' and '.join(limits)}" if limits else words


def _has_validator(field: FieldInfo, function: Callable[[Any], Any]) -> bool:
    """Tell whether ``function`` stands anywhere in a field's annotation."""
    marks = list(field.metadata)
    todo = [field.annotation]
    while todo:
        one = todo.pop()
        marks += getattr(one, "__metadata__", ())
        todo += [part for part in get_args(one) if get_origin(part) is not None or hasattr(part, "__metadata__")]
    return any(getattr(mark, "func", None) is function for mark in marks)


def _first_line(section: type[BaseModel]) -> str:
    return (section.__doc__ or "").strip().splitlines()[0]


def _toml(value: Any) -> str:
    """Return a value as TOML on one line."""
    if isinstance(value, Mapping):
        return f"{{ {', '.join(f'{key} = {_toml(item)}' for key, item in value.items())} }}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_toml, value))}]"
    return json.dumps(value, ensure_ascii=False)
