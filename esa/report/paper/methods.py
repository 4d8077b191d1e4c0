"""The methods paragraph of a paper, computed from the manifests: a sentence stands only where a manifest states its fact."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from esa.artifact.gather import Gathered
from esa.registry import METRIC_KEYS
from esa.report.markdown import join
from esa.report.paper.escape import code, escape
from esa.report.paper.layouts import NOUNS
from esa.report.paper.methods_tests import TESTED
from esa.report.paper.names import Macros
from esa.report.paper.pieces import Cite, Fact, Piece, Sentence, cited_metrics
from esa.report.paper.references import texts
from esa.report.paper.rounding import number

Manifest = Mapping[str, Any]
APART = ("model", "training")  # topics of which every run has a sentence of its own
_MODES = {
    "global": "over the whole model", "per_layer": "within each weight tensor", "per_block": "within each block",
    "per_component": "within each kind of component",
}  # fmt: skip
_UNITS = {
    "joint": "together", "single": "one at a time", "leave_one_out": "all but one", "cumulative": "one more at a time",
    "pairs": "in pairs",
}  # fmt: skip
_SHARED = (
    "method",
    "repeats",
    "unit",
    "groups",
    "k",
    "propagation",
)  # of a [[perturb]] table: no options of the method
_SETTINGS = {
    "reduction": "reduction", "resamples": "draws of sampled labels", "probes": "probes", "peak_ratio": "least peak ratio",
    "rounds": "rounds",
}  # fmt: skip


def sentences(run: Gathered, *, between: bool = False) -> list[Sentence]:
    """Return the sentences on one run, in the order of its steps; of a step between runs what it compared, and how.

    Everything is read from its manifests and the specs in them as they were resolved: a key that a manifest of an older esa
    does not have is not filled in.
    """
    make: tuple[Callable[[Gathered], Iterator[Sentence]], ...] = (
        _model, _training, _calibration, _metrics, _ranking, _perturbations, _evaluation, _checks, *TESTED, _software, _machine,
    )  # fmt: skip
    return [one for each in (TESTED if between else make) for one in each(run)]


def fact(run: Gathered, step: str, words: Sequence[str], value: str, what: str) -> Fact:
    """Return a fact that a step's manifest states; ``value`` is LaTeX."""
    manifest = run.manifests[step]
    return Fact(tuple(words), value, what, f"manifest of {manifest['step']}-{manifest['run']}")


def section(run: Gathered, step: str, name: str) -> dict[str, Any]:
    """Return a section of the spec as a step's manifest has it; empty where it has none."""
    found = (run.manifests.get(step, {}).get("spec") or {}).get(name)
    return found if isinstance(found, dict) else {}


def _model(run: Gathered) -> Iterator[Sentence]:
    step = next((one for one, manifest in run.manifests.items() if isinstance(manifest.get("model"), dict)), None)
    if step is None:
        return
    model = run.manifests[step]["model"]
    pieces: list[Piece] = ["The model is ", fact(run, step, ["model"], code(model.get("id")), "the model")]
    if model.get("revision"):
        pieces += [", revision ", fact(run, step, ["revision"], code(model["revision"]), "its revision")]
    if model.get("architecture"):
        name = fact(run, step, ["architecture"], code(model["architecture"]), "its architecture")
        pieces += [" (", name, ")"]
    if model.get("num_parameters") is not None:
        count = fact(run, step, ["parameters"], number(model["num_parameters"]), "number of weights")
        pieces += [", which has ", count, " weights"]
        active = model.get("active_parameters")
        if active is not None and active != model["num_parameters"]:
            name = fact(run, step, ["active parameters"], number(active), "weights that one token uses")
            pieces += [", of which one token uses ", name]
    if model.get("dtype"):
        pieces += [", stored as ", fact(run, step, ["dtype"], code(model["dtype"]), "storage type")]
        if model.get("quantization") not in (None, "none"):
            kind = fact(run, step, ["quantization"], code(model["quantization"]), "quantisation")
            pieces += [", quantised (", kind, ")"]
        if model.get("compute") not in (None, model["dtype"]):
            pieces += [" and computed in ", fact(run, step, ["compute"], code(model["compute"]), "compute type")]
    yield Sentence("model", (*pieces, "."))


def _training(run: Gathered) -> Iterator[Sentence]:
    step = next((one for one, manifest in run.manifests.items() if (manifest.get("model") or {}).get("training")), None)
    if step is None:
        return
    known = run.manifests[step]["model"]["training"]
    words = {
        "step": ("step ", "training step"), "num_tokens": ("tokens seen ", "training tokens"), "seed": ("seed ", "training seed"),
        "held_out_nll": ("held-out loss in nats per token ", "held-out loss"),
    }  # fmt: skip
    pieces: list[Piece] = []
    for key, (lead, name) in words.items():
        if known.get(key) is not None:
            pieces += [
                ", " if pieces else "",
                lead,
                fact(run, step, [name], number(known[key]), f"{name} of the model"),
            ]
    if pieces:
        yield Sentence("training", ("Training, as the files beside the weights say: ", *pieces, "."))


