"""Which metric tells the truth: zero a sample of weights one by one, and hold every metric against the measured damage."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import polars as pl

from esa.artifact import Step, Table, find_table, make_table, read_manifest
from esa.artifact.steps import OUTPUTS, marking_failures
from esa.data import eval_windows, source_hash
from esa.errors import ArtifactError
from esa.eval import INTACT, Evaluator, budgeted
from esa.model import LoadedModel, check_context, load_model, model_inputs, require_same_model
from esa.perturb.campaign import Campaign, floor_targets
from esa.perturb.cases import Plan, plan_cases
from esa.perturb.groups import Group
from esa.perturb.integrity import opened_journal, require_restored, watched
from esa.perturb.truth.agreement import Agreement, Changes, agreements, behind_best
from esa.perturb.truth.sample import Sample, draw_sample
from esa.perturb.truth.scores import Scored, open_scores, top_weights, uniform_weights
from esa.progress import Progress, Recording
from esa.spec import Spec
from esa.spec.methods import Zero

PREDICTS = ("taylor2",)  # metrics whose signed score is a prediction of delta_nll itself
TABLES = {"truth.csv": "truth/1", "truth_weights.csv": "truth_weights/1"}


@dataclass(frozen=True)
class TruthResult:
    """A finished comparison: its table, its folder, and whether it was there before."""

    table: Table
    folder: Path
    id: str
    reused: bool


@dataclass(frozen=True)
class Zeroed:
    """The sample and what zeroing each of its weights did: the case of each, its change, and the model's noise floor."""

    sample: Sample
    targets: tuple[str, ...]
    cases: tuple[str, ...]
    outcomes: tuple[str, ...]
    deltas: tuple[float | None, ...]  # nats; None: nonfinite
    floor: float | None

    @property
    def below_floor(self) -> list[bool | None]:
        """Tell of each change whether it is told from the noise; None where there is no floor or no number."""
        return [None if d is None or self.floor is None else abs(d) <= self.floor for d in self.deltas]


def truth_step(
    spec: Spec, score: str, root: Path = OUTPUTS, folder: Path | None = None, loaded: LoadedModel | None = None
) -> Step:
    """Return the truth step that ``spec`` describes on a score step, by its id; nothing is loaded."""
    fixed = {**model_inputs(spec.model, loaded), "eval": source_hash(spec.eval.source, "eval.source")}
    return Step("truth", spec, {**fixed, "score": score}, root=root, folder=folder)


