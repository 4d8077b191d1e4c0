"""Top against random: the effect of one model and its standard error, on numbers whose truth is known."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from esa.artifact.grouping import group
from esa.errors import ArtifactError
from esa.scale.contrasts import Effect, Subject, contrast, effects, over_training_seeds
from esa.scale.quantities.measured import Wanted
from esa.spec import generator
from tests.planted_runs import Case, Planted

TOP_10 = Subject("act_mag", "zero", "{}", 10)
SMALL: dict[str, Any] = {"blocks": 1, "width": 4, "vocabulary": 8, "seeds": (0,), "ks": (1, 10), "singles": 0}


def planted(run: Planted, case: Case) -> float | None:
    """Cost 2 nats for the top ten and 0.2 for the top one; a random draw costs a tenth of its number."""
    if case.group == "top_k":
        return 0.2 * case.k
    return 0.1 * (case.draw or 0) if case.group == "random_k" else 0.0


def measured(root: Path, *, wanted: Wanted | None = None, **knobs: Any) -> dict[Subject, Effect]:
    """Return the effects of a planted run."""
    run = Planted(root, **{**SMALL, "damage": planted, **knobs})  # type: ignore[arg-type]
    return effects(group([run.write()]).runs[0], wanted or Wanted())


def test_the_effect_is_the_difference_of_the_damages(tmp_path: Path) -> None:
    """Top ten at 2 nats against three draws at 0, 0.1 and 0.2 is 1.9 nats, whatever the windows' noise."""
    found = measured(tmp_path)
    assert list(found) == [Subject("act_mag", "zero", "{}", 1), TOP_10]
    assert found[TOP_10].value == pytest.approx(1.9)
    assert found[TOP_10].excluded is None


def test_the_standard_error_has_windows_draws_and_floor() -> None:
    """It is the root of the three variances, written out one by one."""
    draw = generator(0, "test", "contrast")
    tokens = np.asarray([31.0, 17.0, 40.0, 25.0])
    top, drawn = draw.normal(3, 1, (2, 4)) * tokens, draw.normal(1, 1, (3, 4)) * tokens
    found = contrast(tokens, top, drawn, floor=0.2)
    total = sum(tokens)
    d = [sum(top[:, n]) / 2 - sum(drawn[:, n]) / 3 for n in range(4)]
    effect = sum(d) / total
    windows = 4 / 3 * sum((d[n] - effect * tokens[n]) ** 2 for n in range(4)) / total**2
    means = [sum(drawn[r]) / total for r in range(3)]
    draws = sum((one - sum(means) / 3) ** 2 for one in means) / 2 / 3
    tops = (sum(top[0]) / total - sum(top[1]) / total) ** 2 / 2 / 2
    assert found.value == pytest.approx(effect)
    assert found.stderr == pytest.approx(math.sqrt(windows + draws + tops + 0.04))
    assert found.low is not None
    assert found.high is not None
    assert found.low < effect < found.high


def test_the_interval_holds_the_truth_as_often_as_it_says() -> None:
    """Over 400 simulated models the true effect lies in the 95 % interval in at least 93 % of them, and not in all."""
    draw, held, errors, values = generator(1, "test", "coverage"), 0, [], []
    tokens = np.full(24, 50.0)
    for _ in range(400):
        intact = draw.normal(3, 1, 24)
        top = intact + 2 + draw.normal(0, 0.8, (1, 24))
        drawn = intact + draw.normal(0.3, 0.3, (6, 1)) + draw.normal(0, 0.2, (6, 24))
        found = contrast(tokens, top * tokens, drawn * tokens)
        assert found.low is not None
        assert found.high is not None
        assert found.stderr is not None
        assert found.value is not None
        held += found.low <= 1.7 <= found.high
        errors.append(found.stderr)
        values.append(found.value)
    assert 0.93 * 400 <= held < 400
    assert np.mean(np.square(errors)) == pytest.approx(np.var(values), rel=0.25)


def test_intact_noise_of_the_windows_cancels() -> None:
    """What a window costs in any case says nothing: however unequal windows are, the error is that of the differences."""
    tokens, base = np.full(5, 10.0), np.asarray([1.0, 9.0, 2.0, 50.0, 4.0])
    drawn = np.stack([base + 0.1, base + 0.3])
    found = contrast(tokens, (base + 2.0)[None], drawn)
    assert found.value == pytest.approx(0.18)
    assert found.stderr == pytest.approx(math.sqrt(0.02**2 / 2 / 2))


@pytest.mark.parametrize(
    ("windows", "draws", "why"),
    [
        (1, 3, "1 window: its spread is unknown"),
        (4, 1, "1 random draw: at least 2 tell their spread"),
        (4, 2, "no spread over windows or draws, and no noise floor: it has no standard error"),
    ],
)
def test_without_a_spread_there_is_no_effect(windows: int, draws: int, why: str) -> None:
    """An effect without an honest standard error is left out, and says why."""
    assert contrast(np.full(windows, 9.0), np.ones((1, windows)), np.zeros((draws, windows))) == Effect(excluded=why)


