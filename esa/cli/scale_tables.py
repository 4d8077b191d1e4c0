"""What ``esa scale`` prints at the end: the laws by quantity, what goes with size, and what was pooled over models."""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from esa.cli.console import number, print_line, print_table

if TYPE_CHECKING:
    from esa.scale import Asked, ScaleResult

ALPHA = 0.05
TITLES = {
    "half_share": "Share of the weights that hold half of the score",
    "top_to_median": "Mean score of the top 1 % over the median",
    "tail_index": "Tail index of the scores (Hill)",
    "damage_top_k": "Damage of the top K weights (nats per token)",
    "damage_fraction": "Damage of about the same share of the weights (nats per token)",
    "damage_single": "Damage of the worst single weight (nats per token)",
    "seed_jaccard": "Agreement of score seeds (Jaccard)",
    "noise_doubling": "Noise at which perplexity doubles (sigma)",
    "intact_nll": "NLL of the intact model (nats per token)",
    "held_out_nll": "Held-out NLL of the training log (nats per token)",
    "final_jaccard": "Agreement with the last checkpoint (Jaccard)",
    "consecutive_jaccard": "Agreement with the checkpoint before (Jaccard)",
}

Row = Mapping[str, Any]


def print_laws(result: "ScaleResult", asked: "Asked") -> None:
    """Print a table per quantity (and training run), with a line per subject; refused subjects are summed up by reason."""
    from esa.scale.sizes import size_words

    laws = [] if "laws/1" not in result.tables else result.tables["laws/1"].frame.to_dicts()
    groups: dict[tuple[str | None, str], list[Row]] = {}
    for row in laws:
        groups.setdefault((row["model"], row["quantity"]), []).append(row)
    target = asked.settings.targets[0] if asked.settings.targets else None
    for (model, quantity), rows in groups.items():
        title = TITLES.get(quantity, quantity)
        _print_quantity(f"{model}: {title}" if model else title, rows, None if target is None else size_words(target))
    if (effects := result.tables.get("covariates/1")) is not None and effects.frame.height:
        print_covariates(effects.frame.to_dicts())
    if any("far" in (row["flags"] or "").split(",") for row in laws):
        print_line(
            f"far: {', '.join(map(size_words, asked.settings.targets))} lies over 10 times beyond the largest model;"
            " the intervals there hold only as long as the law does"
        )
    if (pooled := result.tables.get("meta/1")) is not None:
        print_meta(pooled.frame.to_dicts())
    for text in result.summary:
        print_line(text)


def print_meta(rows: Sequence[Row]) -> None:
    """Print what top weights cost beyond random ones over all models: mean, another model, how much models differ."""
    header = ["subject", "models", "mean", "95 %", "in another model", "I2", "tau", "Q's p"]
    known = [row for row in rows if row["mean"] is not None]
    cells = [
        [
            row["subject"], number(row["num_models"]), number(row["mean"], 3),
            f"{number(row['low'], 2)} to {number(row['high'], 2)}",
            f"{number(row['prediction_low'], 2)} to {number(row['prediction_high'], 2)}", f"{row['i2']:.0%}",
            number(math.sqrt(row["tau2"]), 2), number(row["q_p"], 2),
        ]
        for row in known
    ]  # fmt: skip
    if cells:
        title = "Damage of top over random weights, pooled over models (nats per token, random effects)"
        print_table(title, header, cells, right=["models", "mean", "I2", "tau", "Q's p"])
    said: dict[str, list[str]] = {}
    for row in rows:
        if row["why"] is not None:
            said.setdefault(row["why"], []).append(row["subject"])
    for why, subjects in said.items():
        print_line(why if len(subjects) == len(rows) else f"{why} ({'; '.join(subjects)})")


def _print_quantity(title: str, rows: Sequence[Row], target: str | None) -> None:
    """Print one quantity: verdict, error of a model left out, extrapolation, changepoint."""
    kept = [row for row in rows if row["response"] is not None]
    at = [] if target is None else [f"at {target}"]
    counted = "checkpoints" if any(row["over"] == "checkpoints" for row in kept) else "models"
    header = ["subject", counted, "verdict", "left-out error", *at, "bends at"]
    cells = [
        [
            row["subject"],
            number(row["num_models"]),
            row["verdict"],
            _error(row),
            *([predicted(row)] if at else []),
            _bend(row),
        ]
        for row in kept
    ]
    if cells:
        print_table(title, header, cells, right=[counted], wrap=["verdict"])
    refused: dict[str, list[str]] = {}
    for row in rows:
        if row["response"] is None:
            refused.setdefault(row["verdict"], []).append(row["subject"])
    for verdict, subjects in refused.items():
        head = "" if cells else f"{title}: "
        print_line(f"{head}{verdict[:1].lower() + verdict[1:]} ({'; '.join(subjects)})")


def _error(row: Row) -> str:
    """Return the prediction error: as a factor where the response is a logarithm."""
    error = row["prediction_error"]
    if error is None:
        return "-"
    return f"x{math.exp(error):.3g}" if row["response"] == "log" and error < 50 else number(error, 2)


def predicted(row: Row) -> str:
    """Return what the law says of the target; no number where the quantity cannot be that: the law does not reach so far."""
    if "out_of_range" in (row["flags"] or "").split(","):
        return "out of range"
    low, high = row["predicted_low"], row["predicted_high"]
    value = number(row["predicted"], 3)
    if row["predicted"] is None:
        return value
    return f"{value}, no interval" if low is None or high is None else f"{value} [{number(low, 2)}, {number(high, 2)}]"


def _bend(row: Row) -> str:
    """Return where the slope changes if it does at p 0.05, adjusted over the table; else the p, or a dash where none is known."""
    from esa.scale.sizes import size_words

    if row["changepoint"] is None:
        return "-"
    p = row["changepoint_p_adjusted"]
    if p is None:  # a shift of level in a long series has no p
        return size_words(row["changepoint"])
    return f"{size_words(row['changepoint']) if p <= ALPHA else 'no'} (p {number(p, 2)})"


def print_covariates(rows: Sequence[Row]) -> None:
    """Print the effects of family, kind and variant at equal size, and count those that could not be told."""
    known = [row for row in rows if row["estimate"] is not None]
    header = ["quantity", "subject", "term", "level", "against", "effect", "95 %", "p, adjusted"]
    if known:
        print_table(
            "Beside size (difference in the response, of ln y where all values are above zero)", header,
            [
                [
                    row["quantity"], row["subject"], row["term"], row["level"], row["against"], number(row["estimate"], 3),
                    f"{number(row['low'], 2)} to {number(row['high'], 2)}", number(row["p_adjusted"], 2),
                ]
                for row in known
            ],
            right=["effect", "p, adjusted"],
        )  # fmt: skip
    refused: dict[tuple[str, str], int] = {}
    for row in rows:
        if row["estimate"] is None:
            refused[row["term"], row["why"]] = refused.get((row["term"], row["why"]), 0) + 1
    for (term, why), count in refused.items():
        print_line(f"{term}: {why} ({count} {'subject' if count == 1 else 'subjects'})")
