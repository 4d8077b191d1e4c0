"""Decoder blocks that stay on disk: read from safetensors when their turn comes, one in memory at a time."""

import shutil
import tempfile
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate.hooks import remove_hook_from_module
from safetensors import safe_open
from torch import Tensor, nn

from esa.artifact.space import require_space
from esa.errors import ModelError
from esa.model.anatomy import ParameterInfo, decoder_blocks
from esa.model.weights import Weight

OnArrival = Callable[[Mapping[str, nn.Parameter]], None]  # the parameters of the block that is in memory now


@dataclass(frozen=True)
class StoredTensor:
    """Where a parameter's numbers are: a safetensors file, the name there, and the dtype they are stored in for us."""

    file: str
    key: str
    dtype: torch.dtype


@dataclass(frozen=True)
class Placement:
    """What ``from_pretrained`` is told so that it leaves the blocks where they are.

    ``folder``: of tensors that it has to convert, such as experts that are fused on loading; it goes with the last who holds
    this object, or with the process.
    """

    device_map: dict[str, str]
    folder: str

    def __post_init__(self) -> None:
        weakref.finalize(self, shutil.rmtree, self.folder, ignore_errors=True)

    def arguments(self) -> dict[str, Any]:
        """Return the keywords of ``from_pretrained``."""
        return {"device_map": self.device_map, "offload_folder": self.folder}


def require_safetensors(gguf: str | None) -> None:
    """Raise ModelError for a GGUF file, which cannot be read block by block."""
    if gguf is not None:
        raise ModelError(
            f"'disk' reads safetensors; {gguf} is a GGUF file",
            where="model.residency",
            hint='set model.residency = "memory", or save the model as safetensors first',
        )


def placement(skeleton: Any, device: torch.device, dtype: torch.dtype) -> Placement:
    """Return where each module of ``skeleton`` (parameters on the meta device) goes: blocks to disk, the rest to ``device``.

    Experts that are fused on loading are written to a folder among the temporary files (``TMPDIR``), in ``dtype``.
    Raises ArtifactError if the disk there has no room for them.
    """
    name, blocks = decoder_blocks(skeleton)
    fused = sum(parameter.numel() for parameter in blocks.parameters() if parameter.ndim >= 3)
    require_space(Path(tempfile.gettempdir()), fused * dtype.itemsize, "experts that are fused on loading (TMPDIR)")
    device_map = {f"{name}.{number}": "disk" for number in range(len(blocks))}
    every = [*skeleton.named_parameters(remove_duplicate=False), *skeleton.named_buffers(remove_duplicate=False)]
    device_map |= {
        owner: str(device) for owner in (one.rpartition(".")[0] for one, _ in every) if not owner.startswith(f"{name}.")
    }
    return Placement(device_map, tempfile.mkdtemp(prefix="esa-blocks-"))


def stored_tensors(model: Any) -> dict[str, StoredTensor]:
    """Return where the parameters are that ``from_pretrained`` left on disk, and take its own loading off the model."""
    maps = (getattr(getattr(module, "_hf_hook", None), "weights_map", None) for module in model.modules())
    index = next(one.dataset.index for one in maps if one is not None)
    remove_hook_from_module(model, recurse=True)
    away = {name: parameter.dtype for name, parameter in model.named_parameters() if parameter.is_meta}
    return {name: StoredTensor(index[name]["safetensors_file"], index[name]["weight_name"], dtype)
            for name, dtype in away.items()}  # fmt: skip


