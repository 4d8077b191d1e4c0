"""Which model withstands the loss of its top weights best, and what that has to do with its tasks."""

import math
from itertools import permutations
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from esa.arch.comparison.damages import Damaged, damages_of
from esa.arch.comparison.findings import Options
from esa.arch.comparison.ranks import spearman_test
from esa.arch.comparison.robustness import common_key, compare, on_front, ranked
from esa.arch.comparison.sources import labelled
from esa.artifact.grouping import group
from tests.planted_runs import Planted

NOW = Options(("act_mag",), 10, permutations=999, resamples=199)


def runs_of(root: Path, damages: list[float | None], **knobs):  # type: ignore[no-untyped-def]
    """Return a run per damage of its top ten, with a task that is the better the larger the damage, ties aside."""
    made = [
        Planted(
            root, f"m{n}", width=6 + 2 * n, ks=(1, 10), draws=1, tasks={"hellaswag": 0.3 + 0.05 * n},
            damage=lambda _, case, value=damage: value if case.k == 10 and case.group == "top_k" else 0.01, **knobs,
        )
        for n, damage in enumerate(damages)
    ]  # fmt: skip
    return labelled(group([one.write() for one in made]).runs)


def test_models_are_ranked_by_the_damage_of_their_own_list(tmp_path: Path) -> None:
    """The least damaged is first; intervals of ranks are tight where damages lie apart, and overlap where they are close."""
    found = compare(runs_of(tmp_path, [3.0, 0.1, 1.0, 1.02]), NOW)
    rows = {row["label"]: row for row in found.tables["robustness/1"] if row["task"] == "hellaswag"}
    assert {label: row["rank"] for label, row in rows.items()} == {"m0": 4, "m1": 1, "m2": 2, "m3": 3}
    assert {label: (row["rank_low"], row["rank_high"]) for label, row in rows.items()} == {
        "m0": (4, 4), "m1": (1, 1), "m2": (2, 3), "m3": (2, 3),
    }  # fmt: skip
    assert {row["interval"] for row in rows.values()} == {"windows"}
    assert {(row["method"], row["k"]) for row in rows.values()} == {("zero", 10)}
    assert rows["m2"]["damage"] == pytest.approx(1.0)
    assert {label: row["on_front"] for label, row in rows.items()} == {"m0": False, "m1": True, "m2": True, "m3": True}
    assert rows["m0"]["task_low"] == pytest.approx(0.3 - 1.96 * 0.02, abs=1e-4)


def test_damages_that_do_not_compare_are_warned_of(tmp_path: Path) -> None:
    """Other tokens of one text, another text, and a K that is another share of each model are said; equals are silent."""
    same = runs_of(tmp_path / "same", [0.1, 0.2])
    assert compare(same, NOW).warnings == ()
    runs = runs_of(tmp_path, [0.1, 0.2])
    data = runs[1].run.manifests["perturb"]["data"]
    data["sha256"] = "other tokens"
    (told,) = compare(runs, NOW).warnings
    assert "cut the same text into other tokens" in told
    assert "a token is not the same piece of text" in told
    data["source"] = "builtin:verse"
    (told,) = compare(runs, NOW).warnings
    assert told.startswith("robustness ranks damages on different texts, which do not compare: builtin:prose_eval (")
    assert "builtin:verse (" in told
    sizes = runs_of(tmp_path / "sizes", [0.1, 0.2, 0.3, 0.4])
    (told,) = compare(sizes, NOW).warnings
    assert told.startswith("robustness zeroes the same number of weights in models of other sizes: 10 are ")
    assert "% of m0 and " in told


def test_one_run_is_no_ranking(tmp_path: Path) -> None:
    """A run alone is first among itself: it is not ranked, and a row says why."""
    found = compare(runs_of(tmp_path, [0.1]), NOW).tables
    assert found["robustness/1"] == []
    assert [row["why"] for row in found["comparison/1"]] == [
        "m0 alone has damage of its top weights by it; a ranking needs two"
    ]


def test_a_broken_model_ranks_last_and_a_run_without_windows_takes_its_interval(tmp_path: Path) -> None:
    """A nonfinite damage is infinite to the ranks, null in the table; without windows the draws are normal, and it says so."""
    found = compare(runs_of(tmp_path, [None, 0.5, 1.0], tables={"windows.csv": []}), NOW)
    rows = {row["label"]: row for row in found.tables["robustness/1"] if row["task"] == "hellaswag"}
    assert (rows["m0"]["rank"], rows["m0"]["damage"], rows["m0"]["outcome"]) == (3, None, "nonfinite")
    assert (rows["m0"]["rank_low"], rows["m0"]["rank_high"]) == (3, 3)
    assert [rows[label]["interval"] for label in ("m0", "m1", "m2")] == [None, "normal", "normal"]


def test_a_damage_without_any_interval_gives_no_interval_of_the_rank() -> None:
    """Where nothing says how sure a damage is, neither do the ends of its rank."""
    placed = ranked([Damaged(1.0, None, None, "ok"), Damaged(2.0, 1.9, 2.1, "ok")], NOW, "act_mag")
    assert placed == [
        {"rank": 1, "rank_low": None, "rank_high": None},
        {"rank": 2, "rank_low": 2, "rank_high": 2},
    ]


