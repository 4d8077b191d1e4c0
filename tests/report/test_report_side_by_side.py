"""The page of several runs, from artifacts to files, and in a real browser."""

import json
import re
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from esa import report
from esa.artifact import read_manifest, sha256_of
from esa.report.theme import PALETTE, PRINTED_POINTS, RUNS
from tests.report.chromium import Browser, find
from tests.report.conftest import Fake
from tests.report.test_report_browser import CHARTS, EVIL, assert_quiet, opened

Maker = Callable[..., Any]
ZERO = ({"method": "zero"},)
SECTIONS = [
    "Finding", "Criteria", "What compares", "Runs", "What differs", "Verdict of each run", "Worst single weights", "Damage",
    "Score distribution", "Where the score lies", "Agreement between runs", "Stability across seeds", "Provenance",
    "Reproduction", "Artifacts",
]  # fmt: skip
FIGURES = {
    "components", "damage_zero_act_mag", "damage_zero_grad_x_weight", "depth", "distribution", "single_zero", "top_weights",
}  # fmt: skip


def several(root: Path, count: int, *, evil: str = "", name: str = "run_{}") -> list[Fake]:
    """Write ``count`` runs that differ in damage, evaluation and metrics; the last one hostile if ``evil`` is given."""
    found = []
    for n in range(count):
        last = evil if n == count - 1 else ""
        made = Fake(
            root, name=name.format(n), effect=1 + n / 4, methods=ZERO, singles=True, evil=last,
            metrics=("act_mag", "grad_x_weight") if n else ("magnitude", "act_mag", "grad_x_weight"),
            settings={"eval": {"windows": 8 + n}}, warnings=(f"careful {last}",) if last else (),
            question=f"Which weights {n} {last}?",
        )  # fmt: skip
        made.write()
        entry = {"jaccard_mean": 0.75, "num_seeds": 3}
        summary = {"metrics": {f"act_mag{last}": {"100": entry}}}
        (made.folders["overlap"] / "stability_summary.json").write_text(json.dumps(summary))
        found.append(made)
    return found


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Fake], report.ReportResult]:
    """Return three runs and their page, made once."""
    made = several(tmp_path_factory.mktemp("three"), 3)
    return made, report.run([one.run for one in made], root=made[0].root / "reports")


def section(text: str, name: str) -> str:
    """Return what stands under a heading."""
    return re.split(r"^## ", text.split(f"\n## {name}\n")[1], flags=re.MULTILINE)[0]


def test_every_section_and_figure_stands(three: tuple[list[Fake], report.ReportResult]) -> None:
    """Three complete runs give every section in order and every figure with its data, in a folder that names them."""
    made, result = three
    assert result.markdown.startswith("# run_0, run_1 and run_2\n")
    assert re.findall(r"^## (.+)$", result.markdown, flags=re.MULTILINE) == SECTIONS
    assert re.fullmatch(r"run_0\+run_1\+run_2-[0-9a-f]{12}", result.folder.name)
    assert {path.stem for path in (result.folder / "figures").glob("*.svg")} == FIGURES
    manifest = read_manifest(result.folder)
    for file, digest in manifest["outputs"].items():
        assert sha256_of(result.folder / file) == digest
    assert list(manifest["spec"]["runs"]) == ["run_0", "run_1", "run_2"]
    spec = tomllib.loads((result.folder / "spec.toml").read_text())
    assert spec["runs"]["run_1"]["eval"]["windows"] == 9
    assert len(manifest["inputs"]) == 13  # the steps and the criteria
    for one in made:
        assert one.folders["perturb"].name in section(result.markdown, "Artifacts")
        assert f"`{one.name}`" in section(result.markdown, "Provenance")
        assert f"### {one.name}\n" in section(result.markdown, "Reproduction")
        assert one.question in section(result.markdown, "Runs")


def test_commands_repeat_the_page(three: tuple[list[Fake], report.ReportResult]) -> None:
    """The page names the command that makes it, and the one that tells what chance would give."""
    made, result = three
    commands = section(result.markdown, "Reproduction")
    assert "esa report outputs/run_0 outputs/run_1 outputs/run_2\n" in commands
    ranks = " ".join(f"outputs/{one.name}/{one.folders['rank'].name}" for one in made)
    assert f"esa overlap {ranks}\n" in commands


