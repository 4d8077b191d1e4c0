"""The house rules of DESIGN.md section 1, held by reading the code: which way imports point, what loads, what it says."""

import ast
import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

from esa.registry import REGISTRIES, load
from esa.spec.methods import Perturb

HOUSE = Path(__file__).resolve().parent.parent / "esa"
COMMANDS = frozenset({"score", "rank", "perturb", "eval", "overlap", "scale", "arch", "report"})
GROUND = frozenset({"registry", "progress", "errors"})
SPEC = GROUND | {"spec"}
ARTIFACT = SPEC | {"artifact"}
MODEL = ARTIFACT | {"model", "data", "statistics"}
# part -> the parts it may import besides itself
ALLOWED = {
    "cli": MODEL | COMMANDS,
    "__main__": frozenset({"cli"}),
    **dict.fromkeys(COMMANDS, MODEL),
    "perturb": MODEL | {"eval"},
    "model": ARTIFACT,
    "data": ARTIFACT,
    "statistics": ARTIFACT,
    "artifact": SPEC,
    "spec": GROUND,
    "registry": frozenset({"errors"}),
    "progress": frozenset(),
    "errors": frozenset(),
}
TORCHLESS = ("errors", "registry", "progress", "spec", "artifact", "statistics", "rank", "overlap", "scale", "report")
HEAVY = ("torch", "transformers", "polars", "altair")
# Which kinds cite a source: a metric and a method are the field's, a selector and a task's figures are plain definitions.
SOURCED = ("metric", "method")
MOST_LINES = 400


def sources(house: Path) -> list[Path]:
    """Return the Python files of the package at ``house``."""
    return sorted(house.rglob("*.py"))


def part_of(path: Path, house: Path) -> str:
    """Return the part of the house a file belongs to: its folder, or its own name."""
    first = path.relative_to(house).parts[0]
    return first.removesuffix(".py")


def imported(path: Path, house: Path) -> set[str]:
    """Return the full names that a file imports anywhere, relative ones resolved, ``from a import b`` as ``a.b``."""
    names: set[str] = set()
    package = ("esa", *path.relative_to(house).parts[:-1])
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join([*above, *([node.module] if node.module else [])])
            names.update(f"{module}.{alias.name}" for alias in node.names)
    return names


def against_the_arrows(house: Path) -> list[str]:
    """Return ``file -> import`` for every import of the house's own that points the wrong way."""
    found = []
    for path in sources(house):
        part = part_of(path, house)
        if part == "__init__":
            continue
        for name in sorted(imported(path, house)):
            if not name.startswith("esa.") or name == "esa.__version__":
                continue
            target = name.split(".")[1]
            if target != part and target not in ALLOWED[part]:
                found.append(f"{path.relative_to(house)} -> {name}")
    return found


def foreign(house: Path, packages: tuple[str, ...], parts: tuple[str, ...] | None = None) -> list[str]:
    """Return ``file -> import`` for every import of ``packages`` below cli, or in ``parts`` alone."""
    return [
        f"{path.relative_to(house)} -> {name}"
        for path in sources(house)
        if (part_of(path, house) not in ("cli", "__main__") if parts is None else part_of(path, house) in parts)
        for name in sorted(imported(path, house))
        if name.split(".")[0] in packages
    ]


def loaded_by(statement: str, packages: tuple[str, ...]) -> list[str]:
    """Return which of ``packages`` a fresh Python holds after a statement."""
    code = f"import sys\n{statement}\nprint(*[name for name in {packages!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=HOUSE.parent)
    return done.stdout.split()


def undocumented(house: Path) -> list[str]:
    """Return ``file:line name`` for every module, public function and public class without a docstring."""
    found = []
    for path in sources(house):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        name = path.relative_to(house)
        if not ast.get_docstring(tree):
            found.append(f"{name}:1 module")
        classes = [node for node in tree.body if isinstance(node, ast.ClassDef) and not node.name.startswith("_")]
        for node in [item for owner in (tree, *classes) for item in owner.body]:
            kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
            if isinstance(node, kinds) and not node.name.startswith("_") and not ast.get_docstring(node):
                found.append(f"{name}:{node.lineno} {node.name}")
    return found


def too_long(house: Path) -> list[str]:
    """Return the files of more than 400 lines."""
    return [
        f"{path.relative_to(house)}: {count}"
        for path in sources(house)
        if (count := len(path.read_text(encoding="utf-8").splitlines())) > MOST_LINES
    ]


def definition(kind: str, name: str) -> str:
    """Return the docstring that defines a registered name; a metric's stands on its module's pure function."""
    entry = REGISTRIES[kind][name]
    found = getattr(import_module(entry.split(":")[0]), name) if kind == "metric" else load(kind, name)
    return found.__doc__ or ""


def is_formula(text: str) -> bool:
    """Tell whether a docstring writes down something computed: an expression in double backticks, or abs(w) or XOR."""
    quoted = re.findall(r"``(.+?)``", text, re.DOTALL)
    return any(re.search(r"[|=<*^/(+]", words) for words in quoted) or bool(re.search(r"abs\(w\)|\bXOR\b", text))


def plant(house: Path, files: dict[str, str]) -> Path:
    """Write a small package to find faults in."""
    for name, text in files.items():
        path = house / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return house


def test_imports_point_one_way() -> None:
    """Every import inside esa follows the arrows, and command folders meet through artifacts but for perturb -> eval."""
    assert against_the_arrows(HOUSE) == []


def test_every_part_has_its_place_among_the_arrows() -> None:
    """No folder or file of esa stands outside the arrows."""
    parts = {part_of(path, HOUSE) for path in sources(HOUSE)} - {"__init__"}
    assert parts <= set(ALLOWED)


