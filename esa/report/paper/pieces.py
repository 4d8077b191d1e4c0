"""What the sentences of a methods paragraph are put together from: words, facts that become macros, and citations."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from esa.report.markdown import join
from esa.report.paper.escape import code, escape
from esa.report.paper.names import Macros
from esa.report.paper.references import Citations


@dataclass(frozen=True)
class Fact:
    """A number or name in a sentence: the words of its macro, its value as LaTeX, what it is, and whose manifest states it."""

    words: tuple[str, ...]
    value: str
    what: str
    source: str


@dataclass(frozen=True)
class Cite:
    """Where a sentence cites, and for what: ``metric:obd``."""

    names: tuple[str, ...]


Piece = str | Fact | Cite


@dataclass(frozen=True)
class Sentence:
    """A sentence on one topic; ``str`` pieces are LaTeX."""

    topic: str
    pieces: tuple[Piece, ...]

    @property
    def said(self) -> tuple[object, ...]:
        """Return what it says, whatever manifest says it: equal for runs that agree."""
        return tuple(one.value if isinstance(one, Fact) else one for one in self.pieces)

    @property
    def shape(self) -> tuple[object, ...]:
        """Return what it says without the facts' values: equal for runs that differ in those alone."""
        return tuple(one.words if isinstance(one, Fact) else one for one in self.pieces)


def cited_metrics(metrics: Sequence[str]) -> list[Piece]:
    """Return ``a, b and c``, each metric with what is cited for it."""
    pieces: list[Piece] = []
    for place, name in enumerate(metrics):
        between = "" if not place else " and " if place == len(metrics) - 1 else ", "
        pieces += [between, code(name), Cite((f"metric:{name}",))]
    return pieces


Told = list[tuple[str, Sentence]]  # sentences with the runs that say them


def rendered(
    runs: Sequence[tuple[str, Sequence[Sentence]]], macros: Macros, citations: Citations, *, apart: Sequence[str] = ()
) -> Iterator[str]:
    """Yield the sentences of several runs: those that all of them say once, others with the runs that say them.

    Sentences that differ in their facts alone are one, in which each fact stands with its runs, but for the topics that are
    told ``apart``, run by run. The topics stand in the order in which the runs have them.
    """
    topics = dict.fromkeys(one.topic for _, sentences in runs for one in sentences)
    for topic in topics:
        groups: dict[tuple[object, ...], Told] = {}
        for label, sentences in runs:
            for one in sentences:
                if one.topic == topic:
                    groups.setdefault(one.said if topic in apart else one.shape, []).append((label, one))
        for group in groups.values():
            labels = list(dict.fromkeys(label for label, _ in group))
            everyone = len(labels) == len(runs)
            where = "" if everyone else f"In {_runs(labels)}: "
            places = range(len(group[0][1].pieces))
            yield where + "".join(
                _piece(group, place, macros, citations, lead=[] if everyone else labels[:1]) for place in places
            )


def _piece(group: Told, place: int, macros: Macros, citations: Citations, *, lead: Sequence[str]) -> str:
    """Return a piece of a sentence; a fact in which runs differ with the runs of each value, which its macro is named for."""
    first = group[0][1].pieces[place]
    if not isinstance(first, Fact):
        return citations.cite(first.names) if isinstance(first, Cite) else first
    values: dict[str, list[tuple[str, Fact]]] = {}
    for label, sentence in group:
        one = sentence.pieces[place]
        assert isinstance(one, Fact), "sentences of one shape"
        values.setdefault(one.value, []).append((label, one))
    if len(values) == 1:
        return macros.add([*lead, *first.words], first.value, first.what, first.source)
    told = []
    for same in values.values():
        labels = list(dict.fromkeys(label for label, _ in same))
        one = same[0][1]
        shown = macros.add([labels[0], *one.words], one.value, f"{one.what}, of {', '.join(labels)}", one.source)
        told.append(f"{shown} ({join([escape(label) for label in labels])})")
    return join(told)


def _runs(labels: Sequence[str]) -> str:
    return f"{'run' if len(labels) == 1 else 'runs'} {join([escape(one) for one in labels])}"
