"""Several processes share a score pass: each takes some of the windows, sums are added, the first process writes."""

import os
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.rendezvous import rendezvous

from esa.errors import EsaError, LostError, ModelError, SpecError
from esa.model import ParameterInfo
from esa.model.loading import choose_device
from esa.score.streaming import Window
from esa.spec.sections import Model as ModelSection

_PIECE = 1 << 24  # numbers that are sent at once: the receiver needs as much room again
_TENSOR = 1 << 18  # what the rows that are kept of a tensor cost, whatever its size, in weights to score
# Who ends is noticed at once, by gloo or by torchrun; this is how long the others may wait for one that is at work.
_PATIENCE = timedelta(hours=24)
_FAILED = "esa: failed"  # where a process that fails leaves its words
_WORDS = timedelta(seconds=2)  # how long the others look for them


class Wire(Protocol):
    """What carries numbers between processes. All of them make the same calls in the same order."""

    def add(self, tensor: Tensor, to: int | None) -> None:
        """Add every process's tensor, in place: into that of process ``to``, or into all."""

    def send(self, tensor: Tensor, to: int) -> None:
        """Send a tensor to a process that receives it."""

    def receive(self, tensor: Tensor, source: int) -> None:
        """Receive into a tensor what a process sends."""


@dataclass(frozen=True)
class Ranks:
    """The processes of one run, and which of them this is: ``rank`` of ``size``, on its own machine number ``local``.

    Alone, nothing is sent and nothing changes. All but ``share``, ``owners`` and ``place`` are calls that every process makes,
    in the same order; they raise LostError where another process is gone.
    """

    rank: int = 0
    size: int = 1
    local: int = 0
    local_size: int = 1
    wire: Wire | None = None

    @property
    def first(self) -> bool:
        """Tell whether this process is the one that writes and speaks."""
        return self.rank == 0

    def share(self, windows: Sequence[Window]) -> list[Window]:
        """Return this process's windows, in their order: the longest first, each goes to who has the fewest tokens so far."""
        tokens = [0] * self.size
        mine = []
        for window in sorted(windows, key=lambda one: (-one.ids.numel(), one.number)):
            to = tokens.index(min(tokens))
            tokens[to] += window.ids.numel()
            if to == self.rank:
                mine.append(window)
        return sorted(mine, key=lambda one: one.number)

    def owners(self, chosen: Mapping[str, ParameterInfo]) -> dict[str, int]:
        """Return which process scores and reduces each tensor: as even as whole tensors allow, in every block."""
        blocks: dict[int | None, list[ParameterInfo]] = {}
        for info in chosen.values():
            blocks.setdefault(info.block, []).append(info)
        weights = [0] * self.size
        found = {}
        for infos in blocks.values():
            for info in sorted(infos, key=lambda one: -one.numel):
                to = found[info.name] = weights.index(min(weights))
                weights[to] += info.numel + _TENSOR
        return found

    def place(self, section: ModelSection) -> ModelSection:
        """Return ``section`` with this process's own device: GPU number ``local`` where the run is on GPUs.

        Raises SpecError for one GPU by its number, for fewer GPUs than processes, and for mps.
        """
        if self.size == 1:
            return section
        device = choose_device(section.device)[0]
        if device.type == "cpu":
            return section
        number = torch.cuda.device_count()
        if device.type != "cuda" or device.index is not None:
            problem = f"model.device: '{device}' is one device, and {self.size} processes run; allowed: auto, cuda, cpu"
        elif self.local_size > number:
            problem = f"model.device: {self.local_size} processes run on a machine with {number} GPUs; each needs one"
        else:
            return section.model_copy(update={"device": f"cuda:{self.local}"})
        raise SpecError([problem], hint="--device cpu, or another --nproc-per-node")

    def add(self, tensor: Tensor, to: int | None = None) -> None:
        """Add every process's tensor, in place: into that of process ``to``, or into all."""
        if self.wire is not None:
            for piece in _pieces(tensor.view(-1)):
                self.wire.add(piece, to)

    def union(self, names: Collection[str], among: Sequence[str]) -> set[str]:
        """Return those of ``among`` that are in any process's ``names``."""
        found = torch.tensor([name in names for name in among], dtype=torch.int32)
        self.add(found)
        return {name for name, number in zip(among, found.tolist()) if number}

    def tell(self, text: Callable[[], str]) -> str:
        """Return the first process's text; the others do not make theirs."""
        if self.wire is None:
            return text()
        content = _as_tensor(text().encode()) if self.first else torch.empty(0, dtype=torch.uint8)
        length = torch.tensor([len(content)])
        self.add(length)
        if not self.first:
            content = torch.zeros(int(length), dtype=torch.uint8)
        self.add(content)
        return _as_bytes(content).decode()

    def require_same(self, *facts: str) -> None:
        """Raise ModelError, in the first process, where another one has other facts: model, texts and spec have to agree."""
        told = [[part.decode() for part in parts] for parts in self.gather([fact.encode() for fact in facts])]
        for rank, theirs in enumerate(told):
            if theirs != list(facts):
                raise ModelError(
                    f"process {rank} sees another spec, model or text than process 0",
                    hint="every machine needs the same spec, the same files of model and text, and the same versions",
                )

    def decide(self, decision: Callable[[], bool]) -> bool:
        """Return the first process's decision; the others make none."""
        return self.tell(lambda: str(int(decision()))) == "1"

    def gather(self, parts: Sequence[bytes]) -> list[list[bytes]]:
        """Return every process's parts, by rank, in the first process; an empty list in the others."""
        if self.wire is None:
            return [list(parts)]
        numbers = torch.zeros(self.size, dtype=torch.int64)
        numbers[self.rank] = len(parts)
        self.add(numbers)
        lengths = torch.tensor([len(part) for part in parts], dtype=torch.int64)
        if not self.first:
            for tensor in (lengths, *map(_as_tensor, parts)):
                for piece in _pieces(tensor):
                    self.wire.send(piece, 0)
            return []
        found = [list(parts)]
        for source in range(1, self.size):
            theirs = self._received(int(numbers[source]), torch.int64, source).tolist()
            found.append([_as_bytes(self._received(length, torch.uint8, source)) for length in theirs])
        return found

    def _received(self, length: int, dtype: torch.dtype, source: int) -> Tensor:
        assert self.wire is not None
        tensor = torch.empty(length, dtype=dtype)
        for piece in _pieces(tensor):
            self.wire.receive(piece, source)
        return tensor