def test_the_same_runs_give_the_same_bytes_in_their_order(three: tuple[list[Fake], report.ReportResult]) -> None:
    """Twice the same arguments give the same files and reuse them; another order is another page."""
    made, result = three
    folders = [one.run for one in made]
    assert report.run(folders, root=made[0].root / "reports").reused
    again = report.run(folders, out=made[0].root / "again")
    for path in sorted(result.folder.rglob("*.*")):
        if path.name != "manifest.json" and path.is_file():
            assert (again.folder / path.relative_to(result.folder)).read_bytes() == path.read_bytes(), path.name
    lines, folder = report.plan(folders[::-1], root=made[0].root / "reports")
    assert [line.split(":")[0] for line in lines] == ["run_2", "run_1", "run_0", "22 criteria"]
    assert folder.name.startswith("run_2+run_1+run_0-")
    assert not folder.exists()
    assert "outputs/run_0" in lines[2]


def test_a_common_question_is_the_title(fake: Maker) -> None:
    """Runs that ask one question share it as the page's title, and the table of the runs leaves it out."""
    a = fake(name="a", steps=("score", "rank"))
    b = fake(name="b", steps=("score", "rank"), metrics=("act_mag",))
    result = report.run([a.run, b.run], root=a.root / "reports")
    assert f"## Question\n\n{a.question}" in result.markdown
    assert "| run | model |" in section(result.markdown, "Runs")
    text = result.path.read_text(encoding="utf-8")
    assert f"<h1>{a.question}</h1>" in text
    assert '<p class="kicker">a and b</p>' in text
    assert "Damage" not in re.findall(r"^## (.+)$", result.markdown, flags=re.MULTILINE)


def test_an_overlap_between_runs_has_its_table(three: tuple[list[Fake], report.ReportResult]) -> None:
    """What esa overlap measured between two of the runs is shown under their labels, with its own provenance."""
    from tests.artifact.test_grouping import again

    made, _ = three
    ranks = [one.folders["rank"].name.removeprefix("rank-") for one in made[:2]]
    both = again(made[0].folders["overlap"], {"0:rank": ranks[0], "1:rank": ranks[1]})
    table = both / "overlap.csv"
    header, first, *_ = table.read_text().splitlines()
    cells = dict(zip(header.split(","), first.split(","), strict=True)) | {"run_b": ranks[1]}
    table.write_text("\r\n".join([header, ",".join(cells.values()), ""]))
    manifest = json.loads((both / "manifest.json").read_text())
    manifest["outputs"]["overlap.csv"] = sha256_of(table)
    (both / "manifest.json").write_text(json.dumps(manifest))
    result = report.run([made[0].run, made[1].run, both], root=made[0].root / "between")
    lines = section(result.markdown, "Agreement between runs").splitlines()
    row = next(
        line for line in lines[lines.index("### As `esa overlap` compared them") :] if line.startswith("| `run_0`")
    )
    assert row.startswith("| `run_0` magnitude | `run_1` act_mag, seed 0 | weight | 10 | 1 |")
    assert "| `between them` | overlap |" in section(result.markdown, "Provenance")
    assert both.name in section(result.markdown, "Reproduction")


def test_warnings_of_every_run_are_told(fake: Maker) -> None:
    """A step made from another ranking is told with its run's label, on the page and in the manifest."""
    one, two = fake(name="one"), fake(name="two", metrics=("act_mag",))
    path = two.run / "run.json"
    content = json.loads(path.read_text())
    content["steps"]["rank"] = f"../one/{one.folders['rank'].name}"
    path.write_text(json.dumps(content))
    result = report.run([one.run, two.run], root=one.root / "reports")
    assert any(
        text.startswith("two: ") and "was not made from rank-" in text
        for text in read_manifest(result.folder)["warnings"]
    )
    assert "was not made from rank-" in section(result.markdown, "Provenance")


def test_runs_keep_their_look_apart() -> None:
    """No two of the first six runs share a colour or a shape, and each colour is of the palette."""
    colors, shapes = zip(*RUNS, strict=True)
    assert len(set(colors)) == len(set(shapes)) == len(RUNS)
    assert set(colors) == set(PALETTE)


