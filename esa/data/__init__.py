"""Text to token windows."""

from esa.data.cut import Tokens, tokenised
from esa.data.sources import CORPORA, check_source, read_source, source_hash
from esa.data.windows import TokenWindows, calibration_windows, eval_windows, seeded_eval_windows

__all__ = [
    "CORPORA", "TokenWindows", "Tokens", "calibration_windows", "check_source", "eval_windows", "read_source",
    "seeded_eval_windows", "source_hash", "tokenised",
]  # fmt: skip
