"""Errors name the line of a key: the line finder reads TOML as an editor shows it."""

import pytest

from esa.spec.lines import key_lines

CASES = {
    "keys under their tables": (
        'name = "x"\n\n[model]\n# id = "y"\nid = "z"\n[score]\nkeep = 1',
        {("name",): 1, ("model",): 3, ("model", "id"): 5, ("score",): 6, ("score", "keep"): 7},
    ),
    "an array over several lines": (
        "[rank]\nk = [\n  1,  # [\n  2,\n]\ndraws = 3",
        {("rank",): 1, ("rank", "k"): 2, ("rank", "draws"): 6},
    ),
    "brackets in the strings of an array": (
        'a = [\n  "]", \'[\', "\\"[",\n  "=",\n]\nb = 1',
        {("a",): 1, ("b",): 5},
    ),
    "a string over several lines, with a bracket and what looks like a table": (
        'a = """What [is\n[model]\nid = 1\nthis?"""\nb = 1',
        {("a",): 1, ("b",): 5},
    ),
    "a literal string over several lines": ("a = '''\n[x]\n'''\nb = 1", {("a",): 1, ("b",): 4}),
    "three quotes on one line": ('a = """one"""\nb = \'\'\'two\'\'\'\nc = ""\nd = 1', {("a",): 1, ("b",): 2, ("c",): 3, ("d",): 4}),
    "three quotes in a comment": ('# """\na = 1  # \'\'\'\nb = 2', {("a",): 2, ("b",): 3}),
    "strings over several lines in an array": ('a = ["""x\n""", """y\n]""",\n]\nb = 1', {("a",): 1, ("b",): 5}),
    "an inline table over one line": ("a = {x = 1, y = [2]}\nb = 1", {("a",): 1, ("b",): 2}),
    "tables in a list": (
        "[[perturb]]\nsigma = 1\n[[perturb]]  # the second\nsigma = 2\n[eval]\nbos = true",
        {
            ("perturb", 0): 1, ("perturb", 0, "sigma"): 2, ("perturb", 1): 3, ("perturb", 1, "sigma"): 4,
            ("eval",): 5, ("eval", "bos"): 6,
        },
    ),
    "dotted and quoted keys": (
        '[sweep]\nscore.seeds = [1]\n"eval.length" = [2]\n[model.shape]\nsize = 1',
        {
            ("sweep",): 1, ("sweep", "score", "seeds"): 2, ("sweep", "eval", "length"): 3,
            ("model", "shape"): 4, ("model", "shape", "size"): 5,
        },
    ),
    "line ends of Windows": ("a = 1\r\n[b]\r\nc = 2\r\n", {("a",): 1, ("b",): 2, ("b", "c"): 3}),
    "a line separator inside a string is no line end": ('a = "x\u2028y"\nb = 1', {("a",): 1, ("b",): 2}),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_every_key_has_the_line_it_stands_on(case: str) -> None:
    """Each key path maps to the line of its key, whatever its value looks like."""
    text, expected = CASES[case]
    assert key_lines(text) == expected


def test_nothing_has_no_lines() -> None:
    """An empty text and comments alone hold no key."""
    assert key_lines("") == {}
    assert key_lines("# a = 1\n\n") == {}
