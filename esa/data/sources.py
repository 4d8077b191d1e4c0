"""Where text comes from: the built-in corpora and files. Nothing ever falls back to other text."""

from importlib.resources import files
from pathlib import Path

from esa.artifact import sha256_of
from esa.errors import DataError
from esa.registry import suggest

CORPORA: dict[str, str] = {
    "sentences": "10 sentences on machine learning",
    "dev_small": "52 sentences on many subjects, for quick runs",
    "prose": "varied prose for calibration: encyclopedic, news, fiction, dialogue, how-to, a little code",
    "prose_eval": "varied prose of the same kinds on other subjects, for evaluation",
}


def source_path(source: str) -> Path:
    """Return the file behind ``builtin:NAME`` or ``file:PATH``. Raises DataError if there is none."""
    kind, _, name = source.partition(":")
    if kind == "builtin":
        if name not in CORPORA:
            raise DataError(
                f"'{name}' is not a built-in text{suggest(name, list(CORPORA))}; known: {', '.join(CORPORA)}",
                where=source,
            )
        return Path(str(files("esa.data").joinpath("corpora", f"{name}.txt")))
    path = Path(name).expanduser()
    if not path.is_file():
        raise DataError("no such file", where=source)
    return path


def read_source(source: str) -> str:
    """Return the text of a source, as UTF-8. Raises DataError if it is missing, empty or not UTF-8."""
    try:
        text = source_path(source).read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise DataError(f"is not UTF-8: byte {error.start}", where=source) from None
    except OSError as error:
        raise DataError(f"cannot be read: {error.strerror}", where=source) from None
    if not text.strip():
        raise DataError("holds no text", where=source)
    return text


def source_hash(source: str) -> str:
    """Return the sha256 of the source's file."""
    return sha256_of(source_path(source))
