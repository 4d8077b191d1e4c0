"""Sentences that follow from the artifacts: none is written unless a table holds what it says."""

from collections.abc import Iterator
from typing import Any

import polars as pl

from esa.artifact.gather import Gathered
from esa.report.evidence.claims import confirmatory_sentences
from esa.report.frames import largest_k
from esa.report.markdown import code, escape, join, number, percent
from esa.report.tables import collapse, label, options_of, worst_single

_SINGLE = {"single", "leave_one_out"}
_EFFECTS = {
    "zero": "set to zero",
    "mean": "set to the mean of its {over}",
    "scale": "multiplied by {factor}",
    "sign_flip": "with its sign flipped, times {factor}",
    "gauss_noise": "with Gaussian noise of {sigma} ({relative_to}) added",
}
_NOUNS = {"random_k": "random", "top_k": "top", "bottom_k": "bottom", "matched_k": "matched"}


def findings(run: Gathered) -> list[str]:
    """Return the finding, most important first: Markdown sentences, each computed from the tables of ``run``."""
    sentences = confirmatory_sentences(run.table("perturb", "tests/1"))
    if (plain := run.plain_damage) is not None:
        sentences += worst_sentences(plain, worst_single(plain, run.ranking), run.num_parameters)
        sentences += comparison_sentences(plain)
    if run.damage is not None:
        sentences += extent(run.damage)
        sentences += restored_sentence(run.manifests["perturb"])
    if run.overlap is not None:
        sentences += agreement_sentences(run.overlap)
    return sentences


def extent(damage: pl.DataFrame) -> list[str]:
    """Say how many cases were measured, how many did harm, and how small a change can be told from none."""
    cases = damage.unique("case", keep="first", maintain_order=True)
    floor = cases["noise_floor"].drop_nulls().max()
    limit = float(floor) if floor is not None else 0.0  # type: ignore[arg-type]
    harmed = int((cases["delta_nll"] > limit).sum())
    counts = {name: int((cases["outcome"] == name).sum()) for name in ("collapsed", "uniform", "nonfinite")}
    beyond = f"by more than the noise floor of {number(limit)} nats per token" if floor is not None else "at all"
    found = []
    if not harmed and not counts["nonfinite"]:
        found.append(f"**No case of {number(cases.height)} raises the perplexity: none raises the mean NLL {beyond}.**")
        top = cases["delta_nll"].max()
        if top is not None and float(top) > 0:  # type: ignore[arg-type]
            found[0] += f" The largest rise of the mean NLL is {number(float(top))} nats per token."  # type: ignore[arg-type]
    else:
        found.append(f"{number(harmed)} of {number(cases.height)} cases raise the mean NLL {beyond}.")
    if counts["collapsed"] or counts["uniform"]:
        collapsed = counts["collapsed"] + counts["uniform"]
        found.append(
            f"{number(collapsed)} of {number(cases.height)} cases collapsed: perplexity over half the vocabulary."
        )
    if counts["nonfinite"]:
        found.append(
            f"{number(counts['nonfinite'])} of {number(cases.height)} cases ended with NaN or Inf in the logits (nonfinite):"
            " they have no perplexity and enter no mean."
        )
    return found


def worst_sentences(damage: pl.DataFrame, worst: pl.DataFrame, num_parameters: int | None) -> list[str]:
    """Say, per method in the order of ``damage``, what the most harmful single weight does, or that none does anything."""
    parts = dict(worst.partition_by("method", "options", as_dict=True, maintain_order=True))
    order = damage.select("method", "options").unique(maintain_order=True).rows()
    return [_worst_sentence(parts[method], num_parameters) for method in order if method in parts]


def _worst_sentence(worst: pl.DataFrame, num_parameters: int | None) -> str:
    """Return the sentence on one method: ``worst`` holds its single weights, the most harmful first."""
    num_weights = worst["target"].n_unique()
    tried = f"{number(num_weights)} single weight{'s' if num_weights > 1 else ''} tried"
    row = worst.row(0, named=True)
    changed = effect(row["method"], row["options"])
    share = f"One weight of {number(num_parameters)}" if num_parameters else "One weight"
    what = f"{share}, {_weight(row)}, {changed}"
    if row["outcome"] == "nonfinite":
        broken = worst.filter(pl.col("outcome") == "nonfinite")["target"].n_unique()
        return f"**{what}, leaves NaN or Inf in the logits** (the case for {number(broken)} of {tried})."
    delta = f"{number(row['delta_nll'])} nats per token"
    if row["below_floor"] or (row["delta_nll"] or 0) <= 0:
        floor = ", within the noise floor" if row["below_floor"] else ""
        rise = f"rises by {delta} at most{floor}" if (row["delta_nll"] or 0) > 0 else f"rises for none{floor}"
        return f"Of {tried}, each {changed}, none raises the perplexity: the mean NLL {rise}."
    ratio = f", {number(row['ratio'])} times" if row["ratio"] is not None else ""
    after = f"takes perplexity from {number(row['ppl_base'])} to {_ppl(row['ppl'])}{ratio}"
    return f"**{what}, {after}** (delta NLL {delta}; the most of {tried})."