@pytest.mark.parametrize(
    ("file", "text", "found"),
    [
        ("rank/order.py", "from esa.score import run\n", "rank/order.py -> esa.score.run"),
        ("eval/loop.py", "import esa.perturb\n", "eval/loop.py -> esa.perturb"),
        ("spec/loading.py", "def f():\n    from esa.artifact import Step\n", "spec/loading.py -> esa.artifact.Step"),
        ("model/a.py", "from ..cli import console\n", "model/a.py -> esa.cli.console"),
        ("model/b.py", "from .. import cli\n", "model/b.py -> esa.cli"),
        ("registry.py", "from esa import spec\n", "registry.py -> esa.spec"),
    ],
)
def test_an_import_against_the_arrows_is_found(tmp_path: Path, file: str, text: str, found: str) -> None:
    """A planted import against the arrows is found wherever it stands and however it is written."""
    assert against_the_arrows(plant(tmp_path, {file: text})) == [found]


def test_allowed_imports_are_not_found(tmp_path: Path) -> None:
    """What the arrows allow is left alone: within a part, downwards, and perturb -> eval."""
    fine = {
        "perturb/a.py": "from esa.eval import Evaluator\nfrom . import b\n",
        "eval/a.py": "from esa.model import load_model\nfrom esa.eval.b import c\n",
        "cli/run.py": "import esa.score\nfrom esa import __version__\n",
    }
    assert against_the_arrows(plant(tmp_path, fine)) == []


def test_nothing_below_cli_knows_the_console() -> None:
    """Nothing below cli imports typer or rich."""
    assert foreign(HOUSE, ("typer", "rich", "click")) == []


def test_analysis_imports_no_torch() -> None:
    """No file of the parts that run on a laptop imports torch or transformers."""
    assert foreign(HOUSE, ("torch", "transformers"), TORCHLESS) == []


def test_a_foreign_import_is_found(tmp_path: Path) -> None:
    """A planted import of typer below cli, or of torch in rank, is found; typer in cli is not."""
    files = {"score/a.py": "import typer\n", "rank/a.py": "import torch.nn\n", "cli/a.py": "import typer\n"}
    assert foreign(plant(tmp_path, files), ("typer", "rich")) == ["score/a.py -> typer"]
    assert foreign(tmp_path, ("torch",), ("rank",)) == ["rank/a.py -> torch.nn"]


def test_analysis_runs_without_torch() -> None:
    """Importing every module of the parts that run on a laptop loads no torch, also not through what they import."""
    modules = [
        ".".join(("esa", *path.relative_to(HOUSE).with_suffix("").parts)).removesuffix(".__init__")
        for path in sources(HOUSE)
        if part_of(path, HOUSE) in TORCHLESS
    ]
    assert {"esa.rank", "esa.overlap", "esa.report", "esa.artifact.steps"} <= set(modules)
    assert loaded_by(f"import {', '.join(modules)}", ("torch", "transformers")) == []


def test_the_command_line_starts_light() -> None:
    """Importing the command line loads none of the heavy packages, so that help comes at once."""
    assert loaded_by("import esa.cli.main", HEAVY) == []


def test_a_heavy_import_is_noticed() -> None:
    """The look into a fresh Python names what an import loads."""
    assert loaded_by("import esa.artifact", ("polars", "altair")) == ["polars"]


@pytest.mark.parametrize(("kind", "name"), [(kind, name) for kind, table in REGISTRIES.items() for name in table])
def test_registered_names_load_and_are_defined(kind: str, name: str) -> None:
    """Every registered name loads, and its docstring holds a definition; a metric's and a method's also a source."""
    assert callable(load(kind, name)) or load(kind, name).name == name
    text = definition(kind, name)
    assert is_formula(text), text
    assert kind not in SOURCED or re.search(r"Source: .*\d{4}", text, re.DOTALL), text


def test_a_missing_formula_is_noticed() -> None:
    """Words in backticks alone are no definition."""
    assert not is_formula("Return the ``thing`` of a ``name``.")
    assert is_formula("Score each weight by ``|x|``.")
    assert is_formula("Flip bits: XOR with a mask.")


def test_every_method_has_a_section() -> None:
    """Each registered method has its own table of options in the spec, and no table is without a method."""
    methods = {
        cls.model_fields["method"].annotation.__args__[0]  # type: ignore[union-attr]
        for cls in [
            *Perturb.__subclasses__(),
            *(leaf for cls in Perturb.__subclasses__() for leaf in cls.__subclasses__()),
        ]
        if "method" in cls.model_fields
    }
    assert methods == set(REGISTRIES["method"])


def test_everything_public_says_what_it_is() -> None:
    """Every module, public function and public class of esa has a docstring."""
    assert undocumented(HOUSE) == []


def test_a_missing_docstring_is_found(tmp_path: Path) -> None:
    """A function, a class or a method without a docstring is found; private ones and dunders need none."""
    text = '"""Words."""\ndef f(): ...\nclass C:\n    """Words."""\n    def g(self): ...\n    def __len__(self): ...\n'
    assert undocumented(plant(tmp_path, {"a.py": text, "b.py": "def _f(): ...\n"})) == [
        "a.py:2 f", "a.py:5 g", "b.py:1 module",
    ]  # fmt: skip


def test_no_file_is_too_long(tmp_path: Path) -> None:
    """No file of esa has more than 400 lines, and one of 401 is found."""
    assert too_long(HOUSE) == []
    assert too_long(plant(tmp_path, {"a.py": "\n" * 400, "b.py": "\n" * 401})) == ["b.py: 401"]
