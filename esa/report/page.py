"""Put the report together: which section stands where, and which are left out because their step is absent."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial

from esa.artifact.gather import BETWEEN, Gathered
from esa.report.across.sections import across, across_figures, across_findings
from esa.report.criteria_section import criteria_parts
from esa.report.evidence.claims import claims_parts
from esa.report.evidence.sections import evidence, evidence_figures
from esa.report.figures import Figure, distinct, figures
from esa.report.findings import findings, group_sentences
from esa.report.head import Head, generator, head
from esa.report.markdown import bullets, escape
from esa.report.provenance import (
    artifact_table,
    check_lines,
    commands,
    data_table,
    environment_lines,
    model_table,
    step_table,
)
from esa.report.sections import (
    agreement_table,
    damage_table,
    fault_table,
    intact_line,
    stability_table,
    worst_note,
    worst_table,
)
from esa.report.tables import worst_single
from esa.report.verdicts import UNATTAINABLE, Judged

DAMAGE_NOTE = (
    "Joint: the k weights together; single: each alone. Where draws, repeats or weights fall together the perplexity reads"
    " mean [min, max], and ratio is its mean over the intact perplexity. Delta NLL in nats per token, with its 95 % interval"
    " (paired bootstrap over windows) where there is one case. Accuracy: top-1. Agreement: share of positions with the intact"
    " top-1. KL: mean of KL(intact, perturbed), in nats. Collapsed: perplexity over half the vocabulary. Uniform: collapsed to"
    " the loss of a uniform guess. Nonfinite: NaN or Inf in the logits. Within noise: the mean NLL changes by no more than"
    " the noise floor."
)


@dataclass(frozen=True)
class Section:
    """What stands under one heading: Markdown whose text from files is escaped, and figures in between."""

    title: str
    parts: Sequence[str | Figure]


@dataclass(frozen=True)
class Content:
    """A whole page before it is written: what stands above its sections, the sections, their figures, who wrote it.

    ``styles`` names the style sheets under ``assets/``, later rules over earlier ones.
    """

    head: Head
    sections: list[Section]
    figures: list[Figure]
    generator: str
    styles: tuple[str, ...] = ("page.css",)


def content(run: Gathered, judged: Sequence[Judged] = ()) -> Content:
    """Return the page of one run. Cost: every table that a report reads; the figures are not drawn yet."""
    drawn = list(distinct([*figures(run), *evidence_figures(run), *across_figures(run)]))
    return Content(head(run), sections(run, drawn, judged), drawn, generator(run))


def sections(run: Gathered, drawn: Sequence[Figure], judged: Sequence[Judged] = ()) -> list[Section]:
    """Return the report behind its question, without the sections whose steps are absent."""
    make: list[Callable[[Gathered, Sequence[Figure]], Iterable[Section]]] = [
        _finding, _across, partial(_criteria, judged), _claims, _worst, _damage, _evidence, _distribution, _shares, _agreement,
        _faults, _provenance, _reproduction, _artifacts,
    ]  # fmt: skip
    found = [section for one in make for section in one(run, drawn)]
    return [Section(section.title, [part for part in section.parts if part]) for section in found]


def page(name: str, question: str | None, note: str, parts: Sequence[Section]) -> str:
    """Return the report as Markdown; the same arguments give the same bytes. ``name``, ``question``, ``note``: plain text."""
    blocks = [f"# {escape(name)}"]
    if question:
        blocks += ["## Question", escape(question)]
    blocks.append(note)
    for section in parts:
        blocks.append(f"## {section.title}")
        blocks += [text for part in section.parts for text in _as_markdown(part)]
    return "\n\n".join(block for block in blocks if block) + "\n"


def _as_markdown(part: str | Figure) -> list[str]:
    if isinstance(part, str):
        return [part]
    files = f"[SVG](figures/{part.name}.svg), [data](data/{part.name}.csv)"
    image = f"![{escape(part.title)}](figures/{part.name}.png)"
    return [image, f"{escape(part.title)}. {part.caption} ({files})"]


def _finding(run: Gathered, drawn: Sequence[Figure]) -> Iterable[Section]:
    if found := [*findings(run), *across_findings(run)]:
        yield Section("Finding", [bullets(found)])


def _across(run: Gathered, drawn: Sequence[Figure]) -> Iterable[Section]:
    for title, name, parts in across(run):
        yield Section(title, [*parts[:1], *drawn_in(name, drawn), *parts[1:]])


def _criteria(judged: Sequence[Judged], run: Gathered, drawn: Sequence[Figure]) -> Iterable[Section]:
    if found := applicable([(run.name, run)], judged):
        yield Section("Criteria", [*criteria_parts(found)])


def applicable(runs: Sequence[tuple[str, Gathered]], judged: Sequence[Judged]) -> Sequence[Judged]:
    """Return the verdicts; none where all steps at hand are of several runs, and no criterion can be judged by them."""
    lone = all(set(run.folders) <= set(BETWEEN) for _, run in runs)
    return [] if lone and all(one.verdict == UNATTAINABLE for one in judged) else judged


def _claims(run: Gathered, drawn: Sequence[Figure]) -> Iterable[Section]:
    if (tests := run.table("perturb", "tests/1")) is not None:
        yield Section("Claims", [*claims_parts(tests)])


def _evidence(run: Gathered, drawn: Sequence[Figure]) -> Iterable[Section]:
    for title, name, parts in evidence(run):
        yield Section(title, [*parts[:1], *drawn_in(name, drawn), *parts[1:]])


def _worst(run: Gathered, drawn: Sequence[Figure]) -> Iterable[Section]:
    if run.damage is None or (worst := worst_single(run.damage, run.ranking)).is_empty():
        return
    yield Section("Worst single weights", [intact_line(run.damage), worst_table(worst), worst_note(worst, run.ranking)])


def _damage(run: Gathered, drawn: Sequence[Figure]) -> Iterable[Section]:
    if run.damage is None:
        return
    table = ["### By method, group and k", damage_table(run.damage), DAMAGE_NOTE]
    words = ["### In words", bullets(found)] if (found := group_sentences(run.damage)) else []
    yield Section("Damage", [intact_line(run.damage), *drawn_in("damage", drawn), *table, *words])


def _distribution(run: Gathered, drawn: Sequence[Figure]) -> Iterable[Section]:
    if found := drawn_in("distribution", drawn):
        yield Section("Score distribution", found)


def _shares(run: Gathered, drawn: Sequence[Figure]) -> Iterable[Section]:
    if found := drawn_in("shares", drawn):
        yield Section("Where the score lies", found)


def _agreement(run: Gathered, drawn: Sequence[Figure]) -> Iterable[Section]:
    if run.overlap is None:
        return
    parts = drawn_in("agreement", drawn)
    if run.stability is not None and (stable := stability_table(run.stability)):
        parts += ["### Across seeds", stable]
    yield Section("Stability and agreement", [*parts, "### Between lists", *agreement_table(run.overlap)])


def _faults(run: Gathered, drawn: Sequence[Figure]) -> Iterable[Section]:
    if run.faults is not None and run.damage is not None:
        note = "Bit 0 is the least significant. A case with flips in two fields counts under both."
        yield Section("Bit faults", [fault_table(run.faults, run.damage), note])


def _provenance(run: Gathered, drawn: Sequence[Figure]) -> Iterable[Section]:
    tables = [model_table(run), data_table(run), step_table(run)]
    yield Section("Provenance", [*tables, bullets([*environment_lines(run), *check_lines(run)])])


def _reproduction(run: Gathered, drawn: Sequence[Figure]) -> Iterable[Section]:
    yield Section("Reproduction", [*commands(run)])


def _artifacts(run: Gathered, drawn: Sequence[Figure]) -> Iterable[Section]:
    yield Section("Artifacts", [artifact_table(run)])


def drawn_in(section: str, drawn: Sequence[Figure]) -> list[str | Figure]:
    """Return the figures of one section, in their order."""
    return [figure for figure in drawn if figure.section == section]
