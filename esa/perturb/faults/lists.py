"""Lists of random bit faults, drawn before anything is evaluated, and read again elsewhere."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import polars as pl

from esa.errors import ArtifactError, EsaError
from esa.model import LoadedModel, ParameterInfo, eligible, find_parameter
from esa.model.quantized import QuantizedWeight
from esa.perturb.faults.secded import CODE_BITS, DATA_BITS
from esa.perturb.methods import bit_width
from esa.spec import generator
from esa.spec.sections import Faults

MOST_FAULTS = 10_000_000  # of a whole list: about a gigabyte
Integers = npt.NDArray[np.int64]
_SCHEMA = {
    "parameter": pl.String, "index": pl.Int64, "bit": pl.Int64, "width": pl.Int64, "word": pl.Int64,
    "codeword_bit": pl.Int64,
}  # fmt: skip
_PLACE = ("rate", "trial", "parameter", "word", "codeword_bit", "index", "bit")


@dataclass(frozen=True)
class Store:
    """One parameter as memory holds it: ``numel`` numbers of ``width`` bits, in a row."""

    name: str
    numel: int
    width: int

    @property
    def per_word(self) -> int:
        """Return how many numbers share a word of 64 bits."""
        return DATA_BITS // self.width

    @property
    def num_words(self) -> int:
        """Return the words of the code, the last one filled up with zeros."""
        return -(-self.numel // self.per_word)

    def num_bits(self, ecc: str) -> int:
        """Return the bits that faults fall on: of the numbers, or with the code of all its words, check bits included."""
        return self.numel * self.width if ecc == "none" else self.num_words * CODE_BITS


def chosen(table: dict[str, ParameterInfo], faults: Faults) -> list[str]:
    """Return the parameters that ``faults.include`` and ``exclude`` choose, every one by default, in the model's order.

    Raises SpecError for a pattern that matches nothing, and where nothing is left.
    """
    return list(eligible(table, faults.include or ("*",), faults.exclude, section="faults"))


def stores(loaded: LoadedModel, names: Sequence[str]) -> list[Store]:
    """Return how parameters are stored: numbers in the storage dtype, quantised ones as codes, whose scales are left out.

    Raises EsaError for a dtype whose bits cannot be flipped.
    """
    found = []
    for name in names:
        weight = loaded.weights[name]
        width = weight.code_bits if isinstance(weight, QuantizedWeight) else bit_width(weight.dtype, name)
        found.append(Store(name, weight.info.numel, width))
    return found


def draw_list(found: Sequence[Store], faults: Faults, seed: int) -> pl.DataFrame:
    """Draw every trial of every rate: a frame with the columns of ``fault_list/1`` but ``run``.

    Over the B bits of the chosen weights (with ``secded`` all 72 of every word): the number of faults is Binomial(B, rate),
    their places are distinct and uniform. Every trial has a named random stream of its own, so that more trials or other
    rates leave it as it is. Rows by rate as listed, trial, parameter, place; a trial without a fault is one row whose
    parameter is null. A fault on a check bit, or behind a tensor's last number, has no index.
    Raises EsaError where the list would hold more than 10 million faults. Cost: time and memory by faults, not by bits.
    """
    total = sum(store.num_bits(faults.ecc) for store in found)
    expected = total * sum(faults.rates) * faults.trials
    if expected > MOST_FAULTS:
        raise EsaError(
            f"{faults.trials} trials at {_rates(faults.rates)} over {total:,} bits are about {expected:,.0f} faults;"
            f" allowed: {MOST_FAULTS:,}",
            where="faults.rates",
            hint=f"one fault per trial is a rate of {1 / total:.2g}; lower faults.rates or faults.trials",
        )
    starts = np.cumsum([0, *(store.num_bits(faults.ecc) for store in found)])
    parts = [
        _located(draw_positions(total, rate, generator(seed, "faults", repr(rate), trial)), starts, found, faults.ecc)
        .select(pl.lit(rate).alias("rate"), pl.lit(trial).alias("trial"), pl.all())
        for rate in faults.rates
        for trial in range(faults.trials)
    ]  # fmt: skip
    return pl.concat(parts)


def draw_positions(total: int, rate: float, draw: np.random.Generator) -> Integers:
    """Return the places of faults among ``total`` bits, each wrong with probability ``rate`` on its own; ascending.

    Binomially many, then distinct integers: what is drawn twice is drawn again, which leaves them uniform. Nothing of the
    size of ``total`` is made, but for rates so high that half of the bits are wrong.
    """
    count = int(draw.binomial(total, rate))
    if count > total // 2:
        return np.sort(draw.choice(total, count, replace=False, shuffle=False))
    found: Integers = np.unique(draw.integers(0, total, count))
    while len(found) < count:
        found = np.union1d(found, draw.integers(0, total, count - len(found)))
    return found


def _located(positions: Integers, starts: Integers, found: Sequence[Store], ecc: str) -> pl.DataFrame:
    """Return the addresses of bits that are numbered through all stores."""
    if not len(positions):
        return pl.DataFrame([dict.fromkeys(_SCHEMA)], schema=_SCHEMA)
    number = np.searchsorted(starts, positions, side="right") - 1
    local = positions - starts[number]
    width, numel = (np.array([getattr(store, key) for store in found])[number] for key in ("width", "numel"))
    word, place = local // CODE_BITS, local % CODE_BITS
    index, bit = local // width, local % width
    if ecc != "none":
        index, bit = word * (DATA_BITS // width) + place // width, place % width
    names = pl.Series([store.name for store in found])[number]
    columns = {"parameter": names, "index": index, "bit": bit, "width": width, "word": word, "codeword_bit": place}
    frame = pl.DataFrame(columns, schema=_SCHEMA)
    if ecc == "none":
        return frame.with_columns(pl.lit(None, pl.Int64).alias(key) for key in ("word", "codeword_bit"))
    stored = pl.Series((place < DATA_BITS) & (index < numel))
    return frame.with_columns(pl.when(stored).then(pl.col(key)).alias(key) for key in ("index", "bit"))


def check_list(frame: pl.DataFrame, ecc: str, where: str) -> None:
    """Raise ArtifactError for a list that was read and is none, or that was drawn with another ``faults.ecc``.

    It is none without rows, where a row has no rate or trial, and where trials are missing or differ between rates.
    """
    if frame.is_empty():
        raise ArtifactError("holds no row", where=where)
    rates = frame["rate"]
    if rates.null_count() or not rates.is_between(0, 1, closed="none").all() or frame["trial"].null_count():
        raise ArtifactError("a row has no rate between 0 and 1, or no trial", where=where)
    counts = []
    for (rate,), part in frame.group_by("rate", maintain_order=True):
        trials = part["trial"].unique().sort().to_list()
        if trials != list(range(len(trials))):
            raise ArtifactError(
                f"rate {rate} has the trials {trials[:5]}...; they count from 0 without a gap", where=where,
                hint="a trial without a fault is a row without a parameter",
            )  # fmt: skip
        counts.append(len(trials))
    if len(set(counts)) > 1:
        raise ArtifactError(f"its rates have {counts} trials; allowed: as many at each", where=where)
    coded = frame.drop_nulls("parameter")["word"].is_not_null()
    if len(coded) and (not coded.all() if ecc == "secded" else coded.any()):
        drawn = "secded" if coded.any() else "none"
        raise ArtifactError(f"was drawn for faults.ecc = '{drawn}', not '{ecc}'", where=where, hint=f"--ecc {drawn}")


def matched(frame: pl.DataFrame, loaded: LoadedModel, ecc: str, where: str) -> pl.DataFrame:
    """Return a list that was read, under the model's own names, if this model can have those faults.

    Raises TargetError for a parameter that the model does not have; ArtifactError for numbers of another width, a place
    outside, and a fault that stands twice.
    """
    found = frame["parameter"].drop_nulls().unique(maintain_order=True)
    names = {name: find_parameter(name, loaded.table, where).name for name in found}
    frame = frame.with_columns(pl.col("parameter").replace_strict(names, default=None, return_dtype=pl.String))
    faults = frame.drop_nulls("parameter")
    if faults.select(_PLACE).is_duplicated().any():
        raise ArtifactError("a fault stands twice in a trial", where=where)
    for (name,), part in faults.group_by("parameter", maintain_order=True):
        _check_places(part, stores(loaded, [str(name)])[0], ecc, where)
    return frame


def _check_places(part: pl.DataFrame, store: Store, ecc: str, where: str) -> None:
    others = part.filter(pl.col("width").ne_missing(store.width))["width"]
    if len(others):
        stated = "no stated width" if others[0] is None else f"{others[0]}-bit numbers"
        raise ArtifactError(
            f"{store.name} is of {stated}; this model stores them in {store.width} bits", where=where,
            hint="set model.dtype or model.quantization to what the list was drawn for",
        )  # fmt: skip
    if ecc == "none":
        wrong = ~(_within("index", store.numel) & _within("bit", store.width))
    else:
        index = pl.col("word") * store.per_word + pl.col("codeword_bit") // store.width
        bit = pl.col("codeword_bit") % store.width
        outside = (pl.col("codeword_bit") >= DATA_BITS) | (index >= store.numel)
        same = pl.when(outside).then(pl.col("index").is_null() & pl.col("bit").is_null())
        wrong = ~(
            _within("word", store.num_words)
            & _within("codeword_bit", CODE_BITS)
            & same.otherwise(pl.col("index").eq_missing(index) & pl.col("bit").eq_missing(bit))
        )
    bad = part.filter(wrong)
    if not bad.is_empty():
        row = {name: value for name, value in bad.row(0, named=True).items() if name in _PLACE[3:]}
        raise ArtifactError(
            f"{row} is no stored bit of {store.name}, of {store.numel:,} numbers of {store.width} bits", where=where
        )


def _within(column: str, end: int) -> pl.Expr:
    return pl.col(column).is_between(0, end - 1).fill_null(value=False)


def _rates(rates: Sequence[float]) -> str:
    return f"rate{'s' if len(rates) > 1 else ''} {', '.join(map(str, rates))}"