@marking_failures()
def run(
    spec: Spec,
    scores: str | Path,
    *,
    loaded: LoadedModel | None = None,
    out: Path | None = None,
    root: Path = OUTPUTS,
    force: bool = False,
    progress: Progress | None = None,
) -> TruthResult:
    """Zero a sample of weights one by one, and write how far each metric of a score step agrees with the damage.

    ``scores``: the folder of a finished score step, of the same model; of several seeds the first is read, with the metrics that
    need none. ``[truth]`` sets the sample (``esa.perturb.truth.sample``: design and sampling weights); figures and intervals are
    those of ``esa.perturb.truth.agreement``. Writes ``truth.csv``, a row per metric and figure, and ``truth_weights.csv``, a row
    per weight and metric. Changes of the NLL of at most the noise floor (``eval.rewrites``) are tied at zero, and counted.

    All metrics are compared on the same weights, those that each has a score of. A top one of one metric may be none of the rows
    that another kept: it is measured and listed, but left out of the figures, with a warning; ``score.dense = true`` keeps all.
    Resumable: every weight is a line of the journal. Raises EsaError for content: no score step, another model, too few
    weights for the strata; CheckError if a weight was not restored.
    Cost: one evaluation of the windows per weight, from its block on, one of the intact model, and ``eval.rewrites``.
    """
    progress = Recording(progress)
    scored = open_scores(Path(scores))
    step = truth_step(spec, scored.run, root, out, loaded)
    if step.reusable(force=force):
        require_same_model(step, loaded)
        progress.note(f"truth: {step.folder} is complete")
        return _finished(step)
    loaded = loaded or load_model(spec.model, progress)
    if loaded.facts["fingerprint"] != scored.fingerprint:
        raise ArtifactError(
            f"'{scores}' scored a model with other weights than {spec.model.id} as {spec.model.dtype}",
            where="--validate",
            hint="give the spec, or the --model, that the scores were computed with",
        )
    seed = spec.score.seeds[0]
    sample = _sample(spec, scored, loaded, seed, progress)
    targets = tuple((parameter, index) for parameter, index in sample.frame.select("parameter", "index").iter_rows())
    group = Group(None, None, "sample", None, targets, tuple(range(1, len(targets) + 1)))
    plan = plan_cases([Zero(method="zero", unit=("single",))], [group], (len(targets),), loaded, progress)
    windows = eval_windows(spec.eval, loaded.tokenizer, progress=progress)
    check_context(loaded.model, windows.longest, "eval.length", progress)
    if windows.sha256 in scored.windows:
        progress.warn(
            "the scores were computed on the evaluation windows: metrics that read them know the text that damage is measured on"
        )
    room = budgeted(spec, loaded, progress, remembers=True)
    if not step.begin(force=force):  # another process finished it while the model was loaded
        return _finished(step)
    evaluator = Evaluator(loaded, windows, spec.eval.batch_tokens, room)
    campaign = Campaign(step.id, loaded, evaluator, opened_journal(step, loaded), seed, progress)
    num_reused = sum(case in plan.cases for case in campaign.journal.done)
    floors = floor_targets([group], loaded, list(scored.tensors), seed, spec.eval.rewrites)
    touched = {name for name, _ in (*targets, *floors)}
    with watched(loaded, touched) as checksum:
        campaign.evaluate(plan, floors)
    zeroed = measured(campaign, plan, sample)
    tables = {
        "truth.csv": truth_rows(step.id, scored, zeroed, spec, seed, progress),
        "truth_weights.csv": weight_rows(step.id, scored, zeroed),
    }
    for name, rows in tables.items():
        step.write(make_table(TABLES[name], rows, step.meta()), name)
    step.finish(
        tables=TABLES,
        warnings=progress.warnings,
        model=loaded.facts,
        data=windows.facts(),
        seeds=[seed],
        checksum=checksum.record(),
        noise_floor=zeroed.floor,
        num_cases=len(plan.cases),
        num_reused=num_reused,
        num_certain=int(sample.frame["certain"].sum()),
    )
    return replace(_finished(step), reused=False)


def _sample(spec: Spec, scored: Scored, loaded: LoadedModel, seed: int, progress: Progress) -> Sample:
    """Draw the weights to be zeroed. Raises ArtifactError for scores of a tensor that the model does not have."""
    foreign = [name for name in scored.tensors if name not in loaded.table]
    if foreign:
        raise ArtifactError(f"scores {foreign[0]}, which the model does not have", where=str(scored.folder))
    uniform = uniform_weights(scored)
    tops = top_weights(scored, spec.truth.top, list(loaded.table))
    sample = draw_sample(uniform, tops, len(scored.pairs), sum(scored.tensors.values()), spec.truth, seed)
    progress.note(
        f"{len(sample.frame)} weights stand for {sample.num_weights:,}: {sample.frame['certain'].sum()} for certain,"
        f" the others drawn evenly over the scores of {len(scored.pairs)} metrics"
    )
    return sample


def measured(campaign: Campaign, plan: Plan, sample: Sample) -> Zeroed:
    """Return what a finished campaign measured of each weight of the sample, in its order."""
    base = campaign.measured(INTACT).mean_nll
    found = [campaign.measured(use.case) for use in plan.uses]
    deltas = [None if one.mean_nll is None or base is None else one.mean_nll - base for one in found]
    return Zeroed(
        sample,
        tuple(str(use.target) for use in plan.uses),
        tuple(use.case for use in plan.uses),
        tuple(one.outcome(campaign.evaluator.vocabulary) for one in found),
        tuple(deltas),
        campaign.noise_floor(),
    )


