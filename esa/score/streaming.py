"""The shared pass: activations forward, gradients back, one block at a time.

Windows go one by one: a window's gradient is its own, whatever the batch. Two ways, the same bits: boundary activations are
kept, and each block's forward is run again with gradients and its backward taken from the block above, so that the graph and
the gradients of one block at a time exist; or a window's graph is kept from its one forward, block by block, where memory
holds it with the accumulators of every parameter. The gradients equal those of ``loss.backward()`` bit for bit.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

from esa.errors import ModelError
from esa.model import BlockStack, LoadedModel, ParameterInfo
from esa.model.block_stack import Prologue, tensors_in
from esa.model.differentiable import differentiable
from esa.model.input_tap import InputTap
from esa.progress import Progress
from esa.score.labels import TEXT, Labels, label_loss

T = TypeVar("T")
OnGradient = Callable[
    [str, int, int, Tensor, Tensor | None], None
]  # parameter, window, draw, gradient, rows (None: all)
OnDone = Callable[[Sequence[str]], None]  # the parameters whose statistics are complete
Agree = Callable[[set[str]], set[str]]  # what this process's windows reached -> what any process's did


@dataclass(frozen=True)
class Window:
    """One calibration window: ``number`` among all of the seed's names its random draws, wherever it runs."""

    number: int
    ids: Tensor  # (1, tokens)


class BlockWatch(Protocol):
    """Look at every block in turn: while its windows run, and at its outputs ``(1, tokens, d_model)``, one per window."""

    def watching(self, block: int) -> AbstractContextManager[None]:
        """Watch the block's modules while it runs."""

    def finish_block(self, block: int, outputs: Sequence[Tensor], again: Callable[[int], Tensor]) -> None:
        """Take the residual stream behind the block; ``again(window)`` runs the block once more on one window."""


def forward_pass(
    loaded: LoadedModel,
    windows: Sequence[Window],
    tap: InputTap | None,
    progress: Progress,
    watch: BlockWatch | None = None,
) -> None:
    """Run every window through the model once, block by block, the tap and the watch looking on.

    Without a tap nobody looks at what follows the blocks, and it is left out. Memory: one hidden state per window.
    """
    states, _ = _walk(loaded.stack, windows, tap, progress, watch, keep=False)
    if tap is not None:
        for hidden, window in zip(states, windows):
            with torch.no_grad(), _watching(tap, from_start=False):
                loaded.stack.head(hidden[-1], window.ids, on_head=lambda: _set_active(tap, True))


def backward_pass(
    loaded: LoadedModel,
    windows: Sequence[Window],
    chosen: Mapping[str, ParameterInfo],
    tap: InputTap | None,
    on_gradient: OnGradient,
    on_done: OnDone,
    progress: Progress,
    labels: Labels = TEXT,
    watch: BlockWatch | None = None,
    *,
    waves: int = 1,
    keep_graphs: bool = False,
    agree: Agree = lambda reached: reached,
) -> None:
    """Hand out every window's gradient of its mean NLL, parameter by parameter.

    ``on_gradient(name, n, draw, gradient, rows)`` is called for each chosen parameter, window number n and draw of
    ``labels``, all draws of a window in a row, windows in their order; ``rows`` tells which rows of the tensor the gradient
    holds where it is not the whole. ``on_done(names)`` follows when no more will come for them.
    ``waves``: the windows go in at most so many parts, each forward and back before the next; what a parameter gets, and in which
    order, is the same. ``keep_graphs``: forward once, each window back at once; else every block runs forward twice. Backward
    once per draw. Memory: boundary activations of a wave, or one window's graph; gradients of one block and of what lies
    outside the blocks; of every window and draw the rows of the embedding that it reaches. ``agree``: what processes that
    share the windows have reached together. Raises ModelError if a chosen parameter is reached by no gradient.
    """
    assert watch is None or (waves == 1 and not keep_graphs), "a watch sees all windows pass one block, then the next"
    with differentiable(loaded, chosen):
        back = _Backward(loaded, chosen, tap, on_gradient, labels, windows[0].ids, agree)
        if keep_graphs:
            progress.start("forward and backward", len(windows))
            for window in windows:
                back.one_window(window)
                progress.advance()
            progress.finish()
        else:
            parts = in_waves(windows, waves)
            for number, part in enumerate(parts):
                label = "" if len(parts) == 1 else f" {number + 1}/{len(parts)}"
                back.wave(part, progress, watch, on_done if number + 1 == len(parts) else None, label)
        back.finish(on_done)


