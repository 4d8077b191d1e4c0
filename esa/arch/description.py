"""What a model is made of: a row per tensor, from its configuration and the headers of its files; no weight is loaded."""

import json
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import polars as pl
import torch

from esa.arch.matching import Storage, match
from esa.arch.stored import StoredFiles, StoredTensor, read_stored
from esa.artifact import Table, make_table, to_json
from esa.artifact.schemas import SCHEMA_VERSION, SCHEMAS
from esa.artifact.steps import step_id
from esa.errors import ModelError
from esa.model import ParameterInfo, format_indices, source_hashes
from esa.model import describe as describe_parameters
from esa.model.anatomy import text_config
from esa.model.experts import active_weights
from esa.model.explaining import explained
from esa.model.footprint import configuration, skeleton
from esa.model.loading import check_shape
from esa.model.shape import architecture_facts
from esa.model.sources import find_source
from esa.progress import Progress, Silent
from esa.spec.sections import Model as ModelSection

KIND = "arch/1"
_READ = ("id", "revision", "dtype", "trust_remote_code")  # the keys of [model] that this command reads, but for shape


@dataclass(frozen=True)
class Architecture:
    """A model described.

    ``revision``: the commit of a hub model. ``facts``: see ``architecture_facts``. ``frame``: the columns of ``arch/1`` but
    for ``run``, which ``table`` fills in. ``files``: the tensors of its files, None where no weights are at hand; ``extra``:
    those that are no parameter's. ``notes``: where the numbers come from; ``warnings``: which of them are not known.
    """

    section: ModelSection
    revision: str | None
    config: dict[str, Any]
    facts: dict[str, Any]
    frame: pl.DataFrame
    files: tuple[StoredTensor, ...] | None
    extra: tuple[StoredTensor, ...]
    notes: tuple[str, ...]
    warnings: tuple[str, ...]

    @property
    def stored(self) -> pl.DataFrame:
        """Return the tensors of the files: ``dtype``, ``numel``, ``bytes``, a row each; empty where there are none."""
        rows = [{"dtype": one.dtype, "numel": one.numel, "bytes": one.num_bytes} for one in self.files or ()]
        return pl.DataFrame(rows, schema={"dtype": pl.String, "numel": pl.Int64, "bytes": pl.Int64})

    @cached_property
    def table(self) -> Table:
        """Return the ``arch/1`` table.

        ``run``: the first 12 hex of sha256 over the keys of [model], the configuration, and the hashes of the model's
        files. Cost: one read of the files, where they take at most 4 GiB.
        """
        keys = {"model": {key: getattr(self.section, key) for key in _READ}, "config": self.config}
        inputs = source_hashes(self.section.id) if self.files is not None else {}
        inputs |= {"revision": self.revision} if self.revision else {}
        run = step_id("arch", keys, inputs)
        meta = {
            "run": run, "spec": to_json({"model": keys["model"]}), "inputs": to_json(inputs),
            "version": str(SCHEMA_VERSION), "facts": to_json(self.facts), "notes": to_json([*self.notes, *self.warnings]),
        }  # fmt: skip
        return make_table(KIND, self.frame.with_columns(run=pl.lit(run)), meta)


