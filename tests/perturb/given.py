"""What a case of any method is given: scores, gradients and a stream made up for some targets."""

from collections.abc import Sequence

import torch

from esa.perturb.place import Given

Targets = Sequence[tuple[str, int]]


def given(targets: Targets, metric: str = "act_mag", stream: tuple[int, int] = (0, 0)) -> Given:
    """Return distinct scores from 1 on, and gradients of changing sign and size, for every target."""
    order = sorted(set(targets))
    by_name: dict[str, list[int]] = {}
    for name, index in order:
        by_name.setdefault(name, []).append(index)
    gradients = {
        name: (torch.tensor(indices), torch.tensor([(-1.0) ** index * (1 + index) for index in indices]))
        for name, indices in by_name.items()
    }
    scores = {target: float(1 + number) for number, target in enumerate(order)}
    return Given(metric, scores, gradients, stream)
