"""The shared pass: activations forward, gradients back, one block at a time.

Boundary activations are kept; each block's forward is run again with gradients and its backward taken from the block above,
so that the gradients of one block at a time exist, are accumulated and dropped. Windows go one by one: a window's gradient
is its own, whatever the batch. The gradients equal those of ``loss.backward()`` bit for bit.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from esa.errors import ModelError
from esa.model import BlockStack, LoadedModel, ParameterInfo
from esa.model.block_stack import Prologue, tensors_in
from esa.model.input_tap import InputTap
from esa.progress import Progress

OnGradient = Callable[[str, int, Tensor, Tensor | None], None]  # parameter, window, gradient, its rows (None: all)
OnDone = Callable[[Sequence[str]], None]  # the parameters whose statistics are complete


def window_loss(logits: Tensor, ids: Tensor) -> Tensor:
    """Return the mean NLL (nats) of one window's predicted tokens; logits ``(1, T + 1, V)``, ids ``(1, T + 1)``."""
    return F.cross_entropy(logits[0, :-1].float(), ids[0, 1:])


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


def forward_pass(loaded: LoadedModel, windows: Sequence[Tensor], tap: InputTap, progress: Progress) -> None:
    """Run every window through the model once, the tap watching."""
    progress.start("forward", len(windows))
    with torch.no_grad(), tap:
        tap.active = True
        for ids in windows:
            loaded.model(input_ids=ids, use_cache=False)
            tap.num_tokens += ids.numel()
            progress.advance()
        tap.active = False
    progress.finish()


def backward_pass(
    loaded: LoadedModel,
    windows: Sequence[Tensor],
    chosen: Mapping[str, ParameterInfo],
    tap: InputTap | None,
    on_gradient: OnGradient,
    on_done: OnDone,
    progress: Progress,
) -> None:
    """Hand out every window's gradient of its mean NLL, parameter by parameter, from the head down to the embedding.

    ``on_gradient(name, n, gradient, rows)`` is called for each chosen parameter and window; ``rows`` tells which rows of the
    tensor the gradient holds where it is not the whole. ``on_done(names)`` follows when no more will come for them.
    Raises ModelError if a chosen parameter is reached by no gradient.
    """
    stack, parameters = loaded.stack, loaded.parameters()
    unit = len(stack) + 1
    with differentiable(loaded.model, chosen):
        boundaries, prologues = _boundaries(stack, windows, tap, progress)
        progress.start("backward", len(windows) * unit)
        outside = [name for name, info in chosen.items() if info.block is None]
        token_table = _token_table(loaded.model)
        in_embedding = _reached_by_embedding(stack, windows[0], parameters, outside)
        reached: set[str] = set()
        saved: dict[int, dict[str, tuple[Tensor, Tensor]]] = {}
        upstream: list[Tensor] = []
        for n, ids in enumerate(windows):
            hidden = boundaries[n].pop().requires_grad_()
            gradients = _head_gradients(stack, hidden, ids, [parameters[name] for name in outside], tap)
            upstream.append(gradients[0])
            for name, gradient in zip(outside, gradients[1:]):
                if gradient is None:
                    continue
                reached.add(name)
                if name in in_embedding:  # the rows that the embedding also reaches wait for their other half
                    rows = torch.unique(ids) if name == token_table else torch.arange(len(gradient), device=ids.device)
                    saved.setdefault(n, {})[name] = (rows, gradient[rows])
                    gradient[rows] = 0
                on_gradient(name, n, gradient, None)
            progress.advance()
        on_done([name for name in outside if name in reached and name not in in_embedding])
        for number in reversed(range(len(stack))):
            names = [name for name, info in chosen.items() if info.block == number]
            for n in range(len(windows)):
                hidden = boundaries[n].pop().requires_grad_()
                output = stack.run_block(number, hidden, prologues[n])
                wanted = [hidden, *(parameters[name] for name in names)]
                gradients = torch.autograd.grad(output, wanted, upstream[n], allow_unused=True)
                upstream[n] = gradients[0]
                del output
                for name, gradient in zip(names, gradients[1:]):
                    if gradient is not None:
                        reached.add(name)
                        on_gradient(name, n, gradient, None)
                progress.advance()
            _require_reached(names, reached)
            on_done(names)
        names = [name for name in outside if name in in_embedding]
        if names:
            for n, ids in enumerate(windows):
                prologue = stack.embed(ids)
                found = torch.autograd.grad(
                    prologue.hidden, [parameters[name] for name in names], upstream[n], allow_unused=True
                )
                for name, gradient in zip(names, found):
                    if gradient is None:
                        continue
                    reached.add(name)
                    if name in saved.get(n, {}):
                        rows, half = saved[n].pop(name)
                        on_gradient(name, n, half + gradient[rows], rows)
                    elif name == token_table:
                        rows = torch.unique(ids)
                        on_gradient(name, n, gradient[rows], rows)
                    else:
                        on_gradient(name, n, gradient, None)
        _require_reached(outside, reached)
        on_done(names)
        progress.finish()


def _boundaries(
    stack: BlockStack, windows: Sequence[Tensor], tap: InputTap | None, progress: Progress
) -> tuple[list[list[Tensor]], list[Prologue]]:
    """Run every window forward; return its hidden states before each block and after the last, and its prologue."""
    boundaries, prologues = [], []
    progress.start("forward", len(windows))
    for ids in windows:
        with torch.no_grad(), _watching(tap, from_start=True):
            prologue = stack.embed(ids, on_blocks=lambda: _set_active(tap, False))
            states = [prologue.hidden]
            _set_active(tap, True)
            for number in range(len(stack)):
                states.append(stack.run_block(number, states[-1], prologue))
        if tap is not None:
            tap.num_tokens += ids.numel()
        boundaries.append(states)
        prologues.append(prologue)
        progress.advance()
    progress.finish()
    return boundaries, prologues


def _head_gradients(
    stack: BlockStack, hidden: Tensor, ids: Tensor, parameters: list[nn.Parameter], tap: InputTap | None
) -> tuple[Tensor, ...]:
    with _watching(tap, from_start=False):
        logits = stack.head(hidden, ids, on_head=lambda: _set_active(tap, True))
    return torch.autograd.grad(window_loss(logits, ids), [hidden, *parameters], allow_unused=True)


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
