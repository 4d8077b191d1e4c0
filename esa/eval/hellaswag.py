"""HellaSwag: which of four endings follows, with the preprocessing and the figures of lm-evaluation-harness."""

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from esa.eval.item_task import Item, ItemTask, number_of, text_of, texts_of
from esa.eval.loglikelihood import Answer
from esa.eval.task_result import Figure, mean_figure

_BRACKETS = re.compile(r"\[.*?\]")
_METRICS = ("acc", "acc_norm", "acc_bytes")


def preprocess(text: str) -> str:
    """Return a text of the data set without the marks of its WikiHow part, as lm-evaluation-harness does.

    Trimmed; ``" [title]"`` becomes ``". "``; what stands in brackets goes; two spaces become one, once, from left to right.
    """
    text = text.strip().replace(" [title]", ". ")
    return _BRACKETS.sub("", text).replace("  ", " ")


class HellaSwag(ItemTask):
    """Choose the ending that the model finds likeliest: ``argmax_i sum_t log p(y_it | query, y_i<t)``.

    query = ``activity_label + ": " + ctx_a + " " + ctx_b.capitalize()``; the ending follows a space. ``acc``: the argmax of
    the sums is gold; ``acc_norm``: of the sums over ``len(ending)`` characters; ``acc_bytes``: over its UTF-8 bytes. The first
    of equals wins. Standard errors are those of a mean over items, ``s / sqrt(N)``. Rows: activity_label, ctx_a, ctx_b,
    endings, label; or, preprocessed, query, choices, gold. Per item also ``loglik``, gold's sum.
    Source: Zellers et al., HellaSwag, ACL 2019; lm-evaluation-harness (Gao et al. 2021), task hellaswag 1.0.
    """

    name = "hellaswag"
    source = "hf:Rowan/hellaswag:validation"

    def item(self, row: Mapping[str, Any], where: str) -> Item:
        """Return a raw or a preprocessed row as an item."""
        if "query" in row:
            choices = texts_of(row, "choices", where)
            return Item(text_of(row, "query", where), choices, number_of(row, "gold", len(choices), where))
        context = text_of(row, "ctx_a", where) + " " + text_of(row, "ctx_b", where).capitalize()
        query = preprocess(text_of(row, "activity_label", where) + ": " + context)
        endings = tuple(preprocess(ending) for ending in texts_of(row, "endings", where))
        return Item(query, endings, number_of(row, "label", len(endings), where))

    def values(self, item: Item, answers: Sequence[Answer]) -> dict[str, float | None]:
        """Return 1 or 0 for each way to normalise, and gold's log-likelihood."""
        sums = [answer.loglik for answer in answers]
        known = [value for value in sums if value is not None]
        if len(known) < len(sums):
            return dict.fromkeys((*_METRICS, "loglik"))
        sizes = {
            "acc": [1] * len(known),
            "acc_norm": [len(choice) for choice in item.choices],
            "acc_bytes": [len(choice.encode()) for choice in item.choices],
        }
        found: dict[str, float | None] = {}
        for metric in _METRICS:
            # An ending of brackets alone is empty: the harness divides by zero and gets minus infinity.
            scores = [value / size if size else -math.inf for value, size in zip(known, sizes[metric], strict=True)]
            found[metric] = float(scores.index(max(scores)) == item.gold)
        return {**found, "loglik": known[item.gold]}

    def figures(self, values: Sequence[Mapping[str, float | None]]) -> list[Figure]:
        """Return the three accuracies and gold's mean log-likelihood."""
        return [mean_figure(metric, [one[metric] for one in values]) for metric in (*_METRICS, "loglik")]


TASK = HellaSwag()
