"""A TOML spec becomes a Spec, or every one of its problems with its file and line."""

from collections.abc import Sequence
from pathlib import Path

import pytest

from esa import registry
from esa.errors import SpecError
from esa.spec import Spec, dump_spec, load_spec, load_sweep, spec_from_dict
from esa.spec.loading import apply_overrides, parse_override

SPECS = Path(__file__).resolve().parents[2] / "specs"
BASE = 'name = "x"\n[model]\nid = "m"\n'
METHODS = ", ".join(sorted(registry.METHODS))
METRICS = ", ".join(sorted(registry.METRICS))


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Write and read specs by relative paths, as a person does."""
    monkeypatch.chdir(tmp_path)


def read(text: str, overrides: Sequence[str] = (), name: str = "s.toml") -> Spec:
    """Return the spec that a text holds."""
    Path(name).write_text(text, encoding="utf-8")
    return load_spec(name, overrides)


def problems(text: str, overrides: Sequence[str] = ()) -> list[str]:
    """Return every problem of a spec's text."""
    with pytest.raises(SpecError) as caught:
        read(text, overrides)
    return caught.value.problems


def line_number(problem: str) -> int:
    """Return the line that a problem of s.toml names, 0 for none."""
    number = problem.removeprefix("s.toml:").partition(":")[0]
    return int(number) if number.isdecimal() else 0


EVERYTHING_WRONG = """\
nam = "x"
[model]
id = 3
dtpye = "float32"
[calibration]
windows = "8"
bos = 1
source = "wiki"
[score]
metrics = ["hutchinson", "act_mag"]
seeds = [0, 0]
keep = true
[rank]
k = [1,
  "ten",
]
mode = "globl"
[[perturb]]
method = "zer"
[[perturb]]
method = "gauss_noise"
sigma = -1
sgima = 2
[[perturb]]
sigma = 1
[[perturb]]
method = "bit_flip"
bit = 3
bits = 2
[overlap]
by = "wieght"
[extra]
"""


def test_every_problem_is_reported_at_once() -> None:
    """One reading names every problem: where it stands, what it is, the value, and what is allowed."""
    assert sorted(problems(EVERYTHING_WRONG), key=line_number) == [
        "s.toml: name: is required and missing",
        "s.toml:1: nam: unknown key (did you mean 'name'?); allowed: calibration, confirm, curve, eval, faults,"
        " model, name, overlap, perturb, question, rank, score, statistics, truth, extends, sweep",
        "s.toml:3: model.id: input should be a valid string, not 3",
        "s.toml:4: model.dtpye: unknown key (did you mean 'dtype'?); allowed: compute, device, device_map, dtype, id, memory_budget,"
        " null, null_seed, quantization, residency, revision, shape, trust_remote_code",
        "s.toml:6: calibration.windows: input should be a valid integer, not '8'",
        "s.toml:7: calibration.bos: 1 is not allowed; allowed: true, false, 'auto'",
        "s.toml:8: calibration.source: 'wiki' is not a text source; allowed: builtin:NAME, file:PATH,"
        " hf:DATASET[/CONFIG][@REVISION]:SPLIT[:FIELD]",
        f"s.toml:10: score.metrics.0: 'hutchinson' is not a metric (did you mean 'hutchinson_diag'?); known: {METRICS}",
        "s.toml:11: score.seeds: names a value twice: [0, 0]",
        "s.toml:12: score.keep: input should be a valid integer, not True",
        "s.toml:14: rank.k.1: input should be a valid integer, not 'ten'",
        "s.toml:17: rank.mode: input should be 'global', 'per_layer', 'per_block' or 'per_component', not 'globl'",
        f"s.toml:18: perturb.0: 'zer' is not a method (did you mean 'zero'?); known: {METHODS}",
        "s.toml:22: perturb.1.sigma: input should be greater than 0, not -1",
        "s.toml:23: perturb.1.sgima: unknown key (did you mean 'sigma'?); allowed: groups, k, method, propagation,"
        " relative_to, repeats, sigma, unit",
        f"s.toml:24: perturb.2: needs method; known: {METHODS}",
        "s.toml:26: perturb.3: bit_flip needs exactly one of prob, bits, bit; given: bits, bit",
        "s.toml:31: overlap.by.0: input should be 'weight', 'output', 'input', 'layer', 'block' or 'component', not 'wieght'",
        "s.toml:32: extra: unknown key (did you mean 'overlap'?); allowed: calibration, confirm, curve, eval, faults,"
        " model, name, overlap, perturb, question, rank, score, statistics, truth, extends, sweep",
    ]  # fmt: skip


