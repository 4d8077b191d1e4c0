"""Set and rank agreement between rankings, and their stability across seeds."""

from esa.overlap.compare import compare
from esa.overlap.lists import RankedList, read_lists
from esa.overlap.running import OverlapResult, run
from esa.overlap.stability import stability_summary
from esa.overlap.study import CurveResult, curve

__all__ = ["CurveResult", "OverlapResult", "RankedList", "compare", "curve", "read_lists", "run", "stability_summary"]
