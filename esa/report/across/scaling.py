"""Scaling on the page: what the laws say in words and in a table, covariates, and who was left out."""

import math
from typing import Any

import polars as pl

from esa.artifact.gather import Gathered
from esa.report.evidence.claims import ends
from esa.report.markdown import MISSING, bullets, code, escape, join, number, table

SENTENCES = 12  # verdicts in words; the table has all
LEFT_OUT = 20  # reasons for leaving models out that are listed
QUANTITIES = {
    "half_share": "share of weights that hold half of the score",
    "top_to_median": "top 1 % over median score",
    "tail_index": "tail index of the scores",
    "damage_top_k": "damage of the top K (nats per token)",
    "damage_fraction": "damage of a fraction (nats per token)",
    "damage_single": "damage of one weight (nats per token)",
    "seed_jaccard": "Jaccard index across seeds",
    "noise_doubling": "noise that doubles the perplexity",
    "held_out_nll": "held-out NLL (nats per token)",
    "intact_nll": "intact NLL (nats per token)",
    "final_jaccard": "Jaccard with the last checkpoint",
    "consecutive_jaccard": "Jaccard with the checkpoint before",
}
# what a quantity cannot be under and over, whatever a law says of sizes that nobody measured
BOUNDS = {
    "half_share": (0.0, 1.0), "top_to_median": (1.0, math.inf),
    **dict.fromkeys(("seed_jaccard", "final_jaccard", "consecutive_jaccard"), (0.0, 1.0)),
}  # fmt: skip
OVER = {
    "parameters": "the number of weights",
    "active": "the number of active weights",
    "checkpoints": "tokens of training",
}
_LAW = ["over", "model", "quantity", "subject"]  # what a law is of
_NOTE = (
    "Law: the one that AICc prefers, its weight that among the laws tried. Exponent: of the power law. LOMO error: root mean"
    " square error of predicting each model from the others, in the response that was fitted (logarithms where every value is"
    " above zero). Intervals: bootstrap over models, and over runs and seeds within. Changepoint: segmented regression with a"
    " permutation p, adjusted over the table. Each verdict holds its law by itself, unadjusted for their number."
)


def scaling_parts(run: Gathered) -> list[str]:
    """Return the section: the verdicts in words, every law in a table, covariates, and the models that no fit holds."""
    laws = run.table("scale", "laws/1")
    points = run.table("scale", "points/1")
    if laws is None and (points is None or run.table("scale", "emergence/1") is not None):
        return []
    parts = [*law_sentences(laws), _verdicts(laws)] if laws is not None else ["No law could be fitted to these points."]
    opening = "\n\n".join(part for part in parts if part)
    parts = [opening]
    if laws is not None:
        parts += ["### Laws", _law_table(laws), _NOTE]
    if (covariates := run.table("scale", "covariates/1")) is not None:
        parts += ["### Covariates", _covariate_table(covariates)]
    if points is not None and (lines := left_out(points)):
        parts += ["### Not in the fits", bullets(lines)]
    return parts


def law_sentences(laws: pl.DataFrame) -> list[str]:
    """Return in bold how many quantities follow which law, and what the number of models allows to be said."""
    rows = first_targets(laws).to_dicts()
    tried = [row for row in rows if not refused(row)]
    standing = [law for row in tried if (law := standing_law(row)) is not None]
    over = join([OVER.get(one, escape(one)) for one in dict.fromkeys(row["over"] for row in rows)])
    if not tried:
        return [f"**No law over {over} could be fitted: too few models have a value.**"]
    words = [f"{escape(law.replace('_', ' '))} {number(standing.count(law))}" for law in dict.fromkeys(standing)]
    verb = "follows a law" if len(standing) == 1 else "follow a law"
    text = f"**Over {over} {number(len(standing))} of {number(len(tried))} quantities {verb}"
    text += f": {', '.join(words)}.**" if words else ".**"
    counts = sorted({row["num_models"] for row in tried})
    noun = "checkpoints" if rows[0]["over"] == "checkpoints" else "models"
    span = number(counts[0]) if len(counts) == 1 else f"{number(counts[0])} to {number(counts[-1])}"
    text += f" Fitted to {span} {noun}"
    few = sum("indicative" in str(row["flags"] or "") for row in tried)
    verb = "is" if few == 1 else "are"
    what = "all of it is" if few == len(tried) else f"{number(few)} of the {number(len(tried))} fits {verb}"
    text += f"; {what} indicative, from fewer than six." if few else "."
    if lacking := len(rows) - len(tried):
        text += f" {number(lacking)} more could not be fitted."
    return [text]


def refused(row: dict[str, Any]) -> bool:
    """Tell whether too few models have a value of this quantity for any law."""
    return "few_models" in str(row["flags"] or "")


def standing_law(row: dict[str, Any]) -> str | None:
    """Return the law that the verdict lets stand; None where it says that there is none."""
    verdict = str(row["verdict"] or "")
    none = verdict.startswith("No ") and " instead" not in verdict
    return None if none or refused(row) else row["law"]


