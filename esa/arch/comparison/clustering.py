"""Do critical weights cluster: share of the top K that lie in a row or column with another, against chance in their tensors."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import polars as pl

from esa.arch.comparison.findings import Found, Options, Row, compared
from esa.arch.comparison.sources import Labelled, Stored
from esa.spec import generator
from esa.statistics.permutation import monte_carlo_p, smallest_monte_carlo_p

QUESTION = "clustering"
AXES = ("output", "input")
SHARES_INPUTS = ("act_mag", "wanda")  # abs(w) times a factor of the input alone
_FACTOR = "all weights of an input share a factor of this score by definition: its activation, or a token's frequency"
_NULL = "as many weights of each tensor at random"
_BLOCK = 2_000_000  # cells drawn at once

Ints = npt.NDArray[np.int64]


def compare(runs: Sequence[Labelled], options: Options) -> Found:
    """Return ``comparison/1`` rows: how many of the K highest weights share an output or an input with another of them.

    Output and input are those of the linear map, whichever axis of the stored tensor they are (an expert's are its
    own). ``share_with_another``: of the top list of the first score seed, the share whose output (input) holds another
    one; ``share_in_fullest``: of the K, those in the one output (input) that holds most. Null: within every tensor
    as many weights as the list has of it, drawn without replacement; n of them in a tensor of N weights, C per line::

        expected share = sum over tensors n (1 - C(N - C, n - 1) / C(N - 1, n - 1)) / K        (binomial coefficients)

    exactly; of the fullest, the mean of the draws. p: Monte Carlo, one-sided (more than chance). Weights of tensors
    whose axes are not known are left out, and ``why`` says how many; where all scores of an input share a factor by definition
    (``act_mag``, ``wanda``: its activation), it says that. Cost: ``permutations`` * K draws.
    """
    rows: list[Row] = []
    for run in runs:
        for metric in (name for name in options.metrics if name in run.metrics):
            top = run.top(metric, options.k) if options.k is not None else None
            if top is None:
                why = "no ranking" if run.run.ranking is None else "no list of single weights by this metric"
                rows.append(compared(QUESTION, run.label, metric, "output", "share_with_another", why=why))
                continue
            rows += _clustered(run, metric, top, options)
    return Found({"comparison/1": rows}, adjust=frozenset({QUESTION}))


@dataclass(frozen=True)
class Grid:
    """A tensor as experts x outputs x inputs, and the cells of it that are in the list, ascending."""

    num_experts: int
    num_outputs: int
    num_inputs: int
    cells: Ints

    @property
    def size(self) -> int:
        """Return the number of weights."""
        return self.num_experts * self.num_outputs * self.num_inputs

    def lines(self, cells: Ints, axis: str) -> Ints:
        """Return the output or the input of every cell, experts apart."""
        if axis == "output":
            return cells // self.num_inputs
        return cells // (self.num_outputs * self.num_inputs) * self.num_inputs + cells % self.num_inputs

    def per_line(self, axis: str) -> int:
        """Return how many weights an output, or an input, has."""
        return self.num_inputs if axis == "output" else self.num_outputs


def grid_of(stored: Stored, index: Ints) -> Grid | None:
    """Return a stored tensor's weights at row-major ``index`` on its grid; None where an axis is not known."""
    axes = [axis for axis in (stored.expert_axis, stored.output_axis, stored.input_axis) if axis is not None]
    if stored.output_axis is None or stored.input_axis is None or len(set(axes)) != len(stored.shape):
        return None
    at = np.unravel_index(index, stored.shape)
    experts = at[stored.expert_axis] if stored.expert_axis is not None else np.zeros_like(index)
    outputs, inputs = stored.shape[stored.output_axis], stored.shape[stored.input_axis]
    cells = (experts * outputs + at[stored.output_axis]) * inputs + at[stored.input_axis]
    number = 1 if stored.expert_axis is None else stored.shape[stored.expert_axis]
    return Grid(number, outputs, inputs, np.sort(cells))


