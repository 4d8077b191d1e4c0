"""HellaSwag: preprocessing of raw items, and which ending is chosen under which length."""

import math
from typing import Any

import pytest

from esa.errors import DataError
from esa.eval.hellaswag import TASK, preprocess
from esa.eval.item_task import Item
from esa.eval.loglikelihood import Answer
from tests.eval.hellaswag_items import CHOICES, QUERIES, RAW


@pytest.mark.parametrize("number", range(20))
def test_a_raw_item_becomes_what_the_harness_makes_of_it(number: int) -> None:
    """Query and choices of each item written by hand are those written out beside it."""
    item = TASK.item(RAW[number], "here")
    assert item.context == QUERIES[number]
    assert list(item.choices) == CHOICES[number]
    assert item.gold == int(RAW[number]["label"])


def test_the_items_by_hand_exercise_every_rule() -> None:
    """Among them are titles, brackets, double spaces, capitals to lower, and letters of several bytes."""
    raw = " ".join(str(value) for row in RAW for value in (row["ctx_a"], row["ctx_b"], *row["endings"]))
    assert all(mark in raw for mark in (" [title]", "[step]", "  ", "MEN", "é", "猫"))
    assert preprocess(" a [title] [b]  c ") == "a.  c"  # the pair that the bracket leaves behind is seen once


def test_a_preprocessed_row_is_the_same_item() -> None:
    """query, choices and gold are taken as they are: nothing is preprocessed twice."""
    row = {"query": "A: b [c]  d", "choices": ["e  f", "g"], "gold": 1}
    assert TASK.item(row, "") == Item("A: b [c]  d", ("e  f", "g"), 1)


def test_each_accuracy_divides_by_its_own_length() -> None:
    """acc takes the sum, acc_norm the sum per character, acc_bytes per UTF-8 byte: each may choose another ending."""
    item = Item("q", ("ab", "abcdefgh", "日本語"), 0)  # 2, 8 and 3 characters; 2, 8 and 9 bytes
    answers = [Answer(-3.0, False), Answer(-8.0, False), Answer(-3.6, False)]  # -1.5, -1, -1.2; per byte -1.5, -1, -.4
    for gold, expected in ((0, (1, 0, 0)), (1, (0, 1, 0)), (2, (0, 0, 1))):
        found = TASK.values(Item(item.context, item.choices, gold), answers)
        assert (found["acc"], found["acc_norm"], found["acc_bytes"]) == expected
        assert found["loglik"] == answers[gold].loglik


def test_ties_and_empty_endings() -> None:
    """Of equals the first wins, as argmax does; an ending of no character is the last by length."""
    tied = [Answer(-2.0, False), Answer(-2.0, False)]
    assert TASK.values(Item("q", ("ab", "cd"), 0), tied)["acc_norm"] == 1
    empty = TASK.values(Item("q", ("", "cd"), 0), tied)
    assert (empty["acc"], empty["acc_norm"], empty["acc_bytes"]) == (1, 0, 0)


def test_a_nonfinite_answer_is_no_answer() -> None:
    """One ending without a number leaves the item, and the figures, without: never a zero."""
    found = TASK.values(Item("q", ("a", "b"), 0), [Answer(-1.0, False), Answer(None, False)])
    assert set(found.values()) == {None}
    good = TASK.values(Item("q", ("a", "b"), 0), [Answer(-1.0, False), Answer(-2.0, False)])
    assert TASK.figures([found, good]) == [(name, None, None) for name in ("acc", "acc_norm", "acc_bytes", "loglik")]


def test_figures_by_hand() -> None:
    """The accuracies are means with the standard error s / sqrt(N)."""
    values = [{"acc": a, "acc_norm": 1.0, "acc_bytes": 0.0, "loglik": -2.0} for a in (1.0, 1.0, 0.0, 0.0)]
    found = {name: (value, error) for name, value, error in TASK.figures(values)}
    assert found["acc"] == pytest.approx((0.5, math.sqrt(1 / 3) / 2))
    assert found["acc_norm"] == (1.0, 0.0)
    assert found["acc_bytes"] == (0.0, 0.0)
    assert found["loglik"] == (-2.0, 0.0)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"ctx_a": None}, "has NoneType, not text, as 'ctx_a'; it has 'activity_label', 'ctx_a'"),
        ({"endings": ["one"]}, "'endings' is no list of two texts or more: ['one']"),
        ({"label": "4"}, "'label' is '4'; allowed: 0 to 3"),
        ({"label": ""}, "'label' is ''; allowed: 0 to 3"),
        ({"label": True}, "'label' is True; allowed: 0 to 3"),
    ],
)
def test_a_row_that_is_no_item_is_refused(change: dict[str, Any], said: str) -> None:
    """A missing text, a single ending, a label out of range (the test split has none): each is named with its value."""
    with pytest.raises(DataError) as caught:
        TASK.item({**RAW[0], **change}, "file:x.jsonl: item 3")
    assert str(caught.value).startswith("file:x.jsonl: item 3: ")
    assert said in str(caught.value)
