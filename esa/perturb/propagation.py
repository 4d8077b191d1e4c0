"""How far a perturbation carries: what it does to every block's output, at the first token and at the rest."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import torch
from torch import Tensor

from esa.artifact import Table, finite, make_table
from esa.model.precision import wide
from esa.perturb.campaign import Campaign
from esa.perturb.cases import Case, Plan, Use, options_text
from esa.spec import Spec

TOKENS = ("first", "rest")
Numbers = list[float | None]  # relative change, cosine, largest change


@dataclass
class Movement:
    """How far one block's output moved, added up batch by batch, at some of the positions."""

    number: int = 0
    relative: float = 0.0
    cosine: float = 0.0
    largest: float = 0.0

    def add(self, intact: Tensor, changed: Tensor) -> None:
        """Add positions: the two outputs ``(windows, tokens, d_model)``; sums are float64."""
        h, moved = wide(intact), wide(changed)
        lengths = torch.linalg.vector_norm(h, dim=-1) * torch.linalg.vector_norm(moved, dim=-1)
        distance = torch.linalg.vector_norm(moved - h, dim=-1)
        same = distance == 0  # exactly 0 and 1, rounding left out
        cosine = ((h * moved).sum(-1) / lengths).clamp(-1, 1)
        self.number += distance.numel()
        self.relative += float(torch.where(same, 0.0, distance / torch.linalg.vector_norm(h, dim=-1)).sum())
        self.cosine += float(torch.where(same, 1.0, cosine).sum())
        largest = float((moved - h).abs().max())
        self.largest = largest if math.isnan(largest) else max(self.largest, largest)  # in this order NaN stays

    def numbers(self) -> Numbers:
        """Return mean relative change, mean cosine and largest change; None for what is not finite."""
        found = (self.relative / self.number, self.cosine / self.number, self.largest)
        return [finite(value) for value in found]


class Movements:
    """How far every block's output moved under each of some edits that run together."""

    def __init__(self, number: int) -> None:
        self._found: list[dict[tuple[int, str], Movement]] = [{} for _ in range(number)]

    def watch(self, edit: int, block: int, intact: Tensor, changed: Tensor) -> None:
        """Add one batch's outputs of a block."""
        for tokens, part in zip(TOKENS, (slice(0, 1), slice(1, None)), strict=True):
            self._found[edit].setdefault((block, tokens), Movement()).add(intact[:, part], changed[:, part])

    def record(self, edit: int, num_blocks: int) -> list[list[Numbers]]:
        """Return per block the numbers of the first token and of the rest; 0, 1 and 0 where nothing was run."""
        found = self._found[edit]
        return [
            [found[block, tokens].numbers() if (block, tokens) in found else [0.0, 1.0, 0.0] for tokens in TOKENS]
            for block in range(num_blocks)
        ]


def propagation_table(campaign: Campaign, plan: Plan, spec: Spec) -> Table | None:
    """Return ``propagation/1`` for the cases of the ``[[perturb]]`` tables that ask for it; None where none does.

    With h_t a block's output at position t (the residual stream behind it) and h'_t the same under the perturbation, over the
    first positions of all windows (``tokens = "first"``) and over all others (``"rest"``)::

        relative_change = mean_t ||h'_t - h_t|| / ||h_t||      cosine = mean_t <h_t, h'_t> / (||h_t|| ||h'_t||)
        max_abs_change = max over t and channels of |h'_t - h_t|

    Blocks before the first one that changes have exactly 0, 1 and 0. The first token stands apart because it carries the
    massive activations (Sun et al., Massive Activations in Large Language Models, COLM 2024), whose size would hide the rest.
    A number is null where a state is not finite. Order: the plan's rows, then blocks, then first and rest. Every case is a line
    of the journal, ``propagation-<case>``.
    Cost: per case one pass from its first changed block on, and one of the intact model for those that run together.
    """
    uses = [use for use in plan.uses if use.section.propagation]
    if not uses:
        return None
    cases = {use.case: plan.cases[use.case] for use in uses}
    waiting = [case for case in cases.values() if _key(case) not in campaign.journal.done]
    _follow(campaign, waiting)
    return make_table("propagation/1", [row for use in uses for row in _rows(campaign, use, cases[use.case])])


def _key(case: Case) -> str:
    return f"propagation-{case.id}"


def _follow(campaign: Campaign, waiting: Sequence[Case]) -> None:
    """Run the cases a few at a time beside the intact model, and note each down."""
    if not waiting:
        return
    evaluator, num_blocks = campaign.evaluator, len(campaign.loaded.stack)
    campaign.progress.start("propagation", len(waiting))
    edits, left = campaign.edits(waiting), iter(waiting)
    while together := list(islice(edits, evaluator.together)):
        movements = Movements(len(together))
        evaluator.follow(together, movements.watch)
        for number in range(len(together)):
            campaign.journal.append(_key(next(left)), {"blocks": movements.record(number, num_blocks)})
            campaign.progress.advance()
    campaign.progress.finish()


def _rows(campaign: Campaign, use: Use, case: Case) -> Iterator[dict[str, object]]:
    """Yield the rows of one use."""
    about = {
        "run": campaign.run, "case": use.case, "metric": use.group.metric, "seed": use.group.seed,
        "group": use.group.name, "draw": use.group.draw, "method": case.method, "options": options_text(case.options),
        "repeat": use.repeat, "unit": use.unit, "k": use.k, "target": use.target,
    }  # fmt: skip
    for block, parts in enumerate(campaign.journal.done[_key(case)]["blocks"]):
        for tokens, (relative, cosine, largest) in zip(TOKENS, parts, strict=True):
            yield {
                **about, "block": block, "tokens": tokens, "relative_change": relative, "cosine": cosine,
                "max_abs_change": largest,
            }  # fmt: skip
