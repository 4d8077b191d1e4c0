"""Run a campaign of random bit faults: draw the list, write it, strike, evaluate, restore, trial by trial."""

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path

import polars as pl

from esa.artifact import Step, Table, find_table, make_table, read_manifest, read_table
from esa.artifact.steps import OUTPUTS, marking_failures
from esa.artifact.tables import encode
from esa.data import eval_windows, source_hash
from esa.errors import SpecError
from esa.eval import Evaluator, budgeted
from esa.model import LoadedModel, check_context, load_model, model_inputs, require_same_model
from esa.model.quantized import QuantizedWeight
from esa.perturb.faults.campaign import FaultCampaign, trial_key
from esa.perturb.faults.lists import check_list, chosen, draw_list, matched, stores
from esa.perturb.faults.rates import rate_rows
from esa.perturb.integrity import opened_journal, require_restored, watched
from esa.progress import Progress, Recording
from esa.spec import Spec

LIST = "fault_list.parquet"
TABLES = {LIST: "fault_list/1", "fault_trials.csv": "fault_trials/1", "fault_rates.csv": "fault_rates/1"}


@dataclass(frozen=True)
class FaultsResult:
    """A finished campaign of faults: its trials, its rates, its folder, and whether it was there before."""

    trials: Table
    rates: Table
    folder: Path
    id: str
    reused: bool


def faults_step(
    spec: Spec,
    inputs: dict[str, str] | None = None,
    root: Path = OUTPUTS,
    folder: Path | None = None,
    loaded: LoadedModel | None = None,
) -> Step:
    """Return the faults step that ``spec`` describes; nothing is loaded.

    ``inputs``: of a list that is replayed, its hash; ``loaded``: the model at hand, if there is one.
    """
    fixed = {**model_inputs(spec.model, loaded), "eval": source_hash(spec.eval.source, "eval.source")}
    return Step("faults", spec, {**fixed, **(inputs or {})}, root=root, folder=folder)


