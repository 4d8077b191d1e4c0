"""What the processes of a score pass send each other: the sums of inputs in its middle, the rows that are kept at its end."""

import json
from collections.abc import Mapping
from io import BytesIO
from typing import Any

import polars as pl
import torch
from torch import Tensor

from esa.model.input_tap import InputStatistics, InputTap
from esa.model.precision import wide_device
from esa.score.collect import Collector
from esa.score.ranks import Ranks

_Use = tuple[str, int, int]  # parameter, contracted axis, parts


def add_inputs(ranks: Ranks, tap: InputTap, device: torch.device) -> None:
    """Make a tap's statistics those of all processes' windows, also of what the windows of one of them never reached.

    Memory: twice the statistics again.
    """
    if ranks.size == 1:
        return
    mine = {(name, *key): one for name, found in tap.statistics.items() for key, one in found.items()}
    told = ranks.gather([json.dumps([[*use, list(one.sum_abs.shape)] for use, one in mine.items()]).encode()])
    shapes: dict[_Use, list[int]] = {}
    for line in json.loads(ranks.tell(lambda: json.dumps([line for parts in told for line in json.loads(parts[0])]))):
        name, axis, parts, shape = line
        shapes.setdefault((name, axis, parts), shape)
    every = {use: mine.get(use) or _unseen(use, shape, device) for use, shape in shapes.items()}
    flat = torch.cat([part.reshape(-1).double() for one in every.values() for part in _sums(one)])
    ranks.add(flat)
    tap.statistics = {}
    for (name, axis, number), one in every.items():
        sums = []
        for part in _sums(one):
            sums.append(flat[: part.numel()].view(part.shape).to(part.dtype))  # a float64 counts tokens exactly
            flat = flat[part.numel() :]
        tap.statistics.setdefault(name, {})[axis, number] = InputStatistics(axis, *sums)


def _sums(one: InputStatistics) -> tuple[Tensor, Tensor, Tensor]:
    return one.sum_abs, one.sum_square, one.rows


def _unseen(use: _Use, shape: list[int], device: torch.device) -> InputStatistics:
    """Return the statistics of a use that this process did not see: zeros."""
    device = wide_device(device)
    zeros = torch.zeros(shape, dtype=torch.float64, device=device)
    return InputStatistics(use[1], zeros, zeros.clone(), torch.zeros(shape[:-1], dtype=torch.int64, device=device))


def gather_rows(ranks: Ranks, collectors: Mapping[str, Collector]) -> None:
    """Put what every process's collectors hold into those of the first, tensor by tensor; nothing is pickled."""
    if ranks.size == 1:
        return
    header: list[dict[str, Any]] = []
    tables = []
    for metric, collector in collectors.items():
        for kind, parts in collector.parts.items():
            if ranks.first or not parts:
                continue
            header.append({"metric": metric, "kind": kind, "rows": [[at, part.height] for at, part in parts.items()]})
            table = BytesIO()
            pl.concat(list(parts.values())).write_parquet(table, compression="lz4", statistics=False)
            tables.append(table.getvalue())
    for told, *theirs in ranks.gather([json.dumps(header).encode(), *tables]):
        for entry, content in zip(json.loads(told), theirs, strict=True):
            frame, start = pl.read_parquet(BytesIO(content)), 0
            for at, height in entry["rows"]:
                collectors[entry["metric"]].parts[entry["kind"]][at] = frame.slice(start, height)
                start += height
