"""A campaign in child processes that are killed at random points: ``python -m tests.perturb.killed FOLDER``.

Forking after the imports and with the model at hand saves 20 starts; one thread, and polars unused before, make it safe.
"""

import json
import os
import signal
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from esa.artifact import read_ranking
from esa.model import LoadedModel
from tests.conftest import load
from tests.perturb.planted import perturb, spec

KILLS = 20
RANKING = "ranking.csv"
CAMPAIGN: tuple[dict[str, Any], ...] = (
    {"method": "zero", "unit": ["single", "leave_one_out", "cumulative", "joint"], "k": [3, 20]},
    {"method": "gauss_noise", "sigma": [0.1, 0.5, 1.0], "repeats": 2, "unit": "single", "k": 8},
    {"method": "bit_flip", "bits": [1, 3], "repeats": 2, "unit": "single", "k": 5},
    {"method": "zero_keep_peak", "unit": "pairs", "k": 5},
    {"method": "gradient", "epsilon": [0.1, 1.0], "direction": ["aligned", "opposed"]},
    {"method": "adaptive", "strength": [0.5, 1.0], "groups": ["top_k"]},
    {"method": "swap", "repeats": 2},
)


def campaign(loaded: LoadedModel, folder: Path, root: Path) -> None:
    """Run the campaign, or what is left of it."""
    perturb(spec(*CAMPAIGN, rank={"k": [1, 20]}), read_ranking(folder / RANKING), root, loaded=loaded)


def child(work: Callable[[], None]) -> int:
    """Do some work in a child process and return its number."""
    if (number := os.fork()) == 0:
        try:
            work()
            os._exit(0)
        except BaseException as error:
            print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
            os._exit(1)
    return number


def journal_bytes(root: Path) -> int:
    """Return the size of the campaign's journal so far."""
    return sum(path.stat().st_size for path in root.glob("*/*/cases.jsonl"))


def killed_at(size: int, work: Callable[[], None], root: Path) -> int:
    """Kill a child once its journal has ``size`` bytes; return how it ended: minus the signal, or its exit code."""
    number = child(work)
    while journal_bytes(root) < size:
        if os.waitpid(number, os.WNOHANG)[0]:
            raise RuntimeError(f"ended before its journal had {size} bytes")
        time.sleep(2e-4)
    os.kill(number, signal.SIGKILL)
    return exit_code(number)


def exit_code(number: int) -> int:
    """Wait for a child and return its exit code, or minus the signal that ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(number, 0)[1])


def main(folder: Path) -> None:
    """Run the campaign undisturbed, then another that is killed again and again; print what happened as JSON."""
    loaded, whole, broken = load("llama"), folder / "whole", folder / "broken"
    ended = [exit_code(child(partial(campaign, loaded, folder, whole)))]
    total = journal_bytes(whole)
    work = partial(campaign, loaded, folder, broken)
    kills, sizes = [], []
    for place in np.sort(np.random.default_rng(0).uniform(0.01, 0.95, KILLS)):
        kills.append(killed_at(int(place * total), work, broken))
        sizes.append(journal_bytes(broken))
    ended.append(exit_code(child(work)))
    print(json.dumps({"ended": ended, "kills": kills, "sizes": sizes}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
