"""Any decoder as three callables: embed, blocks, head. No code per model family.

The model's own forward does all the work. Its blocks are short-circuited where they are not wanted: they take note of the
arguments that the model passes them (masks, rotary tables, positions) and hand over a hidden state that is already known.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from esa.errors import ModelError
from esa.model.anatomy import decoder_blocks, text_config
from esa.model.quantizing import quantization_of
from esa.spec import derive_seed


class _Stop(Exception):
    """Leave the model's forward once the last block's arguments are known."""


@dataclass
class Prologue:
    """What the model computes before its blocks: the first hidden state and each block's own arguments."""

    input_ids: Tensor  # (batch, tokens)
    hidden: Tensor  # (batch, tokens, d_model)
    arguments: list[tuple[tuple[Any, ...], dict[str, Any]]]  # per block, without the hidden state


class BlockStack:
    """A decoder as embed, blocks and head.

    ``embed(ids)`` runs the forward up to the first block's input; ``run_block(b, hidden, prologue)`` one block;
    ``head(hidden, ids)`` what follows the blocks; ``logits_from(b, hidden, ids)`` everything from block ``b`` on.
    The chain of the three gives the model's own logits bit for bit: checked when the stack is made.
    """

    def __init__(self, model: Any) -> None:
        self.model = model
        self.name, self.blocks = decoder_blocks(model)
        self._returns: list[int | None] = [None] * len(self.blocks)  # length of a returned tuple, None for a tensor
        self._check_sharing()
        self._prove()

    def __len__(self) -> int:
        return len(self.blocks)

    def embed(self, input_ids: Tensor, *, on_blocks: Callable[[], None] | None = None) -> Prologue:
        """Return the first block's input and every block's arguments; ``on_blocks`` is called as the blocks are reached."""
        captured: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
        first: list[Tensor] = []

        def capture(number: int) -> Callable[..., Any]:
            def forward(*args: Any, **kwargs: Any) -> Any:
                hidden, args, kwargs = _split_hidden(args, kwargs)
                if number == 0:
                    first.append(hidden)
                    if on_blocks is not None:
                        on_blocks()
                captured.append((args, kwargs))
                if number == len(self.blocks) - 1:
                    raise _Stop
                return self._wrap(number, hidden)

            return forward

        with self._replaced({number: capture(number) for number in range(len(self.blocks))}), suppress(_Stop):
            self._call(input_ids)
        if len(captured) != len(self.blocks):
            raise ModelError(f"{type(self.model).__name__} ran {len(captured)} of its {len(self.blocks)} blocks")
        return Prologue(input_ids, first[0], captured)

    def run_block(self, number: int, hidden: Tensor, prologue: Prologue) -> Tensor:
        """Return block ``number``'s output ``(batch, tokens, d_model)`` for a hidden state of the same shape."""
        args, kwargs = prologue.arguments[number]
        output = self.blocks[number](hidden, *args, **kwargs)
        result: Tensor = output[0] if isinstance(output, tuple | list) else output
        return result

    def head(self, hidden: Tensor, input_ids: Tensor, *, on_head: Callable[[], None] | None = None) -> Tensor:
        """Return logits ``(batch, tokens, vocabulary)`` from the last block's output; ``on_head`` is called before."""
        return self.logits_from(len(self.blocks), hidden, input_ids, on_entry=on_head)

    def logits_from(
        self, number: int, hidden: Tensor, input_ids: Tensor, *, on_entry: Callable[[], None] | None = None
    ) -> Tensor:
        """Return logits from the input of block ``number`` (at least 1) on: the blocks below hand ``hidden`` over."""

        def hand_over(below: int) -> Callable[..., Any]:
            def forward(*args: Any, **kwargs: Any) -> Any:
                if below == number - 1 and on_entry is not None:
                    on_entry()
                return self._wrap(below, hidden)

            return forward

        with self._replaced({below: hand_over(below) for below in range(number)}):
            return self._call(input_ids)

    def _call(self, input_ids: Tensor) -> Tensor:
        # A cache handed to a block would let its second run attend to every key twice.
        logits: Tensor = self.model(input_ids=input_ids, use_cache=False).logits
        return logits

    def _wrap(self, number: int, hidden: Tensor) -> Any:
        length = self._returns[number]
        return hidden if length is None else (hidden, *[None] * (length - 1))

    @contextmanager
    def _replaced(self, forwards: dict[int, Callable[..., Any]]) -> Iterator[None]:
        """Give blocks another forward for a while."""
        before = {number: self.blocks[number].__dict__.get("forward") for number in forwards}
        try:
            for number, forward in forwards.items():
                self.blocks[number].forward = forward
            yield
        finally:
            for number, own in before.items():
                if own is None:  # the class's forward
                    self.blocks[number].__dict__.pop("forward", None)
                else:
                    self.blocks[number].forward = own

    def _check_sharing(self) -> None:
        owners: dict[int, int] = {}
        for number, block in enumerate(self.blocks):
            for name, parameter in block.named_parameters():
                other = owners.setdefault(id(parameter), number)
                if other != number:
                    raise ModelError(
                        f"blocks {other} and {number} of {type(self.model).__name__} share {name}",
                        hint="a stack whose blocks share weights cannot be scored block by block",
                    )

    def _prove(self) -> None:
        """Compare the chain with the model's own forward on a seeded batch of 2 x 32 tokens, bit for bit."""
        config = text_config(self.model)
        context = getattr(config, "max_position_embeddings", None)
        length = min(32, context) if context is not None and context > 0 else 32
        draw = torch.Generator().manual_seed(derive_seed(0, "block_stack"))
        ids = torch.randint(0, config.vocab_size, (2, length), generator=draw).to(self._device())
        hooks = []
        for number, block in enumerate(self.blocks):

            def note(_: nn.Module, __: Any, output: Any, number: int = number) -> None:
                self._returns[number] = len(output) if isinstance(output, tuple | list) else None

            hooks.append(block.register_forward_hook(note))
        with torch.no_grad():
            try:
                expected = self._call(ids)
            finally:
                for hook in hooks:
                    hook.remove()
            prologue = self.embed(ids)
            hidden = prologue.hidden
            for number in range(len(self.blocks)):
                hidden = self.run_block(number, hidden, prologue)
            found = self.head(hidden, ids)
            after = ids.clone()
            after[:, -1] = (ids[:, -1] + 1) % config.vocab_size
            changed = self._call(after)
        broken = expected.isnan()
        if not (torch.equal(broken, found.isnan()) and torch.equal(expected[~broken], found[~broken])):
            difference = (expected - found).abs().max().item()
            raise ModelError(
                f"{type(self.model).__name__} is not the chain of its embedding, blocks and head:"
                f" its logits differ by up to {difference:.3g}",
            )
        moved = (changed - expected).abs().float()
        # A mixture of experts regroups its tokens, so that a causal model's earlier logits may move by a rounding.
        experts = any(name.rpartition(".")[2] == "experts" for name, _ in self.model.named_modules())
        rounding = 0.0 if not experts else (1e-4 if expected.dtype == torch.float32 else 0.1)
        # LLM.int8 leaves those features unrounded of which any token of the call has a large entry: tokens meet in the rounding.
        together = quantization_of(self.model) == "int8"
        if not together and moved[:, :-1].max() > rounding * moved[:, -1].max():
            raise ModelError(
                f"{type(self.model).__name__} is not a causal language model: a token changes the logits before it",
                where="model.id",
            )

    def _device(self) -> torch.device:
        devices: list[torch.device] = [p.device for p in self.model.parameters() if not p.is_meta]
        return devices[0]


def _split_hidden(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Tensor, tuple[Any, ...], dict[str, Any]]:
    """Return the hidden state and the other arguments of a block's call."""
    if args:
        return args[0], args[1:], kwargs
    return kwargs["hidden_states"], args, {key: value for key, value in kwargs.items() if key != "hidden_states"}


def tensors_in(value: Any) -> Iterator[Tensor]:
    """Yield every tensor in nested tuples, lists and dicts."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        yield from (tensor for item in value.values() for tensor in tensors_in(item))
    elif isinstance(value, Sequence) and not isinstance(value, str):
        yield from (tensor for item in value for tensor in tensors_in(item))
