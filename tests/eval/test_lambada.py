"""LAMBADA: the split of a passage, and its figures."""

import math

import pytest

from esa.errors import DataError
from esa.eval.item_task import Item
from esa.eval.lambada import TASK
from esa.eval.loglikelihood import Answer


def test_the_last_word_stands_behind_the_last_space() -> None:
    """Context and word join with one space to the passage; line ends and quotes stay where they are."""
    assert TASK.item({"text": 'He said:\n\n"go to the\nlast word'}, "") == Item(
        'He said:\n\n"go to the\nlast', ("word",), 0
    )
    assert TASK.item({"text": "two  spaces"}, "") == Item("two ", ("spaces",), 0)
    assert TASK.item({"text": "alone"}, "") == Item("", ("alone",), 0)


def test_figures_by_hand() -> None:
    """acc counts greedy matches, perplexity is exp of minus the mean, its error by the delta method."""
    answers = [Answer(-1.0, True), Answer(-3.0, False)]
    values = [TASK.values(Item("a", ("b",), 0), [answer]) for answer in answers]
    found = {name: (value, error) for name, value, error in TASK.figures(values)}
    assert found["acc"] == pytest.approx((0.5, 0.5))
    assert found["loglik"] == pytest.approx((-2.0, 1.0))
    assert found["perplexity"] == pytest.approx((math.exp(2), math.exp(2)))


def test_a_perplexity_that_overflows_is_null() -> None:
    """exp of more than 709 nats is no number; accuracy and log-likelihood stay."""
    values = [TASK.values(Item("a", ("b",), 0), [Answer(-800.0, False)])]
    assert TASK.figures(values) == [("acc", 0.0, None), ("perplexity", None, None), ("loglik", -800.0, None)]


def test_nonfinite_answers_are_null() -> None:
    """An answer without a number is no wrong answer."""
    values = [TASK.values(Item("a", ("b",), 0), [Answer(None, False)])]
    assert TASK.figures(values) == [("acc", None, None), ("perplexity", None, None), ("loglik", None, None)]


def test_a_passage_without_a_last_word_is_refused() -> None:
    """A text that ends with a space has no last word; the end of it is shown."""
    with pytest.raises(DataError, match=r"item 0: ends with a space, not with a word: 'no word '"):
        TASK.item({"text": "no word "}, "item 0")
