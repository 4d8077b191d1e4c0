"""What the values of a spec may be: names of the registries, counts, sizes, sources, one value or a list of them."""

import re
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Discriminator, Field, Tag

from esa.errors import EsaError
from esa.registry import canonical
from esa.spec.texts import parse_source


class Section(BaseModel):
    """A strict, frozen table of a spec: unknown keys are refused."""

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid", protected_namespaces=())


def registered(kind: str) -> BeforeValidator:
    """Return what replaces an alias by the registered name, and refuses a name that is none."""

    def check(value: Any) -> Any:
        if not isinstance(value, str):
            return value
        try:
            return canonical(kind, value)
        except EsaError as error:
            raise ValueError(error.what) from None

    return BeforeValidator(check)


def distinct(values: tuple[Any, ...]) -> tuple[Any, ...]:
    """Refuse a value that stands twice."""
    if len(set(values)) != len(values):
        raise ValueError(f"names a value twice: {list(values)}")
    return values


def one_or_many(value: Any) -> Any:
    """Return one value as a list of it."""
    return (value,) if isinstance(value, int | float | str) else value


def number_or_auto(value: Any) -> Any:
    """Refuse anything but an integer of at least 1 and ``auto``."""
    if value != "auto" and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
        raise ValueError(f"{value!r} is not allowed; allowed: an integer of at least 1, 'auto'")
    return value


def bos_or_auto(value: Any) -> Any:
    """Refuse anything but a truth value and ``auto``."""
    if not isinstance(value, bool) and value != "auto":
        raise ValueError(f"{value!r} is not allowed; allowed: true, false, 'auto'")
    return value


def known_source(value: str) -> str:
    """Refuse a text source that cannot be parsed."""
    parse_source(value)  # raises ValueError
    return value


MetricName = Annotated[str, registered("metric")]
MethodName = Annotated[str, registered("method")]
TaskName = Annotated[str, registered("task")]
GroupName = Annotated[str, registered("group")]
Seed = Annotated[int, Field(ge=0)]
Source = Annotated[str, AfterValidator(known_source)]
Bos = Annotated[bool | Literal["auto"], BeforeValidator(bos_or_auto)]
Counts = Annotated[
    tuple[Annotated[int, Field(ge=1)], ...],
    BeforeValidator(one_or_many),
    AfterValidator(distinct),
    Field(min_length=1),
]
Lengths = Annotated[tuple[Annotated[int, Field(ge=2)], ...], BeforeValidator(one_or_many), AfterValidator(distinct)]
_UNITS = {"MB": 10**6, "GB": 10**9, "TB": 10**12, "MiB": 1 << 20, "GiB": 1 << 30, "TiB": 1 << 40}


def num_bytes(value: Any) -> Any:
    """Return ``"8 GB"`` as a number of bytes."""
    if not isinstance(value, str):
        return value
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(MB|GB|TB|MiB|GiB|TiB)", value.strip())
    if match is None:
        raise ValueError(
            f"'{value}' is not a size; allowed: bytes without quotes, or a number with {', '.join(_UNITS)}"
        )
    return int(float(match[1]) * _UNITS[match[2]])


Bytes = Annotated[int, BeforeValidator(num_bytes), Field(ge=1)]
T = TypeVar("T")
# A value, or a list of such: of doses, say. The tags keep pydantic from complaining about both where one is wrong.
OneOrMany = Annotated[
    Annotated[T, Tag("one")] | Annotated[tuple[T, ...], AfterValidator(distinct), Field(min_length=1), Tag("many")],
    Discriminator(lambda value: "many" if isinstance(value, tuple) else "one"),
]
Unit = Literal["weight", "output", "input", "layer", "block", "component"]
