"""LAMBADA: the last word of a passage, with the split and the figures of lm-evaluation-harness's lambada_openai."""

from collections.abc import Mapping, Sequence
from typing import Any

from esa.errors import DataError
from esa.eval.item_task import Item, ItemTask, text_of
from esa.eval.language_modeling import perplexity
from esa.eval.loglikelihood import Answer
from esa.eval.task_result import Figure, mean_figure


class Lambada(ItemTask):
    """Predict a passage's last word: the text up to its last space is the context, ``" " + word`` the continuation.

    ``acc``: share of passages whose every token of the word is the model's first choice. ``perplexity``: ``exp(-mean_n l_n)``,
    l_n the word's summed log-likelihood (nats, per word and not per token); its standard error by the delta method,
    ``perplexity * s(l) / sqrt(N)`` (the harness bootstraps). ``loglik``: the mean of the l_n. Rows: text.
    Source: Paperno et al., The LAMBADA dataset, ACL 2016, in OpenAI's detokenised form; lm-evaluation-harness (Gao et al.
    2021), task lambada_openai 1.0.
    """

    name = "lambada"
    source = "hf:EleutherAI/lambada_openai/default:test"

    def item(self, row: Mapping[str, Any], where: str) -> Item:
        """Return a passage as an item of one choice."""
        text = text_of(row, "text", where)
        context, _, word = text.rpartition(" ")
        if not word:
            raise DataError(f"ends with a space, not with a word: {text[-40:]!r}", where=where)
        return Item(context, (word,), 0)

    def values(self, item: Item, answers: Sequence[Answer]) -> dict[str, float | None]:
        """Return 1 or 0 for the greedy match, and the word's log-likelihood."""
        (answer,) = answers
        return {"acc": None if answer.loglik is None else float(answer.greedy), "loglik": answer.loglik}

    def figures(self, values: Sequence[Mapping[str, float | None]]) -> list[Figure]:
        """Return accuracy, perplexity and the mean log-likelihood."""
        acc, loglik = (mean_figure(metric, [one[metric] for one in values]) for metric in ("acc", "loglik"))
        _, mean, error = loglik
        found = perplexity(None if mean is None else -mean)
        spread = None if found is None or error is None else found * error
        return [acc, ("perplexity", found, spread), loglik]


TASK = Lambada()
