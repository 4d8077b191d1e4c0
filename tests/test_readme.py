"""The README names what there is: every spec key, metric, method, group, file."""

from pathlib import Path

import pytest

from esa.registry import METHODS, METRICS, SELECTORS
from esa.spec.methods import Perturb
from esa.spec.sections import Spec

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def spec_keys() -> list[str]:
    """Return every key of a spec as the README writes it."""
    keys = ["`name`", "`question`", *(f"`[[perturb]] {key}`" for key in [*Perturb.model_fields, "repeats"])]
    for name, field in Spec.model_fields.items():
        fields = getattr(field.annotation, "model_fields", {})
        for key, inner in fields.items():
            below = getattr(inner.annotation, "model_fields", None)
            keys += [f"`{name}.{key}`"] if below is None else [f"`{name}.{key}.{one}`" for one in below]
    return keys


@pytest.mark.parametrize("key", spec_keys())
def test_every_key_is_in_the_table(key: str) -> None:
    """The table of the spec's keys has a row for this one."""
    assert f"| {key} |" in README


@pytest.mark.parametrize("name", [*METRICS, *METHODS, *SELECTORS])
def test_every_registered_name_is_explained(name: str) -> None:
    """The tables of metrics, groups and methods have this name."""
    assert f"`{name}`" in README


def test_the_tree_names_every_file() -> None:
    """The tree has every file of esa/ and scripts/, and no other."""
    tree = README.split("## What is in the house")[1].split("```")[1]
    files = [*(ROOT / "esa").rglob("*.py"), *(ROOT / "scripts").rglob("*.py")]
    found = {path.name for path in files if not path.name.startswith("__")}
    named = {word for word in tree.split() if word.endswith(".py")}
    assert named == found


def test_the_repository_names_no_host_of_packages() -> None:
    """The pinned list holds names and versions alone."""
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    assert all(line.startswith("#") or line.count("==") == 1 for line in lines)
    assert not any("://" in line or " @ " in line for line in lines)
