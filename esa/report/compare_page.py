"""Put the page of several runs together: what they show together, what compares, each verdict, tables and charts by run."""

import shlex
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import partial

from esa import __version__
from esa.artifact.gather import BETWEEN, Gathered
from esa.report.across.by_run import evidence_by_run
from esa.report.across.sections import across, across_figures, across_findings
from esa.report.compare_figures import compare_figures
from esa.report.compare_findings import shared_findings
from esa.report.compare_frames import top_lists, top_overlaps, weights_by_run
from esa.report.compare_notes import notes
from esa.report.compare_specs import differing_facts, differing_keys
from esa.report.compare_tables import (
    between_table,
    damage_table,
    difference_table,
    intact_table,
    lists_table,
    models_table,
    runs_table,
    stability_table,
    worst_table,
)
from esa.report.comparison import Comparison
from esa.report.criteria_section import criteria_parts
from esa.report.evidence.claims import confirmatory_parts
from esa.report.figures import Figure, distinct
from esa.report.findings import findings
from esa.report.head import Head, facts
from esa.report.markdown import block, bullets, code, escape, join, table
from esa.report.page import Content, Section, drawn_in
from esa.report.provenance import (
    ARTIFACT_HEADER,
    DATA_ALIGN,
    DATA_HEADER,
    STEP_ALIGN,
    STEP_HEADER,
    artifact_rows,
    check_lines,
    commands,
    data_rows,
    environment_lines,
    step_rows,
)
from esa.report.verdicts import Judged

_WORST_NOTE = (
    "Ratio: perplexity over the run's own intact one. Rank: the weight's place among the single weights that the run tried"
    " under the method, 1 the most harmful; a dash where it was not tried. First the weights of the best rank in any run."
)
_DAMAGE_NOTE = (
    "Ratio: mean perplexity over the run's own intact one, [min, max] where draws, repeats or weights fall together. Joint:"
    " the k weights together; single: each alone. Collapsed: perplexity over half the vocabulary. Uniform: collapsed to the"
    " loss of a uniform guess. Nonfinite: NaN or Inf in the logits. Within noise: the mean NLL changes by no more than the"
    " run's noise floor. A dash: not measured in this run."
)
_LISTS_NOTE = "Of the `top_k` of each run's first seed: the weights that both hold over those that either holds."


def compared(comparison: Comparison, judged: Sequence[Judged] = ()) -> Content:
    """Return the page that sets runs side by side. Cost: every table that a report reads; figures are not drawn yet."""
    figures = list(distinct([*compare_figures(comparison), *_across_figures(comparison)]))
    make = _WITHOUT_RUNS if comparison.lone else (_finding, _across, partial(_criteria, judged), *_SECTIONS)
    sections = [section for one in make for section in one(comparison, figures)]
    kept = [Section(section.title, [part for part in section.parts if part]) for section in sections]
    steps = sum(len(run.folders) for run in (*comparison.runs, *comparison.between))
    generator = (
        f"Written by esa {__version__} from {steps} steps of {len(comparison.runs)} runs, named under Provenance."
        " This file is complete in itself: it loads nothing."
    )
    head = Head(
        join(comparison.labels), comparison.question, "", {"Runs": str(len(comparison.runs)), **facts(comparison.runs)}
    )
    styles = ("page.css", "comparison.css")
    return Content(head, [section for section in kept if section.parts], figures, generator, styles)


def _finding(comparison: Comparison, figures: Sequence[Figure]) -> Iterable[Section]:
    across_runs = [text for run in comparison.between for text in across_findings(run)]
    if found := [*shared_findings(comparison), *across_runs]:
        yield Section("Finding", [bullets(found)])


def _across(comparison: Comparison, figures: Sequence[Figure]) -> Iterable[Section]:
    every = [*comparison.runs, *comparison.between]
    for place, run in enumerate(every):
        for title, name, parts in across(run):
            several = sum(any(title == other for other, _, _ in across(one)) for one in every) > 1
            heading = f"{title}: {_step_name(run)}" if several else title
            yield Section(heading, [*parts[:1], *drawn_in(f"{name} {place}", figures), *parts[1:]])


def _step_name(run: Gathered) -> str:
    """Return which step a section is of, in plain text: ``scale-0123456789ab``."""
    return ", ".join(f"{step}-{manifest['run']}" for step, manifest in run.manifests.items() if step in BETWEEN)


def _across_figures(comparison: Comparison) -> Iterable[Figure]:
    """Yield the figures of the steps made from several runs, each under its step's own section."""
    for place, run in enumerate([*comparison.runs, *comparison.between]):
        for figure in across_figures(run):
            yield replace(figure, section=f"{figure.section} {place}")


def _evidence(comparison: Comparison, figures: Sequence[Figure]) -> Iterable[Section]:
    for title, parts in evidence_by_run(comparison.pairs):
        yield Section(title, [*parts])


def _criteria(judged: Sequence[Judged], comparison: Comparison, figures: Sequence[Figure]) -> Iterable[Section]:
    if judged:
        yield Section("Criteria", [*criteria_parts(judged)])


def _confirmatory(comparison: Comparison, figures: Sequence[Figure]) -> Iterable[Section]:
    if parts := confirmatory_parts(comparison.pairs):
        yield Section("Confirmatory tests", [*parts])


def _notes(comparison: Comparison, figures: Sequence[Figure]) -> Iterable[Section]:
    yield Section("What compares", [bullets(notes(comparison))])


