"""What the files of a paper's figures are called."""

from collections.abc import Sequence

from esa.report.figures import Figure


def figure_files(figures: Sequence[Figure]) -> list[tuple[str, Figure]]:
    """Return each figure with the name of its file: without the dots that TeX takes for a suffix, each name once."""
    found: dict[str, Figure] = {}
    for figure in figures:
        name, count = figure.name.replace(".", "_"), 1
        while f"{name}.pdf" in found:
            count += 1
            name = f"{figure.name.replace('.', '_')}_{count}"
        found[f"{name}.pdf"] = figure
    return list(found.items())