def test_no_type_is_under_seven_points_in_print_with_six_runs(tmp_path: Path) -> None:
    """At 85 mm width every text of every figure is 7 points or more, also with six runs of long names."""
    made = several(tmp_path, 6, name="a_rather_long_name_of_a_run_with_number_{}")
    result = report.run([one.run for one in made], root=tmp_path / "reports")
    assert len(result.folder.name) < 90
    for path in (result.folder / "figures").glob("*.svg"):
        svg = path.read_text()
        width = float(re.search(r'<svg[^>]*\bwidth="([\d.]+)"', svg)[1])  # type: ignore[index]
        sizes = [float(size) for size in re.findall(r'font-size="([\d.]+)(?:px)?"', svg)]
        assert min(sizes) * PRINTED_POINTS / width >= 7, path.name


CHROMIUM = find()
in_a_browser = [
    pytest.mark.browser,
    pytest.mark.skipif(
        CHROMIUM is None, reason="no Chromium on this machine: make test-browser installs it, or set ESA_CHROMIUM"
    ),
]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Return one Chromium for all tests of this file."""
    assert CHROMIUM is not None
    found = Browser(CHROMIUM)
    yield found
    found.close()


@pytest.mark.parametrize(
    ("count", "evil"),
    [pytest.param(n, evil, marks=in_a_browser) for n, evil in ((2, ""), (3, EVIL), (6, ""))],
)
def test_the_page_is_quiet_and_fits(browser: Browser, tmp_path: Path, count: int, evil: str) -> None:
    """Two, three and six runs, hostile names among them: empty console, one request, every chart live, nothing too wide."""
    made = several(tmp_path, count, evil=evil)
    result = report.run([one.run for one in made], root=tmp_path / "reports")
    with opened(browser, result.path) as page:
        names = page.evaluate(f"{CHARTS}.map(e => e.dataset.chart)")
        assert sorted(names) == sorted(path.stem for path in (result.folder / "figures").glob("*.svg"))
        assert page.evaluate(f"{CHARTS}.every(e => e.querySelectorAll('.live svg .role-mark path').length >= 3)")
        for width in (320, 400, 1400):
            page.resize(width)
            assert page.overflow() <= 0, width
            wide = f"{CHARTS}.filter(e => e.querySelector('svg').getBoundingClientRect().right > innerWidth).length"
            assert page.evaluate(wide) == 0, width
        assert page.evaluate("window.hit") is None
        assert page.events("Page.javascriptDialogOpening") == []
        assert page.evaluate("document.querySelectorAll('main img:not(.chart img), main a:not(.files a)').length") == 0
        assert page.evaluate("document.querySelectorAll('script').length") == 2 + len(names)
        assert_quiet(page, result.path)


@pytest.mark.parametrize("count", [pytest.param(3, marks=in_a_browser)])
def test_charts_and_tables_react(browser: Browser, three: tuple[list[Fake], report.ReportResult], count: int) -> None:
    """A legend singles a run out, a line tells its numbers, and a column of one run sorts."""
    with opened(browser, three[1].path) as page:
        page.click("document.querySelectorAll('#figure-components .role-legend-symbol path')[1]")
        shown = "[...document.querySelectorAll('#figure-components .role-mark.mark-symbol path[aria-roledescription=point]')]"
        page.until(f"{shown}.filter(e => (e.getAttribute('opacity') ?? 1) > 0.5).length * {count} === {shown}.length")
        page.point("document.querySelectorAll('#figure-depth .role-mark.mark-symbol path')[5]")
        page.until("document.querySelector('#vg-tooltip-element.visible')")
        told = page.evaluate("document.querySelector('#vg-tooltip-element').textContent")
        assert "run" in told
        assert "share of score" in told
        head = "document.querySelectorAll('#damage table')[1].tHead.rows[0].cells[7]"
        page.click(f"{head}.querySelector('button')")
        assert page.evaluate(f"{head}.ariaSort") == "descending"
        column = page.evaluate(
            "[...document.querySelectorAll('#damage table')[1].tBodies[0].rows].map(r => parseFloat(r.cells[7].textContent.replaceAll(',', '')))"
        )
        numbers = [value for value in column if value is not None]
        assert numbers == sorted(numbers, reverse=True)
        assert page.complaints() == []
