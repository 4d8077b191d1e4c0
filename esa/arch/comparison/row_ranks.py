"""Where among the output rows of its tensor a critical weight lies, by the rows' summed scores."""

import numpy as np
import numpy.typing as npt
import polars as pl

from esa.arch.comparison.scored import Scored
from esa.arch.comparison.sources import Labelled
from esa.artifact import read_table
from esa.artifact.steps import verified_path

Array = npt.NDArray[np.float64]


def row_ranks(one: Labelled, about: Scored) -> list[tuple[int, float] | None]:
    """Return the output row of each top weight and its rank: ``(rows with a smaller sum + half of its equals) / rows``, 0 to 1.

    The sums are those of margins/1, same metric and seed, less the scores of the listed weights themselves: a critical
    weight would lift its row to the top of its tensor in any model, and every list would predict every other. None for a
    weight whose tensor has no margins (fused experts), or whose output axis neither the rank step's anatomy nor the
    numbers of rows and columns tell.
    Raises ArtifactError where margins/1 is not what its step wrote. Cost: one read of that table.
    """
    assert about.top is not None
    places = list(about.top.select("parameter", "index").iter_rows())
    manifest = one.run.manifests.get("score", {})
    if "margins/1" not in manifest.get("kinds", {}).values():
        return [None] * len(places)
    sums = _sums(one, about)
    shapes = dict(about.tensors.select("parameter", "shape").iter_rows())
    rows = [_row(one, name, index, shapes[name], sums) for name, index in places]
    for (name, _), row, score in zip(places, rows, about.top["score"], strict=True):
        if row is not None and score is not None:
            sums[name][row] -= score
    found: list[tuple[int, float] | None] = []
    for (name, _), row in zip(places, rows, strict=True):
        if row is None:
            found.append(None)
            continue
        line = sums[name]
        found.append((row, float(((line < line[row]).sum() + (line == line[row]).sum() / 2) / len(line))))
    return found


def _row(one: Labelled, name: str, index: int, shape: str, sums: dict[str, Array]) -> int | None:
    """Return the output row that a weight lies in, None where that is not known."""
    sizes = tuple(int(part) for part in shape.strip("() ").split(",") if part.strip())
    if name not in sums or len(sizes) != 2:
        return None
    stored = one.anatomy.get(name)
    axis = stored.output_axis if stored is not None else _axis(sizes, len(sums[name]))
    if axis is None:
        return None
    return index // sizes[1] if axis == 0 else index % sizes[1]


def _sums(one: Labelled, about: Scored) -> dict[str, Array]:
    """Return the summed score of every output row, in the order of the rows, of the tensors with a top weight."""
    assert about.top is not None
    path = verified_path(one.run.folders["score"], "margins/1")
    parquet = path.suffix == ".parquet"
    rows = pl.scan_parquet(path, glob=False) if parquet else read_table(path, "margins/1").frame.lazy()
    seed = one.seeds(about.metric)[0]
    chosen = (pl.col("metric") == about.metric) & pl.col("seed").eq_missing(pl.lit(seed, pl.Int64))
    wanted = pl.col("parameter").is_in(about.top["parameter"].unique().to_list()) & (pl.col("axis") == "output")
    frame = rows.filter(chosen & wanted).select("parameter", "position", "sum").collect().sort("parameter", "position")
    return {
        str(name): part["sum"].to_numpy().copy() for (name,), part in frame.group_by("parameter", maintain_order=True)
    }


def _axis(sizes: tuple[int, ...], rows: int) -> int | None:
    """Return the axis with that many rows, None where both have, or neither."""
    axes = [axis for axis, size in enumerate(sizes) if size == rows]
    return axes[0] if len(axes) == 1 else None
