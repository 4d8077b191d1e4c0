"""What is printed of a campaign's claims: the confirmatory test in a sentence, the screen in a line, and what broke."""

from pathlib import Path

import pytest

from esa.artifact import make_table, write_table
from esa.cli.claims import print_claims
from esa.perturb.evidence.claims import claim_rows
from esa.perturb.evidence.effects import Windows, effects
from tests.perturb.test_claims import campaign, spec


def said(broken: set[str], folder: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """Return what is printed of a planted campaign of which some cases left NaN."""
    rows, windows = campaign(0.3, draws=39)
    found = Windows(windows.base, windows.num_tokens, {**windows.nll, **dict.fromkeys(broken)})
    confirm = {"metric": "act_mag", "k": 5, "draws": 39}
    tests = make_table("tests/1", claim_rows("r", effects(rows, found), spec(confirm=confirm), 1e-3))
    write_table(tests, folder / "tests.csv")
    print_claims(folder / "tests.csv")
    return " ".join(capsys.readouterr().err.split())


def test_the_claims_are_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A confirmed test says its p and against how many draws, and the screen how many claims hold."""
    text = said(set(), tmp_path, capsys)
    assert "p = 0.025 among 39 random draws, the smallest there can be 0.025: it holds at 0.05" in text
    assert "times the largest random draw or noise;" in text
    assert "hurts: 2 of 3" in text
    assert "NaN" not in text


def test_what_broke_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A change that left NaN is in no test of windows, and is not passed over in silence: even where it is all there is."""
    text = said({"t"}, tmp_path, capsys)
    assert "zero of act_mag's top 5 broke the model; p = 0.025" in text
    assert "Left NaN or infinite logits, which no test of windows counts: 1 of 3." in text
    assert "hurts: 1 of 2" in text
    assert "counts: 3 of 3." in said({"t", "b", "m"}, tmp_path, capsys)
