"""The page in a real browser: it asks for nothing, complains of nothing, draws every chart, fits every width, and reacts."""

import base64
import contextlib
import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from esa import report
from tests.report.chromium import Browser, BrowserError, Page, find
from tests.report.conftest import Fake

CHROMIUM = find()
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(
        CHROMIUM is None, reason="no Chromium on this machine: make test-browser installs it, or set ESA_CHROMIUM"
    ),
]

CHARTS = "[...document.querySelectorAll('.chart')]"
EVIL = (
    '</script><script>window.hit=1</script><img src=x onerror=hit=1>"\' onmouseover="hit=1" `|``[a](javascript:hit=1)'
    " ![b](http://evil.invalid/b) <http://evil.invalid/c> &lt;b&gt; ${hit=1} {{hit=1}} <!-- \u2028 \\"
)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Return one Chromium for all tests."""
    assert CHROMIUM is not None
    found = Browser(CHROMIUM)
    yield found
    found.close()


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> report.ReportResult:
    """Return the report of a fake run, made once."""
    methods = ({"method": "zero"}, {"method": "bit_flip", "bit": 14, "repeats": 2})
    made = Fake(tmp_path_factory.mktemp("page"), methods=methods, singles=True)
    made.write()
    return report.run([made.run], root=made.root / "reports")


@pytest.fixture
def page(browser: Browser, written: report.ReportResult) -> Iterator[Page]:
    """Return a freshly opened report, its charts drawn."""
    with opened(browser, written.path) as found:
        yield found


@contextlib.contextmanager
def opened(browser: Browser, path: Path) -> Iterator[Page]:
    """Open a report and wait for its charts."""
    with browser.page(path.as_uri()) as found:
        found.until("document.documentElement.dataset.drawn")
        yield found


def assert_quiet(page: Page, path: Path) -> None:
    """Hold a page to an empty console and to a single request: itself."""
    assert page.complaints() == []
    assert page.requests() == [path.as_uri()]


def opacities(page: Page, chart: str) -> list[float]:
    """Return how strong each mark of a chart is, in the order of the panels."""
    marks = f"document.querySelectorAll('#figure-{chart} .role-mark.mark-symbol path[aria-roledescription=point]')"
    return [float(one) for one in page.evaluate(f"[...{marks}].map(e => e.getAttribute('opacity') ?? 1)")]


def column(page: Page, number: int, section: str = "damage") -> list[str]:
    """Return a column of a section's first table, as shown."""
    found: list[str] = page.evaluate(
        f"[...document.querySelector('#{section} table').tBodies[0].rows].map(r => r.cells[{number}].textContent)"
    )
    return found


def test_the_page_is_quiet_and_draws_every_chart(page: Page, written: report.ReportResult) -> None:
    """No complaint, no request but the page itself, and each figure is a live chart with marks."""
    assert_quiet(page, written.path)
    names = page.evaluate(f"{CHARTS}.map(e => e.dataset.chart)")
    assert sorted(names) == sorted(path.stem for path in (written.folder / "figures").glob("*.svg"))
    marks = page.evaluate(f"{CHARTS}.map(e => e.querySelectorAll('.live svg .role-mark path').length)")
    assert all(count >= 9 for count in marks), dict(zip(names, marks, strict=True))
    sizes = page.evaluate(
        f"{CHARTS}.map(e => Math.min(e.offsetWidth, e.querySelector('svg').getBoundingClientRect().height))"
    )
    assert min(sizes) > 150


@pytest.mark.parametrize("width", [320, 400, 800, 1400, 2200])
def test_nothing_is_wider_than_the_window(page: Page, width: int) -> None:
    """The page does not scroll sideways; wide tables scroll in themselves; no chart is cut."""
    page.resize(width)
    assert page.overflow() <= 0
    wide = f"{CHARTS}.filter(e => e.querySelector('svg').getBoundingClientRect().right > innerWidth).length"
    assert page.evaluate(wide) == 0


def test_a_click_on_a_header_sorts(page: Page) -> None:
    """Numbers sort as numbers, the largest first, then the smallest; missing ones stay last; a third click restores."""
    before = column(page, 6)
    button = "document.querySelector('#damage table').tHead.rows[0].cells[6].querySelector('button')"
    state = "document.querySelector('#damage table').tHead.rows[0].cells[6].ariaSort"

    def shown() -> list[float]:
        return [float(cell.split(" ")[0].replace(",", "")) for cell in column(page, 6) if cell != "–"]  # noqa: RUF001

    page.click(button)
    assert page.evaluate(state) == "descending"
    assert shown() == sorted(shown(), reverse=True)
    assert len(set(shown())) > 5
    page.click(button)
    assert page.evaluate(state) == "ascending"
    assert shown() == sorted(shown())
    page.click(button)
    assert page.evaluate(state) is None
    assert column(page, 6) == before