def truth_rows(
    run: str, scored: Scored, zeroed: Zeroed, spec: Spec, seed: int, progress: Progress
) -> list[dict[str, object]]:
    """Return the rows of ``truth/1``: metrics in the order of the scores; spearman, spearman_behind_best, the other figures."""
    columns = [_column(zeroed, f"score_{m}") for m in range(len(scored.pairs))]
    common = ~np.isnan(np.sum(columns, axis=0))
    if not common.all():
        progress.warn(
            f"{np.count_nonzero(~common)} of {len(common)} weights, top ones of some metric, are left out of the comparison:"
            " not every metric kept a score of them (score.dense = true keeps all)"
        )
    below = np.array([bool(flag) for flag in zeroed.below_floor])[common]
    delta = np.array([np.inf if d is None else d for d in zeroed.deltas])[common]
    weight, certain = (zeroed.sample.frame[name].to_numpy()[common] for name in ("sampling_weight", "certain"))
    changes = Changes(weight, certain, delta, below)
    known = [column[common] for column in columns]
    num_censored = None if zeroed.floor is None else int(below.sum())
    rows = []
    for m, behind in enumerate(behind_best(known, changes, spec.statistics, seed)):
        metric, of_seed = scored.pairs[m]
        predicted = _column(zeroed, f"signed_{m}")[common] if metric in PREDICTS else None
        found = agreements(known[m], predicted, changes, spec.truth.top, spec.statistics, seed)
        rows += [_row(run, metric, of_seed, one, num_censored) for one in (found[0], behind, *found[1:])]
    return rows


def _row(run: str, metric: str, seed: int | None, one: Agreement, num_censored: int | None) -> dict[str, object]:
    return {
        "run": run, "metric": metric, "seed": seed, "quantity": one.quantity, "value": one.value, "low": one.ends.low,
        "high": one.ends.high, "num_weights": one.num_weights, "num_censored": num_censored,
    }  # fmt: skip


def weight_rows(run: str, scored: Scored, zeroed: Zeroed) -> list[dict[str, object]]:
    """Return the rows of ``truth_weights/1``: the weights in the order of the sample, each metric in turn."""
    about = [
        {
            "run": run, "target": target, "case": case, "delta_nll": delta, "noise_floor": zeroed.floor,
            "below_floor": below, "outcome": outcome, **weight,
        }
        for target, case, delta, below, outcome, weight in zip(
            zeroed.targets, zeroed.cases, zeroed.deltas, zeroed.below_floor, zeroed.outcomes,
            zeroed.sample.frame.select("parameter", "index", "weight", "sampling_weight", "certain").to_dicts(),
            strict=True,
        )
    ]  # fmt: skip
    scores = [_given(zeroed.sample.frame, m, pair) for m, pair in enumerate(scored.pairs)]
    return [{**one, **by_metric[number]} for number, one in enumerate(about) for by_metric in scores]


def _given(frame: pl.DataFrame, m: int, pair: tuple[str, int | None]) -> list[Mapping[str, object]]:
    """Return what a metric gives each weight."""
    scores: Sequence[float | None] = frame[f"score_{m}"].to_list()
    signed: Sequence[float | None] = frame[f"signed_{m}"].to_list()
    return [
        {"metric": pair[0], "seed": pair[1], "score": score, "signed": sign}
        for score, sign in zip(scores, signed, strict=True)
    ]


def _column(zeroed: Zeroed, name: str) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    """Return a column of the sample as float64, nan where it is null."""
    return zeroed.sample.frame[name].cast(pl.Float64).fill_null(float("nan")).to_numpy()


def _finished(step: Step) -> TruthResult:
    require_restored(read_manifest(step.folder)["checksum"], step.folder)
    table = find_table(step.folder, "truth/1")
    return TruthResult(Table(table.kind, table.frame, step.meta()), step.folder, step.id, reused=True)
