"""Which sections a step made from several runs has on the page, in their order, and their figures."""

from collections.abc import Iterator

from esa.artifact.gather import Gathered
from esa.report.across import architecture, checkpoints, experts, families, law_figures, meta, robustness, scaling
from esa.report.across.questions import answer_parts, asked, others
from esa.report.figures import Figure

# questions of comparison/1 that have a section of their own; another one is listed under Further comparisons
KNOWN = (
    *architecture.QUESTIONS, *experts.EXPERTS, *families.VARIANTS, *families.TRANSFER, *families.BLOCKS, *families.TREE,
    *families.CLASSIFIER, *robustness.QUESTIONS,
)  # fmt: skip

FINDINGS = 4  # sentences of one section that the page's finding repeats


def _further(run: Gathered) -> list[str]:
    found = answer_parts(others(run, KNOWN))
    return ["What else was asked of these models.", *found] if found else []


_SECTIONS = (
    ("Through training", "checkpoints", checkpoints.checkpoint_parts),
    ("Scaling laws", "scaling", scaling.scaling_parts),
    ("Meta-analysis", "meta", meta.meta_parts),
    ("Architecture", "architecture", architecture.architecture_parts),
    ("Where critical weights cluster", "clustering", architecture.clustering_parts),
    ("Experts", "experts", experts.expert_parts),
    ("Base and instruct", "variants", families.variant_parts),
    ("Between families", "transfer", families.transfer_parts),
    ("Block by block", "blocks", families.block_parts),
    ("Models as a tree", "tree", families.tree_parts),
    ("Classifier of the family", "classifier", families.classifier_parts),
    ("Robustness", "robustness", robustness.robustness_parts),
    ("Further comparisons", "further", _further),
)


def across(run: Gathered) -> Iterator[tuple[str, str, list[str]]]:
    """Yield title, name of the figures, and text of every section whose tables a step holds: its finding first."""
    for title, name, parts in _SECTIONS:
        if found := parts(run):
            yield title, name, found


def across_figures(run: Gathered) -> Iterator[Figure]:
    """Yield the figures of these sections, in the order of the page."""
    for one in (checkpoints, law_figures, meta, architecture, experts, families, robustness):
        yield from one.figures(run)


def across_findings(run: Gathered) -> list[str]:
    """Return what the sections say first, in a sentence or two each: the finding of a page without a model of its own."""
    laws, shares = run.table("scale", "laws/1"), run.table("arch", "shares/1")
    found = scaling.law_sentences(laws) if laws is not None else []
    found += checkpoints.appearance_sentences(run)[:FINDINGS] + meta.pooled_findings(run, FINDINGS)
    return found + architecture.density_sentences(shares, asked(run, *architecture.ATTENTION))[:FINDINGS]
