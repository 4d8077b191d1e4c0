"""The sentences of a methods paragraph on intervals, tests and what compares lists and models: where their tables are."""

from collections.abc import Callable, Iterator
from typing import Any

from esa.artifact.gather import BETWEEN, Gathered
from esa.report.markdown import join
from esa.report.paper.escape import code, escape
from esa.report.paper.pieces import Cite, Fact, Piece, Sentence, cited_metrics
from esa.report.paper.rounding import number


def _fact(run: Gathered, step: str, words: list[str], value: float, what: str) -> Fact:
    manifest = run.manifests[step]
    return Fact(tuple(words), number(value), what, f"manifest of {manifest['step']}-{manifest['run']}")


def _percent(share: float) -> float:
    """Return a share in percent, as a whole number where it is one."""
    percent = round(100 * share, 6)
    return int(percent) if percent == int(percent) else percent


def _rules(run: Gathered) -> dict[str, Any]:
    """Return how effects became intervals and p values, as the manifest of the campaign has it."""
    found = (run.manifests.get("perturb", {}).get("spec") or {}).get("statistics")
    return found if isinstance(found, dict) else {}


def _intervals(run: Gathered) -> Iterator[Sentence]:
    rules, damage = _rules(run), run.damage
    if not rules or damage is None or not damage["delta_low"].count():
        return
    level = _fact(run, "perturb", ["level"], _percent(rules["level"]), "level of intervals, percent")
    draws = _fact(run, "perturb", ["resamples"], rules["resamples"], "bootstrap resamples")
    pieces: list[Piece] = ["Intervals of damage are studentized bootstrap intervals over the evaluation windows"]
    pieces += [Cite(("statistic:bootstrap",)), ", of level ", level, r"\,\% and ", draws, " resamples."]
    yield Sentence("intervals", tuple(pieces))


def _confirmatory(run: Gathered) -> Iterator[Sentence]:
    tests = run.table("perturb", "tests/1")
    confirm = (run.manifests.get("perturb", {}).get("spec") or {}).get("confirm") or {}
    if tests is None or "confirmatory" not in tests["phase"].to_list() or not confirm.get("metric"):
        return
    yield Sentence(
        "confirmatory",
        (
            "One test was named before the damage was seen: whether the top ",
            _fact(run, "perturb", ["confirm", "K"], confirm["k"], "weights of the confirmatory test"),
            f" weights by {code(confirm['metric'])} under {code(confirm['method'])} do more harm than each of ",
            _fact(run, "perturb", ["confirm", "draws"], confirm["draws"], "random draws of the confirmatory test"),
            " random draws of as many, by their rank",
            Cite(("statistic:permutation",)),
            ", at the level ",
            _fact(run, "perturb", ["confirm", "alpha"], confirm["alpha"], "level of the confirmatory test"),
            ".",
        ),
    )


def _screen(run: Gathered) -> Iterator[Sentence]:
    tests, rules = run.table("perturb", "tests/1"), _rules(run)
    if tests is None or not rules or "screen" not in tests["phase"].to_list():
        return
    claims = set(tests["claim"].drop_nulls().to_list())
    flips = _fact(run, "perturb", ["permutations"], rules["permutations"], "sign flips, at most")
    rate = _fact(run, "perturb", ["fdr"], rules["fdr"], "false discovery rate of the screen")
    pieces: list[Piece] = ["All other tests are a screen: sign flips of the windows' differences (at most ", flips]
    pieces += [")", Cite(("statistic:permutation",))]
    if "no_harm" in claims:
        margin = _fact(run, "perturb", ["margin"], rules["margin"], "margin of equivalence, nats")
        pieces += [", for the absence of harm two one-sided tests with a margin of ", margin, " nats"]
        pieces.append(Cite(("statistic:equivalence",)))
    pieces += [", adjusted within each claim to a false discovery rate of ", rate, Cite(("statistic:fdr",)), "."]
    yield Sentence("screen", tuple(pieces))
    if tests["cliffs_delta"].count():
        yield Sentence("effect sizes", ("Effect sizes are Cliff's delta", Cite(("statistic:cliffs_delta",)), "."))


def _lists(run: Gathered) -> Iterator[Sentence]:
    if run.overlap is not None and run.overlap["jaccard"].count():
        known = (
            "; the index expected of independent lists stands beside it"
            if run.overlap["expected_jaccard"].count()
            else ""
        )
        yield Sentence(
            "lists", ("Agreement of lists is their Jaccard index", Cite(("statistic:jaccard",)), f"{known}.")
        )