def windows(run: Gathered, step: str, word: str) -> list[Piece]:
    """Return the token windows of a step in words; empty where its manifest has none."""
    data = run.manifests.get(step, {}).get("data")
    entries = [one for one in (data if isinstance(data, list) else [data]) if isinstance(one, dict)]
    entries = [one for one in entries if one.get("windows") is not None]
    if not entries:
        return []
    kinds = {(one.get("source"), one.get("windows"), one.get("length"), one.get("bos")) for one in entries}
    if len(kinds) > 1:  # several texts or lengths: each is in the table of the intact model
        sources = list(dict.fromkeys(str(one.get("source")) for one in entries))
        return [join([code(one) for one in sources]), Cite(tuple(name for one in sources for name in texts(one)))]
    one = entries[0]
    pieces: list[Piece] = [
        fact(run, step, [word, "windows"], number(one["windows"]), f"windows of the {word} text"), " windows of ",
        fact(run, step, [word, "length"], number(one.get("length")), "tokens of each window"), " tokens of ",
        fact(run, step, [word, "source"], code(one.get("source")), f"the {word} text"),
        Cite(tuple(texts(str(one.get("source"))))),
    ]  # fmt: skip
    if one.get("predicted_tokens") is not None:
        total = fact(run, step, [word, "tokens"], number(one["predicted_tokens"]), "tokens that are predicted")
        pieces += [" (", total, f" predicted tokens{' per seed' if len(entries) > 1 else ''})"]
    if isinstance(one.get("bos"), bool):
        pieces.append(f", {'with' if one['bos'] else 'without'} a beginning-of-sequence token")
    seeds = list(dict.fromkeys(entry.get("seed") for entry in entries if entry.get("seed") is not None))
    if len(seeds) > 1:
        value = join([number(seed) for seed in seeds])
        pieces += [", drawn anew for each of the seeds ", fact(run, step, [word, "seeds"], value, "seeds of the draws")]
    return pieces


def _calibration(run: Gathered) -> Iterator[Sentence]:
    if pieces := windows(run, "score", "calibration"):
        yield Sentence("calibration", ("Scores were computed on ", *pieces, "."))


def _metrics(run: Gathered) -> Iterator[Sentence]:
    known = section(run, "score", "score")
    metrics = [str(one) for one in known.get("metrics") or []]
    if not metrics:
        return
    settings: list[Piece] = []
    for key, words in _SETTINGS.items():
        readers = [name for name in metrics if name in METRIC_KEYS.get(key, ())]
        if readers and known.get(key) is not None:
            value = number(known[key]) if isinstance(known[key], int | float) else escape(known[key])
            shown = fact(run, "score", ["score", words], value, f"{words} of {', '.join(readers)}")
            settings += ["; " if settings else " (", f"{words} of {join([code(one) for one in readers])}: ", shown]
    close = ")" if settings else ""
    yield Sentence("metrics", ("Each weight was scored by ", *cited_metrics(metrics), *settings, close, "."))


def _ranking(run: Gathered) -> Iterator[Sentence]:
    known = section(run, "rank", "rank")
    if not known:
        return
    where = _MODES.get(str(known.get("mode")), escape(known.get("mode")))
    pieces: list[Piece] = [f"Weights were ranked {where}"]
    if ks := known.get("k"):
        value = join([number(one) for one in (ks if isinstance(ks, list) else [ks])])
        pieces += [r", with $K$ = ", fact(run, "rank", ["ks"], value, "numbers of weights, K")]
    yield Sentence("ranking", (*pieces, "."))
    groups = [str(one) for one in known.get("groups") or []]
    if not groups:
        return
    named = join([NOUNS.get(one, escape(one)) for one in groups])
    pieces = [f"The groups of weights are the {named} $K$"]
    if "random_k" in groups and known.get("draws") is not None:
        pieces += [
            ", random ones in ",
            fact(run, "rank", ["draws"], number(known["draws"]), "independent random draws"),
        ]
        pieces.append(" independent draws")
    yield Sentence("groups", (*pieces, "."))


def _perturbations(run: Gathered) -> Iterator[Sentence]:
    tables = (run.manifests.get("perturb", {}).get("spec") or {}).get("perturb")
    if not isinstance(tables, list) or not tables:
        return
    each: list[Piece] = []
    for one in tables:
        known = {key: value for key, value in one.items() if key not in _SHARED and value is not None}
        units = one.get("unit", "joint")
        named = [str(unit) for unit in (units if isinstance(units, list) else [units])]
        details = [f"{key.replace('_', ' ')} {_value(value)}" for key, value in sorted(known.items())]
        details.append(join([_UNITS.get(unit, unit) for unit in named]))
        each += ["; " if each else "", code(one.get("method")), Cite((f"method:{one.get('method')}",))]
        each.append(f" ({escape(', '.join(details))}")
        if one.get("repeats") is not None:
            words = ["repeats", str(one.get("method"))]
            each += [", ", fact(run, "perturb", words, number(one["repeats"]), "repeats of the method"), " repeats"]
        each.append(")")
    yield Sentence("perturbations", ("The weights of a group were changed in place: ", *each, "."))


