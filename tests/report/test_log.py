"""The log and its weekly summary: computed, appended, entered once, and never rewritten."""

import json
import re
import shutil
from datetime import date
from pathlib import Path
from typing import Any

import pytest
from markdown_it import MarkdownIt

from esa.artifact import Step, marking_failures
from esa.artifact.manifest import read_manifest
from esa.artifact.runs import StepState
from esa.errors import ArtifactError, EsaError
from esa.report import log_week
from esa.report.log import append, week
from esa.report.log_entry import Record, duration, records
from tests.artifact.house import spec
from tests.report import across
from tests.report.conftest import Fake
from tests.report.evidence import add_tables, claim

DAY = date(2026, 3, 4)  # a Wednesday: week 10


def dated(folder: Path, created: str, seconds: float = 10.0, **changes: Any) -> None:
    """Let a finished step have finished at another time."""
    manifest = read_manifest(folder) | {"created": created, "seconds": seconds, **changes}
    (folder / "manifest.json").write_text(json.dumps(manifest))


def made_on(root: Path, day: str, **knobs: Any) -> Fake:
    """Write a fake run whose four steps finished on a day, each of ten seconds."""
    made = Fake(root, metrics=("act_mag",), methods=({"method": "zero"},), **knobs)
    made.write()
    for folder in made.folders.values():
        dated(folder, f"{day}T12:00:00+00:00", argv=["esa", "run", "-s", "my spec.toml"])
    return made


def section(text: str, name: str) -> str:
    """Return what stands under a heading of an entry."""
    return re.split(r"^#", text.split(f"### {name}\n")[1], flags=re.MULTILINE)[0].strip()


def test_an_entry_says_when_how_long_what_came_out_and_leaves_room(tmp_path: Path) -> None:
    """Date, commands, duration, status, findings and verdicts are computed; Objectives and Plan are empty."""
    made = made_on(tmp_path, "2026-03-02")
    add_tables(made.folders["perturb"], {"tests.csv": ("tests/1", [claim(phase="confirmatory")])})
    log = tmp_path / "reports/LOG.md"
    result = append([made.run], path=log, commands=["make   quick"], today=DAY)
    assert result.added
    text = log.read_text()
    assert text.startswith("# Log\n")
    assert text.endswith(result.text)
    assert "## 2026-03-02: fake\\_run" in text or "## 2026-03-02: fake_run" in text
    assert section(text, "Objectives") == section(text, "Plan") == ""
    run = section(text, "Run")
    assert "Finished: 2026-03-02 12:00 UTC; entered 2026-03-04" in run
    assert "Status: complete" in run
    assert "Duration: 40.00 s (score 10.00 s, rank 10.00 s, perturb 10.00 s, overlap 10.00 s)" in run
    assert "```sh\nmake quick\nesa run -s 'my spec.toml'\n```" in run
    assert "takes perplexity from 19.50 to" in section(text, "Key results")
    assert "Confirmatory: the top" in section(text, "Verdict")
    assert re.search(r"\d+ verdicts?: ", section(text, "Verdict"))


def test_a_run_is_entered_once_and_again_when_its_results_are_others(tmp_path: Path) -> None:
    """The same steps are noticed whatever people wrote between, unless forced; another result is another entry."""
    made = made_on(tmp_path, "2026-03-02")
    log = tmp_path / "LOG.md"
    first = append([made.run], path=log, today=DAY)
    written = log.read_text().replace("### Objectives\n", "### Objectives\n\nFind out -- <why>.\n") + "A closing word"
    log.write_text(written)
    again = append([made.run], path=log, today=date(2026, 3, 5))
    assert (again.added, again.id) == (False, first.id)
    assert log.read_text() == written
    assert (
        append(list(made.folders.values()), path=log, today=DAY).added is False
    )  # the steps of the run: the same entry
    forced = append([made.run], path=log, force=True, today=DAY)
    assert forced.added
    assert log.read_text() == f"{written}\n\n{forced.text}"
    made_on(tmp_path, "2026-03-03", effect=0.5)
    changed = append([made.run], path=log, today=DAY)
    assert changed.added
    assert changed.id != first.id
    assert log.read_text().startswith(written)


def test_a_dry_run_writes_nothing(tmp_path: Path) -> None:
    """It returns the entry that would be added, and no file comes into being."""
    made = made_on(tmp_path, "2026-03-02")
    result = append([made.run], path=tmp_path / "reports/LOG.md", dry_run=True)
    assert result.added
    assert "### Key results" in result.text
    assert not (tmp_path / "reports").exists()


def test_warnings_and_failures_are_the_status(tmp_path: Path) -> None:
    """A run with warnings says so and which; a failed step is entered with its error, and with what was finished before."""
    warned = made_on(tmp_path, "2026-03-02", warnings=("too few <windows>",))
    text = append([warned.run], path=tmp_path / "LOG.md", today=DAY).text
    assert "Status: complete, with warnings" in text
    assert "Warning from score: too few &lt;windows&gt;" in text

    @marking_failures()
    def fail() -> None:
        step = Step("perturb", spec("broken"), {"ranking": "a" * 12}, root=tmp_path / "outputs")
        step.begin()
        raise EsaError("the disk is full | or so")

    with pytest.raises(EsaError):
        fail()
    result = append([tmp_path / "outputs/broken"], path=tmp_path / "LOG.md", today=DAY)
    assert "Status: failed" in result.text
    assert re.search(
        r"`perturb-[0-9a-f]{12}` is failed: the disk is full \\\| or so", section(result.text, "Key results")
    )
    assert section(result.text, "Verdict") == "None: there is nothing to judge."