ALONE = Ranks()


class _Distributed:
    """The default process group of torch.distributed; ``store``: where one that fails leaves its words."""

    def __init__(self, store: Any) -> None:
        self.store = store

    def add(self, tensor: Tensor, to: int | None) -> None:
        with _telling_of_loss(self.store):
            dist.all_reduce(tensor) if to is None else dist.reduce(tensor, to)

    def send(self, tensor: Tensor, to: int) -> None:
        with _telling_of_loss(self.store):
            dist.send(tensor, to)

    def receive(self, tensor: Tensor, source: int) -> None:
        with _telling_of_loss(self.store):
            dist.recv(tensor, source)


@contextmanager
def joined() -> Iterator[Ranks]:
    """Join the other processes that torchrun started, if there are any, until the end of the block.

    CPU tensors go over gloo, CUDA tensors over nccl. An error that ends the block is told to the others.
    Raises LostError where the others cannot be reached.
    """
    environment = {name: os.environ.get(name, "") for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")}
    if not all(environment.values()) or environment["WORLD_SIZE"] == "1":
        yield ALONE
        return
    rank, size, local, local_size = map(int, environment.values())
    cuda = torch.cuda.is_available()
    if cuda and local < torch.cuda.device_count():
        torch.cuda.set_device(local)
    with _telling_of_loss():
        store, _, _ = next(rendezvous("env://", rank, size, timeout=_PATIENCE))
        backend = "cpu:gloo,cuda:nccl" if cuda else "gloo"
        dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=_PATIENCE)
    failed = True
    try:
        yield Ranks(rank, size, local, local_size, _Distributed(store))
        failed = False
    except Exception as error:
        if not isinstance(error, LostError):
            words = "; ".join(error.lines()) if isinstance(error, EsaError) else f"{type(error).__name__}: {error}"
            store.set(_FAILED, f"process {rank} failed: {words}")
        raise
    finally:
        if not (cuda and failed):  # nccl would wait for the others, who wait for this one
            dist.destroy_process_group()


@contextmanager
def _telling_of_loss(store: Any = None) -> Iterator[None]:
    """Turn what torch.distributed raises where a process is gone into LostError, with the words that it left in ``store``."""
    try:
        yield
    except (RuntimeError, ValueError) as error:  # it has no class of its own for the errors of all its backends
        words = f"the processes of this run lost each other: {str(error).strip().partition(chr(10))[0]}"
        if store is not None:
            with suppress(RuntimeError):  # it was killed and left none
                store.wait([_FAILED], _WORDS)
                words = store.get(_FAILED).decode()
        raise LostError(words, hint="finished work is kept, the same command goes on from there") from error


def _pieces(flat: Tensor) -> Iterator[Tensor]:
    return (flat[start : start + _PIECE] for start in range(0, len(flat), _PIECE))


def _as_tensor(content: bytes) -> Tensor:
    return torch.frombuffer(bytearray(content), dtype=torch.uint8) if content else torch.empty(0, dtype=torch.uint8)


def _as_bytes(tensor: Tensor) -> bytes:
    return tensor.numpy().tobytes()
