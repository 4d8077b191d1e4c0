"""What is refused before any work is lost: wrong tables, other models, folders that are none."""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from esa import eval as esa_eval
from esa import score
from esa.errors import ArtifactError, ModelError
from tests.cli.conftest import Invoke
from tests.conftest import load, tiny_spec

WEIGHT = "model.layers.1.mlp.down_proj.weight"


def test_scores_are_no_ranking(folder: Path, esa: Invoke) -> None:
    """A table of scores given as targets is refused: `esa rank` was forgotten."""
    assert esa("score", "-s", "s.toml", "-q", "-o", "sc.csv").exit_code == 0
    done = esa("perturb", "-s", "s.toml", "--targets", "sc.csv", "-q")
    assert (done.exit_code, done.stderr) == (
        3, "esa: error: sc.csv: holds scores/1 where a ranking was expected\n  hint: esa rank makes one of it\n"
    )  # fmt: skip


def test_a_weight_listed_twice_is_refused(folder: Path, esa: Invoke) -> None:
    """A list that names one weight twice would give a wrong K."""
    (folder / "twice.csv").write_text(f'parameter,indices\n{WEIGHT},"(0, 1)"\n{WEIGHT},"(0, 1)"\n')
    done = esa("perturb", "-s", "s.toml", "--targets", "twice.csv", "-q")
    assert (done.exit_code, done.stderr) == (3, f"esa: error: twice.csv: {WEIGHT}:0,1 stands twice in top_k\n")


@pytest.mark.parametrize("out", ["top.cvs", "s.toml"])
def test_an_unknown_suffix_is_no_folder(out: str, folder: Path, esa: Invoke) -> None:
    """-o with a suffix that is no table's is a typo, not a folder."""
    before = (folder / "s.toml").read_text()
    done = esa("score", "-s", "s.toml", "-q", "-o", out)
    assert done.exit_code == 3
    assert "is no table's suffix; allowed: .csv, .parquet, -, a folder/" in done.stderr
    assert (folder / "s.toml").read_text() == before


def test_verbose_keeps_the_exit_code(folder: Path, esa: Invoke) -> None:
    """-v shows where a content error was raised, and the exit code stays 3."""
    done = esa("score", "-s", "s.toml", "-v", "--set", "calibration.windows=9999")
    assert done.exit_code == 3
    assert "esa: error: calibration.source: builtin:dev_small: is too short" in done.stderr
    assert "Traceback" in done.stderr


def test_a_typed_flag_with_a_bad_value_is_content(shell: "Callable[[str], subprocess.CompletedProcess[bytes]]") -> None:
    """A value that a flag cannot take ends with 3, an unknown flag with 2."""
    done = shell("esa score --threads 0; echo $?; esa score --nonsense; echo $?")
    assert done.stdout.split() == [b"3", b"2"]
    assert b"esa: error: --threads: " in done.stderr


def test_half_precision_gradients_are_refused(tmp_path: Path) -> None:
    """Gradients in float16 vanish below 6e-8: the metrics that need them name the way out."""
    spec = tiny_spec(model={"dtype": "float16"}, score={"metrics": ["grad_x_weight"]})
    with pytest.raises(ModelError) as caught:
        score.run(spec, loaded=load("llama", torch.float16), root=tmp_path)
    assert caught.value.where == "model.compute"
    assert 'model.compute = "float32"' in str(caught.value.hint)
    assert not list(tmp_path.iterdir())


def test_a_step_of_another_model_is_not_reused(tmp_path: Path) -> None:
    """A finished step is not taken for a model whose weights differ in one number."""
    spec, loaded = tiny_spec(), load("llama")
    esa_eval.run(spec, loaded=loaded, root=tmp_path)
    assert esa_eval.run(spec, loaded=loaded, root=tmp_path).reused
    with torch.no_grad():
        loaded.parameters()[WEIGHT][0, 0] += 1
    with pytest.raises(ArtifactError, match="was computed on a model with other weights"):
        esa_eval.run(spec, loaded=loaded, root=tmp_path)


def test_a_failed_check_is_not_forgotten(folder: Path, esa: Invoke) -> None:
    """A perturb step whose model was not restored ends with 4 also when it is asked for again."""
    words = ("perturb", "-s", "s.toml", "--target", f"{WEIGHT}:0,0", "--method", "zero", "-q")
    step = Path(esa(*words).stdout.strip())
    manifest = json.loads((step / "manifest.json").read_text())
    manifest["checksum"]["restored"] = False
    (step / "manifest.json").write_text(json.dumps(manifest))
    assert esa(*words).exit_code == 4


def test_an_edited_table_is_refused(folder: Path, esa: Invoke) -> None:
    """A table that was changed since its step wrote it is not ranked, perturbed or compared."""
    step = Path(esa("score", "-s", "s.toml", "-q").stdout.strip())
    ranking = Path(esa("rank", step, "-q").stdout.strip())
    for name, words in {
        ranking / "ranking.csv": ("overlap", ranking, "-q"),
        step / "scores.parquet": ("rank", step, "-q", "-o", "-"),
    }.items():
        name.write_bytes(name.read_bytes() + b" ")
        done = esa(*words)
        assert done.exit_code == 3
        assert f"{name}: was changed since its step wrote it: its sha256 is another" in done.stderr