def _value(value: object) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def _evaluation(run: Gathered) -> Iterator[Sentence]:
    step = next((one for one in ("perturb", "truth", "detector", "faults") if windows(run, one, "evaluation")), None)
    if step is not None:
        what = "Damage is the rise of the mean negative log-likelihood per predicted token (nats), measured on "
        yield Sentence("evaluation", (what, *windows(run, step, "evaluation"), "."))
    floor = run.manifests.get("perturb", {}).get("noise_floor")
    if floor is not None:
        value = fact(run, "perturb", ["noise floor"], number(float(floor)), "noise floor, nats per token")
        words = "; a smaller change is not told from rounding."
        if not float(floor):
            words = ": rewriting low-score weights to the adjacent representable number changed no loss."
        yield Sentence("noise floor", ("The noise floor is ", value, " nats per token", words))
    tasks = section(run, "eval", "eval").get("tasks") if "eval" in run.folders else None
    names = [str(one) for one in tasks or []]
    if names:
        each = join([code(one) for one in names])
        yield Sentence(
            "tasks", (f"The intact model was also measured on {each}", Cite(tuple(f"task:{x}" for x in names)), ".")
        )


def _checks(run: Gathered) -> Iterator[Sentence]:
    checksum = run.manifests.get("perturb", {}).get("checksum")
    if isinstance(checksum, dict) and checksum.get("restored") is True:
        yield Sentence(
            "restored", ("After the last case the checksum of the stored weights was that from before the first.",)
        )


def _machine(run: Gathered) -> Iterator[Sentence]:
    if not run.manifests:
        return
    models = [one["model"] for one in run.manifests.values() if isinstance(one.get("model"), dict)]
    graphics = list(dict.fromkeys(str(one["accelerator"]) for one in models if one.get("accelerator")))
    pieces: list[Piece] = []
    if graphics:
        pieces.append(_of_all(run, ["accelerator"], [escape(one) for one in graphics], "accelerator"))
    known = [one["hardware"] for one in run.manifests.values() if (one.get("hardware") or {}).get("cores") is not None]
    if known:
        cores = _of_all(run, ["cores"], [number(one["cores"]) for one in known], "processor cores")
        pieces += [*([" and "] if pieces else []), cores, " cores"]
        named = [escape(", ".join(words)) for one in known if (words := _words(one))]
        if named:
            pieces += [" (", _of_all(run, ["machine"], named, "machine and system"), ")"]
    if pieces:
        yield Sentence("machine", ("The steps ran on ", *pieces, "."))


def spent(runs: Sequence[tuple[str, Gathered]], macros: Macros) -> str:
    """Say how long the steps of all runs took together, each counted once; nothing where no manifest says it."""
    steps = {manifest["run"]: manifest for _, run in runs for manifest in run.manifests.values()}
    seconds = [one["seconds"] for one in steps.values() if isinstance(one.get("seconds"), int | float)]
    if not seconds:
        return ""
    source = f"manifests of {len(seconds)} steps"
    shown = number(round(sum(seconds)) if sum(seconds) >= 10 else float(sum(seconds)))
    total = macros.add(["seconds"], shown, "seconds of all steps together", source)
    return f"Together they took {total} seconds."


def _of_all(run: Gathered, words: Sequence[str], values: Sequence[str], what: str) -> Fact:
    """Return a fact that every step states, each different value once; ``values`` are LaTeX."""
    manifests = [f"{one['step']}-{one['run']}" for one in run.manifests.values()]
    source = f"manifest{'' if len(manifests) == 1 else 's'} of {', '.join(manifests)}"
    return Fact(tuple(words), join(list(dict.fromkeys(values))), what, source)


def _words(hardware: Mapping[str, Any]) -> list[str]:
    return [str(hardware[key]) for key in ("machine", "system") if hardware.get(key)]


def _software(run: Gathered) -> Iterator[Sentence]:
    if not run.manifests:
        return
    manifests = run.manifests.values()
    known = {"esa": [one.get("esa") for one in manifests], "Python": [one.get("python") for one in manifests]}
    known |= {name: [(one.get("packages") or {}).get(name) for one in manifests] for name in ("torch", "transformers")}
    each: list[Piece] = []
    for name, versions in known.items():
        if found := [escape(one) for one in versions if one]:
            shown = _of_all(run, ["version", name], found, f"version of {name}")
            each += [", " if each else "", f"{name} ", shown]
    if each:
        yield Sentence("software", ("The software was ", *each, "."))
