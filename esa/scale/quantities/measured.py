"""What a quantity of a run is, and which of them are asked for."""

from dataclasses import dataclass

FRACTIONS = (1e-5, 1e-4)  # of all weights, where no others are asked for


@dataclass(frozen=True)
class Wanted:
    """Which quantities are asked for: these metrics, methods and k, all where empty; damage at these shares of the weights.

    A method that a run has put to several doses stands in ``damage_*`` only where it is named: each dose is a series.
    """

    metrics: tuple[str, ...] = ()
    methods: tuple[str, ...] = ()
    ks: tuple[int, ...] = ()
    fractions: tuple[float, ...] = FRACTIONS
    num_parameters: int | None = None

    def metric(self, name: str | None) -> bool:
        """Tell whether a metric is asked for; a group that all metrics share (None) always is."""
        return not self.metrics or name is None or name in self.metrics

    def k(self, k: int | None) -> bool:
        """Tell whether a number of weights is asked for."""
        return not self.ks or k in self.ks

    def method(self, name: str, num_doses: int) -> bool:
        """Tell whether the damage of a method, measured at so many doses, is asked for."""
        return name in self.methods if self.methods else num_doses <= 1


@dataclass(frozen=True)
class Measured:
    """One value of one run: a row of ``points/1``. Without a value, ``excluded`` says why.

    ``subject``: of what, the same text in every run that it can be compared with. ``seed``: the score seed, None where the
    quantity has none. ``k``: how many weights it is of. ``low``, ``high``: as the quantity's docstring says.
    """

    quantity: str
    subject: str
    value: float | None
    seed: int | None = None
    k: int | None = None
    low: float | None = None
    high: float | None = None
    excluded: str | None = None
    below_floor: bool = False

    @property
    def unclear(self) -> bool:
        """Tell whether it is a damage that its own windows do not tell from none: its interval holds 0."""
        known = self.quantity.startswith("damage_") and self.low is not None and self.high is not None
        return known and (self.low or 0.0) <= 0 <= (self.high or 0.0)
