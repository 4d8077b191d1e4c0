"""Every quantity that a criterion may name: how it is computed, of what, and which options it takes."""

from collections.abc import Callable
from dataclasses import dataclass

from esa.artifact.gather import Gathered
from esa.report.quantities import damage, lists
from esa.report.quantities import runs as several
from esa.report.quantities.measures import Answer, Options, Runs, Subject, subjects

_EFFECT = ("metric", "method", "k")


@dataclass(frozen=True)
class Quantity:
    """A quantity, computed in one of three ways: per run and subject, per run, or once over all runs of a report.

    Over all runs it gives a list: of what (a run, a subject, empty for all together) and the answer.
    """

    of_subject: Callable[[Gathered, Subject], Answer] | None = None
    of_run: Callable[[Gathered, Options], Answer] | None = None
    of_runs: Callable[[Runs, Options], list[tuple[str, Answer]]] | None = None
    options: tuple[str, ...] = ()

    @property
    def definition(self) -> str:
        """Return how it is computed: what its function says of itself."""
        return (self.of_subject or self.of_run or self.of_runs).__doc__ or ""

    def _words(self, subject: Subject) -> list[str]:
        """Return what of a subject the quantity depends on."""
        method = [subject.method] if "method" in self.options else []
        return [subject.metric, *method, *([f"k = {subject.k:,}"] if "k" in self.options else [])]

    def answers(self, runs: Runs, wanted: Options) -> list[tuple[str, Answer]]:
        """Return the quantity of everything that it is computed of, with words for what that is."""
        if self.of_runs is not None:
            return self.of_runs(runs, wanted)
        found: list[tuple[str, Answer]] = []
        for name, run in runs:
            where = [name] if len(runs) > 1 else []
            if self.of_run is not None:
                found.append((", ".join(where), self.of_run(run, wanted)))
            elif self.of_subject is not None:
                every = subjects(run, wanted)
                found += [(", ".join([*where, *self._words(one)]), self.of_subject(run, one)) for one in every]
        return found


QUANTITIES: dict[str, Quantity] = {
    "top_over_random": Quantity(of_subject=damage.top_over_random, options=_EFFECT),
    "random_over_bottom": Quantity(of_subject=damage.random_over_bottom, options=_EFFECT),
    "delta_perplexity": Quantity(of_subject=damage.delta_perplexity, options=_EFFECT),
    "confirmatory_p": Quantity(of_runs=damage.confirmatory_p),
    "methods_with_advantage": Quantity(of_subject=damage.methods_with_advantage, options=("metric", "k")),
    "architectures_with_advantage": Quantity(of_runs=damage.architectures_with_advantage, options=_EFFECT),
    "rising_doses": Quantity(of_subject=damage.rising_doses, options=("metric",)),
    "pruning_gain": Quantity(of_subject=damage.pruning_gain, options=("metric",)),
    "seed_jaccard": Quantity(of_subject=lists.seed_jaccard, options=("metric", "k")),
    "metric_overlap": Quantity(of_run=lists.metric_overlap, options=("metrics", "k")),
    "mode_overlap": Quantity(of_subject=lists.mode_overlap, options=("metric",)),
    "top_percent_over_median": Quantity(of_subject=lists.top_percent_over_median, options=("metric",)),
    "share_with_role": Quantity(of_subject=lists.share_with_role, options=("metric", "k")),
    "perplexity_spread": Quantity(of_run=several.perplexity_spread),
    "num_nonfinite": Quantity(of_run=several.num_nonfinite),
    "phase_degradation": Quantity(of_runs=several.phase_degradation),
    "scaling_r2": Quantity(of_runs=several.scaling_r2, options=_EFFECT),
    "prediction_error": Quantity(of_runs=several.prediction_error, options=_EFFECT),
}
