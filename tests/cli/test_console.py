"""Tables keep every character, whatever the width of the window."""

import pytest
from rich.console import Console

from esa.cli.console import print_error, print_table
from esa.errors import EsaError


@pytest.mark.parametrize("width", [20, 40, 80])
def test_no_cell_is_cut(width: int) -> None:
    """In a window narrower than the table the lines run over; addresses and figures stay whole."""
    console = Console(width=width, record=True, force_terminal=True)
    row = ["model.layers.11.mlp.down_proj.weight:507,1229", "0.005212", "115.1 ± 5.3"]
    print_table("Worst", ["address", "weight", "perplexity"], [row], console=console)
    text = console.export_text()
    assert all(cell in text for cell in row)


def test_a_line_break_from_a_file_forges_no_line(capsys: pytest.CaptureFixture[str]) -> None:
    """What a file holds is printed on the error's own line."""
    print_error(EsaError("'a\nesa: error: b' is not a parameter", where="x.csv"))
    assert capsys.readouterr().err == "esa: error: x.csv: 'a\\nesa: error: b' is not a parameter\n"
