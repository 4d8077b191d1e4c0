"""The parts of a paper: escapes, rounding, names of macros, references, PDFs in one order."""

import re
from decimal import Decimal
from pathlib import Path

import altair as alt
import pytest

from esa.artifact.gather import Gathered
from esa.registry import METHODS, METRICS, TASKS
from esa.report.paper.columns import Key, Layout, text
from esa.report.paper.document import example
from esa.report.paper.drawing import settled, to_pdf
from esa.report.paper.escape import code, comment, escape, sentence
from esa.report.paper.methods import sentences
from esa.report.paper.names import Macros, letters, spelled
from esa.report.paper.pieces import Cite, Fact, Sentence, rendered
from esa.report.paper.references import Citations, references, texts
from esa.report.paper.rounding import ends, number, percent, spread, with_interval, written
from esa.report.paper.tables import PaperTable, pages
from esa.spec import spec_from_dict


@pytest.mark.parametrize(
    ("value", "low", "high", "shown"),
    [
        (1.7346, 1.3777, 2.1299, "1.73 [1.38, 2.13]"),
        (331.84, 331.75, 331.85, "331.84 [331.75, 331.85]"),
        (614425.0, 500100.0, 701000.0, "610,000 [500,000, 700,000]"),
        (0.0996, 0.0, 0.0996, r"0.10 [0.00, 0.10]"),
        (-0.004, -0.5, 0.5, r"0.0 [\ensuremath{-}0.5, 0.5]"),
        (5.244e-6, -1.587e-5, 3.307e-5, r"0.5 [\ensuremath{-}1.6, 3.3]\ensuremath{\times10^{-5}}"),
        (2.0, 2.0, 2.0, "2.000"),
        (0.0301, 1e-5, 780.0, r"0.03010 [1.000\ensuremath{\times10^{-5}}, 780.0]"),
        (0.6, 0.001, 1.6, "0.6000 [0.001000, 1.600]"),
        (2.0, None, 3.0, "2.000"),
        (None, 1.0, 2.0, "--"),
    ],
)
def test_an_interval_decides_the_digits(value: float | None, low: float | None, high: float | None, shown: str) -> None:
    """Value and ends are rounded at the second significant digit of the interval's width, zero has no sign."""
    assert with_interval(value, low, high) == shown


def test_rounding_is_that_of_the_exact_digits() -> None:
    """A value is rounded once, from its shortest digits: no half is rounded twice by way of four digits."""
    for value in (1.94499999, 0.12345, 2.675, 1234.5):
        shown = with_interval(value, value - 0.3, value + 0.3).split(" [")[0].replace(",", "")
        assert abs(Decimal(shown) - Decimal(repr(value))) <= Decimal("0.005")
    assert with_interval(1.94499999, 1.5, 2.4).startswith("1.94 ")


def test_numbers_without_an_interval_have_four_digits() -> None:
    """Large, small, negative, infinite and missing numbers as a reader expects them."""
    assert number(527_744.3) == "527,700"
    assert number(134_515_008) == "134,515,008"
    assert number(-0.02918) == r"\ensuremath{-}0.02918"
    assert number(3.0009e-9) == r"3.001\ensuremath{\times10^{-9}}"
    assert number(float("inf")) == r"\ensuremath{\infty}"
    assert number(None) == "--"
    assert percent(0.6254) == r"62.5\,\%"
    assert spread(98.02, 38.61, 331.8) == "98.02 [38.61, 331.8]"
    assert spread(38.37, 38.369, 38.371) == "38.37"
    assert written("-3.001e-9") == r"\ensuremath{-}3.001\ensuremath{\times10^{-9}}"
    assert ends(5.2e-6, 1e-6, 9e-6) == tuple(rf"{one}\ensuremath{{\times10^{{-6}}}}" for one in ("5.2", "1.0", "9.0"))


def test_every_special_character_is_escaped_and_none_is_left_out() -> None:
    """What TeX takes for a command, a ligature or an unknown character is shown as it is, or by its number."""
    assert escape("a_b%c#d$&{}") == r"a\_b\%c\#d\$\&\{\}"
    assert escape("\\~^<>") == r"\textbackslash{}\textasciitilde{}\textasciicircum{}\textless{}\textgreater{}"
    assert escape("--x,,y") == "-{}-x,{}," + "y"
    assert escape("2 × 10, −1, é, 中") == r"2 \ensuremath{\times} 10, \ensuremath{-}1, é, \texttt{U+4E2D}"  # noqa: RUF001
    assert escape("one\n  line") == "one line"
    assert code("a.b_c:1,2") == r"\texttt{a.\allowbreak{}b\_\allowbreak{}c:\allowbreak{}1,\allowbreak{}2}"
    assert comment("a\nb\x07c") == "a b c"


