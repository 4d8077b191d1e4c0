"""An outputs folder to look at: finished steps of two runs, their tables a row each."""

import json
import os
import time
from pathlib import Path

from esa.artifact import Step, make_table
from esa.artifact.runs import Check, read_steps
from esa.spec import Spec, spec_from_dict

KINDS = {"score": "scores/1", "rank": "ranking/1", "perturb": "damage/1", "overlap": "overlap/1", "eval": "eval/1"}
TEXT = "a" * 64


def spec(name: str = "x", **sections: object) -> Spec:
    """Return a spec of a local model."""
    return spec_from_dict({"name": name, "model": {"id": "m"}, "perturb": [{"method": "zero"}], **sections})


def write(step: Step, *, force: bool = False, value: str = "p") -> Step:
    """Begin and finish a step with one table of one row."""
    assert step.begin(force=force)
    name = f"{step.step}.csv"
    row = {"run": step.id, "metric": value}
    step.write(make_table(KINDS[step.step], [row]), name)
    step.finish(tables={name: KINDS[step.step]})
    return step


class House:
    """An outputs folder with the runs of two specs."""

    def __init__(self, root: Path, calibration: str = TEXT, evaluation: str = TEXT) -> None:
        self.root = root
        self.score = write(Step("score", spec(), {"model": "b" * 64, "calibration": calibration}, root=root))
        self.rank = write(Step("rank", spec(), {"score": self.score.id}, root=root))
        self.perturb = write(Step("perturb", spec(), {"ranking": self.rank.id, "eval": evaluation}, root=root))
        self.overlap = write(
            Step("overlap", spec(), {f"rank-{self.rank.id}": self.rank.id, "universe": "9"}, root=root)
        )
        self.other = write(Step("rank", spec("y", rank={"k": [3]}), {"score": self.score.id}, root=root))
        steps = {one.step: one.folder.name for one in (self.score, self.rank, self.perturb, self.overlap)}
        (root / "x" / "run.json").write_text(json.dumps({"name": "x", "steps": steps}))
        yesterday = time.time() - 86400
        for path in root.glob("*/*/*"):  # so that what is written now is newer
            os.utime(path, (yesterday, yesterday))

    def status(self, check: Check | None = None) -> dict[str, tuple[str, str]]:
        """Return status and why of every step, by run and step."""
        return {f"{one.folder.parent.name}/{one.step}": (one.status, one.why) for one in read_steps(self.root, check)}