def test_words_sort_and_the_keyboard_does_too(page: Page) -> None:
    """A header is a button: Enter on it sorts, words alphabetically."""
    page.enter("document.querySelector('#damage table').tHead.rows[0].cells[3].querySelector('button')")
    assert column(page, 3) == sorted(column(page, 3))
    assert column(page, 3)[0] == "bottom_k"


def test_a_click_on_a_legend_singles_out(page: Page) -> None:
    """Clicks on a legend's entries single them out in every panel, one by one; taken away again, all marks are back."""
    entry = "document.querySelectorAll('#figure-damage_zero .role-legend-symbol path')[{}]"
    whole = opacities(page, "damage_zero")
    assert min(whole) > 0.5
    top, random = 3 * 3, 3 * 3 * 5  # marks: metrics times k, of random_k times draws
    for number, strong in ((0, top), (1, top + random), (1, top), (0, len(whole))):
        page.click(entry.format(number))
        time.sleep(0.1)
        found = opacities(page, "damage_zero")
        assert sum(one > 0.5 for one in found) == strong
        assert sum(one < 0.1 for one in found) == len(whole) - strong
    page.enter(entry.format(0))
    time.sleep(0.1)
    assert sum(one > 0.5 for one in opacities(page, "damage_zero")) == top
    assert page.complaints() == []


@pytest.mark.parametrize("width", [400, 1400])
def test_a_mark_tells_its_numbers(page: Page, written: report.ReportResult, width: int) -> None:
    """Pointing at a mark shows, inside the window, names that one can read and the numbers of the tables."""
    page.resize(width)
    page.point("document.querySelector('#figure-damage_zero .role-mark.mark-symbol path[aria-roledescription=point]')")
    page.until("document.querySelector('#vg-tooltip-element.visible')")
    told = page.evaluate(
        "Object.fromEntries([...document.querySelectorAll('#vg-tooltip-element tr')].map(r => [...r.cells].map(c => c.textContent)))"
    )
    assert set(told) >= {"metric", "group", "k", "perplexity", "over intact", "outcome"}
    assert told["perplexity"] in written.markdown
    left, right = page.evaluate(
        "(b => [b.left, b.right])(document.querySelector('#vg-tooltip-element').getBoundingClientRect())"
    )
    assert 0 <= left < right <= width
    assert page.complaints() == []