def _truth(run: Gathered) -> Iterator[Sentence]:
    found = run.table("truth", "truth/1")
    if found is not None and found["num_weights"].count():
        most = int(found["num_weights"].max())  # type: ignore[arg-type]
        count = _fact(run, "truth", ["truth", "weights"], most, "weights whose damage was measured")
        words = "Metrics were held against the measured damage of "
        yield Sentence(
            "truth", (words, count, " single weights by Spearman's correlation", Cite(("statistic:spearman",)), ".")
        )


def _detector(run: Gathered) -> Iterator[Sentence]:
    found = run.table("detector", "detector/1")
    if found is not None:
        count = _fact(run, "detector", ["candidates"], found.height, "candidates of the detector")
        words = " candidates for super weights were zeroed, alone and with those of their row or column"
        yield Sentence("detector", (count, words, Cite(("step:detector",)), "."))


def _faults(run: Gathered) -> Iterator[Sentence]:
    known = (run.manifests.get("faults", {}).get("spec") or {}).get("faults") or {}
    if run.table("faults", "fault_rates/1") is None or known.get("trials") is None:
        return
    trials = _fact(run, "faults", ["fault", "trials"], known["trials"], "fault lists per rate")
    pieces: list[Piece] = ["Random bit errors were drawn in ", trials, " trials per rate", Cite(("step:faults",))]
    if known.get("ecc") not in (None, "none"):
        pieces.append(f" under an error-correcting code ({escape(known['ecc'])})")
    yield Sentence("faults", (*pieces, "; shares have Wilson intervals", Cite(("statistic:wilson",)), "."))


_FOLLOWED = {"scale": "laws were fitted to", "arch": "were compared"}


def _followed(run: Gathered) -> Iterator[Sentence]:
    """Yield by which metrics the models of a step between runs had been scored."""
    for step in (one for one in BETWEEN if one in run.manifests):
        metrics = (run.manifests[step].get("options") or {}).get("metrics")
        if isinstance(metrics, list) and metrics:
            words = f"The models that {_FOLLOWED[step]} had been scored by "
            yield Sentence("followed", (words, *cited_metrics([str(one) for one in metrics]), "."))


def _laws(run: Gathered) -> Iterator[Sentence]:
    laws, fits = run.table("scale", "laws/1"), run.table("scale", "fits/1")
    if laws is not None and laws["num_models"].count():
        most = int(laws["num_models"].max())  # type: ignore[arg-type]
        count = _fact(run, "scale", ["law models"], most, "models that laws were fitted to, at most")
        names = [] if fits is None else fits["model"].unique(maintain_order=True).drop_nulls().to_list()
        which = f" ({join([escape(name.replace('_', ' ')) for name in names])})" if names else ""
        yield Sentence(
            "laws",
            (
                f"Laws{which} were fitted to quantities of at most ", count, " models and compared by AICc",
                Cite(("statistic:aicc",)), "; prediction errors are those of models left out",
                Cite(("statistic:leave_one_out",)), ".",
            ),
        )  # fmt: skip
        if laws["changepoint"].count():
            words = "Changepoints are breaks of a segmented regression"
            yield Sentence("changepoints", (words, Cite(("statistic:segmented",)), "."))
    pooled = run.table("scale", "meta/1")
    if pooled is not None and pooled["mean"].count():
        most = int(pooled["num_models"].max())  # type: ignore[arg-type]
        count = _fact(run, "scale", ["meta models"], most, "models of the meta-analysis, at most")
        words = "Effects were pooled over at most "
        yield Sentence("meta", (words, count, " models by random effects", Cite(("statistic:meta",)), "."))


def _compared(run: Gathered) -> Iterator[Sentence]:
    found = run.table("arch", "comparison/1")
    labels = run.manifests.get("arch", {}).get("labels")
    if found is None or not isinstance(labels, list):
        return
    count = _fact(run, "arch", ["compared models"], len(labels), "runs that were compared")
    flips = (run.manifests["arch"].get("options") or {}).get("permutations")
    pieces: list[Piece] = [count, " runs were compared: ", join([escape(one) for one in labels])]
    if flips is not None and found["p_value"].count():
        draws = _fact(run, "arch", ["compared permutations"], flips, "permutations of a test")
        pieces += ["; p values are those of at most ", draws, " permutations", Cite(("statistic:permutation",))]
    yield Sentence("compared", (*pieces, "."))


TESTED: tuple[Callable[[Gathered], Iterator[Sentence]], ...] = (
    _intervals, _confirmatory, _screen, _lists, _truth, _detector, _faults, _followed, _laws, _compared,
)  # fmt: skip
