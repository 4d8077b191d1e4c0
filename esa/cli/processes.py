"""Which process of those that torchrun started this is: the first speaks for all, the others of what went wrong with them."""

import os
import time

from esa.errors import EsaError, LostError, SpecError

# torchrun ends the others as soon as one fails, within a second: who is still there has an error of its own.
_GRACE = 5.0
_SPLIT = "esa.cli.score"


def number_of_processes() -> tuple[int, int]:
    """Return this process's number, from 0, and how many torchrun started: 0 and 1 without it."""
    found = [os.environ.get(name, "") for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK")]
    return (int(found[0]), int(found[1])) if all(found) else (0, 1)


def speaks() -> bool:
    """Tell whether this process is the one that talks and writes to standard output."""
    return number_of_processes()[0] == 0


def require_alone(command: str) -> None:
    """Raise EsaError for a command (its module) that several processes would do several times over."""
    _, size = number_of_processes()
    if size > 1 and command != _SPLIT:
        name = command.rpartition(".")[2]
        raise EsaError(
            f"esa {name} works in one process, {size} were started; only esa score splits its windows over several",
            where="torchrun",
            hint=f"esa score under torchrun first; esa {name} without it then finds the scores",
        )


def in_turn(error: EsaError) -> EsaError:
    """Return an error as this process says it; what every process finds out, the first alone has said by then."""
    rank, size = number_of_processes()
    if size == 1 or (rank == 0 and not isinstance(error, LostError)):
        return error
    time.sleep(_GRACE)
    return SpecError([f"process {rank}: {line}" for line in error.lines()], hint=error.hint)
