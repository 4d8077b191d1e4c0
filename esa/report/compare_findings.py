"""Sentences about several runs that follow from their tables: none is written unless the numbers say it."""

import itertools
from collections.abc import Sequence
from typing import Any

import polars as pl

from esa.artifact.gather import Gathered
from esa.artifact.places import fingerprint
from esa.report.compare_frames import same_metric, top_lists, top_overlaps
from esa.report.compare_notes import names
from esa.report.comparison import Comparison, windows
from esa.report.findings import against_random, is_above
from esa.report.markdown import code, escape, join, number
from esa.report.tables import label as effect_label
from esa.report.tables import worst_single

Effect = tuple[str, str | None]  # a method and its options


def shared_findings(comparison: Comparison) -> list[str]:
    """Return what the runs show together, most important first: Markdown sentences."""
    return [
        *worst_sentences(comparison),
        *random_sentences(comparison),
        *intact_sentence(comparison),
        *list_sentences(comparison),
        *repeated_cases(comparison),
    ]


def worst_sentences(comparison: Comparison) -> list[str]:
    """Say, per method, whether the same weight is the worst single one tried, among runs whose addresses compare."""
    found = []
    worst = {label: by_effect(run) for label, run in comparison.pairs}
    for effect in dict.fromkeys(effect for parts in worst.values() for effect in parts):
        for group in comparison.places:
            parts = {comparison.labels[n]: worst[comparison.labels[n]].get(effect) for n in group}
            tried = {label: part for label, part in parts.items() if part is not None}
            if len(tried) > 1:
                found.append(_worst_sentence(effect, tried))
    return found


def by_effect(run: Gathered) -> dict[Effect, pl.DataFrame]:
    """Return the single weights that a run perturbed alone, the most harmful first, per method and options."""
    if run.damage is None:
        return {}
    worst = worst_single(run.damage, run.ranking)
    parts = worst.partition_by("method", "options", as_dict=True, maintain_order=True)
    order = run.damage.select("method", "options").unique(maintain_order=True).rows()
    return {(str(method), options): parts[method, options] for method, options in order if (method, options) in parts}


def _worst_sentence(effect: Effect, tried: dict[str, pl.DataFrame]) -> str:
    head, runs = escape(effect_label(*effect)), len(tried)
    tops = {label: row for label, part in tried.items() if is_harmful(row := part.row(0, named=True))}
    if not tops:
        return f"{head}: no single weight raises the perplexity in any of {runs} runs."
    targets = [row["target"] for row in tops.values()]
    most = max(dict.fromkeys(targets), key=targets.count)
    count = targets.count(most)
    others = [label for label in tops if tops[label]["target"] != most]
    if count == 1:
        each = [
            f"{code(row['target'], cell=False)} in {code(label, cell=False)} ({_factor(row)})"
            for label, row in tops.items()
        ]
        text = f"**{head}: the worst single weight is another in each of {runs} runs**: {join(each)}."
    else:
        same = [label for label in tops if tops[label]["target"] == most]
        text = (
            f"**{head}: the same weight, {code(most, cell=False)}, is the worst single one in {count} of {runs} runs**:"
            f" {_factors({label: tops[label] for label in same})}."
        )
        for label in others:
            known = most in tried[label]["target"].to_list()
            text += f" In {code(label, cell=False)} it is {code(tops[label]['target'], cell=False)} ({_factor(tops[label])})"
            text += "." if known else "; the other was not tried there."
    unharmed = [label for label in tried if label not in tops]
    return text + (f" In {names(unharmed)} no single weight raises the perplexity." if unharmed else "")


def _factors(rows: dict[str, dict[str, Any]]) -> str:
    if all(row["ratio"] is not None for row in rows.values()):
        return f"perplexity over intact {_by_value({label: number(row['ratio']) for label, row in rows.items()})}"
    return _by_value({label: _factor(row) for label, row in rows.items()})


def _by_value(shown: dict[str, str]) -> str:
    """Return what each run shows, runs that show the same together: ``8.647 times in a and b; 7.912 times in c``."""
    labels: dict[str, list[str]] = {}
    for label, text in shown.items():
        labels.setdefault(text, []).append(label)
    return "; ".join(f"{text} in {names(found)}" for text, found in labels.items())


def is_harmful(row: dict[str, Any]) -> bool:
    """Tell whether a single weight breaks the logits, or raises the mean NLL by more than the noise floor."""
    return row["outcome"] == "nonfinite" or (not row["below_floor"] and (row["delta_nll"] or 0) > 0)


def _factor(row: dict[str, Any]) -> str:
    if row["outcome"] == "nonfinite":
        return "nonfinite logits"
    return f"{number(row['ratio'])} times" if row["ratio"] is not None else "no finite perplexity"