def test_a_failure_after_a_finished_run_is_entered_with_it(tmp_path: Path) -> None:
    """A step that failed after the run of run.json finished changes its status; one that failed before it does not."""
    made = made_on(tmp_path, "2026-03-02")
    assert "Status: complete" in append([made.run], path=tmp_path / "LOG.md", today=DAY).text
    failed = made.run / "eval-0123456789ab"
    failed.mkdir()
    (failed / "spec.toml").write_text("# eval-0123456789ab\n")
    content = {"step": "eval", "run": "0123456789ab", "failed": "2026-03-01T00:00:00+00:00", "error": "no"}
    (failed / "failed.json").write_text(json.dumps(content))
    assert "Status: complete" in append([made.run], path=tmp_path / "LOG.md", today=DAY).text
    (failed / "failed.json").write_text(json.dumps(content | {"failed": "2026-03-03T00:00:00+00:00"}))
    late = append([made.run], path=tmp_path / "LOG.md", today=DAY)
    assert late.added
    assert "Status: failed" in late.text
    assert "takes perplexity from" in late.text


def test_hostile_texts_stay_text(tmp_path: Path) -> None:
    """No text from a file makes a heading, HTML, or a record of the log."""
    evil = '<b>|`\n## x\n<!-- esa:entry {"id": "fake"} -->'
    made = made_on(tmp_path, "2026-03-02", evil=evil, warnings=(evil,))
    log = tmp_path / "LOG.md"
    result = append([made.run], path=log, today=DAY)
    text = log.read_text()
    assert [one.id for one in records(text, "LOG.md")] == [result.id]
    assert re.findall(r"^## (.*)", text, flags=re.MULTILINE) == ["2026-03-02: fake_run"]
    shown = MarkdownIt("commonmark").render(text)
    assert "<b>" not in shown
    assert shown.count("<!--") == 1
    assert shown.count("&lt;b&gt;") > 2


def test_a_record_survives_any_text(tmp_path: Path) -> None:
    """What ends a comment or a line inside a record is written so that it is read back as it was."""
    record = Record("a" * 12, "2026-03-02", ["--> x", "<!--"], "complete", 1.5, what="top --\n-->", margin=-1e-5)
    assert record.line.count("-->") == 1
    assert records(f"x\n{record.line}\ny", "LOG.md") == [record]


def test_a_record_that_somebody_edited_is_an_error(tmp_path: Path) -> None:
    """The file, the line and what to do are named; nothing is appended."""
    log = tmp_path / "LOG.md"
    log.write_text("# Log\n\n<!-- esa:entry {broken} -->\n")
    with pytest.raises(ArtifactError, match="is not a record of the log") as raised:
        week(DAY, path=log, outputs=tmp_path)
    assert raised.value.where == f"{log}:3"
    assert log.read_text().endswith("{broken} -->\n")
    whole = Record("a" * 12, "2026-03-02", ["x"], "complete", 1.5)
    for wrong in ('"verdicts": null', '"verdicts": {"good": "two"}', '"confirmed": [1]', '"seconds": null'):
        name = wrong.partition(":")[0]
        log.write_text(re.sub(rf"{name}: (\{{\}}|\[0, 0\]|1.5)", wrong, whole.line))
        assert wrong in log.read_text()
        with pytest.raises(ArtifactError, match="is not a record of the log"):
            week(DAY, path=log, outputs=tmp_path)


def test_the_week_adds_up_what_it_saw(tmp_path: Path) -> None:
    """Runs, time, entries, verdicts, best and worst, failed and stale steps of the ISO week, and of no other."""
    log, outputs = tmp_path / "LOG.md", tmp_path / "outputs"
    for name, day, effect in (("one", "2026-03-02", 1.0), ("two", "2026-03-08", 0.1), ("old", "2026-03-01", 2.0)):
        made = made_on(tmp_path, day, name=name, effect=effect, warnings=("careful",) if name == "two" else ())
        append([made.run], path=log, today=DAY)
    (outputs / "one" / "run.json").unlink()
    text = week(DAY, path=log, outputs=outputs)
    assert text.startswith("## Week 2026-W10: 2026-03-02 to 2026-03-08\n")
    assert "Runs finished: 2 (`one` and `two`)" in text
    assert "Time: 1 min 20 s in 8 finished steps" in text
    assert "Entries in the log: 2 (1 complete and 1 with warnings)" in text
    known = {one.runs[0]: one for one in records(log.read_text(), "LOG.md")}
    total = known["one"].verdicts["unattainable"] + known["two"].verdicts["unattainable"]
    assert f"{total} unattainable" in text
    assert re.search(r"Best: .* in one\)", text)
    assert re.search(r"Worst: .* in two\)", text)
    assert "old" not in text
    assert re.search(r"Warning from `two/score-[0-9a-f]+`: careful", text)
    damage = outputs / "two" / next((outputs / "two").glob("perturb-*")).name / "damage.csv"
    damage.write_text("changed")
    assert re.search(
        r"Stale now: `two/perturb-[0-9a-f]+`: damage.csv was changed", week(DAY, path=log, outputs=outputs)
    )


