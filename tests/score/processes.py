"""Several processes of one run as threads of one process: the same calls in the same order, sums added under a barrier."""

import queue
import threading
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from esa.errors import LostError
from esa.score.ranks import Ranks

Result = TypeVar("Result")
_SECONDS = 60


class Threads:
    """What the threads share: a barrier, everybody's tensor, and a queue between any two."""

    def __init__(self, size: int) -> None:
        self.barrier = threading.Barrier(size, timeout=_SECONDS)
        self.tensors: list[Tensor] = [torch.empty(0)] * size
        self.queues: dict[tuple[int, int], queue.Queue[Tensor]] = {
            (a, b): queue.Queue() for a in range(size) for b in range(size)
        }


class ThreadWire:
    """One thread's end of the wire."""

    def __init__(self, shared: Threads, rank: int) -> None:
        self.shared, self.rank = shared, rank

    def _wait(self) -> None:
        try:
            self.shared.barrier.wait()
        except threading.BrokenBarrierError:
            raise LostError("another thread ended") from None

    def add(self, tensor: Tensor, to: int | None) -> None:
        """Add everybody's tensor."""
        self.shared.tensors[self.rank] = tensor
        self._wait()
        shapes = {(t.dtype, t.shape) for t in self.shared.tensors}
        assert len(shapes) == 1, f"the threads add different things: {shapes}"
        total = sum(self.shared.tensors[1:], self.shared.tensors[0].clone())
        self._wait()
        # A process that is not the receiver may find anything in its own tensor afterwards.
        tensor.copy_(total if to in (None, self.rank) else torch.full_like(total, 77))
        self._wait()

    def send(self, tensor: Tensor, to: int) -> None:
        """Put a copy into the receiver's queue."""
        self.shared.queues[self.rank, to].put(tensor.clone())

    def receive(self, tensor: Tensor, source: int) -> None:
        """Take what the sender put there."""
        tensor.copy_(self.shared.queues[source, self.rank].get(timeout=_SECONDS))


def in_processes(size: int, work: Callable[[Ranks], Result]) -> list[Result]:
    """Return what ``work`` returns for each of ``size`` ranks that run side by side; raise the first error of any."""
    shared = Threads(size)
    results: list[Any] = [None] * size
    errors: list[BaseException] = []

    def one(rank: int) -> None:
        try:
            results[rank] = work(Ranks(rank, size, rank, size, ThreadWire(shared, rank)))
        except BaseException as error:
            errors.append(error)
            shared.barrier.abort()

    threads = [threading.Thread(target=one, args=(rank,)) for rank in range(size)]
    with sdpa_kernel(
        SDPBackend.MATH
    ):  # which kernels run is a setting of the whole process: curvature's must not change it
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    if errors:
        raise next((error for error in errors if not isinstance(error, LostError)), errors[0])
    return results