def in_waves(windows: Sequence[T], waves: int) -> list[Sequence[T]]:
    """Return the windows in at most so many parts of neighbours, of equal size but for the last."""
    size = -(-len(windows) // waves)
    return [windows[start : start + size] for start in range(0, len(windows), size)]


class _Backward:
    """One backward pass over all windows: what it has reached, and what waits for its end."""

    def __init__(
        self,
        loaded: LoadedModel,
        chosen: Mapping[str, ParameterInfo],
        tap: InputTap | None,
        on_gradient: OnGradient,
        labels: Labels,
        ids: Tensor,
        agree: Agree,
    ) -> None:
        self.loaded, self.stack, self.tap, self.labels = loaded, loaded.stack, tap, labels
        self.on_gradient, self.chosen, self.agree = on_gradient, chosen, agree
        self.outside = [name for name, info in chosen.items() if info.block is None]
        self.in_embedding = _reached_by_embedding(loaded, ids, self.outside)
        self.token_table = _token_table(loaded.model)
        self.reached: set[str] = set()
        self.done: set[str] = set()
        self._halves: dict[tuple[int, int, str], tuple[Tensor, Tensor]] = {}  # by window, draw and parameter
        self._late: list[tuple[str, int, int, Tensor, Tensor | None]] = []

    def of_block(self, number: int) -> list[str]:
        """Return the chosen parameters of a block."""
        return [name for name, info in self.chosen.items() if info.block == number]

    def one_window(self, window: Window) -> None:
        """Take one window forward and back, its graph kept block by block."""
        with _watching(self.tap, from_start=True):
            prologue = self.stack.embed(window.ids, on_blocks=lambda: _set_active(self.tap, False))
        inputs, outputs = [prologue.hidden.detach().requires_grad_()], []
        with _watching(self.tap, from_start=True):
            for number in range(len(self.stack)):
                outputs.append(self.stack.run_block(number, inputs[-1], prologue))
                inputs.append(outputs[-1].detach().requires_grad_())
        upstream = self._head(inputs.pop(), window)
        for number in reversed(range(len(self.stack))):
            self._block(number, inputs.pop(), outputs.pop(), upstream, window)
        self._embedding(prologue, upstream, window)

    def wave(
        self,
        windows: Sequence[Window],
        progress: Progress,
        watch: BlockWatch | None,
        on_done: OnDone | None,
        label: str,
    ) -> None:
        """Take some windows forward and back, one block after the other; ``on_done``: of a block that gets no more."""
        boundaries, prologues = _walk(self.stack, windows, self.tap, progress, watch, keep=True, label=label)
        progress.start(f"backward{label}", len(windows) * (len(self.stack) + 1))
        upstream = []  # per window and draw, the gradient of the loss in the hidden state
        for known, window in zip(boundaries, windows):
            upstream.append(self._head(known.pop().requires_grad_(), window))
            progress.advance()
        if on_done is not None:
            self._finish([name for name in self.outside if name not in self.in_embedding], on_done)
        for number in reversed(range(len(self.stack))):
            for n, window in enumerate(windows):
                hidden = boundaries[n].pop().requires_grad_()
                output = self.stack.run_block(number, hidden, prologues[n])
                self._block(number, hidden, output, upstream[n], window)
                del output
                progress.advance()
            if on_done is not None:
                self._finish(self.of_block(number), on_done)
        for n, window in enumerate(windows):
            if self.in_embedding:
                self._embedding(self.stack.embed(window.ids), upstream[n], window)
        progress.finish()

    def finish(self, on_done: OnDone) -> None:
        """Hand out what waited for the end: rows that the embedding reaches, window by window, whatever the waves."""
        for name, number, draw, gradient, rows in self._late:
            self.on_gradient(name, number, draw, gradient, rows)
        self._late = []
        self._finish([name for name in self.outside if name not in self.in_embedding], on_done)
        for number in reversed(range(len(self.stack))):
            self._finish(self.of_block(number), on_done)
        self._finish(self.outside, on_done)
        _require_reached(list(self.chosen), self.reached)

    def _finish(self, names: Sequence[str], on_done: OnDone) -> None:
        """Call ``on_done`` for those of ``names`` that a gradient reached and that it was not called for."""
        self.reached = self.agree(self.reached)
        left = [name for name in names if name not in self.done and name in self.reached]
        self.done.update(left)
        if left:
            on_done(left)

    def _head(self, hidden: Tensor, window: Window) -> list[Tensor]:
        """Hand out the gradients of what follows the blocks; return those in the last hidden state, by draw."""
        upstream, tensors = [], [self.loaded.weights[name].source() for name in self.outside]
        for draw, gradients in enumerate(_head_gradients(self.stack, hidden, window, tensors, self.tap, self.labels)):
            assert gradients[0] is not None
            upstream.append(gradients[0])
            for name, gradient in zip(self.outside, gradients[1:]):
                if gradient is None:
                    continue
                self.reached.add(name)
                if name in self.in_embedding:  # the rows that the embedding also reaches wait for their other half
                    every = torch.arange(len(gradient), device=window.ids.device)
                    rows = torch.unique(window.ids) if name == self.token_table else every
                    self._halves[window.number, draw, name] = rows, gradient[rows]
                    gradient[rows] = 0
                self.on_gradient(name, window.number, draw, gradient, None)
        return upstream

    def _block(self, number: int, hidden: Tensor, output: Tensor, upstream: list[Tensor], window: Window) -> None:
        """Hand out the gradients of a block's parameters; ``upstream`` becomes the gradient in its input."""
        names = self.of_block(number)
        sources = [hidden, *(self.loaded.weights[name].source() for name in names)]
        for draw, above in enumerate(upstream):
            more = draw + 1 < self.labels.num_draws
            gradients = torch.autograd.grad(output, sources, above, allow_unused=True, retain_graph=more)
            upstream[draw] = gradients[0]
            for name, gradient in zip(names, gradients[1:]):
                if gradient is not None:
                    self.reached.add(name)
                    self.on_gradient(name, window.number, draw, gradient, None)

    def _embedding(self, prologue: Prologue, upstream: list[Tensor], window: Window) -> None:
        """Keep the gradients of what lies before the blocks, for the end."""
        names = [name for name in self.outside if name in self.in_embedding]
        if not names:
            return
        tensors = [self.loaded.weights[name].source() for name in names]
        for draw, above in enumerate(upstream):
            more = draw + 1 < self.labels.num_draws
            found = torch.autograd.grad(prologue.hidden, tensors, above, allow_unused=True, retain_graph=more)
            for name, gradient in zip(names, found):
                if gradient is None:
                    continue
                self.reached.add(name)
                rows, values = None, gradient
                if (half := self._halves.pop((window.number, draw, name), None)) is not None:
                    rows, values = half[0], half[1] + gradient[half[0]]
                elif name == self.token_table:
                    rows = torch.unique(window.ids)
                    values = gradient[rows]
                self._late.append((name, window.number, draw, values, rows))


def _walk(
    stack: BlockStack,
    windows: Sequence[Window],
    tap: InputTap | None,
    progress: Progress,
    watch: BlockWatch | None,
    *,
    keep: bool,
    label: str = "",
) -> tuple[list[list[Tensor]], list[Prologue]]:
    """Run every window forward, all of them through one block before the next; return their states and prologues.

    ``keep``: the hidden states before each block and after the last, else the last alone.
    """
    states: list[list[Tensor]] = []
    prologues: list[Prologue] = []
    progress.start(f"forward{label}", len(windows) * len(stack))
    for window in windows:
        with torch.no_grad(), _watching(tap, from_start=True):
            prologues.append(stack.embed(window.ids, on_blocks=lambda: _set_active(tap, False)))
        states.append([prologues[-1].hidden])
    for number in range(len(stack)):
        before = [known[-1] for known in states] if watch is not None else []

        def again(window: int, number: int = number, before: Sequence[Tensor] = before) -> Tensor:
            with torch.no_grad():
                return stack.run_block(number, before[window], prologues[window])

        with torch.no_grad(), _watching(tap, from_start=True), watch.watching(number) if watch else nullcontext():
            for known, prologue in zip(states, prologues):
                known.append(stack.run_block(number, known[-1], prologue))
                if not keep:
                    del known[0]
                progress.advance()
        if watch is not None:
            watch.finish_block(number, [known[-1] for known in states], again)
    progress.finish()
    return states, prologues


def _head_gradients(
    stack: BlockStack, hidden: Tensor, window: Window, tensors: Sequence[Tensor], tap: InputTap | None, labels: Labels
) -> Iterator[tuple[Tensor | None, ...]]:
    """Yield, draw by draw, the gradients in the last hidden state and in the tensors outside the blocks."""
    with _watching(tap, from_start=False):
        logits = stack.head(hidden, window.ids, on_head=lambda: _set_active(tap, True))
    for draw in range(labels.num_draws):
        loss = label_loss(logits, labels.of(logits, window.ids, window.number, draw))
        more = draw + 1 < labels.num_draws
        yield torch.autograd.grad(loss, [hidden, *tensors], allow_unused=True, retain_graph=more)


@contextmanager
def _watching(tap: InputTap | None, *, from_start: bool) -> Iterator[None]:
    if tap is None:
        yield
        return
    with tap:
        tap.active = from_start
        try:
            yield
        finally:
            tap.active = False


def _set_active(tap: InputTap | None, active: bool) -> None:
    if tap is not None:
        tap.active = active


def _reached_by_embedding(loaded: LoadedModel, ids: Tensor, names: Sequence[str]) -> set[str]:
    """Return which of ``names`` the first block's input depends on.

    Raises ModelError if a block's other arguments depend on a chosen parameter: its gradient would be incomplete.
    """
    prologue = loaded.stack.embed(ids[:, :2])
    if any(tensor.requires_grad for tensor in tensors_in(prologue.arguments)):
        raise ModelError(
            "a block's arguments depend on a chosen parameter outside the blocks",
            hint="leave the parameters outside the blocks out with score.exclude",
        )
    if not names or not prologue.hidden.requires_grad:
        return set()
    tensors = [loaded.weights[name].source() for name in names]
    found = torch.autograd.grad(prologue.hidden.sum(), tensors, allow_unused=True)
    return {name for name, gradient in zip(names, found) if gradient is not None}


def _token_table(model: Any) -> str | None:
    """Return the parameter in which the model looks its tokens up: a window's embedding reaches only its tokens' rows."""
    table = getattr(model.get_input_embeddings(), "weight", None) if hasattr(model, "get_input_embeddings") else None
    return next((name for name, parameter in model.named_parameters() if parameter is table), None)


def _require_reached(names: Sequence[str], reached: set[str]) -> None:
    missing = [name for name in names if name not in reached]
    if missing:
        shown = ", ".join(missing[:3]) + (", ..." if len(missing) > 3 else "")
        raise ModelError(
            f"no gradient reaches {len(missing)} of the parameters to score: {shown}",
            hint="leave them out with score.exclude, or score them with a metric that needs no gradient",
        )
