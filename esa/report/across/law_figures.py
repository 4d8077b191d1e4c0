"""The figures of scaling laws: which laws are drawn, and for each its points, its band and the residuals."""

import itertools
import math
from collections.abc import Iterator
from typing import Any

import polars as pl

from esa.artifact.gather import Gathered
from esa.report.across.charts_scaling import Drawn, law_chart
from esa.report.across.scaling import BOUNDS, OVER, QUANTITIES, beyond, first_targets, size, standing_law
from esa.report.evidence.claims import ends
from esa.report.figures import Figure, slug
from esa.report.markdown import escape, number

FIGURES = 12  # laws that are drawn, the first subject of every quantity before the second of any
_X = {"parameters": "num_parameters", "active": "active_parameters"}
# of the vertical axis, which has no room for more
_SHORT = {
    "half_share": "share of weights", "top_to_median": "top 1 % over median", "noise_doubling": "dose",
    "tail_index": "tail index",
    **dict.fromkeys(("seed_jaccard", "final_jaccard", "consecutive_jaccard"), "Jaccard index"),
    **dict.fromkeys(("damage_top_k", "damage_fraction", "damage_single"), "damage (nats per token)"),
    **dict.fromkeys(("held_out_nll", "intact_nll"), "NLL (nats per token)"),
}  # fmt: skip


def figures(run: Gathered) -> Iterator[Figure]:
    """Yield a plot per law: the models, the law with its band, and the residuals."""
    laws, points, bands = (run.table("scale", kind) for kind in ("laws/1", "points/1", "bands/1"))
    if laws is None or points is None:
        return
    taken: set[str] = set()
    for row in chosen([row for row in first_targets(laws).to_dicts() if row["law"] is not None]):
        drawn = law_points(row, points, bands)
        if drawn is None:
            continue
        name = slug("_".join(str(row[key]) for key in ("quantity", "subject", "model") if row[key]))
        name = f"law_{name}" + (f"_{len(taken)}" if f"law_{name}" in taken else "")
        taken.add(name)
        title = f"{QUANTITIES.get(row['quantity'], row['quantity'])}, {row['subject'] or 'all'}"
        yield Figure(name, "scaling", law_chart(drawn), drawn.points, title, _caption(row, drawn))


