"""Test what super_activation found: every candidate zeroed alone and with its group, early and late blocks alike."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from esa.artifact import Step, Table, find_table, make_table, read_manifest, to_json
from esa.artifact.steps import OUTPUTS, marking_failures
from esa.data import eval_windows, source_hash
from esa.errors import ArtifactError
from esa.eval import Evaluator, budgeted
from esa.model import LoadedModel, check_context, load_model, model_inputs, require_same_model
from esa.model.published import matches, published
from esa.perturb.campaign import Campaign
from esa.perturb.detector.candidates import Comparison, from_records, with_published
from esa.perturb.detector.cases import METRIC, CandidateCases
from esa.perturb.detector.verdicts import counts
from esa.perturb.integrity import opened_journal, require_restored, watched
from esa.perturb.targets import addressed
from esa.progress import Progress, Recording
from esa.spec import Spec

TABLE = "detector.csv"


@dataclass(frozen=True)
class DetectorResult:
    """A finished detector step: its table, its manifest, its folder, and whether it was there before."""

    table: Table
    manifest: Mapping[str, Any]
    folder: Path
    id: str
    reused: bool


def detector_step(
    spec: Spec, score: str, root: Path = OUTPUTS, folder: Path | None = None, loaded: LoadedModel | None = None
) -> Step:
    """Return the detector step that ``spec`` describes on the score step of id ``score``; nothing is loaded.

    The published coordinates are among its inputs: another table of them is another step.
    """
    known = to_json([[one.name, one.ids, dict(one.shape), one.weights] for one in published()])
    inputs = {
        **model_inputs(spec.model, loaded),
        "eval": source_hash(spec.eval.source, "eval.source"),
        "score": score,
        "published": hashlib.sha256(known.encode()).hexdigest(),
    }
    return Step("detector", spec, inputs, root=root, folder=folder)


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
) -> DetectorResult:
    """Zero every candidate of a score step alone and with its group, and write ``detector.csv`` with a verdict on each.

    ``scores``: the folder of a score step with super_activation, or of a rank step made from one. Its candidates are, of every
    block whose output projection peaks at least ``score.peak_ratio`` times above its median channel, the weight of the largest
    absolute growth, and what the rounds found; where the model is a published one, also the published weights that did not
    stand out. Writers have a positive growth. Erasers have a negative one: a detector that looks at the activation alone
    reports them too. Groups share a row or a column (``candidates.groups_of``); ``verdicts.verdict`` says what is concluded.
    Every finished case is journalled, a killed step goes on at the next; a complete step is reused.
    Raises ArtifactError for a folder without candidates or of a model with other weights; EsaError for content; CheckError if
    a restored value differs.
    Cost, for n candidates in g groups: at most 2 n + 3 g + 1 evaluations of the windows, from the first block that changed on,
    two of the intact model, and ``eval.rewrites`` for the noise floor.
    """
    progress = Recording(progress)
    folder = score_folder(Path(scores))
    scored = read_manifest(folder)
    records = scored_candidates(scored, folder)
    step = detector_step(spec, str(scored["run"]), root, out, loaded)
    if step.reusable(force=force):
        require_same_model(step, loaded)
        progress.note(f"detector: {step.folder} is complete")
        return _finished(step)
    loaded = loaded or load_model(spec.model, progress)
    if scored["model"]["fingerprint"] != loaded.facts["fingerprint"]:
        raise ArtifactError(
            "was computed on a model with other weights", where=str(folder), hint="score the model of this spec first"
        )
    # A null model has the shape of a published one and none of its weights.
    known = matches(spec.model.id, loaded.model) if spec.model.null == "none" else []
    candidates, comparisons = with_published(from_records(records, loaded.table, str(folder)), known, loaded.table)
    if not candidates:
        progress.warn(f"no block of {folder} stands out: there is nothing to test")
    windows = eval_windows(spec.eval, loaded.tokenizer, progress=progress)
    check_context(loaded.model, windows.longest, "eval.length", progress)
    if windows.sha256 in [one["sha256"] for one in scored["data"]]:
        progress.warn(
            "the calibration windows are the evaluation windows: damage is measured on the text that was scored"
        )
    if len(windows.ids) < spec.statistics.few_windows:
        progress.warn(
            f"few_windows: {len(windows.ids)} windows, under {spec.statistics.few_windows}: intervals are rough"
        )
    room = budgeted(spec, loaded, progress, remembers=True)
    if not step.begin(force=force):  # another process finished it while the model was loaded
        return _finished(step)
    campaign = Campaign(
        step.id,
        loaded,
        Evaluator(loaded, windows, spec.eval.batch_tokens, room),
        opened_journal(step, loaded),
        spec.score.seeds[0],
        progress,
    )
    cases = CandidateCases(campaign, spec, candidates)
    with watched(loaded, cases.touched) as checksum:
        cases.evaluate()
    rows = cases.rows()
    step.write(make_table("detector/1", rows, step.meta()), TABLE)
    step.finish(
        tables={TABLE: "detector/1"},
        warnings=progress.warnings,
        model=loaded.facts,
        data=windows.facts(),
        seeds=[campaign.seed],
        checksum=checksum.record(),
        noise_floor=campaign.noise_floor() if candidates else None,
        num_cases=len(cases.plan.cases),
        peak_ratio=scored["spec"]["score"]["peak_ratio"],
        verdicts=counts([str(row["verdict"]) for row in rows]),
        all_writers=cases.all_writers(),
        published=[_compared(one, loaded) for one in comparisons],
    )
    return _finished(step, reused=False)


def score_folder(folder: Path) -> Path:
    """Return the folder of the score step that ``folder`` is, or that the ranking in it was made from.

    Raises ArtifactError for another step, and for a ranking whose scores are not beside it.
    """
    manifest = read_manifest(folder)
    if manifest["step"] == "score":
        return folder
    if manifest["step"] != "rank":
        raise ArtifactError(f"is a {manifest['step']} step; allowed: score, rank", where=str(folder))
    run = manifest["inputs"].get("score")
    beside = folder.parent / f"score-{run}"
    if run is None or not beside.is_dir():
        raise ArtifactError(
            "its scores are not beside it" if run else "its ranking was made from a file, not from a score step",
            where=str(folder),
            hint="give the folder of the score step",
        )
    return beside


def scored_candidates(manifest: Mapping[str, Any], folder: Path) -> list[Mapping[str, Any]]:
    """Return what a score step's manifest says stood out. Raises ArtifactError if the step did not look."""
    if METRIC not in manifest["spec"]["score"]["metrics"]:
        raise ArtifactError(
            f"was scored without {METRIC}", where=str(folder), hint=f'esa score --set score.metrics=["{METRIC}"]'
        )
    if "candidates" not in manifest:
        raise ArtifactError(
            "was scored by a version that kept no candidates", where=str(folder), hint="score it again with --force"
        )
    found: list[Mapping[str, Any]] = manifest["candidates"]
    return found


def _compared(one: Comparison, loaded: LoadedModel) -> dict[str, object]:
    """Return what the manifest says of a published model."""
    return {
        "model": one.match.published.name,
        "exact": one.match.exact,
        "found": [addressed(target, loaded.table) for target in one.found],
        "missed": [addressed(target, loaded.table) for target in one.missed],
    }


def _finished(step: Step, *, reused: bool = True) -> DetectorResult:
    manifest = read_manifest(step.folder)
    require_restored(manifest["checksum"], step.folder)
    table = find_table(step.folder, "detector/1")
    return DetectorResult(Table(table.kind, table.frame, step.meta()), manifest, step.folder, step.id, reused)