def first_targets(laws: pl.DataFrame) -> pl.DataFrame:
    """Return one row per law: further targets of the same law are further rows of the table."""
    return laws.unique(_LAW, keep="first", maintain_order=True)


def _verdicts(laws: pl.DataFrame) -> str:
    rows = first_targets(laws).drop_nulls("verdict").to_dicts()
    rows.sort(
        key=lambda row: (refused(row), standing_law(row) is None)
    )  # the laws that stand first, then those that do not
    lines = [f"{_subject(row)}: {escape(row['verdict'])}" for row in rows[:SENTENCES]]
    if len(rows) > SENTENCES:
        lines.append(f"{number(len(rows) - SENTENCES)} more are in the table.")
    return bullets(lines)


def _subject(row: dict[str, Any]) -> str:
    words = [QUANTITIES.get(row["quantity"], row["quantity"].replace("_", " "))]
    words += [word for word in (row["subject"], row.get("model")) if word]
    return escape(", ".join(words))


def _law_table(laws: pl.DataFrame) -> str:
    several = laws["model"].n_unique() > 1
    rows = []
    for row in laws.iter_rows(named=True):
        model = [escape(row["model"])] if several else []
        rows.append([
            escape(row["quantity"]), escape(row["subject"]), *model, escape((row["law"] or MISSING).replace("_", " ")),
            number(row["weight"]), number(row["r2"]), number(row["power_r2"]), _exponent(row),
            number(row["prediction_error"]),
            _target(row), _changepoint(row), number(row["num_models"]), _flags(row),
        ])  # fmt: skip
    header = [
        "quantity", "subject", *(["of"] if several else []), "law", "weight", "R2", "power law's R2", "exponent", "LOMO error",
        "at the target", "changepoint", "models", "flags",
    ]  # fmt: skip
    return table(header, rows, "ll" + "l" * several + "lrrrrrrrrl")


def _exponent(row: dict[str, Any]) -> str:
    return ends(row["exponent"], row["exponent_low"], row["exponent_high"])


def _flags(row: dict[str, Any]) -> str:
    return escape(row["flags"].replace("_", " ").replace(",", ", ")) if row["flags"] else ""


def _target(row: dict[str, Any]) -> str:
    if row["target"] is None or row["predicted"] is None:
        return MISSING
    return f"{size(row['target'])}: {ends(row['predicted'], row['predicted_low'], row['predicted_high'])}{beyond(row)}"


def beyond(row: dict[str, Any]) -> str:
    """Say that a law predicts what its quantity cannot be: that it does not reach as far as the target."""
    low, high = BOUNDS.get(row["quantity"], (-math.inf, math.inf))
    if low <= row["predicted"] <= high:
        return ""
    return f" (the law does not reach there: it cannot be {'under' if row['predicted'] < low else 'over'} 1)"


def _changepoint(row: dict[str, Any]) -> str:
    if row["changepoint"] is None:
        return MISSING
    low, high = row["changepoint_low"], row["changepoint_high"]
    interval = f" [{size(low)}, {size(high)}]" if low is not None and high is not None else ""
    adjusted = row["changepoint_p_adjusted"]
    p = row["changepoint_p"] if adjusted is None else adjusted
    return f"{size(row['changepoint'])}{interval}" + (f", p {number(p)}" if p is not None else "")


def size(value: float) -> str:
    """Return a number of weights or tokens in 3 digits: ``135 M``, ``1.3 B``."""
    for power, suffix in ((1e12, " T"), (1e9, " B"), (1e6, " M"), (1e3, " k")):
        if abs(value) >= power * 0.9995:
            return f"{value / power:.3g}{suffix}"
    return f"{value:.3g}"


def _covariate_table(covariates: pl.DataFrame) -> str:
    rows = [
        [
            escape(row["quantity"]), escape(row["subject"]), escape(row["term"]),
            f"{escape(row['level'])} against {escape(row['against'])}" if row["level"] is not None else MISSING,
            ends(row["estimate"], row["low"], row["high"]), number(row["p_value"]), number(row["p_adjusted"]),
            number(row["num_models"]), escape(row["why"]) if row["why"] else "",
        ]
        for row in covariates.iter_rows(named=True)
    ]  # fmt: skip
    header = ["quantity", "subject", "covariate", "level", "effect", "p", "adjusted p", "models", "why not"]
    return table(header, rows, "llllrrrrl")


def left_out(points: pl.DataFrame) -> list[str]:
    """Return who is not in the fits and why: the models under each reason, the commonest first."""
    known = points.drop_nulls("excluded")
    if known.is_empty():
        return []
    found = known.group_by("excluded", maintain_order=True).agg(
        pl.col("label").unique(maintain_order=True), pl.col("quantity").unique(maintain_order=True)
    )
    every = points["quantity"].n_unique()
    lines = []
    for reason, labels, quantities in found.iter_rows():
        of = "" if len(quantities) == every else f" ({escape(join(quantities))})"
        lines.append(f"{join([code(label, cell=False) for label in labels])}: {escape(reason)}{of}")
    more = len(lines) - LEFT_OUT
    return [*lines[:LEFT_OUT], *([f"{number(more)} more reasons are in `points.csv`."] if more > 0 else [])]
