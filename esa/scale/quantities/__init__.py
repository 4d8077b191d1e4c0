"""What is followed over the size of models: every quantity of a run, by name, as rows of ``points/1``."""

from collections.abc import Callable, Iterator

from esa.artifact.gather import Gathered
from esa.scale.quantities.agreement import seed_jaccard
from esa.scale.quantities.damages import damage_fraction, damage_single, damage_top_k
from esa.scale.quantities.losses import held_out_nll, intact_nll
from esa.scale.quantities.measured import Measured, Wanted
from esa.scale.quantities.noise import noise_doubling
from esa.scale.quantities.spread import half_share, tail_index, top_to_median

QUANTITIES: dict[str, Callable[[Gathered, Wanted], Iterator[Measured]]] = {
    "half_share": half_share,
    "top_to_median": top_to_median,
    "tail_index": tail_index,
    "damage_top_k": damage_top_k,
    "damage_fraction": damage_fraction,
    "damage_single": damage_single,
    "seed_jaccard": seed_jaccard,
    "noise_doubling": noise_doubling,
    "intact_nll": intact_nll,
    "held_out_nll": held_out_nll,
}

__all__ = ["QUANTITIES", "Measured", "Wanted", "measure"]


def measure(run: Gathered, wanted: Wanted) -> list[Measured]:
    """Return every quantity that the run's tables allow, in the order of ``QUANTITIES``."""
    return [one for quantity in QUANTITIES.values() for one in quantity(run, wanted)]
