"""Evaluate a model on fixed windows, again and again, from the first block that changed."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from itertools import groupby

import torch
from torch import Tensor

from esa.data import TokenWindows
from esa.eval.intact import IntactStates, advance, embedded
from esa.eval.language_modeling import Measured, Reference, add_batch, add_unmeasured
from esa.eval.memory import TOGETHER, WAVE_BYTES, share_room
from esa.model import LoadedModel
from esa.model.anatomy import text_config
from esa.model.block_stack import Prologue

_BEFORE = -1  # the place of what is read before the blocks; behind them it is their number


@dataclass(frozen=True)
class Edit:
    """A change of the model that can be made part by part: the parameters it touches, and how to change some of them.

    ``make(names)`` is a context, within which those of its parameters that are in ``names`` are changed.
    """

    names: frozenset[str]
    make: Callable[[frozenset[str]], AbstractContextManager[None]]


class Evaluator:
    """Hold the windows in batches, and after ``remember`` the intact model's states, so that later runs start where it pays.

    Windows of equal length share a batch of at most ``batch_tokens`` tokens; nothing is padded. The batches never change,
    so that two runs differ only by the weights. ``room``: the bytes that hidden states may take, without limit for None; no
    number depends on it. Every block runs over all batches, and over all edits compared together, before the next one does.
    Logits exist for two batches at most: one of the intact model and one of a changed one.
    """

    def __init__(self, loaded: LoadedModel, windows: TokenWindows, batch_tokens: int, room: int | None = None) -> None:
        self.loaded, self.windows, self.room = loaded, windows, room
        self.vocabulary = int(text_config(loaded.model).vocab_size)
        self.batches = [torch.tensor(batch, device=loaded.device) for batch in _batches(windows.ids, batch_tokens)]
        self.together = TOGETHER  # how many edits to compare at once
        self._places = _places(loaded)
        self._intact: IntactStates | None = None
        self._reference: Reference | None = None  # of the only batch, where there is one only

    def measure(self) -> Measured:
        """Evaluate the model as it is.

        Memory: beside a batch's logits the hidden states of a wave of batches, ``room`` or 256 MB.
        """
        stack, measured = self.loaded.stack, Measured()
        width = int(text_config(self.loaded.model).hidden_size)
        with torch.no_grad():
            for wave in _waves(self.batches, width, WAVE_BYTES if self.room is None else self.room):
                states = IntactStates(stack, wave)
                states.run(())
                for ids, hidden in zip(wave, states.final, strict=True):
                    add_batch(measured, stack.head(hidden, ids), ids, None)
        return measured

    def remember(self, starts: Iterable[int] | None = None) -> Measured:
        """Evaluate the intact model once, and keep its final states and the inputs of the blocks in ``starts``, all for None.

        Where ``room`` is short, fewer edits are compared together and fewer inputs kept; those are recomputed when their
        turn comes, which costs one more pass of the intact model at most when edits come in the order of their first blocks.
        Memory: tokens x d_model numbers per kept input, per edit compared together, and twice that for the sweep and the end.
        """
        stack, measured = self.loaded.stack, Measured()
        wanted = sorted(set(range(len(stack)) if starts is None else starts) - {len(stack)})
        with torch.no_grad():
            self._reference = None
            self._intact = states = IntactStates(stack, self.batches)
            num_kept = len(wanted)
            if self.room is not None:
                room = self.room - states.prologue_bytes
                self.together, num_kept = share_room(room, states.state_bytes, len(wanted))
            gaps = {start: start - before for before, start in zip([0, *wanted], wanted, strict=False)}
            states.run(sorted(wanted, key=lambda start: -gaps[start])[:num_kept])  # those that save the most blocks
            for ids, hidden in zip(self.batches, states.final, strict=True):
                logits = stack.head(hidden, ids)
                add_batch(measured, logits, ids, None)
                if len(self.batches) == 1:
                    self._reference = Reference(logits)
                del logits  # not held while the next ones are made
        return measured

    def compare(self, edits: Sequence[Edit]) -> list[Measured]:
        """Evaluate each edit of the model against the remembered one, from the first block that it changes.

        Bit for bit what a whole forward pass under the edit gives. An edit of a parameter outside the blocks, but for a head
        of its own, starts at the embedding and with its own masks and positions.
        Cost per edit: the blocks from its first on and the head; once for all of them the intact model's head.
        """
        assert self._intact is not None, "the intact model is remembered first"
        stack, intact = self.loaded.stack, self._intact
        runs = [_Run(edit, self._parts(edit.names)) for edit in edits]
        with torch.no_grad():
            for run in runs:
                run.begin(intact)
            for number in range(min((run.start for run in runs), default=len(stack)), len(stack)):
                for run in runs:
                    if run.start <= number:
                        hidden = run.hidden if run.hidden is not None else list(intact.at(number))
                        with run.made(number):
                            advance(stack, number, hidden, run.prologues)
                        run.hidden = hidden
                if any(run.start > number and not intact.holds(run.start) for run in runs):
                    intact.at(number + 1)  # the sweep runs each block along with the edits
            for position, ids in enumerate(self.batches):
                reference = self._reference or Reference(stack.head(intact.final[position], ids))
                for run in runs:
                    if run.measured.nonfinite:
                        add_unmeasured(run.measured, ids)
                        continue
                    with run.made(len(stack)):
                        logits = stack.head((run.hidden or intact.final)[position], ids)
                    add_batch(run.measured, logits, ids, reference)
                    del logits  # not held while the next ones are made
                self._reference = reference if len(self.batches) == 1 else None
                del reference
        return [run.measured for run in runs]

    def follow(self, edits: Sequence[Edit], watch: Callable[[int, int, Tensor, Tensor], None]) -> None:
        """Run the intact model and each edit of it side by side, and show every block's outputs as they are made.

        ``watch(edit, block, intact, changed)`` is called per batch, from the first block that the edit changes on, with the
        edit's number and the two outputs ``(windows, tokens, d_model)``. Nothing needs to be remembered before.
        Cost: one pass of the intact model, and one per edit from its first block on. Memory: the hidden states of all batches,
        once for the intact model and once per edit.
        """
        stack = self.loaded.stack
        runs = [_Run(edit, self._parts(edit.names)) for edit in edits]
        with torch.no_grad():
            intact = IntactStates(stack, self.batches)
            for run in runs:
                run.begin(intact)
            hidden, prologues = list(intact.at(0)), intact.prologues
            del intact  # it holds the first states
            for number in range(len(stack)):
                moving = [(place, run) for place, run in enumerate(runs) if run.start <= number]
                for _, run in moving:
                    run.hidden = run.hidden if run.hidden is not None else list(hidden)
                    with run.made(number):
                        advance(stack, number, run.hidden, run.prologues)
                advance(stack, number, hidden, prologues)
                for place, run in moving:
                    for before, after in zip(hidden, run.hidden or [], strict=True):
                        watch(place, number, before, after)

    def forget_below(self, number: int) -> None:
        """Drop the intact inputs of the blocks below ``number``: no later edit starts there."""
        if self._intact is not None:
            self._intact.forget_below(number)

    def first_block(self, names: Iterable[str]) -> int:
        """Return where an evaluation starts when the named parameters change.

        0 also stands for what is read before the blocks, the number of blocks for a head of its own.
        """
        return max(0, min(self._parts(names), default=0))

    def _parts(self, names: Iterable[str]) -> dict[int, frozenset[str]]:
        """Return the named parameters by the places that read them: a block, before the blocks, behind them."""
        parts: dict[int, set[str]] = {}
        for name in names:
            for place in self._places[name]:
                parts.setdefault(place, set()).add(name)
        return {place: frozenset(part) for place, part in parts.items()}


@dataclass
class _Run:
    """One edit on its way through the blocks."""

    edit: Edit
    parts: Mapping[int, frozenset[str]]
    prologues: Sequence[Prologue] = ()
    hidden: list[Tensor] | None = None  # per batch, before the next block; None as long as they are the intact model's
    measured: Measured = field(default_factory=Measured)

    @property
    def start(self) -> int:
        """Return the first block to run."""
        return max(0, min(self.parts, default=0))

    def begin(self, intact: IntactStates) -> None:
        """Take the intact model's prologues, or make those of an edit that is read before the blocks."""
        self.prologues = intact.prologues
        if _BEFORE in self.parts:
            with self.made(_BEFORE):
                self.prologues = embedded(intact.stack, intact.batches)
            self.hidden = [prologue.hidden for prologue in self.prologues]

    def made(self, place: int) -> AbstractContextManager[None]:
        """Return the context in which what ``place`` reads is changed."""
        return self.edit.make(self.parts[place]) if place in self.parts else nullcontext()