def test_the_floor_is_an_error_of_its_own() -> None:
    """Where nothing varies at all the noise floor is what is not known."""
    found = contrast(np.full(3, 2.0), np.ones((1, 3)), np.zeros((2, 3)), floor=1e-3)
    assert (found.value, found.stderr) == (pytest.approx(0.5), pytest.approx(1e-3))
    assert found.high == pytest.approx(0.5 + 1.96e-3, rel=1e-5)


def test_a_nonfinite_case_leaves_the_subject_out(tmp_path: Path) -> None:
    """A top list that breaks the model has no number, and neither has one whose random draw does; the other K stays."""

    def broken_top(run: Planted, case: Case) -> float | None:
        return None if case.group == "top_k" and case.k == 10 else planted(run, case)

    found = measured(tmp_path / "top", damage=broken_top)
    assert found[TOP_10] == Effect(excluded="nonfinite: 1 of 1 top case")
    assert found[TOP_10._replace(k=1)].excluded is None

    def broken_draw(run: Planted, case: Case) -> float | None:
        return None if case.group == "random_k" and case.draw == 1 and case.k == 10 else planted(run, case)

    assert measured(tmp_path / "random", damage=broken_draw)[TOP_10].excluded == "nonfinite: 1 of 3 random cases"


def test_repeats_are_averaged_within_a_draw(tmp_path: Path) -> None:
    """Two repeats of noise in each draw are one draw: their mean counts once, and two of the top list give a spread."""
    noise = {"method": "gauss_noise", "sigma": 0.5, "repeats": 2}

    def twice(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Repeat every case, 0.5 nats apart: half below and half above."""
        return [
            {**row, "case": f"{row['case']}{repeat}", **({"repeat": repeat} if "group" in row else {"nll": row["nll"] + sign * 0.25 * 31})}
            for row in rows for repeat, sign in enumerate((-1, 1))
        ]  # fmt: skip

    knobs = {"methods": (noise,), "half_width": 0.0, "wanted": Wanted(methods=("gauss_noise",), ks=(10,))}
    (one,) = measured(tmp_path / "one", **knobs).values()
    (two,) = measured(tmp_path / "two", tables={"damage.csv": twice, "windows.csv": twice}, **knobs).values()
    assert two.value == pytest.approx(one.value)
    assert one.stderr is not None
    assert two.stderr is not None
    assert two.stderr**2 - one.stderr**2 == pytest.approx(0.5**2 / 2 / 2)


def test_only_what_is_wanted_is_measured(tmp_path: Path) -> None:
    """Metrics, methods and K narrow the subjects; a method of several doses is left out unless it is named."""
    methods = ({"method": "zero"}, {"method": "gauss_noise", "sigma": 0.5}, {"method": "gauss_noise", "sigma": 1.0})
    run = group([Planted(tmp_path, **{**SMALL, "damage": planted}, methods=methods).write()]).runs[0]  # type: ignore[arg-type]

    def texts(**wanted: Any) -> list[str]:
        return [one.text for one in effects(run, Wanted(**wanted))]

    assert texts() == ["act_mag, zero, top 1", "act_mag, zero, top 10"]
    assert texts(ks=(10,)) == ["act_mag, zero, top 10"]
    noisy = [f"act_mag, gauss_noise sigma={sigma}, top 1" for sigma in (0.5, 1.0)]
    assert texts(methods=("gauss_noise",), ks=(1,)) == noisy
    assert texts(metrics=("wanda",)) == []


def test_changed_windows_are_refused(tmp_path: Path) -> None:
    """A table of windows that somebody edited is not read."""
    run = Planted(tmp_path, **{**SMALL, "damage": planted})  # type: ignore[arg-type]
    found = group([run.write()]).runs[0]
    path = run.folders["perturb"] / "windows.csv"
    path.write_text(path.read_text().replace(",31,", ",30,"))
    with pytest.raises(ArtifactError, match="was changed since its step wrote it"):
        effects(found, Wanted())


def test_training_seeds_have_one_vote() -> None:
    """The mean of the seeds' effects; the error is theirs, not smaller for sharing windows, and what lies between them."""
    found = over_training_seeds({"a": Effect(1.0, 0.3), "b": Effect(2.0, 0.4)})
    assert found.value == 1.5
    assert found.stderr == pytest.approx(math.sqrt((0.09 + 0.16) / 2 + 0.5 / 2))
    single = Effect(1.0, 0.3, 0.4, 1.6)
    assert over_training_seeds({"a": single}) == single


def test_a_broken_training_seed_leaves_its_model_out() -> None:
    """A mean over the seeds that survived would flatter the model."""
    broken = over_training_seeds({"a": Effect(1.0, 0.3), "b": Effect(excluded="nonfinite: 1 of 1 top case")})
    assert broken == Effect(excluded="b: nonfinite: 1 of 1 top case")


def test_a_run_without_random_weights_has_no_effect(tmp_path: Path) -> None:
    """Without random draws there is nothing to compare with."""
    run = Planted(tmp_path, **{**SMALL, "damage": planted, "draws": 0})  # type: ignore[arg-type]
    run.settings = {"rank": {"k": [1, 10]}}
    assert effects(group([run.write()]).runs[0], Wanted()) == {}
