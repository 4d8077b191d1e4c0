"""Read what a score step kept of single weights, metric by metric: a uniform sample of each tensor, and the top ones."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl

from esa.artifact import read_manifest
from esa.artifact.steps import verified_path
from esa.errors import ArtifactError

UNIFORM = ("sample", "all")  # the strata that every weight of a tensor is as likely to be in
HIGHEST = ("top", "all")
_WEIGHT = ("parameter", "index")

Pair = tuple[str, int | None]  # metric and seed


@dataclass(frozen=True)
class Scored:
    """A finished score step: whose scores of one seed are read, and those of metrics that need no data.

    ``windows``: the sha256 of the token windows of every seed. ``rows``: ``scores/1``, unread. ``pairs``: metric and seed, in the
    order of the file. ``tensors``: number of weights by parameter, over all metrics.
    """

    folder: Path
    run: str
    fingerprint: str
    windows: tuple[str, ...]
    rows: pl.LazyFrame
    pairs: tuple[Pair, ...]
    tensors: Mapping[str, int]

    def of(self, pair: Pair, strata: Sequence[str]) -> pl.LazyFrame:
        """Return the rows of one metric and seed in some strata."""
        metric, seed = pair
        at = pl.col("seed").is_null() if seed is None else pl.col("seed") == seed
        chosen = self.rows.filter((pl.col("metric") == metric) & at & pl.col("stratum").is_in(list(strata)))
        return chosen.select(*_WEIGHT, "numel", "weight", "score", "signed")


def open_scores(folder: Path, where: str = "--validate") -> Scored:
    """Open the folder of a finished score step, its first seed. Raises ArtifactError for anything else, or a changed file."""
    if not folder.is_dir():
        raise ArtifactError(f"'{folder}' is no folder of a score step", where=where, hint="esa score writes one")
    manifest = read_manifest(folder)
    if manifest["step"] != "score":
        raise ArtifactError(f"'{folder}' is a {manifest['step']} step; a score step is needed", where=where)
    rows = pl.scan_parquet(verified_path(folder, "scores/1"), glob=False)
    known = rows.select("metric", "seed").unique(maintain_order=True).collect().rows()
    seeds = list(dict.fromkeys(seed for _, seed in known if seed is not None))
    pairs = tuple((metric, seed) for metric, seed in known if seed is None or seed == seeds[0])
    numels = rows.select("parameter", "numel").unique(maintain_order=True).collect()
    windows = tuple(str(facts["sha256"]) for facts in manifest["data"])
    facts = (str(manifest["run"]), str(manifest["model"]["fingerprint"]), windows)
    return Scored(folder, *facts, rows, pairs, dict(numels.iter_rows()))


def uniform_weights(scored: Scored) -> pl.DataFrame:
    """Return a uniform sample of every tensor's weights with what every metric gives them.

    Columns: parameter, index, numel, weight, and per pair m ``score_m``, ``signed_m``. Metrics of one seed keep the same
    sample of a tensor; ``magnitude``, which has no seed, is abs(weight) where its own sample is another. A metric without a
    meaning for a tensor (``super_activation`` outside output projections) gives it zero.
    Raises ArtifactError where a metric kept other weights.
    """
    parts = [scored.of(pair, UNIFORM).collect() for pair in scored.pairs]
    seeded = sorted(range(len(parts)), key=lambda m: (scored.pairs[m][1] is None, m))
    found: list[pl.DataFrame] = []
    known: set[str] = set()
    for m in seeded:  # of every tensor the sample of the first metric that scores it
        found.append(parts[m].filter(~pl.col("parameter").is_in(list(known))).select(*_WEIGHT, "numel", "weight"))
        known |= set(parts[m]["parameter"].unique())
    return _with_scores(scored, pl.concat(found), parts, missing=False)


def top_weights(scored: Scored, number: int, order: Sequence[str]) -> pl.DataFrame:
    """Return the highest scores' weights of every metric, ``number`` each and each once, with the columns of ``uniform_weights``.

    Equal scores come by ``order``, that of the model's parameters, and index; a score of zero points at nothing and is left
    out. A metric's score of another's top weight is read from the rows it kept, else from its dense scores; null where it has
    neither.
    """
    place = pl.col("parameter").replace_strict(list(order), list(range(len(order))), return_dtype=pl.Int64)
    tops = []
    for pair in scored.pairs:
        rows = scored.of(pair, HIGHEST).filter(pl.col("score") > 0).with_columns(place.alias("place"))
        tops.append(rows.sort("score", "place", "index", descending=[True, False, False]).head(number))
    units = pl.concat([top.select(*_WEIGHT, "numel", "weight") for top in pl.collect_all(tops)])
    units = units.unique(_WEIGHT, keep="first", maintain_order=True)
    strata = ("top", "bottom", "sample", "large", "all")
    wanted = units.select(_WEIGHT).lazy()
    kept = [
        scored.of(pair, strata).join(wanted, on=_WEIGHT, how="semi").unique(_WEIGHT, maintain_order=True)
        for pair in scored.pairs
    ]
    frame = _with_scores(scored, units, pl.collect_all(kept), missing=True)
    for m, pair in enumerate(scored.pairs):
        if (dense := _dense_path(scored, pair)).is_file() and frame[f"score_{m}"].null_count():
            frame = frame.with_columns(_from_dense(dense, frame, m, scored.run))
    return frame


def _with_scores(scored: Scored, units: pl.DataFrame, parts: Sequence[pl.DataFrame], *, missing: bool) -> pl.DataFrame:
    """Return units with every metric's scores, null where ``missing`` and unknown."""
    frame = units
    for m, ((metric, seed), part) in enumerate(zip(scored.pairs, parts, strict=True)):
        columns = part.select(*_WEIGHT, pl.col("score").alias(f"score_{m}"), pl.col("signed").alias(f"signed_{m}"))
        frame = frame.join(columns, on=_WEIGHT, how="left", maintain_order="left")
        score = pl.col(f"score_{m}")
        if metric == "magnitude":
            frame = frame.with_columns(score.fill_null(pl.col("weight").abs()))
        scores_of = scored.of((metric, seed), ("top", "all")).select("parameter").unique().collect()["parameter"]
        foreign = ~pl.col("parameter").is_in(scores_of.to_list())
        frame = frame.with_columns(pl.when(foreign).then(0.0).otherwise(score).cast(pl.Float32).alias(f"score_{m}"))
        if not missing and (unknown := frame[f"score_{m}"].null_count()):
            raise ArtifactError(
                f"{metric} keeps no score of {unknown:,} of the {len(frame):,} weights that were drawn for the other metrics",
                where=str(scored.folder),
                hint="score all metrics in one step, on the same seeds",
            )
    return frame


def _dense_path(scored: Scored, pair: Pair) -> Path:
    metric, seed = pair
    return scored.folder / "dense" / (f"{metric}.safetensors" if seed is None else f"{metric}.{seed}.safetensors")


def _from_dense(path: Path, frame: pl.DataFrame, m: int, run: str) -> pl.Series:
    """Return the scores of pair ``m`` with the unknown ones read from its dense scores, a row of a tensor at a time.

    Raises ArtifactError for a file of another step.
    """
    from safetensors import safe_open

    scores = frame[f"score_{m}"].to_list()
    with safe_open(path, framework="numpy") as file:
        if (file.metadata() or {}).get("run") != run:
            raise ArtifactError(f"does not hold the dense scores of step {run}", where=str(path))
        held = set(file.keys())
        for number, (parameter, index) in enumerate(frame.select(_WEIGHT).iter_rows()):
            if scores[number] is None and parameter in held:
                part = file.get_slice(parameter)
                row, within = divmod(index, int(np.prod(part.get_shape()[1:], dtype=np.int64)))
                scores[number] = float(part[row : row + 1].reshape(-1)[within])
    return pl.Series(f"score_{m}", scores, dtype=pl.Float32)
