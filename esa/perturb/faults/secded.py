"""The SECDED code of 72 bits over words of 64: its encoder and decoder, on arrays of words."""

from dataclasses import dataclass
from itertools import combinations

import numpy as np
import numpy.typing as npt

Words = npt.NDArray[np.uint64]
Checks = npt.NDArray[np.uint8]

DATA_BITS, CHECK_BITS = 64, 8
CODE_BITS = DATA_BITS + CHECK_BITS  # codeword bits 0 to 63 are the data's, 64 to 71 the check bits
CLEAN, CORRECTED, DETECTED = 0, 1, 2


def _columns() -> list[int]:
    """Return the parity-check matrix, a column of 8 bits per codeword bit: odd weights, every row with 27 ones.

    Data: all 56 columns of weight 3, then the 8 turns of five neighbouring ones; check bits: the identity.
    """
    threes = sorted(sum(1 << row for row in rows) for rows in combinations(range(CHECK_BITS), 3))
    fives = [(0b11111 << turn | 0b11111 >> CHECK_BITS - turn) & 0xFF for turn in range(CHECK_BITS)]
    return [*threes, *fives, *(1 << row for row in range(CHECK_BITS))]


COLUMNS = _columns()
_ROWS = np.array(  # the data bits that each check bit adds up
    [sum((column >> row & 1) << bit for bit, column in enumerate(COLUMNS[:DATA_BITS])) for row in range(CHECK_BITS)],
    dtype=np.uint64,
)
_NONE = 0xFF
_BIT_OF = np.full(1 << CHECK_BITS, _NONE, dtype=np.uint8)  # syndrome -> the one codeword bit that gives it
_BIT_OF[COLUMNS] = np.arange(CODE_BITS)


@dataclass(frozen=True)
class Decoded:
    """What the decoder hands on: the words ``(n,)``, and per word ``CLEAN``, ``CORRECTED`` or ``DETECTED``."""

    words: Words
    status: Checks


def check_bits(words: Words) -> Checks:
    """Return the check bits of words: ``c_r = parity(w AND h_r)``, h_r row r of the parity-check matrix.

    Args: words ``(n,)``, uint64. Returns: ``(n,)``, uint8, check bit r at bit r. Cost: eight passes over the words.
    Source: Hsiao, A Class of Optimal Minimum Odd-weight-column SEC-DED Codes, IBM Journal of Research and Development 1970;
    the columns of weight 5, of which the paper leaves the choice free, are the turns of 00011111.
    """
    found = np.zeros(words.shape, dtype=np.uint8)
    for row, chosen in enumerate(_ROWS):
        found |= (np.bitwise_count(words & chosen) & 1) << np.uint8(row)
    return found


def decode(words: Words, checks: Checks) -> Decoded:
    """Correct words as they were read, with check bits as they were read.

    Syndrome ``s = check_bits(w) XOR c``. Zero: ``CLEAN``. A column of the matrix: the bit of that column is turned,
    ``CORRECTED``. Anything else: ``DETECTED``, and the word is as it was read. One wrong bit is always corrected, two are
    always detected; three have an odd syndrome, so that they are corrected wrongly or detected, never clean; more may be
    any of it.
    Args: words ``(n,)``, uint64; checks ``(n,)``, uint8. Source: as ``check_bits``.
    """
    syndrome = check_bits(words) ^ checks
    bit = _BIT_OF[syndrome]
    status = np.where(syndrome == 0, CLEAN, np.where(bit == _NONE, DETECTED, CORRECTED)).astype(np.uint8)
    in_data = (status == CORRECTED) & (bit < DATA_BITS)
    turned = np.where(in_data, np.uint64(1) << np.minimum(bit, DATA_BITS - 1).astype(np.uint64), np.uint64(0))
    return Decoded(words ^ turned, status)


def pack(numbers: Words, width: int) -> Words:
    """Return words of consecutive numbers of ``width`` bits: numbers ``(n, 64 / width)``, the first in the lowest bits."""
    shifts = np.arange(numbers.shape[1], dtype=np.uint64) * np.uint64(width)
    found: Words = np.bitwise_or.reduce(numbers << shifts, axis=1)
    return found


def unpack(words: Words, width: int) -> Words:
    """Return the numbers ``(n, 64 / width)`` that words consist of: what ``pack`` took."""
    shifts = np.arange(DATA_BITS // width, dtype=np.uint64) * np.uint64(width)
    found: Words = words[:, None] >> shifts & np.uint64((1 << width) - 1)
    return found
