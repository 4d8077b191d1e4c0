"""What a trial's faults make of the stored numbers, with an error-correcting code between or without."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
import torch
from torch import Tensor

from esa.model import LoadedModel, Weight
from esa.model.quantized import QuantizedWeight
from esa.perturb.apply import Change, Codes
from esa.perturb.faults.lists import Integers, Store, stores
from esa.perturb.faults.secded import CORRECTED, DATA_BITS, DETECTED, check_bits, decode, pack, unpack
from esa.perturb.methods import INTEGERS, int_view
from esa.spec.sections import Faults

Unsigned = npt.NDArray[np.uint64]


@dataclass
class Counts:
    """What became of a trial's faults.

    ``num_faults``: bits that were hit. Words of the code that were hit, each of one kind: ``num_corrected``, rightly;
    ``num_detected``; ``num_silent``, whose wrong numbers pass for right ones. None without a code. ``num_flips``: stored bits
    that differ in the end; ``flip``: parameter, index, bit and width where that is a single one.
    """

    num_faults: int = 0
    num_words: int | None = None
    num_corrected: int | None = None
    num_detected: int | None = None
    num_silent: int | None = None
    num_flips: int = 0
    flip: tuple[str, int, int, int] | None = None

    def record(self) -> dict[str, Any]:
        """Return the counts as JSON."""
        return asdict(self)

    @classmethod
    def of(cls, record: Mapping[str, Any]) -> "Counts":
        """Return the counts of a ``record``, also of one that was JSON."""
        flip = record["flip"]
        return cls(**{**record, "flip": None if flip is None else tuple(flip)})


@dataclass
class Struck:
    """A trial's faults as changes of the model; ``stopped`` where a detected error ends it, with no change at all."""

    counts: Counts
    changes: list[Change] = field(default_factory=list)
    stopped: bool = False


def strike(loaded: LoadedModel, faults: pl.DataFrame, rules: Faults) -> Struck:
    """Return what one trial's rows of ``fault_list/1`` do to the model, which is only read.

    Masks of the faults in one number are merged by XOR before they meet it. With ``rules.ecc = "secded"`` every word that is
    hit is encoded, struck in its 72 bits and decoded; a word with a detected error is then taken as it was read (``keep``),
    its numbers are zero (``zero``), or the trial ends (``stop``).
    """
    coded = rules.ecc == "secded"
    found = Struck(Counts(num_words=0, num_corrected=0, num_detected=0, num_silent=0) if coded else Counts())
    parts = {name: part for (name,), part in faults.group_by("parameter") if name is not None}
    for name in (name for name in loaded.table if name in parts):
        part, weight, store = parts[name], loaded.weights[name], stores(loaded, [name])[0]
        found.counts.num_faults += len(part)
        index, old, new = (
            _behind_the_code(weight, store, part, rules, found.counts) if coded else _merged(weight, store, part)
        )
        changed = old != new
        if changed.any():
            _count_flips(found.counts, store, index[changed], old[changed] ^ new[changed])
            found.changes.append(change_of(weight, index[changed], new[changed]))
    if rules.on_detect == "stop" and found.counts.num_detected:
        return Struck(found.counts, [], stopped=True)
    return found


def _merged(weight: Weight, store: Store, part: pl.DataFrame) -> tuple[Integers, Unsigned, Unsigned]:
    """Return the indices of the numbers that are hit, and their bits before and after."""
    index, mask = _masks(part["index"].to_numpy(), part["bit"].to_numpy())
    old = bits_of(weight, index)
    return index, old, old ^ mask


def _masks(keys: Integers, bits: Integers) -> tuple[Integers, Unsigned]:
    """Return the distinct keys, ascending, and one XOR mask for each."""
    distinct, place = np.unique(keys, return_inverse=True)
    masks = np.zeros(len(distinct), dtype=np.uint64)
    np.bitwise_xor.at(masks, place, np.uint64(1) << bits.astype(np.uint64))
    return distinct, masks


