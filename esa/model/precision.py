"""Sums in float64, on every device: Apple GPUs have none, so that theirs are taken on the CPU."""

import torch
from torch import Tensor


def wide_device(device: torch.device) -> torch.device:
    """Return the device, or the CPU where the device knows no float64."""
    return torch.device("cpu") if device.type == "mps" else device


def wide(tensor: Tensor) -> Tensor:
    """Return a tensor in float64, on a device that knows it."""
    return tensor.to(wide_device(tensor.device)).double()


def wide_mean(tensor: Tensor, axis: int | None = None) -> Tensor:
    """Return the mean, over one axis kept or over all, summed in float64 without a wide copy of the tensor."""
    here = tensor.to(wide_device(tensor.device))
    if axis is None:
        return here.mean(dtype=torch.float64)
    return here.mean(dim=axis, keepdim=True, dtype=torch.float64)


def wide_norm(tensor: Tensor) -> Tensor:
    """Return the Euclidean norm, summed in float64 without a wide copy of the tensor."""
    here = tensor.to(wide_device(tensor.device))
    norm: Tensor = torch.linalg.vector_norm(here, dtype=torch.float64)
    return norm