@dataclass
class DiskBlocks:
    """The blocks of a model whose parameters are on disk: the one that runs is in memory, the others are not.

    A block's forward brings it first, so that nothing else needs to know. ``dtype``: of the numbers in memory where it is
    wider than that of storage. ``changes`` are laid over what is read, by parameter, index and number: they outlast a block
    that leaves and comes back. Cost: one read of a block each time it comes.
    """

    blocks: nn.ModuleList
    name: str
    stored: Mapping[str, StoredTensor]
    device: torch.device
    dtype: torch.dtype | None
    placement: Placement  # kept as long as the blocks are
    here: int | None = None
    differentiable: set[str] = field(default_factory=set)
    changes: dict[str, dict[int, Tensor]] = field(default_factory=dict)
    _away: dict[str, nn.Parameter] = field(default_factory=dict)
    _listeners: list[OnArrival] = field(default_factory=list)

    def __post_init__(self) -> None:
        for number, block in enumerate(self.blocks):
            block.forward = self._bringing(number, block.forward)

    def _bringing(self, number: int, forward: Callable[..., Any]) -> Callable[..., Any]:
        def brought(*args: Any, **kwargs: Any) -> Any:
            self.bring(number)
            return forward(*args, **kwargs)

        return brought

    def bring(self, number: int) -> None:
        """Read a block into memory; the one that was there leaves."""
        if number == self.here:
            return
        self.leave()
        block = self.blocks[number]
        away = {f"{self.name}.{number}.{inner}": one for inner, one in block.named_parameters(remove_duplicate=False)}
        names = {id(parameter): name for name, parameter in reversed(away.items())}  # the first name of a tied one
        # All of it is read before any of it is put in: a read that is broken off leaves a block that is not here.
        read = {name: self._read(name) for name in dict.fromkeys(names[id(one)] for one in away.values())}
        arrived = {name: nn.Parameter(one, requires_grad=name in self.differentiable) for name, one in read.items()}
        self.here, self._away = number, away
        for name, parameter in away.items():
            _put(block, name.removeprefix(f"{self.name}.{number}."), arrived[names[id(parameter)]])
        for listener in self._listeners:
            listener(arrived)

    def leave(self) -> None:
        """Let the block in memory go."""
        if self.here is None:
            return
        for name, parameter in self._away.items():
            _put(self.blocks[self.here], name.removeprefix(f"{self.name}.{self.here}."), parameter)
        self._away, self.here = {}, None

    @contextmanager
    def telling(self, listener: OnArrival) -> Iterator[None]:
        """Tell ``listener`` of every block that comes, for a while."""
        self._listeners.append(listener)
        try:
            yield
        finally:
            self._listeners.remove(listener)

    def original(self, name: str) -> Tensor:
        """Return a parameter as it is stored, on the CPU and not to be written to."""
        where = self.stored[name]
        with safe_open(where.file, framework="pt") as file:
            tensor: Tensor = file.get_tensor(where.key)
        return tensor.to(where.dtype)

    def _read(self, name: str) -> Tensor:
        """Return a parameter as it is stored, with the changes to it, in the dtype and on the device it is computed with."""
        tensor = self.original(name).clone()  # the file is only mapped
        if self.dtype is not None:
            tensor = tensor.to(self.dtype)
        if self.device.type == "cuda":
            tensor = tensor.pin_memory()
        tensor = tensor.to(self.device, non_blocking=self.device.type == "cuda")
        if changed := self.changes.get(name):
            index = torch.tensor(list(changed), device=self.device)
            values = torch.stack(list(changed.values())).to(self.device)
            tensor[torch.unravel_index(index, tensor.shape)] = values
        return tensor


class DiskWeight(Weight):
    """A parameter of a block that is on disk: to look at it brings its block."""

    def __init__(self, model: nn.Module, info: ParameterInfo, dtype: torch.dtype, disk: DiskBlocks) -> None:
        super().__init__(model, info, dtype)
        self._disk = disk

    @property
    def parameter(self) -> nn.Parameter:
        """Return the parameter, its block in memory until another one comes."""
        assert self.info.block is not None
        self._disk.bring(self.info.block)
        return super().parameter

    @property
    def requires_grad(self) -> bool:
        """Tell whether the loss is differentiated by it whenever its block is in memory."""
        return self.info.name in self._disk.differentiable

    @requires_grad.setter
    def requires_grad(self, wanted: bool) -> None:
        """Say whether the loss is to be differentiated by it, now and whenever its block comes."""
        (self._disk.differentiable.add if wanted else self._disk.differentiable.discard)(self.info.name)
        if self._disk.here == self.info.block:
            self.parameter.requires_grad_(wanted)

    def write(self, index: Tensor, values: Tensor) -> None:
        """Replace the numbers at row-major indices ``(n,)``, in memory and whenever they are read again."""
        super().write(index, values)
        changes = self._disk.changes.setdefault(self.info.name, {})
        changes.update(zip(index.tolist(), values.detach().to(self.parameter), strict=True))

    def restore(self, index: Tensor, held: Tensor) -> None:
        """Bring back numbers that ``held`` gave; what the file says anyway is no change any more."""
        super().restore(index, held)
        changes = self._disk.changes.get(self.info.name, {})
        original = self._disk.original(self.info.name)[torch.unravel_index(index.cpu(), self.info.shape)]
        for place, number, before in zip(index.tolist(), held.cpu(), original.to(held.dtype), strict=True):
            if place in changes and number.view(-1).view(torch.uint8).equal(before.view(-1).view(torch.uint8)):
                del changes[place]
        if not changes:
            self._disk.changes.pop(self.info.name, None)


def disk_weights(model: Any, table: Mapping[str, ParameterInfo], disk: DiskBlocks) -> dict[str, Weight]:
    """Return the weights that are on disk."""
    return {name: DiskWeight(model, table[name], stored.dtype, disk) for name, stored in disk.stored.items()}


def _put(block: nn.Module, inner: str, parameter: nn.Parameter) -> None:
    """Put a parameter into a block under its name there."""
    path, _, attribute = inner.rpartition(".")
    setattr(block.get_submodule(path), attribute, parameter)
