"""Follow quantities of finished runs over the size of their models, or over training, and fit laws to them."""

from esa.scale.laws_table import Settings
from esa.scale.quantities import QUANTITIES, Wanted
from esa.scale.running import Asked, ScaleResult, plan, run

__all__ = ["QUANTITIES", "Asked", "ScaleResult", "Settings", "Wanted", "plan", "run"]
