"""The shared pass: activations forward, gradients back, one block at a time.

Boundary activations are kept; each block's forward is run again with gradients and its backward taken from the block above,
so that the gradients of one block at a time exist, are accumulated and dropped. Windows go one by one: a window's gradient
is its own, whatever the batch. The gradients equal those of ``loss.backward()`` bit for bit.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from esa.errors import ModelError
from esa.model import BlockStack, LoadedModel, ParameterInfo
from esa.model.block_stack import Prologue, tensors_in
from esa.model.input_tap import InputTap
from esa.progress import Progress
from esa.score.labels import TEXT, Labels, label_loss

OnGradient = Callable[
    [str, int, int, Tensor, Tensor | None], None
]  # parameter, window, draw, gradient, rows (None: all)
OnDone = Callable[[Sequence[str]], None]  # the parameters whose statistics are complete


class BlockWatch(Protocol):
    """Look at every block in turn: while its windows run, and at its outputs ``(1, tokens, d_model)``, one per window."""

    def watching(self, block: int) -> AbstractContextManager[None]:
        """Watch the block's modules while it runs."""

    def finish_block(self, block: int, outputs: Sequence[Tensor], again: Callable[[int], Tensor]) -> None:
        """Take the residual stream behind the block; ``again(window)`` runs the block once more on one window."""


@contextmanager
def differentiable(model: nn.Module, names: Mapping[str, object]) -> Iterator[None]:
    """Let exactly the named parameters require gradients for a while; frozen ones too, others not."""
    before = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    try:
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name in names)
        yield
    finally:
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(before[name])


def forward_pass(
    loaded: LoadedModel,
    windows: Sequence[Tensor],
    tap: InputTap | None,
    progress: Progress,
    watch: BlockWatch | None = None,
) -> None:
    """Run every window through the model once, block by block, the tap and the watch looking on.

    Without a tap nobody looks at what follows the blocks, and it is left out. Memory: one hidden state per window.
    """
    states, _ = _walk(loaded.stack, windows, tap, progress, watch, keep=False)
    if tap is not None:
        for hidden, ids in zip(states, windows):
            with torch.no_grad(), _watching(tap, from_start=False):
                loaded.stack.head(hidden[-1], ids, on_head=lambda: _set_active(tap, True))


def backward_pass(
    loaded: LoadedModel,
    windows: Sequence[Tensor],
    chosen: Mapping[str, ParameterInfo],
    tap: InputTap | None,
    on_gradient: OnGradient,
    on_done: OnDone,
    progress: Progress,
    labels: Labels = TEXT,
    watch: BlockWatch | None = None,
) -> None:
    """Hand out every window's gradient of its mean NLL, parameter by parameter, from the head down to the embedding.

    ``on_gradient(name, n, draw, gradient, rows)`` is called for each chosen parameter, window and draw of ``labels``, all
    draws of a window in a row; ``rows`` tells which rows of the tensor the gradient holds where it is not the whole.
    ``on_done(names)`` follows when no more will come for them. Every block runs forward twice, and backward once per draw.
    Raises ModelError if a chosen parameter is reached by no gradient.
    """
    stack, parameters = loaded.stack, loaded.parameters()
    unit = len(stack) + 1
    with differentiable(loaded.model, chosen):
        boundaries, prologues = _walk(stack, windows, tap, progress, watch, keep=True)
        progress.start("backward", len(windows) * unit)
        outside = [name for name, info in chosen.items() if info.block is None]
        token_table = _token_table(loaded.model)
        in_embedding = _reached_by_embedding(stack, windows[0], parameters, outside)
        reached: set[str] = set()
        saved: dict[tuple[int, int], dict[str, tuple[Tensor, Tensor]]] = {}  # by window and draw
        upstream: list[list[Tensor]] = []  # per window and draw, the gradient of the loss in the hidden state
        for n, ids in enumerate(windows):
            hidden = boundaries[n].pop().requires_grad_()
            upstream.append([])
            wanted = [parameters[name] for name in outside]
            for draw, gradients in enumerate(_head_gradients(stack, hidden, ids, n, wanted, tap, labels)):
                assert gradients[0] is not None
                upstream[n].append(gradients[0])
                for name, gradient in zip(outside, gradients[1:]):
                    if gradient is None:
                        continue
                    reached.add(name)
                    if name in in_embedding:  # the rows that the embedding also reaches wait for their other half
                        every = torch.arange(len(gradient), device=ids.device)
                        rows = torch.unique(ids) if name == token_table else every
                        saved.setdefault((n, draw), {})[name] = (rows, gradient[rows])
                        gradient[rows] = 0
                    on_gradient(name, n, draw, gradient, None)
            progress.advance()
        on_done([name for name in outside if name in reached and name not in in_embedding])
        for number in reversed(range(len(stack))):
            names = [name for name, info in chosen.items() if info.block == number]
            for n in range(len(windows)):
                hidden = boundaries[n].pop().requires_grad_()
                output = stack.run_block(number, hidden, prologues[n])
                sources = [hidden, *(parameters[name] for name in names)]
                for draw, above in enumerate(upstream[n]):
                    more = draw + 1 < labels.num_draws
                    gradients = torch.autograd.grad(output, sources, above, allow_unused=True, retain_graph=more)
                    upstream[n][draw] = gradients[0]
                    for name, gradient in zip(names, gradients[1:]):
                        if gradient is not None:
                            reached.add(name)
                            on_gradient(name, n, draw, gradient, None)
                    del gradients
                del output
                progress.advance()
            _require_reached(names, reached)
            on_done(names)
        names = [name for name in outside if name in in_embedding]
        if names:
            for n, ids in enumerate(windows):
                prologue = stack.embed(ids)
                tensors = [parameters[name] for name in names]
                for draw, above in enumerate(upstream[n]):
                    more = draw + 1 < labels.num_draws
                    found = torch.autograd.grad(prologue.hidden, tensors, above, allow_unused=True, retain_graph=more)
                    for name, gradient in zip(names, found):
                        if gradient is None:
                            continue
                        reached.add(name)
                        if name in saved.get((n, draw), {}):
                            rows, half = saved[n, draw].pop(name)
                            on_gradient(name, n, draw, half + gradient[rows], rows)
                        elif name == token_table:
                            rows = torch.unique(ids)
                            on_gradient(name, n, draw, gradient[rows], rows)
                        else:
                            on_gradient(name, n, draw, gradient, None)
        _require_reached(outside, reached)
        on_done(names)
        progress.finish()


