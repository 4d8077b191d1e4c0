"""The HTML page as a file: what it holds, what it allows, what it escapes, and that it is the same every time."""

import base64
import hashlib
import html
import json
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import altair as alt
import polars as pl
import pytest

from esa import report
from esa.artifact import read_manifest
from esa.report.figures import Figure
from esa.report.frames import single_weights
from esa.report.head import Head
from esa.report.html import html_page, script_safe
from esa.report.interactive import SHOWN, bind_legend, faded, tips
from esa.report.page import Section
from esa.report.theme import specification
from tests.report.conftest import WORST, Fake

VOID = {"meta", "img", "wbr", "br", "hr", "link", "input"}


class Reader(HTMLParser):
    """Collect elements with their attributes; complain of what is not closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text: dict[str, list[str]] = {}
        self._open: list[str] = []
        self.feed(text)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note an element that opens."""
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        """Hold an element that closes to the last one open."""
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        """Keep text under its element."""
        self.text.setdefault(self._open[-1] if self._open else "", []).append(data)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, report.ReportResult, str]:
    """Return a fake run, its report, and the page's text, made once."""
    made = Fake(tmp_path_factory.mktemp("page"), methods=({"method": "zero"},), singles=True)
    made.write()
    result = report.run([made.run], root=made.root / "reports")
    return made, result, result.path.read_text(encoding="utf-8")


def built(*parts: str | Figure, question: str | None = None, pictures: dict[str, str] | None = None) -> str:
    """Return a page of one section."""
    head = Head("a run", question, "", {"Model": "m<b>"})
    return html_page(head, [Section("Part one", list(parts))], pictures or {}, generator="esa")


def body(text: str) -> str:
    """Return what stands in main."""
    return text.split("<main>")[1].split("</main>", maxsplit=1)[0]


def test_the_page_says_what_the_markdown_says(whole: tuple[Any, report.ReportResult, str]) -> None:
    """Every heading, sentence and cell of report.md stands in report.html, in the same order."""
    _, result, text = whole
    shown = " ".join(
        html.unescape(re.sub(r"<[^>]+>", "", body(text).replace("</td>", " ").replace("</th>", " "))).split()
    )
    plain = "## Finding" + result.markdown.split("\n## Finding")[1]
    plain = re.sub(r"^!\[(.*)\]\(.*\)\n\n\1\. (.*) \(\[SVG\].*$", r"\2", plain, flags=re.MULTILINE)
    plain = re.sub(r"^\| :?--.*$|^```.*$", "", plain, flags=re.MULTILINE)
    words = re.findall(r"[A-Za-z0-9_.:,]{4,}", html.unescape(re.sub(r"[`*\\]", "", plain)))
    place = 0
    for word in words:
        place = shown.find(word, place)
        assert place >= 0, word
    assert len(words) > 500


def test_the_page_is_one_file_that_asks_for_nothing(whole: tuple[Any, report.ReportResult, str]) -> None:
    """No element names another file or host: only places in the page itself and data within it."""
    found = Reader(whole[2])
    for tag, attributes in found.elements:
        for name in ("src", "href", "action", "srcset", "data", "poster", "background"):
            value = attributes.get(name)
            assert value is None or value.startswith(("#", "data:")), (tag, value)
        assert not [name for name in attributes if name.startswith("on") or name == "style"]
    style = "".join(found.text["style"])
    assert "url(" not in style
    assert "@import" not in style
    assert len(whole[2]) < 1_800_000


def test_the_policy_allows_these_scripts_and_nothing_else(whole: tuple[Any, report.ReportResult, str]) -> None:
    """The policy names the hash of each script and of the style, and no way around it."""
    text = whole[2]
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', text)[1]  # type: ignore[index]
    assert policy.startswith("default-src 'none';")
    assert "unsafe" not in policy
    for pattern in (r"<script>(.*?)</script>", r"<style>(.*?)</style>"):
        for content in re.findall(pattern, text, re.DOTALL):
            digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
            assert f"'sha256-{digest}'" in policy
    assert len(re.findall(r"<script>", text)) == 2


def test_the_same_artifacts_give_the_same_page(whole: tuple[Any, report.ReportResult, str]) -> None:
    """A second report, from the step folders, agrees byte for byte; the manifest vouches for both pages."""
    made, result, text = whole
    again = report.run(list(made.folders.values()), out=made.root / "again")
    assert again.path.read_bytes() == text.encode()
    assert {"report.html": "html", "report.md": "markdown"}.items() <= read_manifest(result.folder)["kinds"].items()
    assert set(read_manifest(result.folder)["kinds"]) == set(read_manifest(result.folder)["outputs"])


