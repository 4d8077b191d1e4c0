"""``esa show``: look at a table, a step or a run."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from esa.cli import options
from esa.cli.session import handled
from esa.errors import ArtifactError

if TYPE_CHECKING:
    from esa.artifact.describe import AnyTable
    from esa.artifact.runs import StepState


@handled
def command(
    source: Annotated[
        str,
        typer.Argument(
            help="A CSV or Parquet table, -, the folder of a step, or a run.", metavar="TABLE|RUN", show_default=False
        ),
    ],
    rows: Annotated[int, typer.Option("--rows", min=0, help="How many rows of a table.", metavar="N")] = 10,
    columns: Annotated[
        str | None, typer.Option("--columns", help="Only these columns of a table: k,ppl,outcome.", metavar="NAMES")
    ] = None,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
    list_names: options.ListNames = False,
    version: options.Version = False,
) -> None:
    """Show what a table holds (kind, columns, first rows) and where it comes from; of a step or a run, what is in it.

    A run is a folder in outputs/, by its path or its name.

    Examples:
    `esa show outputs/smollm2_quickstart`

    `esa show outputs/smollm2_quickstart/perturb-*/damage.csv --columns metric,group,k,ppl --rows 20`

    `esa rank scores.parquet -k 5 -o - | esa show -`
    """
    path = source if source == "-" else _path(source)
    for line in _folder(path) if isinstance(path, Path) and path.is_dir() else _table(path, rows, columns):
        typer.echo(line)


def _path(source: str) -> Path:
    """Return the path that a person means: also NAME and NAME/STEP of the outputs folder."""
    from esa.artifact.steps import OUTPUTS

    path = Path(source)
    return OUTPUTS / path if not path.exists() and (OUTPUTS / path).exists() else path


def _table(source: str | Path, rows: int, names: str | None) -> list[str]:
    from esa.artifact.describe import choose_columns, describe_columns, read_any
    from esa.artifact.schemas import SCHEMAS
    from esa.artifact.space import size_text
    from esa.cli.plain import printable, window_width
    from esa.cli.tables import column_lines, head_lines, pairs

    manifest, inner = ({}, "") if source == "-" else _manifest_beside(Path(source))
    stated = str(manifest.get("kinds", {}).get(inner, ""))
    table = read_any(source, stated if stated in SCHEMAS else None)
    frame = table.frame if names is None else choose_columns(table, [name.strip() for name in names.split(",")])
    described, width = describe_columns(frame), window_width()
    shape = f"{table.frame.height:,} rows, {table.frame.width} columns, {size_text(table.num_bytes)}"
    lines = [printable(table.name), printable(f"{_kind(table, stated)}, {table.format}: {shape}")]
    lines += ["", *column_lines(described, width)]
    lines += head_lines(frame, described, rows, width, chosen=names is not None)
    return [*lines, "", *pairs(_table_provenance(table, manifest, inner), width)]


def _kind(table: "AnyTable", stated: str) -> str:
    from esa.artifact.schemas import SCHEMAS

    if table.kind is None:
        return stated or "no table of esa"
    if table.kind not in SCHEMAS:
        return f"{table.kind}, which this esa does not know"
    return f"{table.kind}, without {', '.join(table.lacks)}" if table.lacks else table.kind


def _manifest_beside(path: Path) -> tuple[dict[str, Any], str]:
    """Return the manifest of the step that a file lies in and the file's name there, or nothing."""
    from esa.artifact.manifest import MANIFEST, read_manifest

    home = next((folder for folder in path.parents[:2] if (folder / MANIFEST).is_file()), None)
    return ({}, "") if home is None else (read_manifest(home), path.relative_to(home).as_posix())


def _table_provenance(table: "AnyTable", manifest: dict[str, Any], inner: str) -> list[tuple[str, str]]:
    """Return where a table comes from: its step's manifest if it lies beside one, else what the file itself carries."""
    from esa.cli.provenance import inputs_text, provenance

    expected = manifest.get("outputs", {}).get(inner)
    if expected is not None:
        same = "as its step wrote it" if expected == table.sha256 else "NOT as its step wrote it: it was changed since"
        return [
            ("written by", _written_by(manifest)), ("sha256", f"{table.sha256}, {same}"), *provenance(manifest),
        ]  # fmt: skip
    if "run" not in table.meta:
        return [
            ("written by", "not known: the file does not say, and no manifest beside it names it"),
            ("sha256", table.sha256),
        ]
    spec = _carried(table, "spec")
    model = spec.get("model")
    lines = [
        ("written by", f"step {table.meta['run']}{' of ' + str(spec['name']) if 'name' in spec else ''}"),
        ("sha256", table.sha256),
        ("model", ", ".join(str(model.get(key)) for key in ("id", "dtype")) if isinstance(model, dict) else ""),
        ("made from", inputs_text(_carried(table, "inputs"))),
        ("schemas", f"version {table.meta.get('version')}"),
        ("also carries", ", ".join(key for key in table.meta if key not in ("run", "inputs", "version"))),
    ]
    return [(label, text) for label, text in lines if text]


def _carried(table: "AnyTable", key: str) -> dict[str, Any]:
    """Return the JSON object that a Parquet file carries under ``key``; an empty one where it carries something else."""
    try:
        found = json.loads(table.meta.get(key, "{}"))
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _written_by(manifest: dict[str, Any]) -> str:
    name = manifest.get("spec", {}).get("name")
    return f"{manifest.get('step')}-{manifest.get('run')}{f' of {name}' if name else ''}"


def _folder(path: Path) -> list[str]:
    from esa.artifact.runs import is_step, read_steps
    from esa.cli.runs import checks

    steps = read_steps(path, checks(verify=False))
    if is_step(path):
        return _step(steps[0])
    if not steps or len({one.folder.parent for one in steps}) > 1:
        what = "holds several runs" if steps else "holds no step of esa"
        raise ArtifactError(
            what, where=str(path), hint=f"esa runs {path} lists them" if steps else "esa runs lists what there is"
        )
    return _run(path, steps)


def _step(one: "StepState") -> list[str]:
    from esa.cli.plain import printable, window_width
    from esa.cli.provenance import provenance
    from esa.cli.tables import file_lines, pairs

    width = window_width()
    what = _written_by(dict(one.manifest)) if one.manifest else f"{one.step}-{one.id}"
    lines = [printable(str(one.folder)), printable(f"{what}: {one.status}{f', {one.why}' if one.why else ''}")]
    if one.manifest:
        lines += ["", *pairs(provenance(one.manifest), width)]
    return [*lines, "", *file_lines([one], one.folder)]


def _run(path: Path, steps: Sequence["StepState"]) -> list[str]:
    from esa.artifact.runs import run_file
    from esa.cli.plain import printable, window_width
    from esa.cli.runs import lines as step_lines
    from esa.cli.tables import file_lines, pairs

    width, content = window_width(), run_file(path)
    spec: dict[str, Any] = next(
        (one.manifest["spec"] for one in steps if isinstance(one.manifest.get("spec"), dict)), {}
    )
    created = str(content.get("created", ""))[:19].replace("T", " ")
    facts = [
        ("question", str(spec.get("question") or "")),
        ("model", str(spec.get("model", {}).get("id", ""))),
        ("spec", str(content.get("spec") or "")),
        ("finished", f"{created} UTC" if created else "by esa run: no"),
    ]
    return [
        printable(str(path)),
        *pairs([(label, text) for label, text in facts if text], width),
        "",
        *step_lines(steps, path, width),
        "",
        *file_lines(steps, path),
    ]
