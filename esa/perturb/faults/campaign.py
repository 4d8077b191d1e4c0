"""Evaluate trials of random faults a few at a time: strike, evaluate, restore, note down; a killed one goes on where it was."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace

import polars as pl

from esa.artifact import Journal
from esa.eval import INTACT, Edit, Evaluator, Measured
from esa.eval.language_modeling import perplexity
from esa.model import LoadedModel
from esa.perturb.apply import applied
from esa.perturb.faults.changes import Counts, Struck, strike
from esa.perturb.faults.rates import Trial, outcome_of
from esa.perturb.integrity import remember_intact
from esa.progress import Progress
from esa.spec.sections import Faults


def trial_key(rate: float, number: int) -> str:
    """Return what the journal calls a trial."""
    return f"{rate!r}/{number}"


@dataclass
class FaultCampaign:
    """The evaluations of one faults step: the intact model and every trial."""

    run: str
    loaded: LoadedModel
    evaluator: Evaluator
    journal: Journal
    rules: Faults
    progress: Progress

    def evaluate(self, trials: dict[tuple[float, int], pl.DataFrame]) -> None:
        """Evaluate what the journal does not hold yet, in the order of the first block that is hit.

        Raises ModelError for an intact model without finite logits, ArtifactError if it measures other than the journal says.
        """
        touched = {key: frozenset(part["parameter"].drop_nulls().unique()) for key, part in trials.items()}
        starts = {
            key: self.evaluator.first_block(names)
            for key, names in touched.items()
            if trial_key(*key) not in self.journal.done
        }
        self.progress.start("trials", 1 + len(trials))
        self.progress.advance(len(trials) - len(starts))
        if starts or INTACT not in self.journal.done:
            self._intact(set(starts.values()))
        self.progress.advance()
        waiting: list[tuple[str, frozenset[str], Struck]] = []
        for key in sorted(starts, key=lambda key: starts[key]):  # of one first block, as listed
            struck = strike(self.loaded, trials[key], self.rules)
            if struck.stopped or not struck.changes:
                intact = self.measured(INTACT)
                same = replace(intact, num_agreeing=intact.total_tokens, kl_sum=0.0) if intact is not None else None
                self._finish(trial_key(*key), struck, None if struck.stopped else same)
                continue
            if not waiting:
                self.evaluator.forget_below(starts[key])
            waiting.append((trial_key(*key), touched[key], struck))
            if len(waiting) == self.evaluator.together:
                self._compare(waiting)
                waiting = []
        self._compare(waiting)
        self.progress.finish()

    def _intact(self, starts: set[int]) -> None:
        """Evaluate the intact model, and say where it is broken itself."""
        state = remember_intact(self.evaluator, self.journal, starts).outcome(self.evaluator.vocabulary)
        if state != "ok":
            self.progress.warn(
                f"the intact model is itself {state} on the evaluation text: outcomes say little beside it"
            )

    def _compare(self, waiting: list[tuple[str, frozenset[str], Struck]]) -> None:
        """Evaluate trials together and note them down."""
        if waiting:
            edits = [Edit(names, self._made(struck)) for _, names, struck in waiting]
            for (key, _, struck), measured in zip(waiting, self.evaluator.compare(edits), strict=True):
                self._finish(key, struck, measured)

    def _made(self, struck: Struck) -> Callable[[frozenset[str]], AbstractContextManager[None]]:
        @contextmanager
        def make(names: frozenset[str]) -> Iterator[None]:
            with applied(self.loaded, [change for change in struck.changes if change.name in names]):
                yield

        return make

    def _finish(self, key: str, struck: Struck, measured: Measured | None) -> None:
        self.journal.append(
            key, {"measured": None if measured is None else measured.record(), "counts": struck.counts.record()}
        )
        self.progress.advance()

    def measured(self, key: str) -> Measured | None:
        """Return a finished trial's measurement; None where the code stopped it."""
        found = self.journal.done[key]["measured"]
        return None if found is None else Measured(**found)

    def trial(self, rate: float, number: int) -> Trial:
        """Return a finished trial."""
        key, intact = trial_key(rate, number), self.measured(INTACT)
        assert intact is not None, "the intact model is measured first"
        counts = Counts.of(self.journal.done[key]["counts"])
        vocabulary = self.evaluator.vocabulary
        return Trial(rate, number, counts, outcome_of(counts, self.measured(key), intact, vocabulary, self.rules.harm))

    def row(self, trial: Trial) -> dict[str, object]:
        """Return a trial's row of ``fault_trials/1``."""
        measured, intact, counts = (
            self.measured(trial_key(trial.rate, trial.number)),
            self.measured(INTACT),
            trial.counts,
        )
        nll = None if measured is None else measured.mean_nll
        base = None if intact is None else intact.mean_nll
        return {
            "run": self.run, "rate": trial.rate, "trial": trial.number, "num_faults": counts.num_faults,
            "num_words": counts.num_words, "num_corrected": counts.num_corrected, "num_detected": counts.num_detected,
            "num_silent": counts.num_silent, "num_flips": counts.num_flips, "nll": nll,
            "delta_nll": None if nll is None or base is None else nll - base, "ppl": perplexity(nll),
            "outcome": trial.outcome,
        }  # fmt: skip