@marking_failures()
def run(
    spec: Spec,
    fault_list: str | Path | Table | None = None,
    *,
    loaded: LoadedModel | None = None,
    out: Path | None = None,
    root: Path = OUTPUTS,
    force: bool = False,
    progress: Progress | None = None,
) -> FaultsResult:
    """Strike the model by random bit faults as ``spec.faults`` says, trial by trial, and measure each.

    Writes ``fault_list.parquet`` before anything is evaluated, then ``fault_trials.csv`` and ``fault_rates.csv``
    (``esa.perturb.faults.rates`` defines outcomes and rates). Faults are uniform over all stored bits of the chosen weights:
    of the numbers in their storage dtype, of quantised weights the codes, whose scales are left out.
    ``fault_list``: a list drawn elsewhere (its step's folder, file, ``-`` or table), taken instead of drawing one; its rates
    and trials then stand for those of the spec, and its places for ``include`` and ``exclude``.
    Every finished trial is journalled, a killed campaign goes on at the next; a complete step is reused.
    Raises EsaError for content: no rate, a list of another model, too long a list; CheckError at once if a restored value
    differs, and after everything is written if the model's checksum changed.
    Cost: one evaluation of the windows per trial, from the first block that is hit on, and one of the intact model.
    """
    progress = Recording(progress)
    where = "--fault-list" if isinstance(fault_list, Table) else str(fault_list)
    given = _read(fault_list) if fault_list is not None else None
    if given is not None:
        check_list(given, spec.faults.ecc, where)
        spec = _as_listed(spec, given)
    elif not spec.faults.rates:
        raise SpecError(
            ["faults.rates: names no bit error rate"], hint="set faults.rates = [1e-6], or give --fault-rate 1e-6"
        )
    inputs = {} if given is None else {"fault_list": _content_hash(given)}
    step = faults_step(spec, inputs, root, out, loaded)
    if step.reusable(force=force):
        require_same_model(step, loaded)
        progress.note(f"faults: {step.folder} is complete")
        return _finished(step)
    loaded = loaded or load_model(spec.model, progress)
    seed, total = spec.score.seeds[0], None
    if given is None:
        found = stores(loaded, chosen(loaded.table, spec.faults))
        total = sum(store.num_bits(spec.faults.ecc) for store in found)
        progress.note(f"faults fall on {total:,} bits of {len(found)} parameters")
        frame = draw_list(found, spec.faults, seed)
    else:
        frame = matched(given.drop("run"), loaded, spec.faults.ecc, where)
    struck = [name for name in frame["parameter"].unique(maintain_order=True) if name is not None]
    if any(isinstance(loaded.weights[name], QuantizedWeight) for name in struck):
        progress.note("quantised weights are hit in their codes; their scales are not covered")
    windows = eval_windows(spec.eval, loaded.tokenizer, progress=progress)
    check_context(loaded.model, windows.longest, "eval.length", progress)
    room = budgeted(spec, loaded, progress, remembers=True)
    if not step.begin(force=force):  # another process finished it while the model was loaded
        return _finished(step)
    listed = make_table("fault_list/1", frame.with_columns(pl.lit(step.id).alias("run")), step.meta())
    step.write(listed, LIST)
    evaluator = Evaluator(loaded, windows, spec.eval.batch_tokens, room)
    journal = opened_journal(step, loaded, list=_content_hash(listed.frame))
    trials = {(rate, number): part for (rate, number), part in frame.group_by(["rate", "trial"], maintain_order=True)}
    campaign = FaultCampaign(step.id, loaded, evaluator, journal, spec.faults, progress)
    num_reused = sum(trial_key(*trial) in journal.done for trial in trials)
    with watched(loaded, struck) as checksum:
        campaign.evaluate(trials)
    ended = [campaign.trial(rate, number) for rate, number in trials]
    rows = [campaign.row(trial) for trial in ended]
    step.write(make_table("fault_trials/1", rows, step.meta()), "fault_trials.csv")
    shares = rate_rows(step.id, ended, loaded.table, spec.statistics.level)
    step.write(make_table("fault_rates/1", shares, step.meta()), "fault_rates.csv")
    step.finish(
        tables=TABLES,
        warnings=progress.warnings,
        model=loaded.facts,
        data=windows.facts(),
        seeds=[seed],
        checksum=checksum.record(),
        num_cases=len(trials),
        num_reused=num_reused,
        num_bits=total,
    )
    return replace(_finished(step), reused=False)


def _read(source: str | Path | Table) -> pl.DataFrame:
    if isinstance(source, Table):
        return source.frame
    path = Path(source)
    if str(source) != "-" and path.is_dir():
        return find_table(path, "fault_list/1").frame
    return read_table(source, "fault_list/1").frame


def _as_listed(spec: Spec, given: pl.DataFrame) -> Spec:
    """Return the spec with the rates and the number of trials of a list, and no choice of weights: the list has made it."""
    rates = tuple(given["rate"].unique(maintain_order=True))
    listed = {"rates": rates, "trials": given["trial"].n_unique(), "include": (), "exclude": ()}
    return spec.model_copy(update={"faults": spec.faults.model_copy(update=listed)})


def _content_hash(given: pl.DataFrame) -> str:
    """Return what identifies a list: its rows, whichever step and file they come from."""
    return hashlib.sha256(encode(make_table("fault_list/1", given.drop("run")), "csv")).hexdigest()


def _finished(step: Step) -> FaultsResult:
    require_restored(read_manifest(step.folder)["checksum"], step.folder)
    trials, rates = (find_table(step.folder, kind) for kind in ("fault_trials/1", "fault_rates/1"))
    trials, rates = (Table(table.kind, table.frame, step.meta()) for table in (trials, rates))  # a CSV carries none
    return FaultsResult(trials, rates, step.folder, step.id, reused=True)
