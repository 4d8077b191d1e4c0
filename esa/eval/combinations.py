"""Which texts an evaluation measures at which lengths: ``eval.texts`` times ``eval.lengths``."""

from dataclasses import dataclass

from esa.errors import SpecError
from esa.spec import Spec
from esa.spec.sections import Eval


@dataclass(frozen=True)
class Combination:
    """One text at one length: the section that cuts its windows, and the spec key that names the text."""

    section: Eval
    key: str


def combinations(spec: Spec) -> list[Combination]:
    """Return what ``esa eval`` measures: every text at every length, texts as listed, lengths ascending.

    ``eval.texts`` and ``eval.lengths`` default to the one ``eval.source`` and ``eval.length``. A length has as many windows
    as the tokens of ``eval.windows`` windows of ``eval.length`` give, BOS included: with ``sample = "first"`` every length
    reads the same stretch of text, but for a rest of less than one window. With ``packing = "lines"`` every length has
    the same ``eval.windows`` lines.
    Raises SpecError for a length of more tokens than those, and for seeds where nothing is drawn.
    """
    section, key = spec.eval, "eval.source" if spec.eval.texts is None else "eval.texts"
    if section.seeds != (0,) and section.sample == "first":
        raise SpecError(
            [f"eval.seeds: {list(section.seeds)} draw windows, and eval.sample = 'first' draws none"],
            hint="set eval.sample = 'random'",
        )
    lengths = sorted(section.lengths or (section.length,))
    tokens = section.windows * section.length
    if section.packing == "stream" and lengths[-1] > tokens:
        raise SpecError(
            [
                f"eval.lengths: {lengths[-1]:,} tokens are more than the {tokens:,} that eval.windows x eval.length"
                f" give ({section.windows:,} x {section.length:,})"
            ],
            hint=f"set eval.windows = {-(-lengths[-1] // section.length)} or more",
        )
    return [
        Combination(
            section.model_copy(
                update={"source": source, "length": length, "windows": _num_windows(section, length), "texts": None}
                | {"lengths": None}
            ),
            key,
        )
        for source in section.texts or (section.source,)
        for length in lengths
    ]


def _num_windows(section: Eval, length: int) -> int:
    if section.packing == "lines" or length == section.length:
        return section.windows
    return section.windows * section.length // length
