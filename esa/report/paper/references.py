"""The references of a paper: which work stands behind a metric, method, statistic, task or text, as BibTeX."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

_HEAD = re.compile(r"@\w+\{([^,]+),")
_USED_FOR = re.compile(r"  esa = \{([^}]*)\},\n")


@dataclass(frozen=True)
class Reference:
    """An entry of ``references.bib``: its key, what it is the source of (``metric:obd``), and its BibTeX."""

    key: str
    used_for: tuple[str, ...]
    bibtex: str


@cache
def references() -> tuple[Reference, ...]:
    """Return every reference that esa knows, in the order of its file."""
    found = []
    for entry in (files("esa.report.paper") / "references.bib").read_text(encoding="utf-8").strip().split("\n\n"):
        head, used = _HEAD.match(entry), _USED_FOR.search(entry)
        assert head is not None, f"an entry begins with its kind and key: {entry[:60]}"
        assert used is not None, f"an entry says what it is used for: {entry[:60]}"
        found.append(Reference(head[1], tuple(used[1].split(", ")), entry.replace(used[0], "")))
    return tuple(found)


class Citations:
    """Collect what a text cites, so that the references hold that and nothing else."""

    def __init__(self) -> None:
        self._cited: dict[str, None] = {}

    def cite(self, names: Sequence[str]) -> str:
        r"""Return ``~\cite{key,key}`` for what stands behind ``names`` (``metric:obd``); nothing where there is no entry."""
        keys = [one.key for one in references() if set(names) & set(one.used_for)]
        self._cited |= dict.fromkeys(keys)
        return rf"~\cite{{{','.join(keys)}}}" if keys else ""

    @property
    def bibtex(self) -> str:
        """Return the entries that were cited, in the order of their keys."""
        return bibtex(self._cited)


def bibtex(keys: Iterable[str]) -> str:
    """Return the entries of some keys as a file."""
    wanted = set(keys)
    entries = sorted((one for one in references() if one.key in wanted), key=lambda one: one.key)
    return "\n\n".join(one.bibtex for one in entries) + ("\n" if entries else "")


def texts(source: str) -> list[str]:
    """Return the names of the known texts that a source's words name: ``hf:Salesforce/wikitext/...`` is ``text:wikitext``."""
    words = set(re.findall(r"[a-z0-9]+", source.lower()))
    known = [name for one in references() for name in one.used_for if name.startswith("text:")]
    return [name for name in known if any(word.startswith(name.removeprefix("text:")) for word in words)]
