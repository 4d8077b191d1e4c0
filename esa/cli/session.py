"""What every command does around its work: read the spec, set threads, turn errors into exit codes, close pipes quietly."""

import functools
import os
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec

import typer

from esa.cli.console import ConsoleProgress, print_error
from esa.cli.processes import in_turn, require_alone, speaks
from esa.errors import EXIT_CONTENT, EXIT_INTERRUPTED, EsaError

if TYPE_CHECKING:
    from esa.artifact import Table
    from esa.spec import Spec

P = ParamSpec("P")


def handled(command: Callable[P, None]) -> Callable[P, None]:
    """Give a command esa's exit codes: content errors 3 (a failed check 4), Ctrl-C 130, a closed pipe 0."""

    @functools.wraps(command)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            if sys.stdout is None:
                raise EsaError("standard output is closed", where="-")
            require_alone(command.__module__)
            command(*args, **kwargs)
            sys.stdout.flush()
        except EsaError as error:
            if kwargs.get("verbose"):
                traceback.print_exc()
            print_error(in_turn(error))
            raise typer.Exit(error.exit_code) from None
        except KeyboardInterrupt:
            if speaks():
                print("esa: interrupted; finished work is kept, the same command goes on from there", file=sys.stderr)
            raise typer.Exit(EXIT_INTERRUPTED) from None
        except BrokenPipeError:
            # The reader has what it wanted. Python would complain once more when it flushes stdout at exit.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise typer.Exit(0) from None
        except OSError as error:  # a full disk, a folder without permission: about content, not a bug
            if kwargs.get("verbose"):
                traceback.print_exc()
            print_error(in_turn(content_error(error)))
            raise typer.Exit(EXIT_CONTENT) from None

    return wrapper


def content_error(error: OSError) -> EsaError:
    """Return what the system refused as an error about content: the file, and its own words."""
    return EsaError(error.strerror or str(error), where=str(error.filename or "output"))


def read_spec(
    path: Path | None,
    overrides: Sequence[str] | None,
    shorthand: Mapping[str, Any] | None = None,
    only: Sequence[str] | None = None,
) -> "Spec":
    """Return the spec of ``--spec`` with ``--set`` and the shorthand flags (spec key -> value, None: not given).

    Of a sweep it is the run that ``--only`` chooses.
    """
    from esa.cli.members import choose_one
    from esa.spec import load_spec, load_sweep

    changes = _all_overrides(overrides, shorthand)
    if not only:
        return load_spec(_spec_path(path), changes)
    return choose_one(only, load_sweep(_spec_path(path), changes), path)


def read_sweep(
    path: Path | None, overrides: Sequence[str] | None, shorthand: Mapping[str, Any] | None = None
) -> list["Spec"]:
    """Return every run that ``--spec`` describes."""
    from esa.spec import load_sweep

    return load_sweep(_spec_path(path), _all_overrides(overrides, shorthand))


def _spec_path(path: Path | None) -> Path:
    if path is None:
        raise EsaError("no spec is given", where="--spec", hint="esa score --spec specs/quickstart.toml")
    return path


def _all_overrides(overrides: Sequence[str] | None, shorthand: Mapping[str, Any] | None) -> list[str]:
    given = {key: value for key, value in (shorthand or {}).items() if value not in (None, [], ())}
    return [*(overrides or []), *(f"{key}={toml_value(value)}" for key, value in given.items())]


def toml_value(value: Any) -> str:
    """Return a Python value as TOML."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list | tuple):
        return f"[{', '.join(toml_value(item) for item in value)}]"
    if isinstance(value, int | float):
        return str(value)
    text = str(value).replace("\\", "\\\\").replace('"', '\\"')
    return f'"{text}"'


def begin(*, quiet: bool, verbose: bool, threads: int | None) -> ConsoleProgress:
    """Return the progress of a command; set torch's threads before torch starts them."""
    os.environ.setdefault("TQDM_DISABLE", "1")  # bars of the loading libraries; esa shows its own
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # the same bits every time on CUDA
    if threads is not None:
        os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = str(threads)
        os.environ["POLARS_MAX_THREADS"] = str(threads)
    return ConsoleProgress(quiet=quiet, verbose=verbose)


def is_file_target(out: str | None) -> bool:
    """Tell whether ``-o`` names a table (``-`` or a file) and not a folder."""
    return out is not None and (out == "-" or Path(out).suffix.lower() in (".csv", ".parquet"))


def folder_target(out: str | None) -> Path | None:
    """Return the folder that ``-o`` names, if it names one. Raises EsaError for a suffix that is no table's."""
    if out is not None and not is_file_target(out):
        suffix = Path(out).suffix
        if suffix[1:].isalpha() and not Path(out).is_dir() and not out.endswith("/"):
            raise EsaError(
                f"'{out}': '{suffix}' is no table's suffix; allowed: .csv, .parquet, -, a folder/", where="--out"
            )
        if Path(out).exists() and not Path(out).is_dir():
            raise EsaError(f"'{out}' is a file, not a folder", where="--out")
    return Path(out) if out is not None and not is_file_target(out) else None


def at_least(option: str, value: int | None, least: int) -> None:
    """Raise EsaError for a number given by an option that is under the least allowed."""
    if value is not None and value < least:
        raise EsaError(f"{value}; allowed: a whole number of at least {least}", where=option)


def check_format(format: str | None) -> str | None:
    """Return the format of ``--format``. Raises EsaError for any but csv and parquet."""
    if format not in (None, "csv", "parquet"):
        raise EsaError(f"'{format}' is not a format; allowed: csv, parquet", where="--format")
    return format


def deliver(table: "Table", out: str | None, format: str | None, folder: Path | None) -> None:
    """Write the table where ``-o`` says, or print the step's folder on stdout."""
    from esa.artifact import write_table

    if out is not None and is_file_target(out):
        write_table(table, out, format)
    elif folder is not None:
        typer.echo(str(folder))
