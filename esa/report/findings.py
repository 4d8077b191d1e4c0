"""Sentences that follow from the artifacts: none is written unless a table holds what it says."""

from typing import Any

import polars as pl

from esa.report.frames import largest_k
from esa.report.gather import Gathered
from esa.report.markdown import code, escape, number, percent
from esa.report.tables import collapse, label, options_of, tally, worst_single

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
    sentences: list[str] = []
    if run.damage is not None:
        sentences += extent(run.damage)
        sentences += worst_sentence(worst_single(run.damage, run.ranking), run.num_parameters)
        sentences += group_sentences(run.damage)
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
        found.append(f"**No case raises the perplexity {beyond}**: {number(cases.height)} were measured.")
        top = cases["delta_nll"].max()
        if top is not None:
            found[0] += f" The largest change of the mean NLL is {number(float(top))} nats per token."  # type: ignore[arg-type]
    else:
        found.append(f"{number(harmed)} of {number(cases.height)} cases raise the perplexity {beyond}.")
    if counts["collapsed"] or counts["uniform"]:
        collapsed = counts["collapsed"] + counts["uniform"]
        found.append(f"{number(collapsed)} of {number(cases.height)} cases collapsed: perplexity over half the vocabulary.")
    if counts["nonfinite"]:
        found.append(
            f"{number(counts['nonfinite'])} of {number(cases.height)} cases ended with NaN or Inf in the logits (nonfinite):"
            " they have no perplexity and enter no mean."
        )
    return found


def worst_sentence(worst: pl.DataFrame, num_parameters: int | None) -> list[str]:
    """Say what the most harmful single weight does, or that none of those tried does anything."""
    if worst.is_empty():
        return []
    num_weights = worst["target"].n_unique()
    tried = f"{number(num_weights)} single weight{'s' if num_weights > 1 else ''} tried"
    share = f"One weight of {number(num_parameters)}" if num_parameters else "One weight"
    found = []
    broken = worst.filter(pl.col("outcome") == "nonfinite")
    if broken.height:
        row = broken.row(0, named=True)
        what = f"{share}, {_weight(row)}, {effect(row['method'], row['options'])}, leaves NaN or Inf in the logits"
        found.append(f"**{what}** ({number(broken['target'].n_unique())} of {tried} can do this).")
    finite = worst.filter(pl.col("delta_nll").is_not_null())
    if finite.is_empty():
        return found
    row = finite.row(0, named=True)
    if row["below_floor"] or row["delta_nll"] <= 0:
        why = "within the noise floor" if row["below_floor"] else "not a rise"
        found.append(
            f"None of the {tried} raises the perplexity when it alone is changed: the largest change of the mean NLL is"
            f" {number(row['delta_nll'])} nats per token, {why}."
        )
        return found
    after = f"from {number(row['ppl_base'])} to {_ppl(row['ppl'])}"
    ratio = f", {number(row['ratio'])} times" if row["ratio"] is not None else ""
    found.append(
        f"**{share}, {_weight(row)}, {effect(row['method'], row['options'])}, takes perplexity {after}{ratio}**"
        f" (delta NLL {number(row['delta_nll'])} nats per token; the most of {tried})."
    )
    return found


def group_sentences(damage: pl.DataFrame) -> list[str]:
    """Compare, for each method and metric, the top weights with the random and the bottom ones at every k."""
    rows = collapse(damage)
    found = []
    for (method, options, unit), part in rows.group_by(["method", "options", "unit"], maintain_order=True):
        metrics = part.filter(pl.col("group") == "top_k")["metric"].unique(maintain_order=True).to_list()
        for metric in metrics:
            own = part.filter(pl.col("metric").eq_missing(metric) | pl.col("metric").is_null())
            clauses = [
                clause
                for k in own.filter(pl.col("group") == "top_k")["k"].unique(maintain_order=True).to_list()
                if (clause := _compare(own.filter(pl.col("k") == k), k, str(unit) in _SINGLE))
            ]
            by = f" by {code(metric, cell=False)}" if metric is not None else ""
            alone = ", one weight at a time" if unit in _SINGLE else ""
            head = f"**{escape(label(str(method), options))}{by}{alone}.**"  # type: ignore[arg-type]
            found.append(f"{head} Perplexity {number(own['ppl_base'][0])} intact. {' '.join(clauses)}")
    return found


