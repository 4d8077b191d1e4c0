"""What keeps a campaign honest: the model it was begun on, the intact measurement, and the bits that come back."""

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from esa.artifact import Journal, Step
from esa.artifact.steps import JOURNAL
from esa.errors import ArtifactError, CheckError, ModelError
from esa.eval import INTACT, Evaluator, Measured
from esa.model import LoadedModel, fingerprint

_BEGUN = "model"
_OTHERWISE = {"fingerprint": "on a model with other weights", "list": "with another list of faults"}


def opened_journal(step: Step, loaded: LoadedModel, **more: str) -> Journal:
    """Return the step's journal, which notes at its beginning what it was begun on: the model's weights, and ``more``.

    Raises ArtifactError if it was begun on something else.
    """
    journal = Journal(step.folder / JOURNAL)
    mine = {"fingerprint": loaded.facts["fingerprint"], **more}
    if _BEGUN not in journal.done:
        journal.append(_BEGUN, mine)
        return journal
    for key, value in mine.items():
        if journal.done[_BEGUN][key] != value:
            raise ArtifactError(
                f"was begun {_OTHERWISE[key]}", where=str(step.folder), hint="start the step afresh with --force"
            )
    return journal


def remember_intact(evaluator: Evaluator, journal: Journal, starts: Collection[int]) -> Measured:
    """Evaluate the intact model, keep what ``starts`` need, and hold the result against the journal's, or note it there.

    Raises ModelError for an intact model without finite logits, ArtifactError if it measures other than the journal says.
    """
    intact = evaluator.remember(starts)
    if intact.nonfinite:
        raise ModelError(
            "the intact model gives NaN or infinite logits on the evaluation text: no damage can be measured",
            hint="try dtype = 'float32'",
        )
    if INTACT not in journal.done:
        journal.append(INTACT, {"measured": intact.record()})
    elif intact != (noted := Measured(**journal.done[INTACT]["measured"])):
        raise ArtifactError(
            f"the intact model had an NLL of {noted.mean_nll!r} when the step was begun, and has"
            f" {intact.mean_nll!r} now: cases of both would not be comparable",
            where=str(journal.path),
            hint="go on with the machine, device, number of threads and torch that began it, or start afresh with --force",
        )
    return intact


@dataclass
class Checksum:
    """The checksum of the touched tensors before and after a campaign."""

    before: str
    after: str
    num_tensors: int

    def record(self) -> dict[str, Any]:
        """Return what the manifest says of it."""
        restored = self.before == self.after
        return {"before": self.before, "after": self.after, "restored": restored, "num_tensors": self.num_tensors}


@contextmanager
def watched(loaded: LoadedModel, touched: Collection[str]) -> Iterator[Checksum]:
    """Run a campaign that touches the named tensors; afterwards ``Checksum.after`` says what they are.

    Raises CheckError in place of an error that left them changed. Cost: two reads of the touched tensors.
    """
    names = set(touched)
    found = Checksum(fingerprint(loaded.weights, names), "", len(names))
    try:
        yield found
    except BaseException as error:
        if fingerprint(loaded.weights, names) != found.before:
            raise CheckError("the model's checksum changed: a perturbation was not restored") from error
        raise
    found.after = fingerprint(loaded.weights, names)


def require_restored(checksum: Mapping[str, Any], folder: Path) -> None:
    """Raise CheckError where a manifest's checksum says that the model did not come back."""
    if not checksum["restored"]:
        raise CheckError("the model's checksum changed: a perturbation was not restored", where=str(folder))