def chosen(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the laws that are drawn: the first subject of every quantity, then the second ones, ``FIGURES`` at most."""
    queues: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for row in rows:
        queues.setdefault((row["over"], row["model"], row["quantity"]), []).append(row)
    turns = itertools.zip_longest(*queues.values())
    picked = [id(row) for row in itertools.islice((row for turn in turns for row in turn if row), FIGURES)]
    return [row for row in rows if id(row) in picked]


def law_points(row: dict[str, Any], points: pl.DataFrame, bands: pl.DataFrame | None) -> Drawn | None:
    """Return what one law's plot shows: points with the law's value and residual at each; None without two points."""
    mine = points.filter(
        (pl.col("quantity") == row["quantity"])
        & pl.col("subject").eq_missing(pl.lit(row["subject"], pl.String))
        & pl.col("excluded").is_null()
        & pl.col("value").is_not_null()
    )
    if row["model"] is not None:
        mine = mine.filter(pl.col("model") == row["model"])
    column = _X.get(row["over"]) or ("num_tokens" if not mine["num_tokens"].null_count() else "step")
    log = row["response"] == "log"
    mine = mine.filter(pl.col(column) > 0, *([pl.col("value") > 0] if log else []))
    if mine.height < 2:
        return None
    standing = standing_law(row) is not None
    band = _band(row, bands)
    law = interpolated(band, mine[column].to_list(), log=log)
    if not standing:  # what does not stand is not drawn out to sizes that nobody measured
        band = _cut(band, float(mine[column].max()), log=log)  # type: ignore[arg-type]
    band = _possible(band, row["quantity"])
    residuals = [_residual(y, at, log=log) for y, at in zip(mine["value"].to_list(), law, strict=True)]
    shapes, look = _shapes(mine)
    shown = mine.select(
        pl.col(column).cast(pl.Float64).alias("x"), pl.col("value").alias("y"), "low", "high",
        pl.Series("law", law, pl.Float64), pl.Series("residual", residuals, pl.Float64),
        "label", pl.col("family").fill_null("unknown family"), pl.col("kind").fill_null("unknown"), "training_seed", "seed",
        look.alias("look"),
    )  # fmt: skip
    what = "step of training" if column == "step" else OVER.get(row["over"], row["over"]).removeprefix("the ")
    name = QUANTITIES.get(row["quantity"], row["quantity"].replace("_", " "))
    fitted = (
        f"{row['law'].replace('_', ' ')} law"
        if standing
        else f"no law stands; the best is {row['law'].replace('_', ' ')}"
    )
    if row["r2"] is not None:
        fitted += f", R2 {int(100 * max(0.0, row['r2'])) / 100:.2f}"  # cut, as in verdicts
    where = ", ".join(word for word in (row["subject"], row["model"]) if word)
    y_title = _SHORT.get(row["quantity"], name)
    return Drawn(
        shown,
        band,
        what,
        y_title if len(y_title) <= 30 else f"{y_title[:29]}…",
        where or name,
        [name, fitted],
        log,
        shapes,
    )


def _band(row: dict[str, Any], bands: pl.DataFrame | None) -> pl.DataFrame:
    schema = dict.fromkeys(("x", "y", "low", "high"), pl.Float64)
    if bands is None or row["law"] is None:
        return pl.DataFrame(schema=schema)
    texts = ("over", "model", "quantity", "subject", "law")
    same = [pl.col(name).eq_missing(pl.lit(row[name], pl.String)) for name in texts]
    return bands.filter(*same).select(*schema).sort("x")


def _cut(band: pl.DataFrame, largest: float, *, log: bool) -> pl.DataFrame:
    """Return a band up to the largest model, its last point there."""
    ends_ = {
        name: interpolated(band.select("x", pl.col(name).alias("y")), [largest], log=log)
        for name in ("y", "low", "high")
    }
    last = pl.DataFrame({"x": [largest], **ends_}, schema=band.schema)
    return pl.concat([band.filter(pl.col("x") < largest), last])


def _possible(band: pl.DataFrame, quantity: str) -> pl.DataFrame:
    """Return a band as far as its law says what the quantity can be, the ends of its intervals cut there."""
    low, high = BOUNDS.get(quantity, (-math.inf, math.inf))
    return band.filter(pl.col("y").is_between(low, high)).with_columns(pl.col("low", "high").clip(low, high))


def interpolated(band: pl.DataFrame, xs: list[float], *, log: bool) -> list[float | None]:
    """Return the law as drawn at each ``x``: straight lines between the band's points on its axes; None outside of them."""
    known = band.filter(pl.col("x") > 0).drop_nulls("y")
    known = known.filter(pl.col("y") > 0) if log else known
    pairs = [(math.log(x), math.log(y) if log else y) for x, y in known.select("x", "y").iter_rows()]
    found: list[float | None] = []
    for x in xs:
        at = math.log(x)
        ends_ = [(a, b) for a, b in itertools.pairwise(pairs) if a[0] - 1e-9 <= at <= b[0] + 1e-9 and b[0] > a[0]]
        if not ends_:
            found.append(None)
            continue
        (x0, y0), (x1, y1) = ends_[0]
        y = y0 + (y1 - y0) * (at - x0) / (x1 - x0)
        found.append(math.exp(y) if log else y)
    return found


def _residual(y: float, law: float | None, *, log: bool) -> float | None:
    if law is None:
        return None
    return math.log(y / law) if log else y - law


def _shapes(points: pl.DataFrame) -> tuple[str, pl.Series]:
    """Return what the shape of a point tells, where it tells anything: the kind, the variant, or the training seed."""
    for column, title in (("kind", "kind"), ("variant", "variant"), ("training_seed", "training seed")):
        values = points[column].cast(pl.String).fill_null("unknown")
        if 1 < values.n_unique() <= 6:
            return title, values.alias("look")
    return "", pl.Series([""] * points.height)


def _caption(row: dict[str, Any], drawn: Drawn) -> str:
    noun = "checkpoints" if row["over"] == "checkpoints" else "models"
    models = f"{number(row['num_models'])} {noun}" if row["num_models"] is not None else f"the {noun}"
    text = f"{number(drawn.points.height)} points of {models}"
    families = drawn.points["family"].unique().to_list()
    text += f", all of family {escape(families[0])}" if len(families) == 1 else ", a colour per family"
    text += f", a shape per {drawn.shapes}" if drawn.shapes else ""
    if drawn.band.height:
        text += ". Line: the law" + (", dashed beyond what was measured" if standing_law(row) is not None else "")
        text += "; grey: its bootstrap band"
        below = "ln of value over law" if drawn.log else "value less law"
        text += f". Below: residuals, {below}"
    if row["target"] is not None and row["predicted"] is not None:
        interval = ends(row["predicted"], row["predicted_low"], row["predicted_high"])
        text += f". At {size(row['target'])}: {interval}{beyond(row)}"
    return f"{text}. Verdict: {escape(row['verdict'])}." if row["verdict"] else f"{text}."