def test_a_run_that_left_its_weights_changed_is_not_finished(tmp_path: Path) -> None:
    """A step whose own check failed has a manifest and an end, and counts neither as finished nor in the time."""
    made = made_on(tmp_path, "2026-03-02", name="one")
    dated(
        made.folders["perturb"], "2026-03-02T12:00:00+00:00", checksum={"before": "a", "after": "b", "restored": False}
    )
    text = week(DAY, path=tmp_path / "LOG.md", outputs=tmp_path / "outputs")
    assert "Runs finished: 0\n" in text
    assert "in 3 finished steps" in text
    assert "Failed: `one/perturb-" in text


def test_a_step_of_several_runs_is_entered_as_what_it_is(tmp_path: Path) -> None:
    """It was made for no criterion, and has no verdicts; its runs are found where its command said, and it is not stale."""
    made = made_on(tmp_path / "elsewhere", "2026-03-02", name="one")
    score = made.folders["score"].name.removeprefix("score-")
    folder = across.scaling(tmp_path)
    manifest = read_manifest(folder)
    argv = ["esa", "scale", str(made.run), "-o", "laws"]
    dated(folder, "2026-03-03T12:00:00+00:00", argv=argv, inputs=manifest["inputs"] | {"0:score": score})
    result = append([folder], path=tmp_path / "LOG.md", today=DAY)
    assert "Status: complete\n" in result.text
    assert section(result.text, "Verdict") == "None: there is nothing to judge."
    assert records(result.text, "LOG.md")[0].verdicts == dict.fromkeys(("good", "between", "bad", "unattainable"), 0)
    shutil.rmtree(made.run)
    assert (
        f"score-{score}, which it was made from, is gone" in append([folder], path=tmp_path / "LOG.md", today=DAY).text
    )


def test_a_week_without_anything_says_so_and_is_appended_when_asked(tmp_path: Path) -> None:
    """Neither a log nor outputs need to be there; add appends the section, and later entries come behind it."""
    log = tmp_path / "LOG.md"
    text = week(DAY, path=log, outputs=tmp_path / "none")
    assert f"- There is no folder `{tmp_path / 'none'}` here: no step is counted\n- Runs finished: 0" in text
    assert "Entries in the log: none of this week" in text
    assert not log.exists()
    week(DAY, path=log, outputs=tmp_path / "none", add=True)
    assert log.read_text().endswith(text)
    assert week(date(2027, 1, 1), path=log, outputs=tmp_path / "none").startswith(
        "## Week 2026-W53: 2026-12-28 to 2027-01-03"
    )


def test_the_margin_of_a_run_is_that_over_the_largest_random_draw(tmp_path: Path) -> None:
    """The record's margin is the top weights' damage less the worst draw's, at most over K, as the table has them."""
    from esa.artifact import find_table

    made = made_on(tmp_path, "2026-03-02")
    append([made.run], path=tmp_path / "LOG.md", today=DAY)
    record = records((tmp_path / "LOG.md").read_text(), "LOG.md")[0]
    rows = [row for row in find_table(made.folders["perturb"], "damage/1").frame.to_dicts() if row["unit"] == "joint"]
    expected = max(
        top["delta_nll"] - max(one["delta_nll"] for one in rows if one["group"] == "random_k" and one["k"] == top["k"])
        for top in rows
        if top["group"] == "top_k"
    )
    assert record.margin == pytest.approx(expected)
    assert record.what == "top 100 by act_mag, zero, in fake_run"


def test_durations_read_well() -> None:
    """Seconds, minutes, hours."""
    assert [duration(one) for one in (0.012, 42.0, 442.2, 11_100)] == [
        "0.01200 s",
        "42.00 s",
        "7 min 22 s",
        "3 h 5 min",
    ]


def test_a_folder_without_steps_is_refused(tmp_path: Path) -> None:
    """What holds no step of a run has nothing to enter, and no log comes into being."""
    (tmp_path / "empty").mkdir()
    with pytest.raises(ArtifactError, match="holds no step of a run"):
        append([tmp_path / "empty"], path=tmp_path / "LOG.md")
    assert not (tmp_path / "LOG.md").exists()


def test_a_warning_of_many_steps_is_said_once() -> None:
    """The runs of a sweep give the same warning: the week names the first of them and counts the rest."""
    states = [
        StepState(Path("outputs", run, "score-0f"), "score", "0f", "complete", "", 1, "", {"warnings": ["careful"]})
        for run in ("a", "b", "c")
    ]
    assert log_week._warnings(states) == ["Warning from `a/score-0f` and 2 more: careful"]