def describe(section: ModelSection, progress: Progress | None = None) -> Architecture:
    """Describe the model that ``section`` names: its parameters, and how its files store them.

    Of a local folder or GGUF file the configuration and the headers are read; of a hub id the configuration is fetched, or
    made of ``model.shape`` where that is given. ``dtype`` and ``bytes`` are those of the files; where no weights are at
    hand, what the configuration's dtype (else ``model.dtype``) takes, with a note; null where the files hold a parameter
    in no form that adds up, with a warning. ``active``: see ``active_weights``.
    Raises ModelError where the model cannot be found or is no decoder; SpecError where a local configuration contradicts
    ``model.shape``. Cost: no weights are loaded; a second or two beside the import of transformers.
    """
    progress, notes = progress or Silent(), []
    source = find_source(section.id) if section.shape is None or _is_here(section.id) else None
    if source is not None and not source.local:
        progress.note(f"asking the hub for the configuration of {section.id}")
    config = configuration(section if source is None else section.model_copy(update={"shape": None}), fetch=True)
    if source is None:
        stated = frozenset(section.shape or {})
        notes.append(f"from model.shape alone: keys that it leaves out have {type(config).__name__}'s defaults")
    else:
        stated = None
        if section.shape is not None:
            check_shape(section.shape, config)
    text = json.loads(config.to_json_string(use_diff=False))
    assumed, why = _assumed_dtype(config, section)
    model = skeleton(config, section)
    table = describe_parameters(model)
    with explained(section):
        files = read_stored(source) if source is not None else None
    storage = _storage(model, table, files, assumed)
    if files is None:
        notes.append(f"no weights at hand: dtype and bytes are those of {assumed} ({why})")
    active = active_weights(model, table, text_config(model))
    return Architecture(
        section=section,
        revision=getattr(config, "_commit_hash", None),
        config={key: value for key, value in text.items() if key not in ("_name_or_path", "transformers_version")},
        facts=architecture_facts(model, table, stated),
        frame=pl.DataFrame(
            [_row(info, storage.held.get(name), active[name]) for name, info in table.items()],
            schema={name: dtype for name, dtype in SCHEMAS[KIND].items() if name != "run"},
        ),
        files=None if files is None else files.tensors,
        extra=tuple(storage.extra),
        notes=tuple(notes),
        warnings=tuple(_warnings(files, storage, active)),
    )


def _is_here(model_id: str) -> bool:
    """Tell whether the files of a model are on this machine."""
    try:
        return find_source(model_id).local
    except ModelError:  # a path that leads nowhere, an alias that is not installed: model.shape speaks for them
        return False


def _assumed_dtype(config: Any, section: ModelSection) -> tuple[str, str]:
    """Return the dtype of weights that are not at hand, and where it is written."""
    for owner in (config, config.get_text_config()):
        dtype = getattr(owner, "dtype", None)
        if isinstance(dtype, torch.dtype):
            return str(dtype).removeprefix("torch."), "the configuration's dtype"
    return section.dtype, "model.dtype; the configuration names none"


def _storage(model: Any, table: dict[str, ParameterInfo], files: StoredFiles | None, assumed: str) -> Storage:
    if files is not None:
        return match(model, table, files)
    size = getattr(torch, assumed).itemsize
    return Storage(held={name: (assumed, info.numel * size) for name, info in table.items()})


def _warnings(files: StoredFiles | None, storage: Storage, active: dict[str, int | None]) -> list[str]:
    """Return what is not known of the model, and stands as null in the table."""
    found = []
    if files is not None and files.missing:
        found.append(
            f"{len(files.missing)} of the shards that the index names are not there, such as {files.missing[0]}"
        )
    if storage.unknown:
        found.append(
            f"parameters that the files hold in no form that adds up: {len(storage.unknown)}, such as {storage.unknown[0]};"
            " their dtype and bytes are null"
        )
    if None in active.values():
        found.append("how many weights a token uses cannot be told from the configuration: active is null")
    return found


def _row(info: ParameterInfo, stored: tuple[str, int] | None, active: int | None) -> dict[str, Any]:
    """Return the row of ``arch/1``: ``expert`` is null, as the row is of the whole tensor, all its experts."""
    dtype, num_bytes = stored or (None, None)
    return {
        "parameter": info.name, "layer": info.layer, "block": info.block, "component": info.component, "expert": None,
        "shape": format_indices(info.shape), "numel": info.numel, "dtype": dtype, "bytes": num_bytes, "tied": info.tied,
        "uses": " ".join(info.uses), "active": active,
    }  # fmt: skip
