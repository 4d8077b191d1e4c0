"""Read a TOML spec: ``extends``, ``--set``, sweeps, and every problem at once with its file and line."""

import itertools
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import tomli_w
from pydantic import BaseModel, ValidationError

from esa.errors import SpecError
from esa.registry import suggest
from esa.spec.lines import Path as KeyPath
from esa.spec.lines import key_lines
from esa.spec.methods import TABLES, Perturb
from esa.spec.sections import Spec

# What pydantic says of Python types, in the words of TOML.
_WORDS = {
    "tuple_type": "input should be a list",
    "model_type": "input should be a table",
    "dict_type": "input should be a table",
    "too_short": "needs at least one value",
}
Origins = dict[KeyPath, str]  # key path -> "file:line" or "--set"


def load_spec(path: str | Path, overrides: Sequence[str] = ()) -> Spec:
    """Return the one run that the spec at ``path`` describes, ``overrides`` (``section.key=value``) applied.

    Raises SpecError with every problem; also when the spec sweeps over several runs.
    """
    runs = load_sweep(path, overrides)
    if len(runs) != 1:
        raise SpecError(
            [f"{path}: sweep: describes {len(runs)} runs where one is needed"],
            hint="esa run takes a sweep; --only NUMBER takes one run of it, here too, counted from 0",
        )
    return runs[0]


def load_sweep(path: str | Path, overrides: Sequence[str] = ()) -> list[Spec]:
    """Return every run that the spec at ``path`` describes: one, or one per point of its ``[sweep]``."""
    tree, origins = _read(Path(path), ())
    for override in overrides:
        key, value = parse_override(override)
        _set(tree, key, value, where=f"--set {override}")
        origins[_key_path(key)] = f"--set {override}"
    sweep = tree.pop("sweep", None)
    if sweep is None:
        return [_validate(tree, origins, str(path))]
    if not isinstance(sweep, dict) or not sweep or not all(isinstance(v, list) and v for v in _leaves(sweep).values()):
        raise SpecError([f"{origins.get(('sweep',), path)}: sweep: maps dotted keys to non-empty lists"])
    points = _leaves(sweep)
    runs = []
    for number, values in enumerate(itertools.product(*points.values())):
        member = tomllib.loads(tomli_w.dumps(tree))
        for key, value in zip(points, values, strict=True):
            _set(member, key, value, where=f"{path}: sweep")
            origins[_key_path(key)] = origins.get(("sweep", *key.split(".")), f"{path}: sweep")
        member["name"] = f"{tree.get('name', 'run')}-{number:02d}"
        runs.append(_validate(member, origins, str(path)))
    return runs


def spec_from_dict(tree: dict[str, Any], where: str = "spec") -> Spec:
    """Return the spec that a nested dict holds. Raises SpecError with every problem."""
    return _validate(tree, {}, where)


def apply_overrides(spec: Spec, overrides: Sequence[str]) -> Spec:
    """Return ``spec`` with ``section.key=value`` changes. Raises SpecError with every problem."""
    tree = spec.model_dump(exclude_none=True)
    tree["perturb"] = list(tree["perturb"])
    origins: Origins = {}
    for override in overrides:
        key, value = parse_override(override)
        _set(tree, key, value, where=f"--set {override}")
        origins[_key_path(key)] = f"--set {override}"
    return _validate(tree, origins, "spec")


def dump_spec(spec: Spec) -> str:
    """Return the resolved spec as TOML: every key, defaults included; reading it back gives the same spec."""
    return tomli_w.dumps(spec.model_dump(mode="json", exclude_none=True))


def parse_override(text: str) -> tuple[str, Any]:
    """Split ``section.key=value``; the value is TOML, or else plain text."""
    key, separator, value = text.partition("=")
    if not separator or not key.strip():
        raise SpecError([f"--set: '{text}' is not of the form section.key=value"])
    try:
        return key.strip(), tomllib.loads(f"value = {value.strip()}")["value"]
    except tomllib.TOMLDecodeError:
        return key.strip(), value.strip()


def _read(path: Path, seen: tuple[Path, ...]) -> tuple[dict[str, Any], Origins]:
    """Return the tree of the spec at ``path`` merged over what it extends, and where each key comes from."""
    try:
        text = path.read_text(encoding="utf-8")
        tree = tomllib.loads(text)
    except FileNotFoundError:
        raise SpecError([f"{path}: no such file"], hint="specs/ holds ready ones, such as quickstart.toml") from None
    except (OSError, UnicodeDecodeError) as error:
        raise SpecError([f"{path}: cannot be read: {error}"]) from None
    except tomllib.TOMLDecodeError as error:
        raise SpecError([f"{path}: is not TOML: {error}"]) from None
    lines = key_lines(text)
    origins = {key: f"{path}:{line}" for key, line in lines.items()}
    base = tree.pop("extends", None)
    if base is None:
        return tree, origins
    where = f"{path}:{lines.get(('extends',), 1)}: extends"
    if not isinstance(base, str):
        raise SpecError([f"{where}: {base!r} is not a path"])
    parent = path.parent / base
    if parent.resolve() in (*seen, path.resolve()):
        raise SpecError([f"{where}: '{base}' extends itself"])
    if not parent.exists():
        raise SpecError([f"{where}: '{base}': no such file"])
    below, below_origins = _read(parent, (*seen, path.resolve()))
    return _merge(below, tree), {**below_origins, **origins}