def random_sentences(comparison: Comparison) -> list[str]:
    """Say, per method and run, in how many comparisons the top weights do more harm than every random draw of as many."""
    counts: dict[Effect, dict[str, tuple[int, int]]] = {}
    for label, run in comparison.pairs:
        for method, options, pairs in against_random(run.damage) if run.damage is not None else ():
            above = sum(bool(is_above(top, random)) for top, random in pairs)
            counts.setdefault((method, options), {})[label] = (above, len(pairs))
    found = []
    for effect, by_run in counts.items():
        if len(by_run) < 2:
            continue
        head = f"**{escape(effect_label(*effect))}: the top weights do more harm than every random draw of as many"
        each = join(
            [
                f"{number(above)} of {number(total)} in {code(label, cell=False)}"
                for label, (above, total) in by_run.items()
            ]
        )
        if all(above == total for above, total in by_run.values()):
            found.append(f"{head} in every comparison of {len(by_run)} runs** ({each}).")
        elif not any(above for above, _ in by_run.values()):
            found.append(f"{head} in no comparison of {len(by_run)} runs** ({each}).")
        else:
            found.append(f"{head} in some comparisons of {len(by_run)} runs** ({each}).")
    return found


def intact_sentence(comparison: Comparison) -> list[str]:
    """Say whether the intact perplexities agree, to the digits shown."""
    rows = {label: run.damage.row(0, named=True) for label, run in comparison.pairs if run.damage is not None}
    if len(rows) < 2:
        return []
    shown = {label: number(row["ppl_base"]) for label, row in rows.items()}
    if len(set(shown.values())) == 1:
        return [f"The intact perplexity is {next(iter(shown.values()))} in each of {len(rows)} runs."]
    return [f"The intact perplexity differs: {_by_value(shown)}."]


def list_sentences(comparison: Comparison) -> list[str]:
    """Say how far the runs' top weights of one metric agree, at the largest k that two runs share."""
    overlaps = same_metric(top_overlaps(top_lists(comparison)))
    if overlaps.is_empty():
        return []
    rows = overlaps.filter(pl.col("k") == pl.col("k").max().over("metric_a"))
    found = []
    for (k,), same_k in rows.group_by(["k"], maintain_order=True):
        parts = []
        for (metric,), part in same_k.group_by(["metric_a"], maintain_order=True):
            low, high = number(float(part["jaccard"].min())), number(float(part["jaccard"].max()))  # type: ignore[arg-type]
            pairs = "" if part.height == 1 else f" over {part.height} pairs of runs"
            parts.append(f"{low if low == high else f'{low} to {high}'} by {code(metric, cell=False)}{pairs}")
        found.append(f"Between runs, the top {number(int(k))} of the first seed agree with Jaccard {join(parts)}.")
    return found


def repeated_cases(comparison: Comparison) -> list[str]:
    """Say how well cases agree that several runs measured: the same method and weights, model and windows.

    Runs that share one perturb step are one measurement and left out.
    """
    shared: set[str] = set()
    largest, pairs = 0.0, 0
    for (_, one), (_, two) in itertools.combinations(comparison.pairs, 2):
        if one.damage is None or two.damage is None or not _same_setting(one, two):
            continue
        a, b = (run.damage.select("case", "nll").drop_nulls().unique("case", keep="first") for run in (one, two))  # type: ignore[union-attr]
        both = a.join(b, on="case", how="inner", suffix="_b")
        if both.height:
            pairs += 1
            shared |= set(both["case"])
            largest = max(largest, float((both["nll"] - both["nll_b"]).abs().max()))  # type: ignore[arg-type]
    if not shared:
        return []
    many = len(shared) > 1
    what = f"{number(len(shared))} case{'s' if many else ''} (same method and weights, model and windows)"
    what += f" {'were' if many else 'was'} measured in more than one run:"
    if largest == 0:
        return [f"{what} the mean NLL agrees to the last bit."]
    return [f"{what} the mean NLL differs by {number(largest)} nats per token at most."]


def _same_setting(one: Gathered, two: Gathered) -> bool:
    same_model = fingerprint(one) is not None and fingerprint(one) == fingerprint(two)
    texts = windows(one, "perturb")
    apart = one.inputs.get("perturb") != two.inputs.get("perturb")
    return bool(same_model and texts and texts == windows(two, "perturb") and apart and _form(one) == _form(two))


def _form(run: Gathered) -> Sequence[Any]:
    """Return how the perturb step stored the model and computed with it."""
    model = run.manifests["perturb"].get("model") or {}
    return [model.get(key) for key in ("dtype", "compute", "quantization")]