def _behind_the_code(
    weight: Weight, store: Store, part: pl.DataFrame, rules: Faults, counts: Counts
) -> tuple[Integers, Unsigned, Unsigned]:
    """Return the numbers of the words that are hit, as they were and as the decoder gives them; count the words."""
    place = part["codeword_bit"].to_numpy()
    word, keys = part["word"].to_numpy(), np.unique(part["word"].to_numpy())
    data, check = (np.zeros(len(keys), dtype=np.uint64) for _ in range(2))
    for masks, low, high in ((data, 0, DATA_BITS), (check, DATA_BITS, 2 * DATA_BITS)):
        mine = (place >= low) & (place < high)
        hit, merged = _masks(word[mine], place[mine] - low)
        masks[np.searchsorted(keys, hit)] = merged
    index = keys[:, None] * store.per_word + np.arange(store.per_word)  # (words, numbers of a word)
    stored = index < store.numel
    old = np.zeros(index.shape, dtype=np.uint64)
    old[stored] = bits_of(weight, index[stored])
    words = pack(old, store.width)
    read = decode(words ^ data, check_bits(words) ^ check.astype(np.uint8))
    new, detected = unpack(read.words, store.width), read.status == DETECTED
    right = ((new == old) | ~stored).all(axis=1)
    counts.num_words = (counts.num_words or 0) + len(keys)
    counts.num_corrected = (counts.num_corrected or 0) + int((right & (read.status == CORRECTED)).sum())
    counts.num_detected = (counts.num_detected or 0) + int(detected.sum())
    counts.num_silent = (counts.num_silent or 0) + int((~right & ~detected).sum())
    if rules.on_detect == "zero":
        lost = stored & detected[:, None]
        new[lost] = zero_bits(weight, index[lost])
    return index[stored], old[stored], new[stored]


def _count_flips(counts: Counts, store: Store, index: Integers, flipped: Unsigned) -> None:
    """Add the bits that differ; keep the place of the only one."""
    number = int(np.bitwise_count(flipped).sum())
    counts.num_flips += number
    single = counts.num_flips == 1 and number == 1
    counts.flip = (store.name, int(index[0]), int(flipped[0]).bit_length() - 1, store.width) if single else None


def bits_of(weight: Weight, index: Integers) -> Unsigned:
    """Return the bits that are stored at row-major indices ``(n,)``: of the number, or of its code."""
    place = torch.from_numpy(index)
    if isinstance(weight, QuantizedWeight):
        return _unsigned(weight.held(place), weight.code_bits)
    stored = weight.stored(place)
    return _unsigned(int_view(stored), stored.dtype.itemsize * 8)


def zero_bits(weight: Weight, index: Integers) -> Unsigned:
    """Return the bits of zero at row-major indices ``(n,)``: of a quantised weight the code nearest to it."""
    if isinstance(weight, QuantizedWeight):
        place = torch.from_numpy(index)
        return _unsigned(weight.encode(place, torch.zeros(len(index))), weight.code_bits)
    return np.zeros(len(index), dtype=np.uint64)


def change_of(weight: Weight, index: Integers, bits: Unsigned) -> Change:
    """Return the change of weights at row-major indices ``(n,)``, ascending, to the numbers with these bits."""
    place = torch.from_numpy(index)
    if isinstance(weight, QuantizedWeight):
        held, codes = weight.held(place), _integers(bits, weight.code_bits, signed=weight.signed).to(torch.int64)
        before, after = weight.decode(place, held), weight.decode(place, codes)
        return Change(weight.info.name, place, before, after, Codes(held, codes.to(held.device), weight.code_bits))
    before = weight.stored(place)
    after = _integers(bits, before.dtype.itemsize * 8, signed=True).to(INTEGERS[before.dtype]).view(before.dtype)
    return Change(weight.info.name, place, before, after.to(before.device))


def _unsigned(numbers: Tensor, width: int) -> Unsigned:
    found: Unsigned = numbers.cpu().to(torch.int64).numpy().astype(np.uint64) & np.uint64((1 << width) - 1)
    return found


def _integers(bits: Unsigned, width: int, *, signed: bool) -> Tensor:
    """Return bits as integers, in two's complement of ``width`` bits where ``signed``."""
    numbers = bits.astype(np.int64)
    return torch.from_numpy(
        np.where(numbers >> (width - 1) & 1, numbers - (1 << width), numbers) if signed else numbers
    )