def _compare(rows: pl.DataFrame, k: int, alone: bool) -> str:
    """Return the sentence on one k: the top group's perplexity, then what the others do."""
    by_group = {row["group"]: row for row in rows.iter_rows(named=True)}
    top = by_group.get("top_k")
    if top is None:
        return ""
    parts = [f"Top {number(k)}: {_cell(top, alone)}"]
    others = [_NOUNS.get(group, group) for group in by_group if group != "top_k"]
    for group, noun in zip([group for group in by_group if group != "top_k"], others, strict=True):
        parts.append(f"{escape(noun)} {number(k)}: {_cell(by_group[group], alone)}")
    text = "; ".join(parts)
    random = by_group.get("random_k")
    if random is None or top["overflow"] or random["overflow"] or "nonfinite" in f"{top['outcome']} {random['outcome']}":
        return text + "."
    if top["ppl_mean"] is None or random["ppl_max"] is None:
        return text + "."
    verdict = "is above every random one" if top["ppl_mean"] > random["ppl_max"] else "is not above the largest random one"
    if top["below_floor"]:
        verdict = "is within the noise floor"
    return f"{text}. The top {number(k)} {verdict}."


def _cell(row: dict[str, Any], alone: bool) -> str:
    """Return ``104.8 (5.374 times)``, with the maximum where there are several cases, and what went wrong."""
    notes = []
    if row["outcome"] != "ok":
        notes.append(escape(row["outcome"]))
    if row["below_floor"] and row["ppl_mean"] is not None:
        notes.append("within the noise floor")
    if row["ppl_mean"] is None:
        return _ppl(None) + (f" ({', '.join(notes)})" if notes else "")
    notes.insert(0, f"{number(row['ratio'])} times")
    if row["cases"] == 1:
        return f"{number(row['ppl_mean'])} ({', '.join(notes)})"
    noun = "weights" if alone else "draws" if row["group"] == "random_k" else "cases"
    return (
        f"{number(row['ppl_mean'])} on average and {number(row['ppl_max'])} at most over {number(row['cases'])} {noun}"
        f" ({', '.join(notes)})"
    )


def restored_sentence(manifest: dict[str, Any]) -> list[str]:
    """Say whether the stored bits came back, where the step checked."""
    checksum = manifest.get("checksum")
    if not isinstance(checksum, dict) or "restored" not in checksum:
        return []
    if checksum["restored"]:
        return ["After the last case the model's stored bits had the checksum they had before the first."]
    return ["**The model's stored bits did not come back: the checksums before and after differ. Distrust these numbers.**"]


def agreement_sentences(overlap: pl.DataFrame) -> list[str]:
    """Say how far each metric agrees with itself between seeds, and which two metrics agree most and least."""
    rows = largest_k(overlap)
    if rows.is_empty():
        return []
    k = number(int(rows["k"][0]))
    found = []
    same = rows.filter((pl.col("metric_a") == pl.col("metric_b")) & (pl.col("seed_a") != pl.col("seed_b")))
    for (metric,), part in same.group_by(["metric_a"], maintain_order=True):
        chance = part["expected_jaccard"].mean()
        expected = f"; {number(float(chance))} by chance" if chance is not None else ""  # type: ignore[arg-type]
        pairs = f"{number(part.height)} pair{'s' if part.height > 1 else ''} of seeds"
        mean = number(float(part["jaccard"].mean()))  # type: ignore[arg-type]
        found.append(f"The top {k} by {code(metric, cell=False)} agree with Jaccard {mean} on average over {pairs}{expected}.")
    differ = rows.filter(pl.col("metric_a") != pl.col("metric_b"))
    means = differ.group_by("metric_a", "metric_b", maintain_order=True).agg(pl.col("jaccard").mean())
    means = means.filter(pl.col("jaccard").is_not_null()).sort("jaccard", descending=True, maintain_order=True)
    if means.height:
        most, least = means.row(0, named=True), means.row(-1, named=True)
        text = f"Of two metrics, the top {k} agree most for {_pair(most)}"
        found.append(text + (f" and least for {_pair(least)}." if means.height > 1 else "."))
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


def outcome_line(damage: pl.DataFrame) -> str:
    """Return how many cases ended how: ``60 ok, 3 nonfinite``."""
    cases = damage.unique("case", keep="first", maintain_order=True)
    text = tally(cases["outcome"].to_list())
    return text if text[:1].isdigit() else f"{cases.height} {text}"


def _weight(row: dict[str, Any]) -> str:
    value = f" (value {number(row['weight'])})" if row["weight"] is not None else ""
    return f"{code(row['target'], cell=False)}{value}"


def _ppl(value: float | None) -> str:
    return number(value) if value is not None else "no finite perplexity"


def _pair(row: dict[str, Any]) -> str:
    return f"{code(row['metric_a'], cell=False)} and {code(row['metric_b'], cell=False)} (Jaccard {number(row['jaccard'])})"