ONE_PROBLEM = {
    "a section that is a value": ('name = "x"\nmodel = 3\n', "s.toml:2: model: input should be a table, not 3"),
    "a value that is a section": (BASE + "[rank]\nk = {x = 1}\n", "s.toml:5: rank.k: input should be a list"),
    "a text for a list": (
        BASE + '[score]\nmetrics = "act_mag"\n',
        "s.toml:5: score.metrics: input should be a list, not 'act_mag'",
    ),
    "a list without a value": (BASE + "[score]\nmetrics = []\n", "s.toml:5: score.metrics: needs at least one value"),
    "one bad value in a list": (
        BASE + "[score]\nseeds = [-1]\n",
        "s.toml:5: score.seeds.0: input should be greater than or equal to 0, not -1",
    ),
    "perturb as one table": (BASE + '[perturb]\nmethod = "zero"\n', "s.toml:4: perturb: input should be a list"),
    "a method that is no text": (
        BASE + "[[perturb]]\nmethod = 3\n",
        f"s.toml:4: perturb.0: 3 is not a method; known: {METHODS}",
    ),
    "an option of another method": (
        BASE + '[[perturb]]\nmethod = "zero"\nsigma = 1\n',
        "s.toml:6: perturb.0.sigma: unknown key; allowed: groups, k, method, propagation, unit",
    ),
    "a factor that is no number": (
        BASE + '[[perturb]]\nmethod = "scale"\nfactor = inf\n',
        "s.toml:6: perturb.0.factor: input should be a finite number, not inf",
    ),
    "a compute dtype that loses bits": (
        BASE + 'dtype = "bfloat16"\ncompute = "float16"\n',
        "s.toml:2: model: compute = 'float16' cannot hold every bfloat16 number; allowed: auto, float32, bfloat16",
    ),
    "a shape of no kind": (
        BASE + "[model.shape]\nhidden_size = 3\n",
        "s.toml:2: model: shape needs model_type, a string such as 'llama'",
    ),
    "a device that is none": (
        BASE + 'device = "gpu"\n',
        r"s.toml:4: model.device: string should match pattern '^(auto|cpu|mps|cuda(:\d+)?)$', not 'gpu'",
    ),
    "a metric by two names": (
        BASE + '[score]\nmetrics = ["act_mag", "activation_magnitude"]\n',
        "s.toml:5: score.metrics: names a value twice: ['act_mag', 'act_mag']",
    ),
    "a name that is no folder": (
        'name = "../x"\n[model]\nid = "m"\n',
        "s.toml:1: name: string should match pattern '^[A-Za-z0-9][A-Za-z0-9_.-]*$', not '../x'",
    ),
    "an empty spec section": ('name = "x"\n[model]\n', "s.toml:2: model.id: is required and missing"),
    "no TOML": ("name = [\n", "s.toml: is not TOML: Invalid value (at end of document)"),
    "behind a string over several lines": (
        'question = """Why [\n"""\nname = "x"\n[model]\nid = "m"\n[rank]\nk = 0\n',
        "s.toml:7: rank.k.0: input should be greater than or equal to 1, not 0",
    ),
}


@pytest.mark.parametrize("case", ONE_PROBLEM)
def test_a_problem_is_named_once(case: str) -> None:
    """A single problem gives a single line, in the words of TOML."""
    text, expected = ONE_PROBLEM[case]
    assert problems(text) == [expected]


def test_the_hint_says_how_to_check() -> None:
    """A spec with problems is answered with the command that checks it."""
    with pytest.raises(SpecError) as caught:
        read(EVERYTHING_WRONG)
    assert caught.value.hint == "esa check s.toml validates without running"
    assert caught.value.exit_code == 3
    assert str(caught.value).endswith("\nhint: esa check s.toml validates without running")


def test_a_missing_spec_is_named() -> None:
    """A path without a file is an error that says so, and where ready specs are."""
    with pytest.raises(SpecError) as caught:
        load_spec("nope.toml")
    assert str(caught.value) == "nope.toml: no such file\nhint: specs/ holds ready ones, such as quickstart.toml"


