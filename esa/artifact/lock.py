"""One writer per step: a lock on its folder that the system takes back when the process that holds it ends."""

import fcntl
import json
import os
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from weakref import WeakValueDictionary

from esa.artifact.manifest import now
from esa.errors import ArtifactError, BusyError

LOCK = ".lock"
_ATTEMPTS, _PAUSE = 6, 0.02  # seconds; whoever looks at a lock holds it for a moment, and a holder may take it away


@dataclass(frozen=True)
class Holder:
    """Who holds a lock, as far as its file says: the process, and since when (UTC)."""

    pid: int | None = None
    since: str | None = None

    def __str__(self) -> str:
        if self.pid is None or self.since is None:
            return "its pid is not known"
        return f"pid {self.pid}, since {self.since[:19].replace('T', ' ')} UTC"


class Lock:
    """A lock that is held. It is released by ``release``, with the object, or with the process, whichever comes first."""

    def __init__(self, path: Path, descriptor: int) -> None:
        self.path = path
        self.thread = threading.get_ident()
        self._descriptor: int | None = descriptor

    @property
    def held(self) -> bool:
        """Tell whether the lock is still held, and on the file that now has its name."""
        return self._descriptor is not None and _is_file(self._descriptor, self.path)

    def release(self) -> None:
        """Take the lock's file away and give the lock up; a second time does nothing."""
        if self.held:
            self.path.unlink(missing_ok=True)
        self.close()

    def close(self) -> None:
        """Give the lock up and leave its file where it is."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def __del__(self) -> None:
        self.close()


_HELD: WeakValueDictionary[tuple[int, int], Lock] = WeakValueDictionary()  # by device and number of the folder


def acquire(folder: Path) -> Lock:
    """Lock ``folder`` for this process, making it where it is missing, and return the lock.

    The lock is ``flock`` on ``folder/.lock``, exclusive and advisory: it keeps two processes of esa apart, and the kernel
    gives it back when its process ends, however it ends, so that a file left behind locks nothing. A thread that holds it
    already is given the same lock again. Over NFS, Linux passes it on to the server (mounts with ``nolock`` or
    ``local_lock=flock`` do not, and then two machines are not kept apart, only two processes of one); the process named in
    an error may run on another machine. Lustre needs the mount option ``flock``.
    Raises BusyError if another process or thread holds it, ArtifactError if the folder cannot be made, written to or locked.
    """
    for _ in range(_ATTEMPTS):
        try:
            folder.mkdir(parents=True, exist_ok=True)
            if (lock := _mine(folder) or _take(folder)) is not None:
                return lock
        except OSError as error:
            vanished = isinstance(error, FileNotFoundError | FileExistsError) and not folder.is_file()
            if not vanished:  # by its holder, just now; pathlib reports that in two ways
                raise ArtifactError(f"cannot be written: {error.strerror}", where=str(folder)) from None
        time.sleep(_PAUSE)
    raise busy(folder, holder(folder) or Holder())


def holder(folder: Path) -> Holder | None:
    """Return who holds the lock on ``folder``, or None where nobody does; nothing is written."""
    try:
        descriptor = os.open(folder / LOCK, os.O_RDONLY)
    except OSError:  # no lock, no folder, or nothing that this user may look at
        return None
    try:
        if _flock(folder, descriptor, fcntl.LOCK_SH):
            return None
        return _read(os.read(descriptor, 1 << 12))
    finally:
        os.close(descriptor)


def _read(content: bytes) -> Holder:
    """Return what a lock's file says; nothing where it is only just being written, or by another program."""
    try:
        found = json.loads(content)
        return Holder(int(found["pid"]), str(found["since"]))
    except (ValueError, KeyError, TypeError):
        return Holder()


def busy(folder: Path, found: Holder) -> BusyError:
    """Return the error of a folder that somebody else writes to."""
    other = "another thread of this process" if found.pid == os.getpid() else "another process"
    return BusyError(
        f"is being written by {other} ({found})",
        where=str(folder),
        hint="wait until it is done, or stop it: the same command then reuses or resumes what it wrote",
    )


def _take(folder: Path) -> Lock | None:
    """Return the lock on ``folder``, or None where somebody else holds it or took it away in between."""
    path = folder.absolute() / LOCK
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    lock = Lock(path, descriptor)
    if not _flock(folder, descriptor, fcntl.LOCK_EX) or not lock.held:
        lock.close()
        return None
    os.ftruncate(descriptor, 0)
    os.write(descriptor, json.dumps({"pid": os.getpid(), "since": now()}).encode())
    _HELD[_number(folder)] = lock
    return lock


def _flock(folder: Path, descriptor: int, kind: int) -> bool:
    """Lock without waiting, and tell whether that went well."""
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        raise ArtifactError(
            f"cannot be locked: {error.strerror}",
            where=str(folder),
            hint="its file system knows no locks: write to a folder on another one with -o",
        ) from None
    return True


def _mine(folder: Path) -> Lock | None:
    """Return the lock that this thread, or one that has ended, holds on ``folder``."""
    found = _HELD.get(_number(folder))
    if found is None or not found.held:
        return None
    alive = {thread.ident for thread in threading.enumerate()} - {threading.get_ident()}
    return None if found.thread in alive else found


def _number(folder: Path) -> tuple[int, int]:
    state = folder.stat()
    return state.st_dev, state.st_ino


def _is_file(descriptor: int, path: Path) -> bool:
    """Tell whether ``path`` still names the open file: another holder may have taken it away."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def _forget() -> None:
    """Close in a forked child what the parent holds: the lock ends with the parent."""
    for lock in list(_HELD.values()):
        lock.close()


os.register_at_fork(after_in_child=_forget)