def test_sentences_of_the_report_become_latex() -> None:
    """Strong, code, nested lists and escapes stay what they were; numbers are given away, those in names are not."""
    seen: list[str] = []

    def put(shown: str) -> str:
        seen.append(shown)
        return "N"

    text = sentence("**Top 1,234 by `act_mag 5`**: 3.001e-9, -1.5, llama-7 and a\\_1 (95 %):\n  - k = 1.", put)
    assert seen == ["1,234", "3.001e-9", "-1.5", "95", "1"]
    assert text.startswith(r"\textbf{Top N by \texttt{act\_\allowbreak{}mag 5}}: N, N, llama-7 and a\_1 (N \%):")
    assert r"\begin{itemize}" in sentence("- a\n- b")


def test_names_are_letters_and_numbers_are_spelled() -> None:
    """Words keep their letters, digits become words, accents fall off."""
    assert letters("grad_x_weight") == "GradXWeight"
    assert letters("scale, factor -1.5") == "ScaleFactorMinusOnePointFive"
    assert letters("llama-0.1m-seed0") == "LlamaZeroPointOneMSeedZero"
    assert letters("é中") == "E"
    assert spelled("135") == "OneHundredThirtyFive"
    assert spelled("1000") == "OneThousand"
    assert spelled("1e-5") == "OneEMinusFive"
    assert spelled("007") == "ZeroZeroSeven"
    assert spelled("2.13.0") == "TwoPointOneThreePointZero"


def test_colliding_names_are_told_apart_the_same_way_each_time() -> None:
    """The second macro of a name gets a B and says so; one that is asked for again is the same one."""
    macros = Macros()
    first = macros.add(["a_b"], "1", "this", "t")
    assert macros.add(["a-b"], "2", "that", "t") == r"\esaABB{}"
    assert macros.add(["a_b"], "1", "this", "t") == first == r"\esaAB{}"
    assert macros.add(["a b"], "3", "else", "t") == r"\esaABC{}"
    assert [one.name for one in macros.each] == ["esaAB", "esaABB", "esaABC"]
    assert "wanted the name esaAB" in macros.each[1].line
    assert macros.each[0].line == r"\newcommand{\esaAB}{1}% this [t]"


def test_every_metric_and_method_has_a_reference() -> None:
    """The references know the source of every registered metric, of every method that cites one, and of every harness task."""
    known = {name for one in references() for name in one.used_for}
    assert {f"metric:{name}" for name in METRICS} <= known
    assert {f"method:{name}" for name in METHODS} <= known
    assert {name.partition(":")[2] for name in known if name.startswith("task:")} <= set(TASKS)
    assert {name.partition(":")[2] for name in known if name.startswith("metric:")} <= set(METRICS)
    assert len({one.key for one in references()}) == len(references())
    for one in references():
        assert one.bibtex.count("{") == one.bibtex.count("}")
        assert " esa = " not in one.bibtex
        for field in ("author", "title", "year"):
            assert re.search(rf"^  {field} = \{{", one.bibtex, flags=re.MULTILINE), one.key


def test_every_statistic_that_is_cited_has_a_reference() -> None:
    """A citation whose entry is missing would silently vanish from the text: there is none in the sources."""
    known = {name for one in references() for name in one.used_for}
    folder = Path(__file__).parents[2] / "esa/report/paper"
    cited = {
        name for path in folder.glob("*.py") for name in re.findall(r'"((?:statistic|step):\w+)"', path.read_text())
    }
    assert len(cited) > 10
    assert cited <= known


def test_only_what_is_cited_is_written() -> None:
    """The file of references holds the cited entries, by key; an unknown name cites nothing."""
    citations = Citations()
    assert citations.cite(["metric:none"]) == ""
    assert citations.bibtex == ""
    assert citations.cite(["metric:wanda"]) == r"~\cite{sun2024wanda}"
    assert citations.bibtex.count("@") == 1
    assert texts("hf:Salesforce/wikitext/wikitext-2-raw-v1:test") == ["text:wikitext"]
    assert texts("builtin:prose") == []


def test_what_runs_agree_on_is_said_once() -> None:
    """A sentence with the same values in all runs stands once without a run's name; one that differs names its runs."""

    def told(value: str, source: str) -> list[Sentence]:
        return [Sentence("t", ("It has ", Fact(("n",), value, "n", source), Cite(("metric:wanda",)), "."))]

    macros, citations = Macros(), Citations()
    assert list(rendered([("a", told("1", "x")), ("b", told("1", "y"))], macros, citations)) == [
        r"It has \esaN{}~\cite{sun2024wanda}."
    ]
    runs = [("a_1", told("1", "x")), ("b", told("2", "y")), ("c", told("2", "z"))]
    assert list(rendered(runs, macros, citations)) == [
        r"It has \esaAOneN{} (a\_1) and \esaBN{} (b and c)~\cite{sun2024wanda}."
    ]
    apart = list(rendered(runs, Macros(), citations, apart=["t"]))
    assert apart[0].startswith(r"In run a\_1: It has \esaAOneN{}~")
    assert apart[1].startswith(r"In runs b and c: It has \esaBN{}~")
    some = list(rendered([("a", []), ("b", told("1", "x"))], Macros(), citations))
    assert some[0].startswith(r"In run b: It has \esaBN{}")