def _walk(
    stack: BlockStack,
    windows: Sequence[Tensor],
    tap: InputTap | None,
    progress: Progress,
    watch: BlockWatch | None,
    *,
    keep: bool,
) -> tuple[list[list[Tensor]], list[Prologue]]:
    """Run every window forward, all of them through one block before the next; return their states and prologues.

    ``keep``: the hidden states before each block and after the last, else the last alone.
    """
    states: list[list[Tensor]] = []
    prologues: list[Prologue] = []
    progress.start("forward", len(windows) * len(stack))
    for ids in windows:
        with torch.no_grad(), _watching(tap, from_start=True):
            prologues.append(stack.embed(ids, on_blocks=lambda: _set_active(tap, False)))
        states.append([prologues[-1].hidden])
        if tap is not None:
            tap.num_tokens += ids.numel()
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
    stack: BlockStack,
    hidden: Tensor,
    ids: Tensor,
    window: int,
    parameters: list[nn.Parameter],
    tap: InputTap | None,
    labels: Labels,
) -> Iterator[tuple[Tensor | None, ...]]:
    """Yield, draw by draw, the gradients in the last hidden state and in the parameters outside the blocks."""
    with _watching(tap, from_start=False):
        logits = stack.head(hidden, ids, on_head=lambda: _set_active(tap, True))
    for draw in range(labels.num_draws):
        loss = label_loss(logits, labels.of(logits, ids, window, draw))
        more = draw + 1 < labels.num_draws
        yield torch.autograd.grad(loss, [hidden, *parameters], allow_unused=True, retain_graph=more)


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


def _reached_by_embedding(
    stack: BlockStack, ids: Tensor, parameters: Mapping[str, nn.Parameter], names: Sequence[str]
) -> set[str]:
    """Return which of ``names`` the first block's input depends on.

    Raises ModelError if a block's other arguments depend on a chosen parameter: its gradient would be incomplete.
    """
    prologue = stack.embed(ids[:, :2])
    if any(tensor.requires_grad for tensor in tensors_in(prologue.arguments)):
        raise ModelError(
            "a block's arguments depend on a chosen parameter outside the blocks",
            hint="leave the parameters outside the blocks out with score.exclude",
        )
    if not names or not prologue.hidden.requires_grad:
        return set()
    found = torch.autograd.grad(prologue.hidden.sum(), [parameters[name] for name in names], allow_unused=True)
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
