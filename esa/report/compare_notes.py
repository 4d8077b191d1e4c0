"""Where a comparison holds and where it does not: sentences computed from the manifests and tables of the runs."""

from collections.abc import Callable, Sequence

from esa.artifact.gather import Gathered
from esa.artifact.places import fingerprint, models
from esa.report.comparison import Comparison, alike, windows
from esa.report.markdown import code, escape, join, number
from esa.report.tables import label as effect_label


def notes(comparison: Comparison) -> list[str]:
    """Return what the runs share and what they do not, most important first: Markdown sentences."""
    make = [_models, _stored, _evaluation, _calibration, _metrics, _methods, _ks, _steps, _same_steps]
    return [text for one in make for text in one(comparison)]


def names(labels: Sequence[str], of: Comparison | None = None) -> str:
    """Return the labels of runs in a sentence: ``a``, ``b`` and ``c``; ``all 3 runs`` where they are all ``of`` more than two."""
    if of is not None and len(labels) == len(of.runs) > 2:
        return f"all {len(labels)} runs"
    return join([code(label, cell=False) for label in labels])


def _models(comparison: Comparison) -> list[str]:
    known = alike(comparison.pairs, fingerprint)
    silent = [label for label, run in comparison.pairs if fingerprint(run) is None]
    found = []
    if len(known) == 1 and not silent:
        mark = code(next(iter(known)), cell=False)
        found.append(
            f"Same model: all runs hold the one with fingerprint {mark}, so an address is the same weight in all."
        )
    elif len(known) > 1:
        ids = dict(comparison.pairs)
        each = [
            f"{names(labels)} hold{'s' if len(labels) == 1 else ''} {_model_id(ids[labels[0]])}"
            for labels in known.values()
        ]
        found.append(f"**Different models**: {'; '.join(each)}. {_places(comparison)}")
    if silent:
        found.append(f"No step of {names(silent)} says which model it read. {_places(comparison)}".strip())
    return found


def _model_id(run: Gathered) -> str:
    ids = list(dict.fromkeys(str(model.get("id")) for model in models(run)))
    return f"{join([code(one, cell=False) for one in ids])} (fingerprint {code(fingerprint(run), cell=False)})"


def _places(comparison: Comparison) -> str:
    """Say between which runs addresses compare."""
    groups = [[comparison.labels[number] for number in group] for group in comparison.places]
    together = [group for group in groups if len(group) > 1]
    alone = [group[0] for group in groups if len(group) == 1]
    marks = [{fingerprint(run) for label, run in comparison.pairs if label in group} for group in together]
    parts = [
        f"Between {names(group, comparison)} an address is the same"
        f" {'weight' if len(mark) == 1 else 'place, not the same weight'}"
        for group, mark in zip(together, marks, strict=True)
    ]
    if alone:
        others = " with those of any other run" if together or len(alone) > 1 else ""
        parts.append(f"The addresses of {names(alone, comparison)} do not compare{others}")
    return ". ".join(parts) + "."


def _stored(comparison: Comparison) -> list[str]:
    def form(run: Gathered) -> str | None:
        words = [f"{model.get('dtype')}, {model.get('quantization')}" for model in models(run)]
        return "; ".join(dict.fromkeys(words)).replace(", none", "").replace(", None", "") or None

    return _split(alike(comparison.pairs, form), "The weights are stored differently", escape)


def _evaluation(comparison: Comparison) -> list[str]:
    found = alike(comparison.pairs, lambda run: next(iter(windows(run, "perturb").values()), None))
    if len(found) == 1 and len(labels := next(iter(found.values()))) > 1:
        mark = code(next(iter(found)), cell=False)
        among = "all runs" if len(labels) == len(comparison.runs) else names(labels)
        return [f"Same evaluation windows in {among} (sha256 of the token ids {mark}): their perplexities compare."]
    text = _split(found, "**The evaluation windows differ**", lambda mark: code(mark, cell=False))
    tail = (
        " Perplexities of different windows do not compare; each run's ratio to its own intact model does, as far as the"
        " texts are alike."
    )
    return [text[0] + tail] if text else []


