"""Planning from a pilot: windows and draws that an effect needs."""

from pathlib import Path

import pytest

import esa.eval
from esa import perturb
from esa.artifact import find_table
from esa.errors import ArtifactError
from esa.eval.planning import plan
from esa.statistics.power import power_of, window_sd
from tests.conftest import load, tiny_spec

WEIGHT = "model.layers.1.mlp.down_proj.weight"


def test_a_pilot_tells_how_many_windows_an_effect_needs(tmp_path: Path) -> None:
    """The spread is that of the pilot's paired differences, and the windows are the fewest with power .8."""
    spec = tiny_spec(eval={"windows": 8, "rewrites": 0}, perturb=[{"method": "scale", "factor": 3.0}])
    folder = perturb.run(spec, [f"{WEIGHT}:3,4"], loaded=load("llama"), root=tmp_path).folder
    (found,) = plan(folder, (0.001, 0.01))
    windows = find_table(folder, "windows/1").frame.partition_by("case", maintain_order=True)
    intact, case = windows
    differences = (case["nll"] - intact["nll"]).to_list()
    assert found.sd == window_sd(differences, intact["num_tokens"].to_list())
    assert found.sd is not None
    for effect, number in zip((0.001, 0.01), found.windows, strict=True):
        assert number is not None
        assert power_of(number, effect, found.sd) >= 0.8
        assert number == 2 or power_of(number - 1, effect, found.sd) < 0.8
    assert (found.method, found.k, found.num_cases, found.draws) == ("scale", 1, 1, (None, None))


def test_an_evaluation_is_no_pilot(tmp_path: Path) -> None:
    """A folder of another step is named with what it is."""
    folder = esa.eval.run(tiny_spec(), loaded=load("llama"), root=tmp_path).folder
    with pytest.raises(ArtifactError, match="holds the step eval; the pilot is a finished perturb step"):
        plan(folder)