def test_a_spec_that_is_no_text_is_named() -> None:
    """Bytes that are not UTF-8, and a folder, are errors that name the path."""
    Path("u.toml").write_bytes(b'name = "\xff"\n')
    with pytest.raises(
        SpecError, match=r"^u\.toml: cannot be read: 'utf-8' codec can't decode byte 0xff in position 8"
    ):
        load_spec("u.toml")
    with pytest.raises(SpecError, match=r"^\.: cannot be read: .*Is a directory"):
        load_spec(".")


ALIASES = [
    ("score", "metrics", "activation_magnitude", "act_mag"),
    ("score", "metrics", "hessian_diag", "hutchinson_diag"),
    ("perturb", "method", "noise", "gauss_noise"),
    ("perturb", "method", "gaussian", "gauss_noise"),
    ("perturb", "method", "bitflip", "bit_flip"),
]


@pytest.mark.parametrize(("section", "key", "alias", "name"), ALIASES)
def test_aliases_stand_for_names(section: str, key: str, alias: str, name: str) -> None:
    """A name from older files is read as today's name, and today's name is what the spec keeps."""
    if section == "score":
        assert read(f'{BASE}[score]\n{key} = ["{alias}"]\n').score.metrics == (name,)
    else:
        bits = "bit = 3\n" if name == "bit_flip" else ""
        assert read(f'{BASE}[[perturb]]\n{key} = "{alias}"\n{bits}').perturb[0].method == name


def test_extends_lays_one_spec_over_another() -> None:
    """Tables merge key by key along a chain of specs, lists are replaced, and paths are relative to the spec."""
    Path("base").mkdir()
    Path("base/root.toml").write_text(
        BASE + "[score]\nkeep = 5\nseeds = [0, 1]\n[rank]\nk = [1, 2]\n", encoding="utf-8"
    )
    Path("base/middle.toml").write_text('extends = "root.toml"\n[score]\nseeds = [7]\n', encoding="utf-8")
    spec = read('extends = "base/middle.toml"\nname = "y"\n[rank]\nk = [9]\n')
    assert (spec.name, spec.model.id, spec.score.keep, spec.score.seeds, spec.rank.k) == ("y", "m", 5, (7,), (9,))


def test_a_problem_below_names_the_file_it_stands_in() -> None:
    """A problem in the spec that is extended names that file, one in the spec on top names its own."""
    Path("base.toml").write_text(BASE + "[rank]\nk = [1]\n[score]\nkeep = 0\n", encoding="utf-8")
    assert problems('extends = "base.toml"\n[rank]\nk = [0]\n') == [
        "base.toml:7: score.keep: input should be greater than or equal to 1, not 0",
        "s.toml:3: rank.k.0: input should be greater than or equal to 1, not 0",
    ]


def test_extends_in_a_circle_is_refused() -> None:
    """Two specs that extend each other, or one that extends itself, are refused."""
    Path("b.toml").write_text('\nextends = "s.toml"\n', encoding="utf-8")
    assert problems('extends = "b.toml"\n') == ["b.toml:2: extends: 's.toml' extends itself"]
    assert problems('extends = "s.toml"\n') == ["s.toml:1: extends: 's.toml' extends itself"]


def test_extends_without_a_file_is_refused() -> None:
    """What extends a missing file, or no path at all, is refused at the line that says so."""
    assert problems('# a\nextends = "nope.toml"\n') == ["s.toml:2: extends: 'nope.toml': no such file"]
    assert problems("extends = 3\n") == ["s.toml:1: extends: 3 is not a path"]


OVERRIDES = [
    ("rank.draws=3", "rank.draws", 3),
    ("rank.k=7", "rank.k", (7,)),
    ("rank.k=[7, 8]", "rank.k", (7, 8)),
    ('score.metrics=["obd"]', "score.metrics", ("obd",)),
    ("eval.bos=false", "eval.bos", False),
    ("eval.bos=auto", "eval.bos", "auto"),
    ("overlap.p=0.9", "overlap.p", 0.9),
    ("model.id=owner/model", "model.id", "owner/model"),
    ("question=Why not?", "question", "Why not?"),
    (" name = z ", "name", "z"),
    ("question=a=b", "question", "a=b"),
    ('question="a=b"', "question", "a=b"),
    ("perturb.0.sigma=0.5", "perturb.0.sigma", 0.5),
    ("perturb.1.groups=[\"top_k\"]", "perturb.1.groups", ("top_k",)),
]  # fmt: skip
NOISE_AND_ZERO = BASE + '[[perturb]]\nmethod = "noise"\nsigma = 0.1\n[[perturb]]\nmethod = "zero"\n'


