"""What a model is made of: a row per tensor, and totals."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from esa.artifact import write_table
from esa.progress import Progress, Silent
from esa.spec import Spec
from esa.spec.sections import Model

if TYPE_CHECKING:
    from esa.arch.description import Architecture

__all__ = ["run"]


def __getattr__(name: str) -> Any:
    """Import the describing half when it is asked for: it needs torch, the comparing half does without."""
    if name in ("Architecture", "describe"):
        from esa.arch import description

        return getattr(description, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def run(
    model: str | Spec | Model,
    *,
    out: str | Path | None = None,
    format: str | None = None,
    progress: Progress | None = None,
) -> "Architecture":
    """Describe a model: an alias, folder, ``.gguf`` file or hub id, or what a spec names; no weight is loaded.

    ``.table`` of the result is the ``arch/1`` table, one row per tensor; it is written to ``out`` (a path, or ``-``) if that
    is given, as CSV or Parquet by its suffix, else ``format``. Raises ModelError where the model cannot be found.
    """
    from esa.arch.description import describe

    section = Model(id=model) if isinstance(model, str) else model.model if isinstance(model, Spec) else model
    progress = progress or Silent()
    found = describe(section, progress)
    for text in found.notes:
        progress.note(text)
    for text in found.warnings:
        progress.warn(text)
    if out is not None:
        write_table(found.table, out, format)
    return found