def test_draws_of_the_windows_have_the_spread_of_their_mean() -> None:
    """Bootstrap draws of a damage centre on the ratio of sums and spread as its standard error says."""
    noise = np.random.default_rng(0).standard_normal(400)
    tokens = np.full(400, 50.0)
    damage = Damaged(1.0, None, None, "ok", (1.0 + noise) * tokens, tokens)
    drawn = damage.draws(np.random.default_rng(1), 4000)
    assert drawn.mean() == pytest.approx(1.0 + noise.mean(), abs=0.01)
    assert drawn.std() == pytest.approx(noise.std() / math.sqrt(400), rel=0.1)


def test_repeats_are_averaged_over_their_windows(tmp_path: Path) -> None:
    """A method with repeats has one damage, the mean, and its windows' mean differences."""
    run = Planted(tmp_path, ks=(1, 10), draws=1, damage=lambda _, case: 0.4)

    def repeated(rows):  # type: ignore[no-untyped-def]
        found = []
        for row in rows:
            found += [
                {**row, "repeat": n, "delta_nll": row["delta_nll"] + n, "case": f"{row['case']}{n}"} for n in (0, 1)
            ]
        return found

    run.tables = {
        "damage.csv": repeated,
        "windows.csv": lambda rows: [row for row in rows if row["case"] == "intact"] + [
            {**row, "case": f"{row['case']}{n}", "nll": row["nll"] + n * row["num_tokens"]}
            for row in rows if row["case"] != "intact" for n in (0, 1)
        ],
    }  # fmt: skip
    (one,) = labelled(group([run.write()]).runs)
    found = next(damage for key, damage in damages_of(one, "act_mag").items() if key.k == 10)
    assert found.value == pytest.approx(0.9)
    assert found.interval == "windows"
    assert found.differences is not None
    assert found.num_tokens is not None
    assert (found.differences / found.num_tokens).mean() == pytest.approx(0.9)


def test_the_case_is_one_that_all_share(tmp_path: Path) -> None:
    """The K asked for where all have it, else the largest in common; without a method in common, a row that says so."""
    runs = runs_of(tmp_path, [0.1, 0.2])
    held = [damages_of(one, "act_mag") for one in runs]
    assert [key.k for key in held[0]] == [1, 10]
    assert [common_key(held, k).k for k in (1, 10, 7, None)] == [1, 10, 10, 10]  # type: ignore[union-attr]
    assert common_key([held[0], {}], 10) is None
    other = Planted(tmp_path, "flipped", ks=(1, 10), draws=1, methods=({"method": "sign_flip"},))
    mixed = [*runs, *labelled(group([other.write()]).runs)]
    (row,) = compare(mixed, NOW).tables["comparison/1"]
    assert row["why"] == "the runs share no method, options and K"


def test_task_and_robustness_are_correlated_over_models(tmp_path: Path) -> None:
    """Where the better models are the more fragile, Spearman's rho is -1 at the smallest p; training seeds are one model."""
    found = compare(runs_of(tmp_path, [0.1, 0.2, 0.3, 0.4, 0.5]), NOW)
    rows = {row["subject"]: row for row in found.tables["comparison/1"]}
    row = rows["hellaswag: acc against the top 10 by zero"]
    assert row["value"] == pytest.approx(-1.0)
    assert row["p_value"] == row["smallest_p"] == pytest.approx(2 / 120)
    assert row["num"] == 5
    flat = next(row for subject, row in rows.items() if subject.startswith("language_modeling"))
    assert flat["why"] == "all values of a side are equal"
    replicas = [
        Planted(tmp_path / "seeds", f"s{n}{seed}", width=6 + 2 * n, model_seed=seed, ks=(10,), draws=1, tasks={"x": 0.3 + 0.1 * n})
        for n in range(3) for seed in range(2)
    ]  # fmt: skip
    seeds = compare(labelled(group([one.write() for one in replicas]).runs), NOW).tables
    assert len({row["label"] for row in seeds["robustness/1"]}) == 6
    assert {row["num"] for row in seeds["comparison/1"]} == {3}
    few = compare(runs_of(tmp_path / "few", [0.1, 0.2, 0.3]), NOW).tables["comparison/1"][0]
    assert few["why"] == "3 models have both; at least 5 are needed"
    assert few.get("value") is None


def test_spearman_is_scipys_and_its_p_that_of_all_orders() -> None:
    """The coefficient equals scipy's with ties; p counts all orders, or is close to that where they are drawn."""
    x, y = np.array([1.0, 2.0, 2.0, 5.0, 4.0, 9.0]), np.array([2.0, 1.0, 4.0, 4.0, 7.0, 8.0])
    found = spearman_test(x, y, 720, np.random.default_rng(0))
    assert found["value"] == pytest.approx(stats.spearmanr(x, y).statistic)
    every = [abs(stats.spearmanr(x, np.array(order)).statistic) for order in permutations(y)]
    exact = np.mean(np.array(every) >= abs(found["value"]) - 1e-12)  # type: ignore[arg-type]
    assert found["p_value"] == pytest.approx(exact)
    drawn = spearman_test(x, y, 700, np.random.default_rng(0))
    assert drawn["p_value"] == pytest.approx(exact, abs=0.03)
    assert drawn["smallest_p"] == 1 / 701


def test_the_front_is_what_nothing_beats() -> None:
    """A point is on the front unless another is at least as good in both and better in one; equal points stand together."""
    damages, goodness = [1.0, 2.0, 1.0, 3.0, 1.0], [0.5, 0.7, 0.4, 0.7, 0.5]
    assert on_front(damages, goodness) == [True, True, False, False, True]