def _runs(comparison: Comparison, figures: Sequence[Figure]) -> Iterable[Section]:
    yield Section("Runs", [runs_table(comparison)])
    keys = difference_table(differing_keys(comparison), comparison.labels, facts=False)
    found = difference_table(differing_facts(comparison), comparison.labels, facts=True)
    same = "" if keys else "No key of the resolved specs that the steps at hand read differs."
    tables = ["### In the resolved specs", keys or same, *(["### In the manifests", found] if found else [])]
    yield Section("What differs", tables)


def _verdicts(comparison: Comparison, figures: Sequence[Figure]) -> Iterable[Section]:
    lines = []
    for label, run in comparison.pairs:
        if found := findings(run):
            lines.append("\n".join([f"**{code(label, cell=False)}**", *(f"  - {text}" for text in found)]))
    if lines:
        yield Section("Verdict of each run", [bullets(lines)])


def _worst(comparison: Comparison, figures: Sequence[Figure]) -> Iterable[Section]:
    weights = weights_by_run(comparison)
    if weights.height:
        labels = [label for label, run in comparison.pairs if run.damage is not None]
        yield Section(
            "Worst single weights", [*drawn_in("weights", figures), worst_table(weights, labels), _WORST_NOTE]
        )


def _damage(comparison: Comparison, figures: Sequence[Figure]) -> Iterable[Section]:
    if intact := intact_table(comparison):
        parts = [
            "### Intact",
            intact,
            *drawn_in("damage", figures),
            "### By method, group and k",
            damage_table(comparison),
            _DAMAGE_NOTE,
        ]
        yield Section("Damage", parts)


def _scores(comparison: Comparison, figures: Sequence[Figure]) -> Iterable[Section]:
    yield Section("Score distribution", drawn_in("distribution", figures))
    yield Section("Where the score lies", drawn_in("shares", figures))


def _lists(comparison: Comparison, figures: Sequence[Figure]) -> Iterable[Section]:
    lists = lists_table(top_overlaps(top_lists(comparison)))
    parts: list[str | Figure] = [
        *drawn_in("lists", figures),
        *(["### Of one metric", lists, _LISTS_NOTE] if lists else []),
    ]
    if measured := between_table(comparison):
        parts += ["### As `esa overlap` compared them", measured]
    yield Section("Agreement between runs", parts)
    yield Section("Stability across seeds", [stability_table(comparison)])


def _provenance(comparison: Comparison, figures: Sequence[Figure]) -> Iterable[Section]:
    every = [*comparison.pairs, *(("between them", one) for one in comparison.between)]
    steps = [[code(label), *row] for label, run in every for row in step_rows(run)]
    data = [[code(label), *row] for label, run in every for row in data_rows(run)]
    said = [(label, environment_lines(run), check_lines(run)) for label, run in every]
    shared = [line for line in said[0][1] if all(line in lines for _, lines, _ in said)]
    groups = [("All", shared)] if shared else []
    groups += [
        (code(label, cell=False), [line for line in environment if line not in shared] + checks)
        for label, environment, checks in said
    ]
    lines = ["\n".join([f"{lead}:", *(f"  - {line}" for line in found)]) for lead, found in groups]
    parts = [
        models_table(comparison),
        table(["run", *DATA_HEADER], data, f"l{DATA_ALIGN}") if data else "",
        table(["run", *STEP_HEADER], steps, f"l{STEP_ALIGN}"),
        bullets(lines),
    ]
    yield Section("Provenance", parts)


def _reproduction(comparison: Comparison, figures: Sequence[Figure]) -> Iterable[Section]:
    parts: list[str | Figure] = []
    for label, run in comparison.pairs:
        parts += [f"### {escape(label)}", *commands(run)]
    for run in comparison.between:
        if set(run.folders) <= set(BETWEEN):
            parts += [f"### {_step_name(run)}", *commands(run)]
    words = [word for run in (*comparison.runs, *comparison.between) for word in _arguments(run)]
    parts += ["### This page", block([f"esa report {' '.join(map(shlex.quote, words))}"], "sh")]
    ranks = dict.fromkeys(run.shown("rank") for run in comparison.runs if "rank" in run.folders)
    if len(ranks) > 1 and not comparison.between:
        more = "Agreement of the rankings with what chance gives, of every seed and by component too:"
        parts += [more, block([f"esa overlap {' '.join(map(shlex.quote, ranks))}"], "sh")]
    yield Section("Reproduction", parts)


def _arguments(run: Gathered) -> list[str]:
    """Return the run as arguments of ``esa report``: its folder where it was given as one, else its steps."""
    steps = [run.shown(step) for step in run.folders]
    homes = {step.rpartition("/")[0] for step in steps}
    return [homes.pop()] if run.source is not None and len(homes) == 1 and "" not in homes else steps


def _artifacts(comparison: Comparison, figures: Sequence[Figure]) -> Iterable[Section]:
    every = [*comparison.pairs, *(("between them", one) for one in comparison.between)]
    rows = [[code(label), *row] for label, run in every for row in artifact_rows(run)]
    yield Section("Artifacts", [table(["run", *ARTIFACT_HEADER], rows)])


_SECTIONS = (
    _confirmatory,
    _notes,
    _runs,
    _verdicts,
    _worst,
    _damage,
    _evidence,
    _scores,
    _lists,
    _provenance,
    _reproduction,
    _artifacts,
)
_WITHOUT_RUNS = (_across, _provenance, _reproduction, _artifacts)  # of steps that were made from runs that are not here