def _merge(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    """Return ``above`` over ``below``, table by table; lists are replaced."""
    merged = dict(below)
    for key, value in above.items():
        old = merged.get(key)
        merged[key] = _merge(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return merged


def _leaves(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    leaves: dict[str, Any] = {}
    for key, value in tree.items():
        name = f"{prefix}{key}"
        leaves.update(_leaves(value, f"{name}.") if isinstance(value, dict) else {name: value})
    return leaves


def _key_path(dotted: str) -> KeyPath:
    return tuple(int(part) if part.isdecimal() else part for part in dotted.split("."))


def _set(tree: dict[str, Any], dotted: str, value: Any, where: str) -> None:
    """Set ``section.key`` or ``perturb.0.key`` in ``tree``."""
    node: Any = tree
    *parents, last = dotted.split(".")
    for part, following in zip(parents, [*parents, last][1:], strict=True):
        if isinstance(node, list):
            if not part.isdecimal() or int(part) >= len(node):
                raise SpecError([f"{where}: '{part}' is not one of its {len(node)} tables, counted from 0"])
            node = node[int(part)]
        else:
            node = node.setdefault(part, [] if following.isdecimal() else {})
        if not isinstance(node, dict | list):
            raise SpecError([f"{where}: '{part}' is a value, not a table"])
    if isinstance(node, list):
        raise SpecError([f"{where}: '{dotted}' names a list of tables; name one of its keys"])
    node[last] = value


def _validate(tree: dict[str, Any], origins: Origins, path: str) -> Spec:
    try:
        return Spec.model_validate(_tuples(tree))
    except ValidationError as error:
        # A list that lost its only item to an error of that item is not too short as well.
        items = [dict(item) for item in error.errors() if item["type"] != "too_short" or not item["input"]]
        problems = [_problem(item, origins, path) for item in items]
        hint = f"esa check {path} validates without running" if path.endswith(".toml") else None
        raise SpecError(list(dict.fromkeys(problems)), hint=hint) from None


def _tuples(value: Any) -> Any:
    """Return ``value`` with its lists as tuples: a frozen spec holds no list."""
    if isinstance(value, list):
        return tuple(_tuples(item) for item in value)
    if isinstance(value, dict):
        return {key: _tuples(item) for key, item in value.items()}
    return value


def _problem(item: dict[str, Any], origins: Origins, path: str) -> str:
    """Return ``file:line: section.key: what`` for one problem."""
    tags = {*_method_names(), "one", "many"}  # what pydantic adds where a table or value is one of several
    key = tuple(part for part in item["loc"] if not (part in tags and item["loc"][0] == "perturb"))
    at: str | None = None
    for end in range(len(key), 0, -1):
        if key[:end] in origins:
            at = origins[key[:end]]
            break
    at = at or path
    dotted = ".".join(str(part) for part in key)
    kind, given = item["type"], item.get("input")
    if kind == "extra_forbidden":
        allowed = _keys_at(key[:-1], item["loc"])
        return f"{at}: {dotted}: unknown key{suggest(str(key[-1]), allowed)}; allowed: {', '.join(allowed)}"
    if kind == "missing":
        return f"{at}: {dotted}: is required and missing"
    if kind == "union_tag_not_found":
        return f"{at}: {dotted}: needs method; known: {', '.join(_method_names())}"
    if kind == "union_tag_invalid":
        given = given["method"] if isinstance(given, dict) else given
        return f"{at}: {dotted}: {_toml(given)} is not a method; known: {', '.join(_method_names())}"
    message = _WORDS.get(kind) or item["msg"].removeprefix("Value error, ")
    message = message[:1].lower() + message[1:]
    shown = "" if kind in ("value_error", "too_short") or isinstance(given, dict) else f", not {_toml(given)}"
    return f"{at}: {dotted}: {message}{shown}"


def _toml(value: Any) -> str:
    text = repr(list(value)) if isinstance(value, tuple) else repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def _method_names() -> list[str]:
    from esa.registry import METHODS

    return sorted(METHODS)


def _keys_at(key: tuple[Any, ...], loc: tuple[Any, ...]) -> list[str]:
    """Return the keys allowed in the table at ``key``."""
    model: type[BaseModel] = Spec
    for part in key:
        if part == "perturb":
            return sorted(next((TABLES[p] for p in loc if p in TABLES), Perturb).model_fields)
        annotation = (
            model.model_fields[part].annotation if isinstance(part, str) and part in model.model_fields else None
        )
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            model = annotation
    return [*sorted(model.model_fields), *(["extends", "sweep"] if model is Spec else [])]