def _clustered(run: Labelled, metric: str, top: pl.DataFrame, options: Options) -> Iterator[Row]:
    grids, left = [], 0
    for (parameter,), part in top.group_by(["parameter"], maintain_order=True):
        stored = run.anatomy.get(str(parameter))
        grid = None if stored is None else grid_of(stored, part["index"].to_numpy())
        grids += [] if grid is None else [grid]
        left += part.height if grid is None else 0
    number = top.height - left
    note = f"{left} of {top.height} weights left out: which axes of their tensors are outputs and inputs is not known"
    drawn = _drawn(grids, options, f"{run.label} {metric}") if number > 1 else {}
    for axis in AXES:
        about = compared(QUESTION, run.label, metric, axis, "", num=number, null=_NULL, why=None)
        notes = [note] if left else []
        notes += [_FACTOR] if axis == "input" and metric in SHARES_INPUTS and axis in drawn else []
        about["why"] = "; ".join(notes) or None
        if axis not in drawn:
            why = note if left else "fewer than 2 weights"
            yield about | {"quantity": "share_with_another", "null": None, "why": why}
            continue
        observed = _counts([(grid, grid.cells[None]) for grid in grids], axis)
        exact = sum(expected(grid, axis) for grid in grids) / number
        means = (exact, float(drawn[axis][1].mean()) / number)
        names = ("share_with_another", "share_in_fullest")
        for quantity, one, draws, mean in zip(names, observed, drawn[axis], means, strict=True):
            yield about | {
                "quantity": quantity, "value": float(one[0]) / number, "expected": mean,
                "p_value": monte_carlo_p(float(one[0]), draws.astype(float)),
                "smallest_p": smallest_monte_carlo_p(options.permutations),
            }  # fmt: skip


def expected(grid: Grid, axis: str) -> float:
    """Return how many of as many random weights of a tensor share a line with another, exactly on average."""
    n, size, line = len(grid.cells), grid.size, grid.per_line(axis)
    alone = 1.0  # probability that none of the n - 1 others falls among the line's other cells
    for taken in range(n - 1):
        alone *= max(0, size - line - taken) / (size - 1 - taken)
    return n * (1 - alone)


def _drawn(grids: Sequence[Grid], options: Options, name: str) -> dict[str, tuple[Ints, Ints]]:
    """Return by axis what ``_counts`` gives of random weights, one of each per permutation."""
    draw = generator(options.seed, "clustering", name)
    rows = max(1, _BLOCK // sum(len(grid.cells) for grid in grids))
    found: dict[str, list[tuple[Ints, Ints]]] = {axis: [] for axis in AXES}
    for start in range(0, options.permutations, rows):
        number = min(rows, options.permutations - start)
        drawn = [(grid, sample(grid.size, len(grid.cells), number, draw)) for grid in grids]
        for axis in AXES:
            found[axis].append(_counts(drawn, axis))
    return {
        axis: (np.concatenate([one for one, _ in each]), np.concatenate([one for _, one in each]))
        for axis, each in found.items()
    }


def _counts(drawn: Sequence[tuple[Grid, Ints]], axis: str) -> tuple[Ints, Ints]:
    """Return per row of cells ``(R, n)`` of every tensor how many share a line, and how many the fullest line holds."""
    shared = np.zeros(len(drawn[0][1]), dtype=np.int64)
    fullest = np.zeros_like(shared)
    for grid, cells in drawn:
        lines = np.sort(grid.lines(cells, axis), axis=1)
        same = lines[:, 1:] == lines[:, :-1]
        beside = np.zeros(lines.shape, dtype=bool)
        beside[:, 1:] |= same
        beside[:, :-1] |= same
        shared += beside.sum(axis=1)
        longest = np.ones_like(fullest)
        for width in range(2, lines.shape[1] + 1):
            runs = (lines[:, width - 1 :] == lines[:, : 1 - width]).any(axis=1)
            if not runs.any():
                break
            longest[runs] = width
        fullest = np.maximum(fullest, longest)
    return shared, fullest


def sample(size: int, number: int, rows: int, draw: np.random.Generator) -> Ints:
    """Return ``(rows, number)`` cells below ``size``, each row drawn without replacement and sorted.

    Cells that were drawn before are drawn again until all of a row differ, which leaves every set equally likely; of a
    tensor of which more than half is drawn, rows of all cells are shuffled instead.
    """
    if 2 * number > size:
        every = np.tile(np.arange(size, dtype=np.int64), (rows, 1))
        return np.sort(draw.permuted(every, axis=1)[:, :number], axis=1)
    cells = np.sort(draw.integers(0, size, (rows, number)), axis=1)
    while (again := cells[:, 1:] == cells[:, :-1]).any():
        behind = cells[:, 1:]
        behind[again] = draw.integers(0, size, int(again.sum()))
        cells = np.sort(cells, axis=1)
    return cells