def _places(loaded: LoadedModel) -> dict[str, set[int]]:
    """Return for every parameter which blocks read it, and whether it is read before or behind them.

    Outside the blocks only a head that is no embedding is known to be read behind them alone; the others count as both.
    """
    stack, model = loaded.stack, loaded.model
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    found: dict[str, set[int]] = {}
    for name, info in loaded.table.items():
        places = found.setdefault(name, set())
        for use in info.uses:
            path = use.removeprefix(f"{stack.name}.")
            owner = model.get_submodule(use.rpartition(".")[0])
            if path != use:
                places.add(int(path.partition(".")[0]))
            elif owner is head and owner is not embedding:
                places.add(len(stack))
            else:
                places |= {_BEFORE, len(stack)}
    return found


def _batches(ids: tuple[tuple[int, ...], ...], batch_tokens: int) -> Iterator[list[tuple[int, ...]]]:
    """Yield runs of neighbouring windows of equal length, at most ``batch_tokens`` tokens together."""
    for length, group in groupby(ids, key=len):
        windows = list(group)
        size = max(1, batch_tokens // length)
        for start in range(0, len(windows), size):
            yield windows[start : start + size]


def _waves(batches: Sequence[Tensor], width: int, room: int) -> Iterator[list[Tensor]]:
    """Yield runs of batches whose hidden states, float32 and ``width`` wide, take at most ``room`` bytes, but one at least."""
    wave: list[Tensor] = []
    for ids in batches:
        if wave and (sum(each.numel() for each in wave) + ids.numel()) * width * 4 > room:
            yield wave
            wave = []
        wave.append(ids)
    yield wave
