"""Pool the effects of several models, top weights against random ones, by random effects: ``esa scale --meta``."""

from collections.abc import Sequence
from dataclasses import dataclass

from esa.errors import ArtifactError
from esa.scale.contrasts import LEVEL, Effect, Subject, effects, over_training_seeds
from esa.scale.models import FEW_MODELS, FEWEST_MODELS, Member
from esa.scale.quantities.measured import Wanted
from esa.statistics.random_effects import RandomEffects, random_effects

Row = dict[str, object]


@dataclass(frozen=True)
class Study:
    """One model's effect of one subject, over its training seeds; ``text``: where its windows come from."""

    label: str
    model: str
    family: str | None
    num_parameters: int | None
    subject: Subject
    effect: Effect
    text: str | None


@dataclass(frozen=True)
class Pooled:
    """The models of one subject, smaller ones first, and what they come to; ``found`` is None where they are too few."""

    subject: Subject
    studies: list[Study]
    found: RandomEffects | None

    @property
    def included(self) -> list[Study]:
        """Return the models that have an effect."""
        return [one for one in self.studies if one.effect.excluded is None]

    @property
    def excluded(self) -> list[Study]:
        """Return the models that have none."""
        return [one for one in self.studies if one.effect.excluded is not None]


def pooled(found: Sequence[Member], wanted: Wanted, level: float = LEVEL) -> list[Pooled]:
    """Return what the effects of every wanted subject come to across models, in the order in which runs name them.

    A model is what :func:`esa.scale.models.members` says: its training seeds are averaged first, as they are no independent
    models (see :func:`esa.scale.contrasts.over_training_seeds`). Excluded members are no seeds; a model that has no other
    is named with their reason.
    Raises ArtifactError where no run has changed top and random weights alike, or no subject has three models.
    """
    by_run = [effects(one.run, wanted) if one.excluded is None else {} for one in found]
    subjects = list(dict.fromkeys(subject for measured in by_run for subject in measured))
    if not subjects:
        raise ArtifactError(
            "no run has changed top and random weights together by one method and K",
            where="--meta",
            hint="rank with rank.groups = ['top_k', 'random_k'], and perturb both",
        )
    made = []
    for subject in subjects:
        studies = _studies(subject, found, by_run, level)
        usable = [one.effect for one in studies if one.effect.excluded is None]
        values, errors = ([float(getattr(one, name)) for one in usable] for name in ("value", "stderr"))
        enough = len(usable) >= FEWEST_MODELS
        made.append(Pooled(subject, studies, random_effects(values, errors, level) if enough else None))
    if all(one.found is None for one in made):
        most = max(made, key=lambda one: len(one.included))
        raise ArtifactError(
            f"{most.subject.text}: {', '.join(one.model for one in most.included) or 'no model'} "
            f"({len(most.included)} of {len(most.studies)}); a mean over models needs at least {FEWEST_MODELS}"
            + "".join(f"; {one.model}: {one.effect.excluded}" for one in most.excluded),
            where="--meta",
            hint="name runs of more models; training seeds of one architecture count as one model",
        )
    return made


def _studies(
    subject: Subject, found: Sequence[Member], by_run: Sequence[dict[Subject, Effect]], level: float
) -> list[Study]:
    """Return the models of a subject, the smaller first, equal ones by name."""
    made = []
    for model in dict.fromkeys(one.model for one in found):
        members = [one for one in found if one.model == model]
        measured = [
            (one, by[subject]) for one, by in zip(found, by_run, strict=True) if one.model == model and subject in by
        ]
        kept = [one for one, _ in measured]
        if not measured and any(one.excluded is None for one in members):
            continue  # it was never measured so
        if measured:
            effect = over_training_seeds({one.label: effect for one, effect in measured}, level)
        else:
            kept, effect = members[-1:], Effect(excluded=members[-1].excluded)
        texts = {str((one.run.manifests["perturb"].get("data") or {}).get("source")) for one in kept if measured}
        made.append(
            Study(
                ", ".join(one.label for one in kept), model, kept[0].family, kept[0].num_parameters, subject, effect,
                ", ".join(sorted(texts)) or None,
            )
        )  # fmt: skip
    return sorted(made, key=lambda one: (one.num_parameters or 0, one.model))


def effect_rows(found: Pooled) -> list[Row]:
    """Return ``effects/1`` of a subject: a row per model, smaller ones first; ``weight`` is its share of the mean."""
    weights = iter(() if found.found is None else found.found.weights)
    return [
        {
            "label": one.label, "model": one.model, "family": one.family, "num_parameters": one.num_parameters,
            "subject": found.subject.text, "effect": one.effect.value, "stderr": one.effect.stderr, "low": one.effect.low,
            "high": one.effect.high, "weight": None if one.effect.excluded else next(weights, None),
            "excluded": one.effect.excluded,
        }
        for one in found.studies
    ]  # fmt: skip


def meta_row(found: Pooled) -> Row:
    """Return ``meta/1`` of a subject; ``why`` says what a reader of the mean must know, or why there is none."""
    row: Row = {
        "subject": found.subject.text,
        "num_models": len(found.included),
        "why": "; ".join(cautions(found)) or None,
    }
    if (one := found.found) is not None:
        row |= {
            "mean": one.mean, "low": one.low, "high": one.high, "prediction_low": one.prediction_low,
            "prediction_high": one.prediction_high, "p_value": one.p_value, "tau2": one.tau2, "i2": one.i2, "q": one.q,
            "q_p": one.q_p,
        }  # fmt: skip
    return row


def cautions(found: Pooled) -> list[str]:
    """Return what limits the mean of a subject: few models, one family, collapsed models, several texts, models left out."""
    included, said = found.included, []
    if len(included) < FEWEST_MODELS:
        said.append(f"{len(included)} model{'' if len(included) == 1 else 's'}: at least {FEWEST_MODELS} are needed")
    elif len(included) < FEW_MODELS:
        said.append(f"{len(included)} models: indicative, {FEW_MODELS} are wanted")
    families = {one.family for one in included}
    if len(families) == 1 and None not in families and len(included) > 1:
        said.append(f"all of the family {families.pop()}: a mean over its members, not over architectures")
    collapsed = [one.model for one in included if one.effect.collapsed]
    if collapsed:
        said.append(
            f"collapsed: {', '.join(collapsed)}; no damage is larger than guessing, whatever the weights were worth"
        )
    texts = sorted({one.text for one in included if one.text})
    if len(texts) > 1:
        said.append(f"measured on several texts: {', '.join(texts)}")
    return said + [f"left out: {one.model} ({one.effect.excluded})" for one in found.excluded]
