"""How good the intact model is: what the sizes of a family differ in first of all."""

from collections.abc import Iterator

import polars as pl

from esa.artifact.gather import Gathered
from esa.scale.quantities.measured import Measured, Wanted

TEXT = "language_modeling"
Z = 1.959964  # of a 95 % interval


def intact_nll(run: Gathered, wanted: Wanted) -> Iterator[Measured]:
    """Yield the NLL of the intact model in nats per token, on each text and length measured.

    ``nll`` of the eval step (``eval/1``), with ``value -+ 1.96 stderr``; else the ``nll_base`` of the campaign. Tokens differ
    between tokenizers, and nats per token with them.
    """
    table = run.table("eval", "eval/1")
    rows = [] if table is None else list(
        table.filter((pl.col("task") == TEXT) & (pl.col("metric") == "nll")).iter_rows(named=True)
    )  # fmt: skip
    for row in rows:
        subject = f"{row['source']}, length {row['length']}"
        half = None if row["stderr"] is None else Z * row["stderr"]
        yield Measured(
            "intact_nll", subject, row["value"], row["seed"],
            low=None if half is None or row["value"] is None else row["value"] - half,
            high=None if half is None or row["value"] is None else row["value"] + half,
            excluded="NaN or Inf in the logits" if row["value"] is None else None,
        )  # fmt: skip
    if not rows and run.damage is not None and (base := run.damage["nll_base"].drop_nulls()).len():
        text = run.spec.eval
        yield Measured("intact_nll", f"{text.source}, length {text.length}", float(base[0]))


def held_out_nll(run: Gathered, wanted: Wanted) -> Iterator[Measured]:
    """Yield the NLL on held-out text in nats per token that the model's training log recorded; none where it did not."""
    value = (run.model.get("training") or {}).get("held_out_nll")
    if value is not None:
        yield Measured("held_out_nll", "training log", float(value))