def comparison_sentences(damage: pl.DataFrame) -> list[str]:
    """Say, per method, in how many of the comparisons the top weights do more harm than every random draw of as many.

    A comparison is one metric and one k, the weights together; one without a finite perplexity on either side is left out.
    """
    found = []
    for method, options, pairs in against_random(damage):
        above = [top for top, random in pairs if is_above(top, random)]
        metrics = join(list(dict.fromkeys(code(top["metric"], cell=False) for top, _ in pairs)))
        ks = join([number(k) for k in dict.fromkeys(top["k"] for top, _ in pairs)])
        where = f"({metrics}; k = {ks})"
        head = escape(label(method, options))
        one, total = len(pairs) == 1, number(len(pairs))
        if above:
            count = "the one comparison there is" if one else f"{number(len(above))} of {total} comparisons"
            text = f"**{head}: the top weights do more harm than every random draw of as many in {count}** {where}."
        elif one:
            text = (
                f"**{head}: in the one comparison there is, the top weights do no more harm than random ones** {where}."
            )
        else:
            text = (
                f"**{head}: in none of {total} comparisons do the top weights do more harm than random ones** {where}."
            )
        most, least = (pick(top["ratio"] for top, _ in pairs) for pick in (max, min))
        largest = max(random["ppl_max"] / random["ppl_base"] for _, random in pairs)
        between = number(most) if number(most) == number(least) else f"{number(least)} to {number(most)}"
        found.append(f"{text} Perplexity over intact: top {between}, random {number(largest)} at most.")
    return found


def against_random(
    damage: pl.DataFrame,
) -> Iterator[tuple[str, str | None, list[tuple[dict[str, Any], dict[str, Any]]]]]:
    """Yield, per method, its comparisons: the rows of the top weights and of as many random ones, see :func:`collapse`."""
    rows = collapse(damage).filter(pl.col("unit") == "joint")
    for (method, options), part in rows.group_by(["method", "options"], maintain_order=True):
        tops = part.filter(pl.col("group") == "top_k")
        pairs = []
        for top in tops.iter_rows(named=True):
            own = part.filter(
                (pl.col("group") == "random_k")
                & (pl.col("k") == top["k"])
                & (pl.col("metric").eq_missing(top["metric"]) | pl.col("metric").is_null())
            )
            if own.height and is_above(top, random := own.row(0, named=True)) is not None:
                pairs.append((top, random))
        if pairs:
            yield str(method), options, pairs


def is_above(top: dict[str, Any], random: dict[str, Any] | None) -> bool | None:
    """Tell whether the top weights' perplexity is above the largest random one's and the noise; None where one is missing."""
    if random is None or top["ppl_max"] is None or random["ppl_max"] is None or "nonfinite" in top["outcome"]:
        return None
    found = top["ppl_max"] if top["unit"] in _SINGLE else top["ppl_mean"]
    return bool(not top["below_floor"] and found > random["ppl_max"])


def group_sentences(damage: pl.DataFrame) -> list[str]:
    """Compare, for each method and metric, the top weights with the random and the bottom ones: a line per k."""
    rows = collapse(damage)
    found = []
    for (method, options, unit), part in rows.group_by(["method", "options", "unit"], maintain_order=True):
        alone = unit in _SINGLE
        tops = part.filter(pl.col("group") == "top_k")
        for metric in tops["metric"].unique(maintain_order=True).to_list():
            own = part.filter(pl.col("metric").eq_missing(metric) | pl.col("metric").is_null())
            by = f" by {code(metric, cell=False)}" if metric is not None else ""
            how = "one weight at a time" if alone else "k weights together"
            head = f"**{escape(label(str(method), options))}, top weights{by}**, {how};"
            head += f" intact perplexity {number(own['ppl_base'][0])}:"
            ks = own.filter(pl.col("group") == "top_k")["k"].unique(maintain_order=True).to_list()
            lines = [f"  - {_compare(own.filter(pl.col('k') == k), k, alone)}" for k in ks]
            found.append("\n".join([head, *lines]))
    return found


def _compare(rows: pl.DataFrame, k: int, alone: bool) -> str:
    """Return the line on one k: the top group's perplexity, what the others do, and whether it is above the random."""
    by_group = {row["group"]: row for row in rows.iter_rows(named=True)}
    top, random = by_group["top_k"], by_group.get("random_k")
    others = [
        f"{escape(_NOUNS.get(group, group))} {_cell(row, alone)}" for group, row in by_group.items() if row is not top
    ]
    text = "; ".join([f"{'' if alone else f'k = {number(k)}: '}{_cell(top, alone)}", *others]) + "."
    above = is_above(top, random)
    if above is None:
        return text
    if top["below_floor"]:
        return f"{text} The top stays within the noise floor."
    return f"{text} {'Above every random one.' if above else 'Not above the largest random one.'}"


