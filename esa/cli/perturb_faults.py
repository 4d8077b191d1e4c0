"""The bits of ``esa perturb``: a sweep over every bit of the targets, and campaigns of random faults."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from esa.cli.console import ConsoleProgress, number, print_line, print_table
from esa.cli.options import SPEC
from esa.cli.session import deliver, folder_target, is_file_target
from esa.errors import EsaError

if TYPE_CHECKING:
    import polars as pl

    from esa.perturb.faults import FaultsResult
    from esa.spec import Spec

_MOST_SWEEPS = 4  # weights whose bits are printed
_FAULTS = "Random faults"

SweepBits = Annotated[
    bool,
    typer.Option(
        "--sweep-bits",
        help="Flip every bit of every target (of a ranking: its top_k), one at a time. Short for one [[perturb]]: bit_flip,"
        " every bit, unit single.",
        rich_help_panel=SPEC,
    ),
]
RandomFaults = Annotated[
    bool,
    typer.Option("--faults", help="Instead of targets: random bit errors, as [faults] says.", rich_help_panel=_FAULTS),
]
FaultRates = Annotated[
    list[float] | None,
    typer.Option(
        "--fault-rate",
        help="Bit error rate; repeatable. Short for faults.rates.",
        metavar="RATE",
        rich_help_panel=_FAULTS,
    ),
]
Trials = Annotated[
    int | None,
    typer.Option(
        "--trials", help="Fault lists per rate. Short for faults.trials.", metavar="N", rich_help_panel=_FAULTS
    ),
]
Ecc = Annotated[
    str | None,
    typer.Option("--ecc", help="none or secded. Short for faults.ecc.", metavar="CODE", rich_help_panel=_FAULTS),
]
FaultList = Annotated[
    str | None,
    typer.Option(
        "--fault-list",
        help="Take these faults instead of drawing them: a faults folder, its fault_list.parquet, CSV, or - for stdin.",
        metavar="PATH",
        rich_help_panel=_FAULTS,
    ),
]


def with_sweep(spec: "Spec", *, others: Mapping[str, object]) -> "Spec":
    """Return the spec with every bit of the targets as its one method. Raises EsaError beside flags that name methods."""
    from esa.perturb.faults.bit_sweep import stored_width, sweep_table
    from esa.spec import spec_from_dict

    _refuse_beside("--sweep-bits", "is a method of its own: bit_flip, every bit, unit single", others)
    tree = spec.model_dump(exclude_none=True)
    width = stored_width(spec.model.dtype, spec.model.quantization)
    tree["perturb"] = [{**sweep_table(width), "groups": ["top_k"]}]
    return spec_from_dict(tree, where="--sweep-bits")


def require_faults(*, faults: bool, of_faults: Mapping[str, object], others: Mapping[str, object]) -> None:
    """Raise EsaError for flags of random faults without ``--faults``, and for flags of targets and methods with it."""
    if faults:
        _refuse_beside("--faults", "hits weights at random, of those that faults.include and exclude choose", others)
        drawing = {flag: of_faults[flag] for flag in ("--fault-rate", "--trials")}
        if of_faults["--fault-list"] is not None:
            _refuse_beside("--fault-list", "brings its own rates and trials", drawing)
    elif of_faults := {flag: value for flag, value in of_faults.items() if value not in (None, [], ())}:
        raise EsaError("needs --faults", where=next(iter(of_faults)))


def _refuse_beside(flag: str, what: str, others: Mapping[str, object]) -> None:
    given = [name for name, value in others.items() if value not in (None, [], (), False)]
    if given:
        raise EsaError(f"{what}; it takes no {given[0]}", where=flag)


def run_faults(
    spec: "Spec", fault_list: str | None, out: str | None, format: str | None, progress: ConsoleProgress, *,
    force: bool, dry_run: bool,
) -> None:  # fmt: skip
    """Run a campaign of random faults, print what came of it, and write its trials where ``-o`` says."""
    if dry_run:
        from esa.cli.dry_run import print_plan

        print_plan([spec], ["faults"], folder_target(out))
        return
    from esa.perturb import faults

    with progress.closing():
        result = faults.run(spec, fault_list, out=folder_target(out), force=force, progress=progress)
    if not progress.quiet and not is_file_target(out):
        print_faults(result)
    deliver(result.trials, out, format, result.folder)


def print_faults(result: "FaultsResult") -> None:
    """Print how trials ended per rate, and which single flips were fatal."""
    import polars as pl

    from esa.artifact import read_manifest
    from esa.perturb.faults.rates import OUTCOMES

    manifest, rates = read_manifest(result.folder), result.rates.frame
    whole = rates.filter(pl.col("by") == "all")
    hit = dict(result.trials.frame.group_by("rate").agg(pl.col("num_faults").mean()).iter_rows())
    flipped = dict(result.trials.frame.group_by("rate").agg(pl.col("num_flips").mean()).iter_rows())
    rows = []
    for (rate,), part in whole.group_by("rate", maintain_order=True):
        counts = dict(part.select("outcome", "count").iter_rows())
        fatal = part.filter(pl.col("outcome") == "fatal").row(0, named=True)
        rows.append(
            [f"{rate:g}", str(fatal["trials"]), number(hit[rate], 3), number(flipped[rate], 3)]
            + [str(counts[name]) for name in OUTCOMES]
            + [_share(fatal)]
        )
    header = ["rate", "trials", "faults", "flips left", *OUTCOMES, "fatal"]
    print_table("Random faults: how trials ended", header, rows, right=header[:-1])
    single = rates.filter(pl.col("by") == "bit")
    if single.is_empty():
        print_line(
            f"No trial was left with exactly one flip{_why(manifest)}; fatal by bit, block or component is not told."
        )
        return
    for by in ("bit", "component"):
        rows = [
            [
                row["value"] + (f" of {row['width']}" if by == "bit" else ""),
                str(row["count"]),
                str(row["trials"]),
                _share(row),
            ]
            for row in rates.filter(pl.col("by") == by).iter_rows(named=True)
        ]
        title = f"Fatal single flips by {by} ({single['trials'].sum():,} trials)"
        print_table(title, [by, "fatal", "of", "share fatal"], rows, right=["fatal", "of"])


def _why(manifest: Mapping[str, Any]) -> str:
    """Return why no single flip was left: the code corrects it, or at which rate it would be likely."""
    if manifest["spec"]["faults"]["ecc"] != "none":
        return ": the code corrects it"
    bits = manifest["num_bits"]
    return f" (37 % of trials are at a rate of {1 / bits:.2g})" if bits else ""


def _share(row: Mapping[str, Any]) -> str:
    """Return a share with its interval."""
    return f"{row['share']:.3f} ({row['low']:.3f} to {row['high']:.3f})"


def print_bits(folder: Path, model: Mapping[str, str], progress: ConsoleProgress) -> None:
    """Print what every bit of the first weights is worth, if the step flipped single bits; warn of bits left out.

    ``model``: its dtype and quantization, by which the sweep was made.
    """
    from esa.artifact import find_table, read_manifest
    from esa.perturb.faults.bit_sweep import stored_width, unswept

    if "bits/1" not in read_manifest(folder)["kinds"].values():
        return
    frame = find_table(folder, "bits/1").frame
    width = stored_width(model["dtype"], model["quantization"])
    for name, found in unswept(frame.iter_rows(named=True), width).items():
        progress.warn(f"{name} is stored in {found} bits, of which the lowest {width} were flipped")
    if progress.quiet:
        return
    sweeps = list(frame.group_by("target", maintain_order=True))
    for (target,), part in sweeps[:_MOST_SWEEPS]:
        rows = [_bit_cells(row) for row in part.iter_rows(named=True)]
        header = ["bit", "field", "new value", "perplexity", "change in NLL", "outcome"]
        title = f"Bits of {target}, {number(part['old'][0])}{_intact(part)}"
        print_table(title, header, rows, right=header[:1] + header[2:5])
    if len(sweeps) > _MOST_SWEEPS:
        print_line(f"{len(sweeps) - _MOST_SWEEPS} more weights are in bits.csv.")


def _intact(part: "pl.DataFrame") -> str:
    """Return the intact perplexity: it is that of any row less its change."""
    known = part.drop_nulls("delta_nll")
    return "" if known.is_empty() else f" (intact: {number(math.exp(known['nll'][0] - known['delta_nll'][0]))})"


def _bit_cells(row: Mapping[str, Any]) -> list[str]:
    new = "not finite" if row["new"] is None else number(row["new"])
    change = "-" if row["delta_nll"] is None else f"{row['delta_nll']:+.3g}"
    return [str(row["bit"]), row["field"], new, number(row["ppl"]), change, row["outcome"]]
