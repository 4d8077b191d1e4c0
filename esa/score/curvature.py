"""Hutchinson's estimate of the Hessian's diagonal: probes inside, on one retained graph per window."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from esa.errors import ModelError
from esa.model import LoadedModel, ParameterInfo
from esa.model.differentiable import differentiable
from esa.progress import Progress
from esa.score.labels import window_loss
from esa.score.ranks import ALONE, Ranks
from esa.score.streaming import Window
from esa.spec import derive_seed


@dataclass(frozen=True)
class Curvature:
    """Of one parameter, float32 in its shape: the signed diagonal, its standard error if known, and the gradient of L."""

    diagonal: Tensor
    stderr: Tensor | None
    gradient: Tensor


@contextmanager
def eager_attention(model: Any) -> Iterator[None]:
    """Run attention as plain matrix products for a while: fused kernels have no second derivative."""
    before = model.config._attn_implementation
    change = before != "eager" and hasattr(model, "set_attn_implementation")
    if change:
        model.set_attn_implementation("eager")
    try:
        # A model that chose its kernel when it was made, such as Falcon, calls it all the same.
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        if change:
            model.set_attn_implementation(before)


def rademacher(into: Tensor, seed: int, window: int, probe: int, name: str) -> Tensor:
    """Fill a tensor with -1 or +1, each with equal chance, from the stream of this seed, window, probe and name; return it."""
    draw = torch.Generator().manual_seed(derive_seed(seed, "probe", window, probe, name))
    return into.copy_(torch.randint(0, 2, into.shape, generator=draw, dtype=torch.int8)).mul_(2).sub_(1)


def hutchinson(
    loaded: LoadedModel,
    windows: Sequence[Window],
    chosen: Mapping[str, ParameterInfo],
    probes: int,
    seed: int,
    progress: Progress,
    label: str = "curvature",
    ranks: Ranks = ALONE,
    owners: Mapping[str, int] | None = None,
) -> dict[str, Curvature]:
    """Return the signed diagonal of the Hessian of L per chosen parameter, its standard error, and the gradient of L.

    ``windows`` are those of all processes: each takes its share, and returns the parameters that it is the owner of.

    Per window n, m probes give samples ``z * (H_n z)``, z zero outside of ``chosen``; with shares a_n = T_n / sum T of the
    predicted tokens the estimate is ``sum_n a_n mean_m`` and its variance ``sum_n a_n^2 var_m / m``. With one probe there is
    no standard error (None). float32, the parameters' shapes. Memory: eight times the chosen weights in float32 beside the
    model and one window's graph. Raises ModelError if a parameter is reached by no gradient.
    """
    names = list(chosen)
    tensors = [loaded.weights[name].source() for name in names]
    total = sum(window.ids.numel() - 1 for window in windows)
    mean = [torch.zeros(t.shape, dtype=torch.float32, device=t.device) for t in tensors]
    variance = [torch.zeros_like(m) for m in mean] if probes > 1 else []
    slope = [torch.zeros_like(m) for m in mean]
    mine = ranks.share(windows)
    progress.start(label, len(mine) * (probes + 1))
    with differentiable(loaded, chosen), eager_attention(loaded.model):
        for window in mine:
            ids, share = window.ids, (window.ids.numel() - 1) / total
            logits = loaded.model(input_ids=ids, use_cache=False).logits
            gradients = torch.autograd.grad(window_loss(logits, ids), tensors, create_graph=True, allow_unused=True)
            _require_all(names, gradients)
            for total_slope, gradient in zip(slope, gradients):
                total_slope.add_(gradient.detach().float(), alpha=share)
            progress.advance()
            signs = [
                torch.empty_like(t) for t in tensors
            ]  # filled anew for each probe: fresh pages cost more than the draws
            first = [torch.zeros_like(m) for m in mean]
            second = [torch.zeros_like(m) for m in mean] if probes > 1 else []
            for probe in range(probes):
                for name, sign in zip(names, signs):
                    rademacher(sign, seed, window.number, probe, name)
                products = torch.autograd.grad(
                    gradients, tensors, signs, retain_graph=probe + 1 < probes, allow_unused=True
                )
                for i, (sign, product) in enumerate(zip(signs, products)):
                    if product is None:
                        continue  # the loss is linear in this tensor: its second derivative is zero
                    sample = product.float().mul_(sign)
                    first[i] += sample
                    if second:
                        second[i].addcmul_(sample, sample)
                progress.advance()
            del gradients, logits, signs
            for i in range(len(names)):
                mean[i].add_(first[i], alpha=share / probes)
                if second:
                    spread = second[i].sub_(first[i].square_().div_(probes)).clamp_(min=0)
                    variance[i].add_(spread, alpha=share**2 / (probes * (probes - 1)))
    progress.finish()
    found = {}
    for i, name in enumerate(names):
        owner = (owners or {}).get(name, 0)
        for total_sum in (mean[i], slope[i], *variance[i : i + 1]):
            ranks.add(total_sum, owner)
        if ranks.rank == owner:
            found[name] = Curvature(mean[i], variance[i].sqrt_() if variance else None, slope[i])
    return found


def _require_all(names: Sequence[str], gradients: Sequence[Tensor | None]) -> None:
    missing = [name for name, gradient in zip(names, gradients) if gradient is None]
    if missing:
        raise ModelError(
            f"no gradient reaches {len(missing)} of the parameters to score: {', '.join(missing[:3])}",
            hint="leave them out with score.exclude",
        )
