"""Delete steps and runs: only what esa wrote, only below the outputs folder, and never while it is being written."""

import shutil
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from pathlib import Path

from esa.artifact.lock import acquire
from esa.artifact.manifest import MANIFEST
from esa.artifact.runs import RUN_FILE, StepState, run_file
from esa.artifact.steps import write_json
from esa.errors import ArtifactError


def choose(root: Path, names: Sequence[str], states: Iterable[StepState]) -> list[StepState]:
    """Return the steps of ``states`` that ``names`` mean: runs and steps, as ``NAME``, ``NAME/STEP`` or their paths.

    Raises ArtifactError for a name outside ``root``, for one that is no run and no step, and for a link.
    """
    chosen: dict[Path, StepState] = {}
    states = list(states)
    for name in names:
        folder = _folder(root, name)
        inside = [one for one in states if folder in (one.folder, one.folder.parent)]
        if not inside:
            raise ArtifactError("is no run and no step: no step of esa wrote it", where=str(folder))
        for one in inside:
            if one.folder.is_symlink():
                raise ArtifactError("is a link; only what lies in the folder itself is deleted", where=str(one.folder))
            chosen[one.folder] = one
    return list(chosen.values())


def remove(root: Path, steps: Sequence[StepState]) -> None:
    """Delete the folders of ``steps``, take them out of their ``run.json``, and delete the folders of runs that are empty.

    All of them are locked before the first is touched, and a manifest goes before its tables: at no moment does a folder
    look complete that is not. What else lies in a run's folder stays, and the folder with it; ``root`` always stays.
    Raises ArtifactError, with nothing deleted, if a process is writing one of them, or if it cannot be deleted.
    """
    with ExitStack() as locks:
        for step in steps:
            locks.callback(acquire(step.folder).release)
        for step in steps:
            try:
                (step.folder / MANIFEST).unlink(missing_ok=True)
                shutil.rmtree(step.folder)
            except OSError as error:
                raise ArtifactError(f"cannot be deleted: {error.strerror}", where=str(error.filename)) from None
            if not step.folder.parent.samefile(root):
                _forget(step.folder.parent, step.folder.name)


def _folder(root: Path, name: str) -> Path:
    """Return the folder below ``root`` that a name means."""
    wanted = next((path for path in (root / name, Path(name)) if path.is_dir()), None)
    if wanted is None:
        raise ArtifactError("no such run or step", where=str(root / name), hint="esa runs lists what there is")
    if wanted.is_symlink():
        raise ArtifactError("is a link; only what lies in the folder itself is deleted", where=str(wanted))
    home, found = root.resolve(), wanted.resolve()
    if home not in found.parents:
        raise ArtifactError(f"is not below {root}; only what lies there is deleted", where=str(wanted))
    return root / found.relative_to(home)


def _forget(home: Path, name: str) -> None:
    """Take a step out of its run's ``run.json``, and that file and the folder away where nothing else is left."""
    content = run_file(home)
    steps = content.get("steps")
    left = {step: folder for step, folder in steps.items() if folder != name} if isinstance(steps, dict) else {}
    if left:
        write_json(home / RUN_FILE, {**content, "steps": left})
    elif content:
        (home / RUN_FILE).unlink()
    if not any(home.iterdir()):
        home.rmdir()