@pytest.mark.parametrize(("override", "key", "value"), OVERRIDES)
def test_set_changes_any_key(override: str, key: str, value: object) -> None:
    """--set takes TOML, or else plain text, into any key, also of the n-th table of a list."""
    found: object = read(NOISE_AND_ZERO, [override])
    for part in key.split("."):
        found = found[int(part)] if isinstance(found, tuple) else getattr(found, part)
    assert found == value
    assert type(found) is type(value)


BAD_OVERRIDES = [
    ("score", "--set: 'score' is not of the form section.key=value"),
    ("=3", "--set: '=3' is not of the form section.key=value"),
    ("name.x=3", "--set name.x=3: 'name' is a value, not a table"),
    ("score=3", "--set score=3: score: input should be a table, not 3"),
    (
        'score.metics=["obd"]',
        "--set score.metics=[\"obd\"]: score.metics: unknown key (did you mean 'metrics'?); allowed: dense, ensemble, exclude,"
        " include, keep, metrics, peak_ratio, probe_groups, probes, reduction, resamples, rounds, seeds",
    ),
    ("perturb=3", "--set perturb=3: perturb: input should be a list, not 3"),
    ("perturb.0=3", "--set perturb.0=3: 'perturb.0' names a list of tables; name one of its keys"),
    ("perturb.0.sigma=-1", "--set perturb.0.sigma=-1: perturb.0.sigma: input should be greater than 0, not -1"),
    ("perturb.2.sigma=1", "--set perturb.2.sigma=1: '2' is not one of its 2 tables, counted from 0"),
    ("perturb.x.sigma=1", "--set perturb.x.sigma=1: 'x' is not one of its 2 tables, counted from 0"),
]


@pytest.mark.parametrize(("override", "problem"), BAD_OVERRIDES)
def test_set_names_itself_where_it_is_wrong(override: str, problem: str) -> None:
    """A --set that cannot be applied, or gives a bad value, is named as given."""
    assert problems(NOISE_AND_ZERO, [override]) == [problem]


def test_set_makes_no_perturbation() -> None:
    """--set changes the tables of a list and adds none."""
    assert problems(BASE, ["perturb.0.method=zero"]) == [
        "--set perturb.0.method=zero: '0' is not one of its 0 tables, counted from 0"
    ]


def test_overrides_apply_to_a_spec_in_memory() -> None:
    """The same changes apply to a spec that is already read, which stays as it was."""
    spec = read(NOISE_AND_ZERO)
    changed = apply_overrides(spec, ["perturb.0.sigma=0.5", "rank.k=[3]"])
    assert (changed.perturb[0].options()["sigma"], changed.rank.k) == (0.5, (3,))
    assert changed == read(NOISE_AND_ZERO, ["perturb.0.sigma=0.5", "rank.k=[3]"])
    assert spec == read(NOISE_AND_ZERO)
    with pytest.raises(
        SpecError, match=r"^--set rank\.k=0: rank\.k\.0: input should be greater than or equal to 1, not 0"
    ):
        apply_overrides(spec, ["rank.k=0"])


def test_an_override_is_split_at_its_first_sign() -> None:
    """The key ends at the first equals sign."""
    assert parse_override("a.b=c=d") == ("a.b", "c=d")


SWEEP = BASE + '[sweep]\nscore.seeds = [[0], [1]]\n"perturb.0.sigma" = [0.1, 0.2, 0.3]\n[[perturb]]\nmethod = "noise"\n'


def test_a_sweep_becomes_independent_runs() -> None:
    """Every combination of the swept values is a run of its own name, the last key turning fastest."""
    Path("s.toml").write_text(SWEEP, encoding="utf-8")
    runs = load_sweep("s.toml")
    assert [(run.name, run.score.seeds, run.perturb[0].options()["sigma"]) for run in runs] == [
        ("x-00", (0,), 0.1), ("x-01", (0,), 0.2), ("x-02", (0,), 0.3),
        ("x-03", (1,), 0.1), ("x-04", (1,), 0.2), ("x-05", (1,), 0.3),
    ]  # fmt: skip


