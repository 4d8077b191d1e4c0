"""Sums in float64, on every device: Apple GPUs have none, so that theirs are taken on the CPU."""

import torch
from torch import Tensor


def wide_device(device: torch.device) -> torch.device:
    """Return the device, or the CPU where the device knows no float64."""
    return torch.device("cpu") if device.type == "mps" else device


def wide(tensor: Tensor) -> Tensor:
    """Return a tensor in float64, on a device that knows it."""
    return tensor.to(wide_device(tensor.device)).double()
