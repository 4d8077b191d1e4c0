"""Put the report together: which section stands where, and which are left out because their step is absent."""

from collections.abc import Callable, Sequence

from esa.report.figures import Figure
from esa.report.findings import findings
from esa.report.gather import STEPS, Gathered
from esa.report.markdown import escape, join
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
    worst_table,
)
from esa.report.tables import worst_single

_DAMAGE_NOTE = (
    "Joint: the k weights together; single: each alone. Where draws, repeats or weights fall together the perplexity reads"
    " mean [min, max], and ratio is its mean over the intact perplexity. Delta NLL in nats per token, with its 95 % interval"
    " (paired bootstrap over windows) where there is one case. Accuracy: top-1. Agreement: share of positions with the intact"
    " top-1. KL: mean of KL(intact, perturbed), in nats. Collapsed: perplexity over half the vocabulary. Uniform: collapsed to"
    " the loss of a uniform guess. Nonfinite: NaN or Inf in the logits."
)


def page(run: Gathered, figures: Sequence[Figure]) -> str:
    """Return the report as Markdown; the same artifacts give the same bytes."""
    sections: list[Callable[[Gathered, Sequence[Figure]], list[str]]] = [
        _opening, _finding, _worst, _damage, _distribution, _shares, _agreement, _faults, _provenance, _reproduction,
        _artifacts,
    ]  # fmt: skip
    return "\n\n".join(part for section in sections for part in section(run, figures) if part) + "\n"


def _opening(run: Gathered, figures: Sequence[Figure]) -> list[str]:
    parts = [f"# {escape(run.name)}"]
    if run.spec.question:
        parts += ["## Question", escape(run.spec.question)]
    if run.absent:
        present = [step for step in STEPS if step in run.folders]
        absent = f"{'steps' if len(run.absent) > 1 else 'step'} {join(run.absent)}"
        parts.append(f"Made from {join(present)}. Absent, with the sections that need them: the {absent}.")
    return parts


def _finding(run: Gathered, figures: Sequence[Figure]) -> list[str]:
    found = findings(run)
    return ["## Finding", _bullets(found)] if found else []


def _worst(run: Gathered, figures: Sequence[Figure]) -> list[str]:
    if run.damage is None:
        return []
    worst = worst_single(run.damage, run.ranking)
    if worst.is_empty():
        return []
    note = "Rank by metric: in the `top_k` of the metric's first seed." if run.ranking is not None else ""
    return ["## Worst single weights", intact_line(run.damage), worst_table(worst), note]


def _damage(run: Gathered, figures: Sequence[Figure]) -> list[str]:
    if run.damage is None:
        return []
    parts = ["## Damage", intact_line(run.damage), damage_table(run.damage), _DAMAGE_NOTE]
    return [*parts, "## Damage by group and k", *_drawn("damage", figures)]


def _distribution(run: Gathered, figures: Sequence[Figure]) -> list[str]:
    found = _drawn("distribution", figures)
    return ["## Score distribution", *found] if found else []


def _shares(run: Gathered, figures: Sequence[Figure]) -> list[str]:
    found = _drawn("shares", figures)
    return ["## Where the score lies", *found] if found else []


def _agreement(run: Gathered, figures: Sequence[Figure]) -> list[str]:
    if run.overlap is None:
        return []
    parts = ["## Stability and agreement", *_drawn("agreement", figures)]
    if run.stability is not None and (stable := stability_table(run.stability)):
        parts += ["### Across seeds", stable]
    return [*parts, "### Between lists", agreement_table(run.overlap)]


def _faults(run: Gathered, figures: Sequence[Figure]) -> list[str]:
    if run.faults is None or run.damage is None:
        return []
    note = "Bit 0 is the least significant. A case with flips in two fields counts under both."
    return ["## Bit faults", fault_table(run.faults, run.damage), note]


def _provenance(run: Gathered, figures: Sequence[Figure]) -> list[str]:
    parts = ["## Provenance", model_table(run), data_table(run), step_table(run)]
    return [*parts, _bullets([*environment_lines(run), *check_lines(run)])]


def _reproduction(run: Gathered, figures: Sequence[Figure]) -> list[str]:
    return ["## Reproduction", *commands(run)]


def _artifacts(run: Gathered, figures: Sequence[Figure]) -> list[str]:
    return ["## Artifacts", artifact_table(run)]


def _drawn(section: str, figures: Sequence[Figure]) -> list[str]:
    parts = []
    for figure in figures:
        if figure.section == section:
            files = f"[SVG](figures/{figure.name}.svg), [data](data/{figure.name}.csv)"
            parts.append(f"![{escape(figure.title)}](figures/{figure.name}.png)")
            parts.append(f"{escape(figure.title)}. {figure.caption} ({files})")
    return parts


def _bullets(lines: Sequence[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)
