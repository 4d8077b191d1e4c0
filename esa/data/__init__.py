"""Text to token windows."""

from esa.data.sources import CORPORA, read_source, source_hash
from esa.data.windows import TokenWindows, calibration_windows, eval_windows

__all__ = ["CORPORA", "TokenWindows", "calibration_windows", "eval_windows", "read_source", "source_hash"]