def test_a_report_without_a_page_is_written_again(fake: Callable[..., Any]) -> None:
    """A finished report of an esa that wrote no page gets its page."""
    made = fake(steps=("rank",))
    first = report.run([made.run], root=made.root / "reports")
    first.path.unlink()
    again = report.run([made.run], root=made.root / "reports")
    assert not again.reused
    assert again.path.exists()


def test_tables_are_frames_that_scroll_with_numbers_to_the_right() -> None:
    """A table stands in a named frame; numbers go right, ranges are set apart, outcomes and groups are marked."""
    text = body(built("| a | b |\n| :-- | --: |\n| top_k | 2.0 [1.0, 3.0] |\n| collapsed | 1 |"))
    assert '<div class="scroll" role="region" tabindex="0" aria-label="Table: Part one"><table>' in text
    assert '<th class="num">b</th>' in text
    assert '<td class="num">2.0 <span class="range">[1.0, 3.0]</span></td>' in text
    assert '<td class="group top_k">top_k</td>' in text
    assert '<td class="bad">collapsed</td>' in text
    assert "style=" not in text


@pytest.mark.parametrize(
    "text",
    [
        "[x](javascript:alert(1))", "![x](http://evil.invalid/x.png)", "<http://evil.invalid>", "<script>alert(1)</script>",
        "<div onclick=x>y</div>", "[x]: http://evil.invalid\n\n[x]", "&lt;script&gt;", "`<img src=x>`",
        "```sh\n</code></pre><script>x</script>\n```", "| <b> |\n| :-- |\n| <img src=x onerror=y> |",
    ],
)  # fmt: skip
def test_markdown_can_neither_link_nor_mark_up(text: str) -> None:
    """Links, images and raw HTML in the Markdown stay text, wherever they stand."""
    found = Reader(built(text, question=text))
    names = {tag for tag, _ in found.elements}
    assert not names & {"a", "img", "b", "script"} - {"a", "script"}
    assert all((attributes["href"] or "").startswith("#") for tag, attributes in found.elements if tag == "a")
    assert sum(tag == "script" for tag, _ in found.elements) == 2
    assert not [attributes for _, attributes in found.elements if {"onclick", "onerror"} & set(attributes)]


def test_a_figure_brings_its_picture_data_and_chart() -> None:
    """The picture stands with its title as text, the data as a file to save, the chart as JSON that cannot end its element."""
    data = pl.DataFrame({"x": ["</script><!--", "\u2028"], "y": [1.0, 2.0]})
    chart = alt.Chart(data).mark_point().encode(x="x:N", y="y:Q")
    figure = Figure("one", "damage", chart, data, 'a "title"', "a <caption> of `code`")
    text = built(figure, pictures={"one": '<svg width="380" height="2"></svg>'})
    found = Reader(text)
    image = next(attributes for tag, attributes in found.elements if tag == "img")
    assert (image["alt"], image["width"]) == ('a "title"', "380")
    link = next(attributes for _, attributes in found.elements if attributes.get("download"))
    assert link["download"] == "one.csv"
    assert base64.b64decode(str(link["href"]).split("base64,")[1]) == data.write_csv(line_terminator="\r\n").encode()
    assert "a &lt;caption&gt; of <code>code</code>" in text
    content = re.search(r'<script type="application/json" id="chart-one">(.*?)</script>', text)[1]  # type: ignore[index]
    assert "<" not in content
    assert json.loads(content) == specification(chart)


def test_json_in_a_script_element_is_the_same_json() -> None:
    """The escapes change nothing but the spelling."""
    content = json.dumps({"a": "</script><!-- & \u2028\u2029"}, ensure_ascii=False)
    assert not re.search("[<>&\u2028\u2029]", script_safe(content))
    assert json.loads(script_safe(content)) == json.loads(content)


def test_hashes_are_short_to_read_and_whole_to_copy() -> None:
    """A hash shows twelve characters and holds all; a long address may break behind its dots, a short one not."""
    text = body(built(f"`{'ab' * 32}` and `{WORST}:507,1229` and `damage.csv`"))
    assert f'title="{"ab" * 32}">abababababab<span>{("ab" * 32)[12:]}</span>' in text
    assert "model.<wbr>layers.<wbr>11.<wbr>mlp.<wbr>down_proj.<wbr>weight:<wbr>507,1229" in text
    assert "<code>damage.csv</code>" in text


