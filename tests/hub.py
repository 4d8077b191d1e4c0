"""A stand-in for the hub: its endpoints on this machine, over repositories held in memory. No request leaves the machine."""

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest


@dataclass
class Repo:
    """A repository: its commits' files, and the branches and tags that name commits."""

    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    names: dict[str, str] = field(default_factory=dict)
    gated: bool = False

    def commit(self, folder: Path, *names: str) -> str:
        """Add a folder's files as a commit that ``names`` (``main`` by default) then mean, and return it."""
        files = {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}
        text = repr(sorted((name, _digest(data)) for name, data in files.items()))
        sha = hashlib.sha1(text.encode()).hexdigest()
        self.commits[sha] = files
        self.names.update(dict.fromkeys(names or ("main",), sha))
        return sha


@dataclass
class StandIn:
    """What the stand-in serves, by ``model`` or ``dataset`` and name, and what it was asked: method and path."""

    url: str = ""
    repos: dict[tuple[str, str], Repo] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    status: int | None = None  # answer everything so

    def model(self, name: str) -> Repo:
        """Return the model's repository; a new one is empty."""
        return self.repos.setdefault(("model", name), Repo())

    def dataset(self, name: str) -> Repo:
        """Return the dataset's repository; a new one is empty."""
        return self.repos.setdefault(("dataset", name), Repo())


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


class _Handler(BaseHTTPRequestHandler):
    """Answer as the hub does: resolve, repository information, and the trees of datasets."""

    hub: StandIn
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self._serve()

    def do_GET(self) -> None:
        self._serve()

    def do_POST(self) -> None:
        self._body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self._serve()

    def log_message(self, *_: Any) -> None:
        """Say nothing."""

    def _serve(self) -> None:
        path = unquote(urlsplit(self.path).path).strip("/")
        self.hub.asked.append(f"{self.command} {path}")
        if self.hub.status:
            return self._answer(self.hub.status, b"")
        parts = path.split("/")
        if parts[0] == "api":
            kind, name, rest = parts[1].removesuffix("s"), "/".join(parts[2:4]), parts[4:]
        else:
            kind = "dataset" if parts[0] == "datasets" else "model"
            parts = parts[1:] if kind == "dataset" else parts
            name, rest = "/".join(parts[:2]), parts[2:]
        repo = self.hub.repos.get((kind, name))
        if repo is None:
            return self._answer(404, b"", {"X-Error-Code": "RepoNotFound"})
        action, revision, inner = self._split(repo, rest)
        sha = repo.names.get(revision, revision)
        if sha not in repo.commits:
            return self._answer(404, b"", {"X-Error-Code": "RevisionNotFound"})
        files, head = repo.commits[sha], {"X-Repo-Commit": sha}
        if action == "resolve":
            if repo.gated:
                return self._answer(403, b"", {"X-Error-Code": "GatedRepo"})
            if inner not in files:
                return self._answer(404, b"", {**head, "X-Error-Code": "EntryNotFound"})
            return self._answer(200, files[inner], {**head, "ETag": f'"{_digest(files[inner])}"'})
        if action in ("tree", "paths-info"):
            wanted = json.loads(self._body)["paths"] if action == "paths-info" else None
            return self._json(_entries(files, inner, wanted), head)
        return self._json({"id": name, "sha": sha, "siblings": [{"rfilename": file} for file in files]}, head)

    def _split(self, repo: Repo, rest: list[str]) -> tuple[str, str, str]:
        """Return action, revision and inner path; a branch's name may hold slashes."""
        action = rest[0] if rest else "info"
        behind = "/".join(rest[1:]) or "main"
        for name in sorted([*repo.names, *repo.commits], key=len, reverse=True):
            if behind == name or behind.startswith(f"{name}/"):
                return action, name, behind[len(name) + 1 :]
        revision, _, inner = behind.partition("/")
        return action, revision, inner

    def _json(self, content: Any, head: dict[str, str]) -> None:
        self._answer(200, json.dumps(content).encode(), {**head, "Content-Type": "application/json"})

    def _answer(self, status: int, body: bytes, head: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **(head or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


def _entries(files: dict[str, bytes], inner: str, wanted: list[str] | None) -> list[dict[str, Any]]:
    """Return the entries of a tree: every file and folder below ``inner``, or just the ``wanted`` ones."""
    found: dict[str, dict[str, Any]] = {}
    for name, data in files.items():
        found[name] = {"type": "file", "path": name, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
        for folder in Path(name).parents:
            if str(folder) != ".":
                found.setdefault(str(folder), {"type": "directory", "path": str(folder), "size": 0, "oid": "0" * 40})
    if wanted is not None:
        return [found[name] for name in wanted if name in found]
    return [entry for name, entry in sorted(found.items()) if not inner or name.startswith(f"{inner}/")]


@cache
def _server() -> type[_Handler]:
    """Serve on a free port of this machine until the process ends: the hub's libraries remember the first address."""
    handler = type("Handler", (_Handler,), {"hub": StandIn()})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    handler.hub.url = f"http://127.0.0.1:{server.server_port}"
    Thread(target=server.serve_forever, daemon=True).start()
    return handler


@contextmanager
def serving() -> Iterator[StandIn]:
    """Serve an empty stand-in; afterwards it answers 503."""
    handler = _server()
    handler.hub = StandIn(handler.hub.url)
    yield handler.hub
    handler.hub = StandIn(handler.hub.url, status=503)


def point_at(monkeypatch: pytest.MonkeyPatch, url: str, home: Path, *, offline: bool = False) -> None:
    """Make the hub's libraries ask ``url`` and cache under ``home``, as HF_ENDPOINT, HF_HOME and HF_HUB_OFFLINE would."""
    from huggingface_hub import constants

    monkeypatch.setattr("esa.artifact.hub._known", {})
    monkeypatch.setattr(constants, "ENDPOINT", url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", url + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(home / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", offline)
