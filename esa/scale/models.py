"""Tell which model each run is of: its name, size, family, kind and variant, and which runs stand out of the fits and why."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import PurePosixPath
from typing import Any

from esa.artifact.gather import Gathered
from esa.artifact.grouping import labels
from esa.errors import ArtifactError
from esa.scale.models_file import Override

FEWEST_MODELS = 3  # a law through fewer is no law
FEW_MODELS = 6  # under so many, what a law says is indicative

_WEAK = "learnt too little"
_SEED = re.compile(r"[-_. ]*(?:seed)?[-_. ]*\d*$", re.IGNORECASE)
_CHECKPOINT = re.compile(r"(?:checkpoint|ckpt|step|iter)[-_]?\d+.*", re.IGNORECASE)
# What trainers call the folder of a checkpoint: checkpoint-500, step1000, global_step143000, iter_0001000, step2000-tokens8B.
_NAMES = r"(?:checkpoint|ckpt|(?:global_?)?step|iter(?:ation)?)[-_]?0*{step}(?:[-_.].*)?"


@dataclass(frozen=True)
class Member:
    """A run and the model that it measures; ``excluded`` says why it stands in no fit, None where it does.

    ``model`` names what its training seeds have in common; ``source`` its steps. What a manifest does not say is None.
    """

    run: Gathered
    label: str
    model: str
    family: str | None
    kind: str | None
    variant: str | None
    training_seed: int | None
    num_parameters: int | None
    active_parameters: int | None
    step: int | None
    num_tokens: int | None
    excluded: str | None = None

    @property
    def source(self) -> str:
        """Return the steps that were read, as ``score-<id> perturb-<id>``."""
        return " ".join(f"{step.replace(' ', '_')}-{manifest['run']}" for step, manifest in self.run.manifests.items())

    @property
    def about(self) -> dict[str, Any]:
        """Return the columns of ``points/1`` that describe the run."""
        return {
            "label": self.label, "source": self.source, "model": self.model, "family": self.family, "kind": self.kind,
            "variant": self.variant, "training_seed": self.training_seed, "num_parameters": self.num_parameters,
            "active_parameters": self.active_parameters, "step": self.step, "num_tokens": self.num_tokens,
        }  # fmt: skip


def labelled(runs: Sequence[Gathered]) -> list[tuple[str, Gathered]]:
    """Return the runs with a name each."""
    return list(zip(labels(runs), runs, strict=True))


def members(
    runs: Sequence[Gathered],
    overrides: Mapping[str, Override] | None = None,
    exclude: Sequence[str] = (),
    *,
    checkpoints: bool = False,
) -> list[Member]:
    """Return the runs as members, in their order.

    Runs are of one model where architecture, number of weights and shape (every architecture number of the manifest) agree:
    training seeds are its replicates, and so are a base and an instruct model of one shape. A run whose manifest has no
    shape is told by architecture and number of weights alone; so is that of a base and an instruct model, or of two
    releases of one shape: their mean has one vote. ``family`` is the model_type of the configuration, ``kind``
    ``moe`` where there are experts and else ``dense``, ``variant`` ``instruct`` where the tokenizer has a chat template and
    else ``base``; ``overrides`` (label -> Override) go before them. Excluded are runs without a number of weights; those
    named in ``exclude`` or in an override; those whose held-out NLL is not below the bigram's; and checkpoints of a training run
    (see :func:`home`) of which a later one, or the finished model, is there. With ``checkpoints``, where training is what
    is followed, only what a person names is excluded.
    Raises ArtifactError for a label in ``exclude`` or ``overrides`` that no run has.
    """
    pairs = labelled(runs)
    facts = [run.model for _, run in pairs]
    _require_known([label for label, _ in pairs], overrides or {}, exclude)
    keys = _identities(facts)
    names = _names(keys, facts)
    found = []
    for (label, run), known, key in zip(pairs, facts, keys, strict=True):
        training = known.get("training") or {}
        one = Member(
            run, label, names[key], _family(known), _kind(known), _variant(known), _whole(training.get("seed")),
            _whole(known.get("num_parameters")), _whole(known.get("active_parameters")), _whole(training.get("step")),
            _whole(training.get("num_tokens")),
        )  # fmt: skip
        override = (overrides or {}).get(label, Override())
        one = replace(one, family=override.family or one.family, variant=override.variant or one.variant)
        reason = "left out by --exclude" if label in exclude else override.exclude
        found.append(replace(one, excluded=reason))
    if checkpoints:
        return found
    # First the last ones: an earlier checkpoint does not stand in for a model that came to nothing.
    return [
        one if one.excluded else replace(one, excluded=_unfit(one, one.run.model.get("training") or {}))
        for one in _only_last(found)
    ]


def require_models(found: Sequence[Member], x_of: Mapping[str, float | None]) -> None:
    """Raise ArtifactError, naming what there is, where fewer than three models of known size are left."""
    left = [one for one in found if one.excluded is None and x_of[one.label] is not None]
    models = list(dict.fromkeys(one.model for one in left))
    if len(models) >= FEWEST_MODELS:
        return
    out = [f"{one.label}: {one.excluded}" for one in found if one.excluded]
    weak = any(one.excluded is not None and one.excluded.startswith(_WEAK) for one in found)
    named = f" ({', '.join(models)})" if models else ""
    raise ArtifactError(
        f"{len(models)} model{'' if len(models) == 1 else 's'}{named} of {len(found)} run{'' if len(found) == 1 else 's'}; a law"
        f" needs at least {FEWEST_MODELS} models" + (f"; left out: {'; '.join(out)}" if out else ""),
        where="RUN",
        hint="name runs of more models; training seeds of one architecture count as one model"
        + ("; one that learnt too little counts once it is trained longer, no option lets it in" if weak else ""),
    )


def _require_known(labels: Sequence[str], overrides: Mapping[str, Override], exclude: Sequence[str]) -> None:
    for where, given in (("--exclude", exclude), ("--models", overrides)):
        for label in given:
            if label not in labels:
                raise ArtifactError(f"'{label}' is none of the runs; they are {', '.join(labels)}", where=where)


def _identities(facts: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
    """Return a key per run that runs of one model share: architecture and size, and shape."""
    rough = [json.dumps([one.get("architecture"), one.get("num_parameters")]) for one in facts]
    shapes = [json.dumps(one.get("shape"), sort_keys=True) for one in facts]
    known: dict[str, list[str]] = {}
    for size, shape in zip(rough, shapes, strict=True):
        if shape != "null" and shape not in known.setdefault(size, []):
            known[size].append(shape)
    # A run of older days has no shape: it joins the one shape of its size, if there is just one.
    only = {size: found[0] for size, found in known.items() if len(found) == 1}
    return [
        (size, only.get(size, shape) if shape == "null" else shape) for size, shape in zip(rough, shapes, strict=True)
    ]


def _names(keys: Sequence[tuple[str, str]], facts: Sequence[Mapping[str, Any]]) -> dict[tuple[str, str], str]:
    """Return a name per model: what the ids of its runs begin with, and its size where two models would be called the same."""
    ids: dict[tuple[str, str], list[str]] = {}
    sizes: dict[tuple[str, str], Any] = {}
    for key, one in zip(keys, facts, strict=True):
        ids.setdefault(key, []).append(_last_part(str(one.get("id") or "model")))
        sizes[key] = one.get("num_parameters")
    names = {key: _shared_name(found) for key, found in ids.items()}
    for key in list(names):
        if list(names.values()).count(names[key]) > 1:
            names[key] = f"{names[key]} ({sizes[key]:,} weights)" if isinstance(sizes[key], int) else names[key]
    taken = list(names.values())
    return {
        key: name if taken.count(name) == 1 else f"{name} #{taken[: place + 1].count(name)}"
        for place, (key, name) in enumerate(names.items())
    }


def _last_part(model_id: str) -> str:
    """Return the part of a model's id that tells models apart: the last, or the one before a checkpoint's."""
    parts = [part for part in PurePosixPath(model_id).parts if not _CHECKPOINT.fullmatch(part)]
    return parts[-1] if parts else model_id


def _shared_name(ids: Sequence[str]) -> str:
    """Return what the ids begin with, without a seed or a separator at the end."""
    shared = ids[0]
    for other in ids[1:]:
        same = (number for number, (a, b) in enumerate(zip(shared, other, strict=False)) if a != b)
        shared = shared[: next(same, min(len(shared), len(other)))]
    if len(set(ids)) > 1 or "seed" in shared.lower():
        shared = _SEED.sub("", shared)
    return shared or ids[0]


def _whole(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _family(facts: Mapping[str, Any]) -> str | None:
    found = (facts.get("shape") or {}).get("model_type")
    return found if isinstance(found, str) else None


def _kind(facts: Mapping[str, Any]) -> str | None:
    shape = facts.get("shape")
    if not shape:
        return None
    return "moe" if shape.get("num_experts") else "dense"


def _variant(facts: Mapping[str, Any]) -> str | None:
    template = facts.get("chat_template")
    return None if template is None else "instruct" if template else "base"


def _unfit(one: Member, training: Mapping[str, Any]) -> str | None:
    """Return why a run stands in no fit, from what its manifests say; None where it does."""
    if one.num_parameters is None:
        return "its manifests do not say how many weights the model has"
    held_out, bigram = training.get("held_out_nll"), training.get("bigram_nll")
    if bigram is not None and held_out is None:
        return "its training log knows a bigram's held-out NLL and not the model's: it diverged, or was not measured"
    if held_out is not None and bigram is not None and not held_out < bigram:
        return f"{_WEAK}: held-out NLL {held_out:.3f}, a bigram's is {bigram:.3f}"
    return None


def home(model_id: str, step: int | None) -> str:
    """Return what the checkpoints of one training run share: a model's id without what names the step at its end.

    ``runs/a/checkpoint-500`` is at home in ``runs/a``, and so is ``runs/a-step500``. A finished model, whose step is None,
    is its own home.
    """
    path = PurePosixPath(model_id)
    if step is None:
        return str(path)
    name = _NAMES.format(step=step)
    if re.fullmatch(name, path.name, flags=re.IGNORECASE) and path.parent != path:
        return str(path.parent)
    beside = re.fullmatch(rf"(.+?)[-_.]{name}", path.name, flags=re.IGNORECASE)
    return str(path.with_name(beside[1])) if beside else str(path)


def _only_last(found: Sequence[Member]) -> list[Member]:
    """Leave out checkpoints of a training run whose later checkpoint, or finished model, is there, too."""
    homes = [(one.model, home(str(one.run.model.get("id")), one.step)) for one in found]
    last: dict[tuple[tuple[str, str], int | None], int] = {}
    finished = set()
    for one, at in zip(found, homes, strict=True):
        if one.excluded is None and one.step is not None:
            key = at, one.training_seed
            last[key] = max(one.step, last.get(key, 0))
        elif one.excluded is None:
            finished.add(at)
    made = []
    for one, at in zip(found, homes, strict=True):
        reason = one.excluded
        if reason is None and one.step is not None:
            if one.step < (later := last[at, one.training_seed]):
                reason = f"an earlier checkpoint: step {one.step:,} of {later:,}"
            elif at in finished:
                reason = f"a checkpoint: step {one.step:,}; the finished model is there, too"
        made.append(replace(one, excluded=reason))
    return made
