"""A task made of items: how rows become requests, and log-likelihoods figures."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from esa.errors import DataError
from esa.eval.loglikelihood import Answer
from esa.eval.task_result import Figure, ItemValue, TaskResult


@dataclass(frozen=True)
class Item:
    """One question: a context and what may follow it, ``gold`` the number of the right one.

    ``choices`` are the texts whose lengths normalise, without the space that joins them to the context.
    """

    context: str
    choices: tuple[str, ...]
    gold: int


class ItemTask(ABC):
    """What tells one such task from another; the requests and their batches are the same for all."""

    name: ClassVar[str]
    source: ClassVar[str]  # its items where eval.task_sources names none

    @abstractmethod
    def item(self, row: Mapping[str, Any], where: str) -> Item:
        """Return a row as an item. Raises DataError, naming ``where``, for a row that is none."""

    @abstractmethod
    def values(self, item: Item, answers: Sequence[Answer]) -> dict[str, float | None]:
        """Return the item's metrics from the answers to its choices; None for all where an answer has no number."""

    @abstractmethod
    def figures(self, values: Sequence[Mapping[str, float | None]]) -> list[Figure]:
        """Return the task's figures from those of its items."""

    def result(self, items: Sequence[Item], answers: Sequence[Sequence[Answer]], num_tokens: int) -> TaskResult:
        """Return the task's result from the answers to every item's choices."""
        values = [self.values(item, given) for item, given in zip(items, answers, strict=True)]
        rows: list[ItemValue] = []
        for number, (given, found) in enumerate(zip(answers, values, strict=True)):
            if len(given) > 1:
                rows += [(number, choice, "loglik", answer.loglik) for choice, answer in enumerate(given)]
            rows += [(number, None, name, value) for name, value in found.items()]
        broken = any(answer.loglik is None for given in answers for answer in given)
        return TaskResult(self.figures(values), rows, len(items), num_tokens, nonfinite=broken)


def text_of(row: Mapping[str, Any], key: str, where: str) -> str:
    """Return a field that must hold text. Raises DataError where it does not."""
    value = row.get(key)
    if not isinstance(value, str):
        what = "has no" if key not in row else f"has {type(value).__name__}, not text, as"
        raise DataError(f"{what} '{key}'; it has {', '.join(map(repr, row)) or 'no field'}", where=where)
    return value


def texts_of(row: Mapping[str, Any], key: str, where: str) -> tuple[str, ...]:
    """Return a field that must hold a list of two texts or more. Raises DataError where it does not."""
    value = row.get(key)
    if not isinstance(value, list | tuple) or len(value) < 2 or not all(isinstance(one, str) and one for one in value):
        raise DataError(f"'{key}' is no list of two texts or more: {value!r:.80}", where=where)
    return tuple(value)


def number_of(row: Mapping[str, Any], key: str, below: int, where: str) -> int:
    """Return the number of the right choice, which files hold as a number or as its digits. Raises DataError otherwise."""
    value = row.get(key)
    digits = isinstance(value, str) and value.isascii() and value.isdigit()
    whole = isinstance(value, int) and not isinstance(value, bool)
    if not (digits or whole) or not 0 <= int(value or 0) < below:
        raise DataError(f"'{key}' is {value!r}; allowed: 0 to {below - 1}", where=where)
    return int(value)  # type: ignore[arg-type]
