"""Which sections of causal evidence a run has, in the order of the page, and their figures."""

from collections.abc import Iterator

from esa.artifact.gather import Gathered
from esa.report.evidence import bits, dose, flow, retest, tasks, weights
from esa.report.figures import Figure

_SECTIONS = (
    ("Controls side by side", "controls", dose.controls_parts),
    ("Dose-response", "dose", dose.dose_parts),
    ("Which method tells critical weights apart", "discrimination", dose.discrimination_parts),
    ("Fitted curves", "curves", retest.fit_parts),
    ("Reliability", "reliability", retest.reliability_parts),
    ("Candidates of the detector", "detector", weights.detector_parts),
    ("Which metric tells the truth", "truth", weights.truth_parts),
    ("Interactions", "interactions", flow.interaction_parts),
    ("Propagation", "propagation", flow.propagation_parts),
    ("Bit by bit", "bits", bits.bits_parts),
    ("Random faults", "fault_rates", bits.fault_parts),
    ("Agreement curves", "curve", tasks.curve_parts),
    ("Tasks", "tasks", tasks.task_parts),
)


def evidence(run: Gathered) -> Iterator[tuple[str, str, list[str]]]:
    """Yield title, name of the figures, and text of every section whose table exists: its finding first."""
    for title, name, parts in _SECTIONS:
        if found := parts(run):
            yield title, name, found


def evidence_figures(run: Gathered) -> Iterator[Figure]:
    """Yield the figures of these sections, in the order of the page."""
    for one in (dose.figures, weights.figures, flow.figures, bits.figures, tasks.figures):
        yield from one(run)