def test_the_data_of_every_figure_is_one_click_away(
    browser: Browser, page: Page, written: report.ReportResult, tmp_path: Path
) -> None:
    """Each link holds the very bytes of the data file, and a click on link and buttons saves CSV, SVG and PNG."""
    links = page.evaluate("[...document.querySelectorAll('.files a')].map(a => [a.download, a.href])")
    assert len(links) == len(list((written.folder / "data").iterdir()))
    for name, address in links:
        assert base64.b64decode(address.split("base64,")[1]) == (written.folder / "data" / name).read_bytes()
    browser.send("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(tmp_path))
    for number, opening in enumerate((b"metric,", b"<svg", b"\x89PNG")):
        page.click(f"document.querySelectorAll('#figure-damage_zero .files > *')[{number}]")
        path = tmp_path / f"damage_zero.{('csv', 'svg', 'png')[number]}"
        end = time.monotonic() + 15
        while not (path.exists() and path.stat().st_size):
            assert time.monotonic() < end, f"{path.name} was not saved: {[one.name for one in tmp_path.iterdir()]}"
            time.sleep(0.05)
        assert path.read_bytes().startswith(opening)
    assert page.complaints() == []


def test_without_scripts_the_page_still_shows_everything(browser: Browser, written: report.ReportResult) -> None:
    """Where no script runs, each chart is a picture and each table stands."""
    with browser.page(written.path.as_uri(), script=False) as page:
        page.until(f"{CHARTS}.every(e => e.querySelector('img').complete && e.querySelector('img').naturalWidth > 100)")
        assert page.evaluate("document.querySelectorAll('table').length") >= 8
        assert_quiet(page, written.path)


def test_nothing_hostile_runs(browser: Browser, tmp_path: Path) -> None:
    """Markup, scripts and links in names, questions, options and addresses are text: nothing runs, nothing is fetched."""
    made = Fake(
        tmp_path, question=f"Why {EVIL}?", warnings=(EVIL,), evil=EVIL, metrics=("act_mag", "grad_x_weight"),
        methods=({"method": "zero"}, {"method": "bit_flip", "bit": 14}), singles=True,
    )  # fmt: skip
    made.write()
    result = report.run([made.run], root=tmp_path / "reports")
    with opened(browser, result.path) as page:
        damage = page.evaluate(f"{CHARTS}.map(e => e.dataset.chart).filter(n => n.startsWith('damage'))")
        for figure, place in ((damage[0], 0), (damage[-1], 0), ("components", 2)):
            page.point(
                f"document.querySelectorAll('[id=\"figure-{figure}\"] .role-mark path[aria-roledescription]')[{place}]"
            )
            page.until("document.querySelector('#vg-tooltip-element.visible')")
            assert "<img src=x" in page.evaluate("document.querySelector('#vg-tooltip-element').textContent")
            page.send("Input.dispatchMouseEvent", type="mouseMoved", x=1, y=1)
            page.until("!document.querySelector('#vg-tooltip-element.visible')")
        for button in range(2):
            page.click(f"document.querySelectorAll('th button')[{button}]")
        assert page.evaluate("window.hit") is None
        assert page.events("Page.javascriptDialogOpening") == []
        assert_quiet(page, result.path)
        assert (
            page.evaluate(
                "document.querySelectorAll('main img:not(.chart img), main a:not(.files a), [onmouseover]').length"
            )
            == 0
        )
        assert page.evaluate("document.querySelectorAll('script').length") == 2 + len(
            list((result.folder / "data").iterdir())
        )
        assert page.evaluate("document.querySelector('h1').textContent") == f"Why {EVIL}?"
        shown = page.evaluate("document.querySelector('#worst-single-weights td code').textContent")
        assert "</script><script>window.hit=1</script><img src=x" in shown
        assert page.evaluate(f"{CHARTS}.every(e => e.querySelector('.live svg'))")
        page.resize(400)
        assert page.overflow() <= 0


def test_the_policy_of_the_page_holds(page: Page) -> None:
    """Even a script that got into the page could not run, reach out, or make code from text."""
    page.evaluate(
        "document.body.insertAdjacentHTML('beforeend', '<img src=x onerror=\"window.hit=1\"><p onclick=\"hit=1\">')"
    )
    page.evaluate(
        "(() => { const s = document.createElement('script'); s.textContent = 'window.hit=1'; document.body.append(s) })()"
    )
    assert page.evaluate("fetch('http://evil.invalid/').then(() => 'sent', () => 'refused')") == "refused"
    page.evaluate("document.querySelector('p[onclick]').click()")
    assert page.evaluate("window.hit") is None
    assert any("Content Security Policy" in text for text in page.complaints())
    assert [url for url in page.requests() if not url.startswith("file:")] == []


@pytest.mark.parametrize(
    ("body", "fault"),
    [
        ("<script>console.error('oh')</script>", "console.error: oh"),
        ("<script>throw new Error('oh')</script>", "thrown: Error: oh"),
        ("<script>Promise.reject(new Error('oh'))</script>", "thrown: Error: oh"),
        ("<img src='missing.png'>", "missing.png"),
        ("<script src='http://127.0.0.1:9/vega.js'></script>", "http://127.0.0.1:9/vega.js"),
    ],
)
def test_a_noisy_page_is_noticed(browser: Browser, tmp_path: Path, body: str, fault: str) -> None:
    """What is thrown, logged or requested fails the test of quiet."""
    path = tmp_path / "bad.html"
    path.write_text(f"<!doctype html>{body}", encoding="utf-8")
    with browser.page(path.as_uri()) as page:
        assert fault in json.dumps([page.complaints(), page.requests()])
        with pytest.raises(AssertionError):
            assert_quiet(page, path)


def test_a_wide_page_and_a_silent_one_are_noticed(
    browser: Browser, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An element that is too wide counts its pixels, and a chart that is never drawn ends in an error, not in waiting."""
    path = tmp_path / "wide.html"
    path.write_text("<!doctype html><div style='width:500px'>x</div><div class='chart'></div>", encoding="utf-8")
    with browser.page(path.as_uri(), 400) as page:
        assert page.overflow() > 90
    monkeypatch.setattr("tests.report.chromium.PATIENCE", 0.3)
    with pytest.raises(BrowserError, match="never true"), opened(browser, path):
        pass