def test_a_fact_of_all_steps_is_that_of_each() -> None:
    """Versions and machines on which the steps disagree stand beside each other: the first step does not speak for all."""
    steps = {
        name: {
            "step": name, "run": run * 12, "esa": "0.1.0", "packages": {"torch": torch} if torch else {},
            "hardware": {"cores": cores, "machine": "x86_64"},
        }
        for name, run, torch, cores in (("score", "a", "2.12", 64), ("rank", "b", None, 2), ("perturb", "c", "2.13", 2))
    }  # fmt: skip
    spec = spec_from_dict({"name": "one", "model": {"id": "smollm2-135m"}})
    macros = Macros()
    text = " ".join(rendered([("one", sentences(Gathered(spec, {}, steps)))], macros, Citations()))
    values = {one.name: one.value for one in macros.each}
    assert (values["esaVersionTorch"], values["esaVersionEsa"]) == ("2.12 and 2.13", "0.1.0")
    assert (values["esaCores"], values["esaMachine"]) == ("64 and 2", r"x86\_64")
    assert "The noise floor" not in text


def test_a_noise_floor_of_zero_is_not_called_rounding() -> None:
    """Where no rewrite changed the loss the floor is 0, and nothing can be smaller than it."""
    spec = spec_from_dict({"name": "one", "model": {"id": "smollm2-135m"}})
    for floor, words in ((0.0, "changed no loss"), (1e-6, "a smaller change is not told from rounding")):
        run = Gathered(spec, {}, {"perturb": {"step": "perturb", "run": "a" * 12, "noise_floor": floor}})
        assert words in " ".join(rendered([("one", sentences(run))], Macros(), Citations()))


def test_a_pdf_is_the_same_however_it_was_drawn() -> None:
    """Two drawings of a chart with two fonts and many marks have the same bytes, and settling them again changes nothing."""
    rows = [{"x": n, "y": n * n % 7, "c": "ab"[n % 2]} for n in range(30)]
    chart = alt.Chart(alt.Data(values=rows), title="Bold").mark_point(opacity=0.5).encode(x="x:Q", y="y:Q", color="c:N")
    drawn = {to_pdf(chart) for _ in range(4)}
    assert len(drawn) == 1
    assert settled(pdf := drawn.pop()) == pdf
    assert pdf.count(b"/FontFile2") == 2


def test_a_pdf_of_another_layout_is_refused() -> None:
    """A file without a plain table of references is not guessed at."""
    with pytest.raises(ValueError, match="no plain table of references"):
        settled(b"%PDF-1.7\n%\xe2\n1 0 obj\nendobj\n")


def test_a_table_of_long_texts_takes_more_pages() -> None:
    """A page holds 40 lines: rows of one line each, or fewer whose text is broken into several; no row is lost."""
    layout = Layout("t", "T", "scale", "laws/1", (Key("quantity", "quantity"),), (text("verdict", "verdict"),))
    short = [{"quantity": f"q{n}", "verdict": "no law"} for n in range(81)]
    long = [{"quantity": f"q{n}", "verdict": "x" * 320} for n in range(9)]
    assert [len(page) for page in pages(layout, short)] == [40, 40, 1]
    assert [len(page) for page in pages(layout, long)] == [4, 4, 1]
    assert [row for page in pages(layout, [*short, *long]) for row in page] == [*short, *long]


def test_no_more_floats_wait_than_latex_bears() -> None:
    """Behind every eight tables a page is cleared, and behind the last."""
    tables = [PaperTable(f"t{n}", "T.", "from", ("a",), (("1",),), "l") for n in range(20)]
    lines = example("n", None, findings=False, tables=tables, figures=[], cited=False).splitlines()
    waiting = 0
    for line in lines:
        waiting = 0 if line == r"\clearpage" else waiting + line.startswith(r"\input{tables/")
        assert waiting <= 8
    assert waiting == 0
    assert sum(line.startswith(r"\input{tables/") for line in lines) == 20


def test_metrics_that_were_followed_are_cited() -> None:
    """A paper of a step between runs says by which metrics they were scored, each with its reference; an older step says none."""

    def step(**manifest: object) -> Gathered:
        told = {"step": "scale", "run": "0" * 12, **manifest}
        return Gathered(spec_from_dict({"name": "x", "model": {"id": "several"}}), {}, {"scale": told})

    (said,) = [
        one for one in sentences(step(options={"metrics": ["act_mag", "obd"]}), between=True) if one.topic == "followed"
    ]
    assert [piece for piece in said.pieces if isinstance(piece, Cite)] == [
        Cite(("metric:act_mag",)),
        Cite(("metric:obd",)),
    ]
    assert "followed" not in [one.topic for one in sentences(step(), between=True)]
