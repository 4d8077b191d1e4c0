"""What a name on the hub means right now: asked once per process, pinned to a commit, never silently taken from a cache."""

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from esa.errors import ArtifactError

Kind = Literal["model", "dataset"]
Cause = Literal["gated", "unknown", "revision", "offline"]

TOKEN_VARIABLE = "HF_TOKEN"
OFFLINE_VARIABLE = "HF_HUB_OFFLINE"
_COMMIT = re.compile(r"[0-9a-f]{40}")
_ASKED_FOR = {"model": "config.json", "dataset": "README.md"}  # a small file whose answer names the commit
_SILENT = ContextVar("silent", default=False)
_known: dict[tuple[str, ...], "Commit"] = {}


@dataclass(frozen=True)
class Commit:
    """The commit that a revision of a repository means.

    ``asked``: the branch, tag or commit that was asked for. ``unasked``: why the hub itself was not asked, or did not
    answer, so that the local cache has to do; None where it answered.
    """

    sha: str
    asked: str
    unasked: str | None = None

    def words(self) -> str:
        """Return the commit as a note names it."""
        named = f"commit {self.sha}" if self.asked == self.sha else f"{self.asked} = commit {self.sha}"
        return named if self.unasked is None else f"{named} by the local cache, without the hub: {self.unasked}"


def resolve(kind: Kind, repo: str, revision: str | None = None) -> Commit:
    """Return the commit that ``revision`` (``main`` by default) of a hub repository means.

    The hub is asked, once per process, and the local cache remembers the answer; where the hub cannot be reached, the cache's
    last answer is taken (a commit is itself), and ``unasked`` says so. Within ``without_network`` only this process and the
    cache are asked. Raises what huggingface_hub raises, for ``cause`` to tell apart; ArtifactError within
    ``without_network`` where the cache does not know. Cost: two small requests.
    """
    asked = revision or "main"
    from huggingface_hub import constants

    key = (kind, repo, asked, constants.ENDPOINT, str(constants.HF_HUB_CACHE))
    if key in _known:
        return _known[key]
    if _SILENT.get():
        cached = _cached(kind, repo, asked)
        if cached is None:
            raise ArtifactError(f"{repo} is on the hub, which is asked when the step starts", where=repo)
        return Commit(cached, asked, "this command asks nobody")
    try:
        found = Commit(_answer(kind, repo, asked), asked)
    except Exception as error:
        cached = _cached(kind, repo, asked) if cause(error) == "offline" else None
        if cached is None:
            raise
        found = Commit(cached, asked, _why(error))
    _known[key] = found
    return found


@contextmanager
def without_network() -> Iterator[None]:
    """Keep ``resolve`` from asking the hub, as ``--dry-run`` promises."""
    token = _SILENT.set(True)
    try:
        yield
    finally:
        _SILENT.reset(token)


def silent() -> bool:
    """Tell whether the hub must not be asked."""
    return _SILENT.get()


@contextmanager
def hushed() -> Iterator[None]:
    """Silence the bars and warnings of huggingface_hub: what matters is raised or noted by esa."""
    from huggingface_hub.utils import (  # type: ignore[attr-defined]  # documented, but not marked as exported
        are_progress_bars_disabled,
        disable_progress_bars,
        enable_progress_bars,
    )

    logger, bars = logging.getLogger("huggingface_hub"), not are_progress_bars_disabled()
    level = logger.level
    logger.setLevel(logging.ERROR)
    disable_progress_bars()
    try:
        yield
    finally:
        logger.setLevel(level)
        if bars:
            enable_progress_bars()


def cause(error: BaseException) -> Cause | None:
    """Return what an error of the hub's libraries is about, from it and the errors behind it; None for any other.

    ``gated``: a licence has to be accepted; ``unknown``: no such repository, or a private one; ``revision``: no such branch,
    tag or commit; ``offline``: the hub cannot be reached, or answers that it cannot serve (429, 5xx).
    """
    links = list(_chain(error))
    names = {name for link in links for name in (cls.__name__ for cls in type(link).__mro__)}
    if "GatedRepoError" in names or any("access a gated repo" in str(link) for link in links):
        return "gated"
    if "RevisionNotFoundError" in names:
        return "revision"
    if names & {"RepositoryNotFoundError", "HFValidationError"}:
        return "unknown"
    busy = any(getattr(getattr(link, "response", None), "status_code", 0) in (429, *range(500, 600)) for link in links)
    unreachable = {"LocalEntryNotFoundError", "OfflineModeIsEnabled", "TransportError", "ConnectionError", "gaierror"}
    return "offline" if busy or names & unreachable else None


def _chain(error: BaseException) -> Iterator[BaseException]:
    link: BaseException | None = error
    seen: set[int] = set()
    while link is not None and id(link) not in seen:  # datasets raises errors that are their own cause
        seen.add(id(link))
        yield link
        link = link.__cause__ or link.__context__


def _why(error: BaseException) -> str:
    """Return why the hub gave no answer, in words that do not change with its address."""
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return f"{OFFLINE_VARIABLE} is set"
    status = getattr(getattr(error, "response", None), "status_code", None)
    return f"it answered {status}" if status else f"it cannot be reached ({type(error).__name__})"


def _answer(kind: Kind, repo: str, asked: str) -> str:
    """Return the commit that the hub names; its cache then holds the file asked for, and which commit ``asked`` meant."""
    from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url
    from huggingface_hub.errors import EntryNotFoundError

    file = _ASKED_FOR[kind]
    try:
        get_hf_file_metadata(
            hf_hub_url(repo, file, repo_type=kind, revision=asked)
        )  # raises where the next line would not
        path = hf_hub_download(repo, file, repo_type=kind, revision=asked)
    except EntryNotFoundError as error:
        commit = getattr(getattr(error, "response", None), "headers", {}).get("X-Repo-Commit")
        if commit is None:
            raise
        _remember(kind, repo, asked, commit)
        return str(commit)
    return Path(path).parent.name  # .../snapshots/<commit>/<file>


def _cached(kind: Kind, repo: str, asked: str) -> str | None:
    """Return the commit that ``asked`` meant when the cache was last told, or None; a commit is itself."""
    if _COMMIT.fullmatch(asked):
        return asked
    reference = _folder(kind, repo) / "refs" / asked
    if not reference.is_file():
        return None
    commit = reference.read_text(encoding="utf-8").strip()
    return commit if _COMMIT.fullmatch(commit) else None


def _remember(kind: Kind, repo: str, asked: str, commit: str) -> None:
    reference = _folder(kind, repo) / "refs" / asked
    reference.parent.mkdir(parents=True, exist_ok=True)
    reference.write_text(commit, encoding="utf-8")


def _folder(kind: Kind, repo: str) -> Path:
    """Return where the hub's cache keeps a repository; its documentation promises this layout."""
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE) / f"{kind}s--{repo.replace('/', '--')}"