def test_without_a_sweep_there_is_one_run() -> None:
    """A spec without a sweep is one run, under its own name."""
    Path("s.toml").write_text(BASE, encoding="utf-8")
    assert [run.name for run in load_sweep("s.toml")] == ["x"]


def test_one_step_refuses_a_sweep() -> None:
    """A single step takes one run: a sweep is refused with the number of its runs."""
    with pytest.raises(SpecError) as caught:
        read(SWEEP)
    assert str(caught.value) == (
        "s.toml: sweep: describes 6 runs where one is needed\n"
        "hint: esa run takes a sweep; --only NUMBER takes one run of it, here too, counted from 0"
    )


BAD_SWEEPS = {
    "a value for a list": (BASE + "[sweep]\nrank.draws = 3\n", "s.toml:4: sweep: maps dotted keys to non-empty lists"),
    "an empty list": (BASE + "[sweep]\nrank.draws = []\n", "s.toml:4: sweep: maps dotted keys to non-empty lists"),
    "nothing": (BASE + "[sweep]\n", "s.toml:4: sweep: maps dotted keys to non-empty lists"),
    "no table": ("sweep = 3\n" + BASE, "s.toml:1: sweep: maps dotted keys to non-empty lists"),
    "a bad value": (BASE + "[sweep]\nrank.draws = [0]\n", "s.toml:5: rank.draws: input should be greater than or equal to 1, not 0"),
    "an unknown key": (
        BASE + "[sweep]\nrank.drawz = [1]\n",
        "s.toml:5: rank.drawz: unknown key (did you mean 'draws'?); allowed: aggregate, draws, groups, k, mode, seeds, statistic",
    ),
    "no such table": (
        BASE + '[sweep]\n"perturb.0.sigma" = [1]\n',
        "s.toml: sweep: '0' is not one of its 0 tables, counted from 0",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_SWEEPS)
def test_a_bad_sweep_is_refused(case: str) -> None:
    """A sweep that maps no keys to lists, or to values that do not hold, is refused."""
    text, problem = BAD_SWEEPS[case]
    assert problems(text) == [problem]


FULL = """\
name = "full"
question = "What does \\"it\\" do?\\nAnd why?"
[model]
id = "m"
revision = "abc"
dtype = "bfloat16"
compute = "float32"
[model.shape]
model_type = "llama"
rope_parameters = {rope_type = "default", factors = [1.0, 2.5]}
layer_types = ["full", "sliding"]
[calibration]
bos = true
sample = "first"
[score]
metrics = ["obd", "wanda"]
seeds = [2, 1]
include = ["component=mlp.*", "*.weight"]
[rank]
k = 5
[[perturb]]
method = "bitflip"
prob = 1e-7
groups = ["top_k"]
k = [1, 2]
[[perturb]]
method = "scale"
factor = 0.1
[overlap]
by = "output"
p = 0.9
"""


@pytest.mark.parametrize("text", [BASE, FULL, NOISE_AND_ZERO])
def test_a_dumped_spec_reads_back_the_same(text: str) -> None:
    """What dump_spec writes holds every key, and reads back as the same spec, and dumps as the same text."""
    spec = read(text)
    again = read(dump_spec(spec), name="again.toml")
    assert again == spec
    assert dump_spec(again) == dump_spec(spec)
    assert "batch_tokens = 2048" in dump_spec(spec)  # a default that no text above gives


def test_a_spec_is_made_of_a_dict() -> None:
    """A nested dict gives the same spec as the text, and its problems are named by the word given for it."""
    tree = {"name": "x", "model": {"id": "m"}, "rank": {"k": [3]}}
    assert spec_from_dict(tree) == read(BASE + "[rank]\nk = [3]\n")
    with pytest.raises(SpecError) as caught:
        spec_from_dict({"name": "x"}, where="standard input")
    assert str(caught.value) == "standard input: model: is required and missing"


@pytest.mark.parametrize(
    "path", sorted(path for path in SPECS.glob("*.toml") if path.name != "criteria.toml"), ids=lambda path: path.stem
)
def test_the_specs_of_the_project_load(path: Path) -> None:
    """Every spec in specs/ holds, says its question, and opens with it and with the command that runs it."""
    for spec in load_sweep(path):
        assert spec.question
    opening = path.read_text(encoding="utf-8").split("\n\nname")[0]
    assert "?" in opening
    assert f"specs/{path.name}" in opening