def test_without_a_question_the_name_is_the_title(fake: Callable[..., Any]) -> None:
    """The question is the page's title; where there is none the name is; absent steps are told below."""
    made = fake(question=None, steps=("rank",))
    text = report.run([made.run], root=made.root / "reports").path.read_text(encoding="utf-8")
    assert "<h1>fake_run</h1>" in text
    assert "Absent, with the sections that need them: the steps score, perturb and overlap." in text
    assert 'class="chart"' not in text


def test_a_tooltip_says_what_the_tables_say() -> None:
    """Numbers are written as in the tables, null as a dash; a line that never says anything is left out."""
    frame = pl.DataFrame({"ppl": [19.5, None], "draw": pl.Series([None, None], dtype=pl.Int64), "metric": ["a", "b"]})
    rows, tooltip = tips(
        frame, {"perplexity": ("ppl", "{:.2f}".format), "draw": ("draw", str), "metric": ("metric", str)}
    )
    assert rows["tip_ppl"].to_list() == ["19.50", "–"]  # noqa: RUF001
    assert [one.to_dict()["title"] for one in tooltip] == ["perplexity", "metric"]


def test_one_selection_serves_all_panels() -> None:
    """The legend's selection is defined once, with one view per panel; a chart without a legend has none."""
    frame = pl.DataFrame({"x": [1], "kind": ["a"]})
    layer = alt.Chart(frame).mark_point().encode(x="x:Q", color="kind:N", opacity=faded(1))
    panels = alt.concat(*[alt.LayerChart(layer=[layer, layer]) for _ in range(2)])
    content = specification(panels)
    assert [one["name"] for one in content["params"]] == [SHOWN]
    assert content["params"][0]["select"]["fields"] == ["kind"]
    assert content["params"][0]["views"] == [panel["layer"][0]["name"] for panel in content["concat"]]
    plain = alt.LayerChart(layer=[alt.Chart(frame).mark_point().encode(x="x:Q")]).to_dict()
    before = json.dumps(plain)
    bind_legend(plain)
    assert json.dumps(plain) == before


def test_single_weights_have_short_names_that_stay_apart(fake: Callable[..., Any]) -> None:
    """A weight is called by block, component, row and column; by its address where the ranking does not know it."""
    from esa.artifact import find_table

    made = fake(methods=({"method": "zero"},), singles=True)
    damage = find_table(made.folders["perturb"], "damage/1").frame.filter(pl.col("unit") == "single")
    ranking = find_table(made.folders["rank"], "ranking/1").frame
    weights = single_weights(damage, ranking)
    assert "11 mlp.down 507,1229" in weights["label"].to_list()
    assert weights["label"].n_unique() == weights.height == weights["target"].n_unique()
    assert f"{WORST.removesuffix('.weight')} 507,1229" in single_weights(damage, None)["label"].to_list()
    same = ranking.with_columns(pl.lit(0).alias("block"))
    assert single_weights(damage, same)["label"].n_unique() == weights.height


def test_a_folder_given_with_o_stays_in_the_commands(fake: Callable[..., Any], tmp_path: Path) -> None:
    """Commands name the folders that -o gave, parent and all; without -o those below outputs/."""
    made = fake()
    for step, argv in {
        "score": ["esa", "run", "--spec", "s.toml", "-o", "big/outputs/"],
        "rank": ["esa", "run", "--out=big/outputs", "--spec", "s.toml"],
        "perturb": ["esa", "perturb", "-o", f"other/{made.folders['perturb'].name}"],
    }.items():
        path = made.folders[step] / "manifest.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), "argv": argv}))
    text = report.run([made.run], root=tmp_path / "reports").markdown
    names = {step: folder.name for step, folder in made.folders.items()}
    assert f"esa score --spec big/outputs/fake_run/{names['score']}/spec.toml" in text
    assert (
        f"esa rank big/outputs/fake_run/{names['score']} --spec big/outputs/fake_run/{names['rank']}/spec.toml" in text
    )
    assert f"esa perturb --spec other/{names['perturb']}/spec.toml" in text
    assert f"--spec outputs/fake_run/{names['overlap']}/spec.toml" in text


def test_a_chart_of_many_points_is_drawn() -> None:
    """A campaign of thousands of cases has its chart: Altair's limit of 5,000 rows is lifted while it is written."""
    chart = alt.Chart(pl.DataFrame({"x": list(range(6000))})).mark_point().encode(x="x:Q")
    (data,) = specification(chart)["datasets"].values()
    assert len(data) == 6000
