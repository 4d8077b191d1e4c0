"""Super weights that were published: the table that ships with the package, and whether a model is one of them."""

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

from esa.errors import ArtifactError
from esa.model.addresses import ravel
from esa.model.anatomy import ParameterInfo, text_config

_TABLE = "published.toml"


@dataclass(frozen=True)
class Published:
    """One published model. ``weights``: ``(block, row, column)`` of the blocks' ``mlp.down`` projections, counted from 0."""

    name: str
    ids: tuple[str, ...]
    shape: Mapping[str, str | int]
    weights: tuple[tuple[int, int, int], ...]


@dataclass(frozen=True)
class Match:
    """A published model that the model at hand is (``exact``: by its hub id), or looks like (by its configuration)."""

    published: Published
    exact: bool

    def words(self) -> str:
        """Return how a note calls it."""
        return self.published.name if self.exact else f"a model that looks like {self.published.name}"


@cache
def published() -> tuple[Published, ...]:
    """Return the published models, in the order of the table.

    Raises ArtifactError for a table that does not hold: an unknown key, or an index outside the shape that it states.
    Source: Yu et al., The Super Weight in Large Language Models, 2024, and its repository.
    """
    return parse(files("esa.model").joinpath(_TABLE).read_text(encoding="utf-8"))


def parse(text: str) -> tuple[Published, ...]:
    """Return the published models of a table's text. Raises ArtifactError, naming the model, where it does not hold."""
    found = []
    for number, entry in enumerate(tomllib.loads(text).get("model", [])):
        where = f"{_TABLE}: model {entry.get('name', number)}"
        if set(entry) != {"name", "ids", "shape", "weights"}:
            raise ArtifactError(f"has the keys {sorted(entry)}; allowed: ids, name, shape, weights", where=where)
        shape = entry["shape"]
        for key in ("model_type", "num_hidden_layers", "hidden_size", "intermediate_size"):
            if key not in shape:
                raise ArtifactError(f"shape lacks {key}", where=where)
        sizes = (shape["num_hidden_layers"], shape["hidden_size"], shape["intermediate_size"])
        weights = tuple(tuple(place) for place in entry["weights"])
        for place in weights:
            if len(place) != 3 or any(not 0 <= i < size for i, size in zip(place, sizes, strict=True)):
                raise ArtifactError(f"{place} is outside {sizes} (blocks, rows, columns)", where=where)
        if len(set(weights)) < len(weights):
            raise ArtifactError("names a weight twice", where=where)
        found.append(Published(entry["name"], tuple(entry["ids"]), shape, weights))
    return tuple(found)


def matches(model_id: str, model: Any) -> list[Match]:
    """Return the published models that a loaded model may be: the one of its hub id, else all whose configuration it has.

    Letter case of an id does not count. A configuration says less than a name: fine-tuned models have their base's, and
    Llama-7B differs from Llama-2-7B in the context length alone. A hub id whose model has other sizes is no match.
    """
    config = text_config(model)
    fitting = [
        one for one in published() if all(getattr(config, key, None) == value for key, value in one.shape.items())
    ]
    named = [one for one in fitting if model_id.lower() in {name.lower() for name in one.ids}]
    return [Match(one, exact=True) for one in named] or [Match(one, exact=False) for one in fitting]


def targets(one: Published, table: Mapping[str, ParameterInfo]) -> list[tuple[str, int]]:
    """Return the published weights of a model that has the published shape, as parameter and row-major index."""
    projections = {info.block: info for info in table.values() if info.component == "mlp.down" and len(info.shape) == 2}
    found = []
    for block, row, column in one.weights:
        info = projections[block]
        place = (row, column) if info.output_axis == 0 else (column, row)
        found.append((info.name, ravel(place, info.shape)))
    return found