def _cell(row: dict[str, Any], alone: bool) -> str:
    """Return ``104.8 (5.374 times)``, with the spread where there are several cases, and what went wrong."""
    notes = [] if row["ratio"] is None or row["below_floor"] else [f"{number(row['ratio'])} times"]
    notes += ["within the noise floor"] if row["below_floor"] else []
    notes += [escape(row["outcome"])] if row["outcome"] != "ok" else []
    shown = _ppl(row["ppl_mean"])
    if row["cases"] > 1:
        noun = "weights" if alone else "draws" if row["draws"] == row["cases"] else "cases"
        among = number(row["cases"]) if row["measured"] == row["cases"] else f"{row['measured']} of {row['cases']}"
        same = row["ppl_mean"] is None or number(row["ppl_min"]) == number(row["ppl_max"])
        most = "" if same else f" on average, {number(row['ppl_max'])} at most"
        shown += f"{most} over {among} {noun}"
    return shown + (f" ({', '.join(notes)})" if notes else "")


def restored_sentence(manifest: dict[str, Any]) -> list[str]:
    """Say whether the stored bits came back, where the step checked."""
    checksum = manifest.get("checksum")
    if not isinstance(checksum, dict) or "restored" not in checksum:
        return []
    if checksum["restored"]:
        return ["After the last case the model's stored bits had the checksum they had before the first."]
    return [
        "**The model's stored bits did not come back: the checksums before and after differ. Distrust these numbers.**"
    ]


def agreement_sentences(overlap: pl.DataFrame) -> list[str]:
    """Say how far each metric agrees with itself between seeds, and which two metrics agree most and least."""
    rows = largest_k(overlap)
    if rows.is_empty():
        return []
    k = number(int(rows["k"][0]))
    found = []
    same = rows.filter((pl.col("metric_a") == pl.col("metric_b")) & (pl.col("seed_a") != pl.col("seed_b")))
    means = same.group_by("metric_a", maintain_order=True).agg(
        pl.col("jaccard").mean(), pl.col("expected_jaccard").mean().alias("chance"), pl.len().alias("pairs")
    )
    for (pairs, chance), part in means.group_by(["pairs", "chance"], maintain_order=True):
        each = [
            f"{number(row['jaccard'])} by {code(row['metric_a'], cell=False)}" for row in part.iter_rows(named=True)
        ]
        by_chance = f"; {number(float(chance))} by chance" if chance is not None else ""
        over = f"mean over {number(int(pairs))} pair{'s' if int(pairs) > 1 else ''} of seeds{by_chance}"
        found.append(f"Between seeds, the top {k} agree with Jaccard {join(each)} ({over}).")
    differ = rows.filter(pl.col("metric_a") != pl.col("metric_b"))
    means = differ.group_by("metric_a", "metric_b", maintain_order=True).agg(pl.col("jaccard").mean())
    means = means.filter(pl.col("jaccard").is_not_null()).sort("jaccard", descending=True, maintain_order=True)
    if means.height:
        most, least = means.row(0, named=True), means.row(-1, named=True)
        if number(most["jaccard"]) == number(least["jaccard"]):
            pairs = _pair(most) if means.height == 1 else f"any two alike (Jaccard {number(most['jaccard'])})"
            found.append(f"Between metrics, agreement of the top {k}: {pairs}.")
        else:
            found.append(f"Between metrics, the top {k} agree most for {_pair(most)} and least for {_pair(least)}.")
    return found


def share_sentences(shares: pl.DataFrame, by: str) -> list[str]:
    """Name, per metric, the component or block with the largest share of all score, and its share of the weights."""
    found = []
    for (metric,), part in shares.group_by(["metric"], maintain_order=True):
        row = part.sort("score_share", descending=True, maintain_order=True).row(0, named=True)
        place = f"block {row[by]}" if by == "block" and row[by] is not None else escape(row[by] or "outside the blocks")
        held = f"{percent(row['score_share'])} of all score in {percent(row['weight_share'])} of the weights"
        found.append(f"{code(metric, cell=False)}: most in {place}, {held}.")
    return found


def effect(method: str, options: str | None) -> str:
    """Return what a method does to a weight, in words: ``set to zero``."""
    known = options_of(options)
    if method == "bit_flip":
        if "bit" in known:
            return f"with bit {known['bit']} flipped"
        if "bits" in known:
            return f"with {known['bits']} random bits flipped"
        return f"with each bit flipped with probability {known.get('prob', 'unknown')}"
    if method == "sign_flip" and known.get("factor", 1.0) == 1.0:
        return "with its sign flipped"
    try:
        return escape(_EFFECTS[method].format(**known))
    except (KeyError, IndexError):
        return f"under {escape(label(method, options))}"


def _weight(row: dict[str, Any]) -> str:
    value = f" (value {number(row['weight'])})" if row["weight"] is not None else ""
    return f"{code(row['target'], cell=False)}{value}"


def _ppl(value: float | None) -> str:
    return number(value) if value is not None else "no finite perplexity"


def _pair(row: dict[str, Any]) -> str:
    return f"{code(row['metric_a'], cell=False)} and {code(row['metric_b'], cell=False)} (Jaccard {number(row['jaccard'])})"
