"""The criteria that results are held to: a TOML file of bands, read strictly, every problem with its file and line."""

import hashlib
import math
import tomllib
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from esa.errors import SpecError
from esa.registry import suggest
from esa.report.quantities import QUANTITIES
from esa.report.quantities.measures import Options
from esa.spec.lines import Path as KeyPath
from esa.spec.lines import key_lines

NAME = "criteria.toml"
PHASES = ("smoke", "standard", "extended")


class _Table(BaseModel):
    model_config = ConfigDict(strict=True, frozen=True, extra="forbid", allow_inf_nan=False)


class Band(_Table):
    """A band of values: ``min`` and ``max`` belong to it, ``above`` and ``below`` do not."""

    min: float | None = None
    max: float | None = None
    above: float | None = None
    below: float | None = None

    @model_validator(mode="after")
    def _bounded(self) -> "Band":
        lower, upper = (self.min, self.above), (self.max, self.below)
        if all(bound is None for bound in (*lower, *upper)):
            raise ValueError("needs a bound: min, above, max or below")
        for one, two in (("min", "above"), ("max", "below")):
            if getattr(self, one) is not None and getattr(self, two) is not None:
                raise ValueError(f"takes {one} or {two}, not both")
        if self.lower > self.upper:
            raise ValueError(f"is empty: its lower bound {self.lower:g} is over its upper bound {self.upper:g}")
        return self

    @property
    def lower(self) -> float:
        """Return the lower bound, minus infinity for none."""
        return next((bound for bound in (self.min, self.above) if bound is not None), -math.inf)

    @property
    def upper(self) -> float:
        """Return the upper bound, infinity for none."""
        return next((bound for bound in (self.max, self.below) if bound is not None), math.inf)

    def holds(self, value: float) -> bool:
        """Tell whether a value lies in the band."""
        return (
            self.lower <= value <= self.upper
            and (self.above is None or value > self.above)
            and (self.below is None or value < self.below)
        )

    def __str__(self) -> str:
        words = (("at least", self.min), ("over", self.above), ("at most", self.max), ("under", self.below))
        return " and ".join(f"{word} {bound:g}" for word, bound in words if bound is not None)


class Criterion(_Table):
    """A quantity, the band in which it is good, and the band in which it is bad (none: whatever is not good)."""

    id: str = Field(pattern=r"^[a-z0-9_]+$")
    quantity: str
    good: Band
    bad: Band | None = None
    phase: Literal["smoke", "standard", "extended", "any"]
    source: str = Field(min_length=1)
    options: Options = Options()

    @field_validator("quantity")
    @classmethod
    def _known(cls, name: str) -> str:
        if name not in QUANTITIES:
            raise ValueError(
                f"'{name}' is not a quantity{suggest(name, list(QUANTITIES))}; known: {', '.join(QUANTITIES)}"
            )
        return name

    @model_validator(mode="after")
    def _consistent(self) -> "Criterion":
        if self.bad is not None and _meet(self.good, self.bad):
            raise ValueError(f"a value may be good ({self.good}) and bad ({self.bad}) at once")
        takes = QUANTITIES[self.quantity].options
        for name in self.options.model_fields_set:
            if name not in takes:
                raise ValueError(
                    f"options.{name} does nothing to {self.quantity}; allowed: {', '.join(takes) or 'none'}"
                )
        return self


def _meet(one: Band, two: Band) -> bool:
    """Tell whether two bands have a value in common."""
    low, high = max(one.lower, two.lower), min(one.upper, two.upper)
    return low < high or (low == high and one.holds(low) and two.holds(low))


class _File(_Table):
    criterion: tuple[Criterion, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _distinct(self) -> "_File":
        names = [one.id for one in self.criterion]
        if twice := [name for name in dict.fromkeys(names) if names.count(name) > 1]:
            raise ValueError(f"two criteria have the id '{twice[0]}'")
        return self


@dataclass(frozen=True)
class Criteria:
    """The criteria of a file, and the sha256 of its bytes."""

    each: tuple[Criterion, ...]
    sha256: str
    path: Path


def load_criteria(path: Path | None = None) -> Criteria:
    """Return the criteria of a TOML file, for None those that ship with esa: ``specs/criteria.toml``.

    Raises SpecError with every problem, each with its file and line: an unknown key or quantity, a value of another type, an
    empty band, good and bad bands that meet, an option that the quantity does not take, an id given twice.
    """
    path = shipped() if path is None else path
    try:
        content = path.read_bytes()
        text = content.decode("utf-8")
        tree = tomllib.loads(text)
    except FileNotFoundError:
        raise SpecError(
            [f"{path}: no such file"], hint="without --criteria those that ship with esa are used"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise SpecError([f"{path}: cannot be read: {error}"]) from None
    except tomllib.TOMLDecodeError as error:
        raise SpecError([f"{path}: is not TOML: {error}"]) from None
    try:
        found = _File.model_validate(_tuples(tree))
    except ValidationError as error:
        lines = key_lines(text)
        # A list that lost its only item to an error of that item is not too short as well.
        items = [dict(item) for item in error.errors() if item["type"] != "too_short" or not item["input"]]
        problems = [_problem(item, lines, path) for item in items]
        raise SpecError(list(dict.fromkeys(problems)), hint=f"{NAME} under specs/ is a complete one") from None
    return Criteria(found.criterion, hashlib.sha256(content).hexdigest(), path)


def shipped() -> Path:
    """Return the path of the criteria that ship with esa: beside this module in a wheel, in ``specs/`` of a checkout.

    Raises SpecError where neither holds them: the installation is not whole.
    """
    installed = Path(str(files("esa.report").joinpath(NAME)))
    checkout = Path(__file__).parents[2] / "specs" / NAME
    for path in (installed, checkout):
        if path.is_file():
            return path
    raise SpecError([f"{checkout}: no such file, and none at {installed}"], hint="give a file with --criteria")


def _tuples(value: Any) -> Any:
    """Return ``value`` with its lists as tuples: strict models take no list for one."""
    if isinstance(value, list):
        return tuple(_tuples(item) for item in value)
    if isinstance(value, dict):
        return {key: _tuples(item) for key, item in value.items()}
    return value


def _problem(item: dict[str, Any], lines: dict[KeyPath, int], path: Path) -> str:
    """Return ``file:line: key: what`` for one problem."""
    key = tuple(item["loc"])
    line = next((lines[key[:end]] for end in range(len(key), 0, -1) if key[:end] in lines), 1)
    where = f"{path}:{line}: {'.'.join(map(str, key)) or 'the file'}"
    kind, given = item["type"], item.get("input")
    if kind == "extra_forbidden":
        allowed = _keys_at(key)
        return f"{where}: unknown key{suggest(str(key[-1]), allowed)}; allowed: {', '.join(allowed)}"
    if kind == "missing":
        return f"{where}: is required and missing"
    if kind in ("tuple_type", "model_type"):
        return f"{where}: input should be a {'list' if kind == 'tuple_type' else 'table'}, not {given!r}"
    message = item["msg"].removeprefix("Value error, ")
    message = message[:1].lower() + message[1:]
    shown = "" if kind == "value_error" or isinstance(given, dict) else f", not {given!r}"
    return f"{where}: {message}{shown}"


def _keys_at(key: tuple[Any, ...]) -> list[str]:
    """Return the keys that are allowed beside an unknown one."""
    if len(key) == 1:
        return sorted(_File.model_fields)
    inner: dict[str, type[BaseModel]] = {"good": Band, "bad": Band, "options": Options}
    return sorted(inner[key[2]].model_fields if len(key) > 3 and key[2] in inner else Criterion.model_fields)