def _calibration(comparison: Comparison) -> list[str]:
    scored = [(label, windows(run, "score")) for label, run in comparison.pairs if windows(run, "score")]
    if len(scored) < 2:
        return []
    seeds = dict.fromkeys(seed for _, found in scored for seed in found)
    other = [seed for seed in seeds if len({found[seed] for _, found in scored if seed in found}) > 1]
    sets = {tuple(sorted(found, key=str)) for _, found in scored}
    texts = []
    if other:
        which = (
            "" if other == [None] else f" of seed{'s' if len(other) > 1 else ''} {join([str(seed) for seed in other])}"
        )
        apart = [label for label, found in scored if set(other) & found.keys()]
        texts.append(
            f"**The calibration windows{which} differ** among {names(apart, comparison)}: their scores come from different text."
        )
    if len(sets) > 1:
        each = [f"{join([str(seed) for seed in found])} in {code(label, cell=False)}" for label, found in scored]
        firsts = {str(min(found, key=str)) for _, found in scored}
        tail = "; tables and charts that take the first seed of a run take different ones" if len(firsts) > 1 else ""
        texts.append(f"The score seeds differ: {'; '.join(each)}{tail}.")
    return texts


def _metrics(comparison: Comparison) -> list[str]:
    def of(run: Gathered) -> list[str]:
        frames = (run.ranking, run.damage, run.tensors)
        return [
            name
            for frame in frames
            if frame is not None
            for name in frame["metric"].drop_nulls().unique(maintain_order=True)
        ]

    return _missing(comparison, of, "metric")


def _methods(comparison: Comparison) -> list[str]:
    def of(run: Gathered) -> list[str]:
        if run.damage is None:
            return []
        rows = run.damage.select("method", "options").unique(maintain_order=True).rows()
        return [effect_label(str(method), options) for method, options in rows]

    return _missing(comparison, of, "method", steps=("perturb",))


def _ks(comparison: Comparison) -> list[str]:
    def of(run: Gathered) -> list[str]:
        return [] if run.damage is None else [number(k) for k in run.damage["k"].drop_nulls().unique().sort()]

    return _missing(comparison, of, "k", steps=("perturb",))


def _missing(
    comparison: Comparison, of: Callable[[Gathered], list[str]], noun: str, steps: Sequence[str] = ()
) -> list[str]:
    """Say which metrics, methods or k some runs have and others, though they have the ``steps``, have not."""
    held = {label: of(run) for label, run in comparison.pairs if all(step in run.folders for step in steps)}
    held = {label: found for label, found in held.items() if found}
    said: dict[str, list[str]] = {}
    for value in dict.fromkeys(value for found in held.values() for value in found):
        having = [label for label, found in held.items() if value in found]
        without = [label for label in held if label not in having]
        if without:
            where = f"Only in {names(having)}" if len(having) < len(without) else f"Not in {names(without)}"
            said.setdefault(where, []).append(value)
    return [
        f"{where}: the {noun}{'s' if len(values) > 1 and noun != 'k' else ''}"
        f" {join([code(value, cell=False) for value in values])}."
        for where, values in said.items()
    ]


def _steps(comparison: Comparison) -> list[str]:
    absent = alike(comparison.pairs, lambda run: tuple(run.absent) or None)
    return [
        f"{names(labels)} {'has' if len(labels) == 1 else 'have'} no {join(list(steps), 'or')} step:"
        f" what is made from {'it' if len(steps) == 1 else 'them'} stays empty."
        for steps, labels in absent.items()
    ]


def _same_steps(comparison: Comparison) -> list[str]:
    whole = alike(comparison.pairs, lambda run: tuple(run.inputs.items()))
    found = [
        f"{names(labels)} are the same steps: their columns agree because they are one."
        for labels in whole.values()
        if len(labels) > 1
    ]
    holders: dict[tuple[str, str], list[str]] = {}
    for label, run in comparison.pairs:
        for step, id in run.inputs.items():
            holders.setdefault((step, id), []).append(label)
    shared: dict[tuple[str, ...], list[str]] = {}
    for (step, id), labels in holders.items():
        if len(labels) > 1 and not any(set(labels) <= set(same) for same in whole.values()):
            shared.setdefault(tuple(labels), []).append(code(f"{step}-{id}", cell=False))
    return found + [f"{names(labels)} share {join(steps)}." for labels, steps in shared.items()]


def _split(found: dict[str, list[str]], what: str, write: Callable[[str], str]) -> list[str]:
    """Say which runs have which value, where there is more than one."""
    if len(found) < 2:
        return []
    return [f"{what}: {'; '.join(f'{write(value)} in {names(labels)}' for value, labels in found.items())}."]
