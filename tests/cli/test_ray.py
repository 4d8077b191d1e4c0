"""`esa run --on ray`: on a cluster of two nodes, each of processes of its own here; and what is told without a cluster."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from esa import __version__
from esa.cli import cluster
from esa.cli.cluster import Job, Outcome
from esa.cli.console import ConsoleProgress
from esa.errors import EsaError
from esa.spec import Spec, load_sweep
from tests.cli.conftest import SPEC, Invoke
from tests.cli.test_only import tables

ROOT = Path(__file__).parents[2]
# The second run wants more weights than were kept; hundreds of random draws give time to kill a worker between them.
SWEEP = SPEC.replace("draws = 2", "draws = 400") + '\n[sweep]\n"rank.k" = [[1], [70]]\n'
REWRITES = 20  # stand in the journal before the first case


Grow = Callable[..., Any]
NODE: dict[str, Any] = {"num_cpus": 1, "num_gpus": 1, "object_store_memory": 100 << 20}  # the GPU is none


@pytest.fixture
def grow(monkeypatch: pytest.MonkeyPatch) -> Iterator[Grow]:
    """Start clusters whose nodes are processes of this machine; they end with the test."""
    pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    grown = []

    def begin(**head: Any) -> Any:
        grown.append(Cluster(initialize_head=True, head_node_args={**NODE, "include_dashboard": False, **head}))
        return grown[-1]

    yield begin
    for one in grown:
        one.shutdown()


def start(folder: Path, *words: str) -> "subprocess.Popen[str]":
    """Start `esa run --on ray` in a folder."""
    return subprocess.Popen(
        [sys.executable, "-m", "esa", "run", "-s", "s.toml", "--on", "ray", *words],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=folder, env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip


def holder_of(pattern: str, seconds: float = 90.0) -> int:
    """Return the process that is writing a step which has finished some of its cases, once there is one."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        for journal in Path().glob(pattern):
            lock = journal.parent / ".lock"
            if journal.read_text().count("\n") > REWRITES + 5 and lock.exists() and (found := lock.read_text()):
                return int(json.loads(found)["pid"])
        time.sleep(0.01)
    pytest.fail(f"nobody wrote {pattern} for {seconds} s")


def test_two_nodes_share_a_sweep(folder: Path, esa: Invoke, grow: Grow) -> None:
    """Both nodes work, a killed worker's run is begun again, a failed run stops no other, and the tables are the usual ones."""
    (folder / "s.toml").write_text(SWEEP)
    machines = grow()
    machines.add_node(**NODE)
    with start(folder, "--address", machines.address) as running:
        os.kill(holder_of("outputs/tiny-00/perturb-*/cases.jsonl"), signal.SIGKILL)
        stdout, stderr = running.communicate()
    assert running.returncode == 3, stderr
    assert re.fullmatch(r"reports/tiny-00-[0-9a-f]{12}/report\.html\n", stdout)
    assert (
        "esa: warning: tiny-00: its worker was lost; begun again, attempt 2 of 4; Ray says: The worker died" in stderr
    )
    assert "esa: error: tiny-01: rank.k: K = 70 is more than the 64 scores that will be kept of " in stderr
    ended = re.findall(r"  (\d) of 2: (tiny-\d\d) (done|failed) after [\d.]+ s on \S+/([0-9a-f]{8}) GPU 0\n", stderr)
    assert [number for number, *_ in ended] == ["1", "2"]
    assert {(name, status) for _, name, status, _ in ended} == {("tiny-00", "done"), ("tiny-01", "failed")}
    assert re.search(r"\n +0  tiny-00  \[1\] +done +[\d.]+ s  \S+ GPU 0  outputs/tiny-00 *\n", stderr)
    assert re.search(r"\n +1  tiny-01  \[70\] +failed +[\d.]+ s  \S+ GPU 0  outputs/tiny-01 *\n", stderr)
    step = next(Path("outputs/tiny-00").glob("perturb-*"))
    assert json.loads((step / "manifest.json").read_text())["num_reused"] > 0
    assert not list(Path("outputs").glob(".ray-*"))
    assert esa("run", "-s", "s.toml", "-q", "-o", "alone", "--only", "0").exit_code == 0
    assert tables(Path("outputs/tiny-00")) == tables(Path("alone/tiny-00"))


@pytest.mark.slow
def test_a_lost_node_is_replaced(folder: Path, grow: Grow) -> None:
    """A run whose node dies goes on with its finished cases on the next node that comes."""
    (folder / "s.toml").write_text(SWEEP)
    machines = grow(num_cpus=0, num_gpus=0)
    node = machines.add_node(**NODE)
    with start(folder, "--address", machines.address, "--only", "0", "--set", "rank.draws=3000") as running:
        holder_of("outputs/tiny-00/perturb-*/cases.jsonl")
        machines.remove_node(node, allow_graceful=False)
        machines.add_node(**NODE)
        stdout, stderr = running.communicate()
    assert (running.returncode, stdout.count("report.html")) == (0, 1), stderr
    assert "attempt 2 of 4; Ray says: Task failed because the node it was running on is dead or unavailable\n" in stderr
    step = next(Path("outputs/tiny-00").glob("perturb-*"))
    assert json.loads((step / "manifest.json").read_text())["num_reused"] > 0


@pytest.mark.slow
def test_ctrl_c_cancels_and_leaves_steps_that_go_on(folder: Path, esa: Invoke) -> None:
    """On a Ray of its own, an interrupted command ends with 130, no step stays locked, and the next goes on."""
    pytest.importorskip("ray")
    (folder / "s.toml").write_text(SWEEP)
    long = ("--only", "0", "--set", "rank.draws=3000")
    with start(folder, *long) as running:
        holder_of("outputs/*/perturb-*/cases.jsonl")
        running.send_signal(signal.SIGINT)
        stdout, stderr = running.communicate()
    assert (running.returncode, stdout) == (130, ""), stderr
    assert stderr == (
        "  cancelling tiny-00\nesa: interrupted; finished work is kept, the same command goes on from there\n"
    )
    assert not list(Path("outputs").rglob(".*"))
    step = next(Path("outputs/tiny-00").glob("perturb-*"))
    assert not (step / "manifest.json").exists()
    with start(folder, *long) as running:
        stdout, stderr = running.communicate()
    assert (running.returncode, stdout.count("report.html")) == (0, 1), stderr
    assert json.loads((step / "manifest.json").read_text())["num_reused"] > 0


class Lost(Exception):
    """What the stand-in for Ray raises where a worker is gone."""


class Other(Exception):
    """What it raises for everything else."""


class StandIn:
    """Ray as far as the command knows it: tasks that end as they are told, in the order of their beginning."""

    def __init__(self, ends: dict[str, list[Any]], *, interrupted: bool = False) -> None:
        self.ends, self.interrupted = ends, interrupted
        self.asked: dict[str, Any] = {}
        self.cancelled: list[str] = []
        names = ("WorkerCrashedError", "NodeDiedError", "LocalRayletDiedError", "OutOfMemoryError", "ObjectLostError")
        self.exceptions = SimpleNamespace(**dict.fromkeys(names, Lost), RayError=Other)
        self.init = self.shutdown = lambda *_, **__: None

    def nodes(self) -> list[dict[str, Any]]:
        """Have one machine with two CPUs."""
        return nodes({"CPU": 2.0})

    def remote(self, **options: Any) -> Any:
        """Note what each task asks for."""
        self.asked = options
        begun = iter(range(100))
        task = SimpleNamespace(remote=lambda job: (next(begun), job.name))
        return lambda _: SimpleNamespace(options=lambda name: task)

    def wait(self, refs: list[Any], num_returns: int, timeout: float | None = None) -> tuple[list[Any], list[Any]]:
        """Hand over the first."""
        if self.interrupted and timeout is None:
            raise KeyboardInterrupt
        return refs[:1], refs[1:]

    def get(self, ref: tuple[int, str]) -> Any:
        """End the task as told."""
        end = self.ends[ref[1]].pop(0)
        if isinstance(end, Exception):
            raise end
        return end

    def cancel(self, ref: tuple[int, str]) -> None:
        """Note who is cancelled."""
        self.cancelled.append(ref[1])


def job(name: str, **changes: Any) -> Job:
    """Return what a worker would be told."""
    told = Job(
        name, "", "s.toml", str(Path.cwd()), "outputs", "outputs/.ray-x", ("esa", "run"), __version__, False, 2, False
    )
    return replace(told, **changes)


def gather(ray: StandIn, names: Sequence[str]) -> dict[str, Outcome]:
    """Gather runs of these names with one GPU each."""
    return cluster._gather(ray, [job(name) for name in names], 1, ConsoleProgress())


def test_a_lost_worker_is_replaced_three_times(capsys: pytest.CaptureFixture[str]) -> None:
    """A run whose worker is lost is begun again up to four times in all; then it has failed, and the others are done."""
    done = Outcome("a", 0, report="r")
    ray = StandIn(
        {
            "a": [Lost("x")] * 3 + [done],
            "b": [Lost("no memory\nand so on")] * 4,
            "c": [Other("x\nModuleNotFoundError: No module named 'esa'\n")],
        }
    )
    found = gather(ray, ["a", "b", "c"])
    assert found["a"] == done
    assert (found["b"].exit_code, found["c"].exit_code) == (3, 1)
    told = capsys.readouterr().err
    assert told.count("its worker was lost; begun again") == 6
    assert "esa: warning: a: its worker was lost; begun again, attempt 4 of 4; Ray says: x\n" in told
    assert "esa: error: b: its worker was lost 4 times; Ray says: no memory\n" in told
    assert "esa: error: c: ModuleNotFoundError: No module named 'esa'\n" in told


def test_each_run_asks_for_its_own_worker() -> None:
    """A task asks for one GPU and its threads in CPUs, a fresh process, and no second attempt that Ray would not tell of."""
    ray = StandIn({"a": [Outcome("a", 0)]})
    gather(ray, ["a"])
    assert ray.asked == {
        "max_calls": 1,
        "max_retries": 0,
        "num_cpus": 2,
        "num_gpus": 1,
        "scheduling_strategy": "SPREAD",
    }


def test_an_interrupt_cancels_what_has_not_ended() -> None:
    """Ctrl-C cancels every run that has not ended, waits for them, and goes on as an interrupt."""
    ray = StandIn({}, interrupted=True)
    with pytest.raises(KeyboardInterrupt):
        gather(ray, ["a", "b"])
    assert ray.cancelled == ["a", "b"]


def test_reports_are_printed_in_the_order_of_the_spec(
    folder: Path, esa: Invoke, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever ends first, stdout has the reports in order, and the first failed run in the spec gives the exit code."""
    swept = '\n[sweep]\n"score.seeds" = [[0], [1], [2], [3]]\n'
    (folder / "s.toml").write_text(SPEC + swept)
    done = [Outcome(f"tiny-0{number}", 0, "n", 1.0, f"r{number}") for number in range(4)]
    failed = Outcome("tiny-02", 4, "n", 1.0, lines=("no",), hint="so"), Outcome("tiny-03", 1, "n", 1.0, lines=("bug",))
    ends: dict[str, list[Any]] = {
        "tiny-00": [Lost("x"), done[0]], "tiny-01": [done[1]], "tiny-02": [failed[0]], "tiny-03": [failed[1]]
    }  # fmt: skip
    monkeypatch.setattr(cluster, "_ray", lambda: StandIn(ends))
    ended = esa("run", "-s", "s.toml", "--on", "ray")
    assert (ended.exit_code, ended.stdout) == (4, "r0\nr1\n")
    assert "  2 of 4: tiny-02 failed after 1.0 s on n\nesa: error: tiny-02: no\n  hint: so\n" in ended.stderr
    assert ended.stderr.index("4 of 4: tiny-00 done") < ended.stderr.index("only  run      score.seeds  status")


def specs(device: str) -> list[Spec]:
    """Return the one run of ``s.toml`` on a device."""
    return load_sweep("s.toml", [f"model.device={device}"])


def nodes(*resources: dict[str, float]) -> list[dict[str, Any]]:
    """Return nodes as Ray lists them."""
    return [{"Alive": True, "Resources": one} for one in resources]


ROOMS = {
    "no GPU anywhere": ("auto", nodes({"CPU": 2.0}), 2, 0),
    "a GPU for each where there is one": ("cpu", nodes({"CPU": 8.0}, {"CPU": 2.0, "GPU": 1.0}), 2, 1),
    "cuda": ("cuda", nodes({"CPU": 1.0, "GPU": 4.0}), 1, 1),
    "a head without CPUs": ("auto", nodes({}, {"CPU": 1.0}), 1, 0),
}
NO_ROOM = {
    "cuda without a GPU": (
        "cuda", nodes({"CPU": 2.0}, {"CPU": 2.0}), 1,
        "model.device: 'cuda' is not available to tiny: the Ray cluster has 2 nodes and no GPU\n",
    ),
    "a dead node's GPU": (
        "cuda", [*nodes({"CPU": 2.0}), {"Alive": False, "Resources": {"CPU": 1.0, "GPU": 1.0}}], 1,
        "model.device: 'cuda' is not available to tiny: the Ray cluster has one node and no GPU\n",
    ),
    "a GPU by number": (
        "cuda:1", nodes({"CPU": 2.0, "GPU": 2.0}), 1,
        "model.device: 'cuda:1' of tiny is a GPU's number; on Ray each run is given a GPU of its own\nhint: --device cuda",
    ),
    "too few CPUs": (
        "cpu", nodes({"CPU": 2.0}), 3, "--threads: 3 CPUs for each run; the largest node of the Ray cluster has 2",
    ),
    "too few CPUs beside a GPU": (
        "cpu", nodes({"CPU": 8.0}, {"CPU": 1.0, "GPU": 1.0}), 2,
        "--threads: 2 CPUs for each run; the largest node with a GPU of the Ray cluster has 1",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", list(ROOMS))
def test_each_run_gets_a_gpu_where_there_are_any(case: str, folder: Path) -> None:
    """One GPU for each run where any node has one, none elsewhere."""
    device, alive, threads, num_gpus = ROOMS[case]
    assert cluster._require_room(alive, specs(device), threads) == num_gpus


@pytest.mark.parametrize("case", list(NO_ROOM))
def test_what_no_node_has_is_refused(case: str, folder: Path) -> None:
    """A run that no node could ever hold is refused before anything runs, with what there is."""
    device, alive, threads, words = NO_ROOM[case]
    with pytest.raises(EsaError) as caught:
        cluster._require_room(alive, specs(device), threads)
    assert str(caught.value).startswith(words)


def test_another_folder_or_version_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker that does not see the command's own outputs, or has another esa, fails before it computes anything."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(cluster, "_node", lambda: "10.0.0.2/abc")
    (tmp_path / "outputs").mkdir()
    for told in (job("a"), job("a", home="/nowhere/at/all")):
        found = cluster.work(told)
        assert found.lines == (
            f"10.0.0.2/abc: does not see {told.home}/outputs of the machine that the command was given on",
        )
        assert (found.exit_code, found.report) == (3, None)
        assert found.hint == "start esa run in a folder that all nodes share, and write to one with -o"
    found = cluster.work(job("a", version="0.0.1"))
    assert found.lines == (f"10.0.0.2/abc: has esa {__version__}, and the command was given with esa 0.0.1",)


def test_errors_come_back_as_words(monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker returns what the system refused as an error of content, and a bug with its traceback and exit code 1."""
    monkeypatch.setattr(cluster, "_node", lambda: "n")
    raised: list[Exception] = [OSError(28, "No space left on device", "outputs/x"), KeyError("k")]
    monkeypatch.setattr(cluster, "_run", lambda *_: (_ for _ in ()).throw(raised.pop(0)))
    full, bug = cluster.work(job("a")), cluster.work(job("a"))
    assert (full.exit_code, full.lines, full.traceback) == (3, ("outputs/x: No space left on device",), None)
    assert (bug.exit_code, bug.lines) == (1, ("KeyError: 'k'",))
    assert bug.traceback is not None
    assert bug.traceback.startswith("Traceback (most recent call last):\n")


def test_ray_is_an_extra(folder: Path, esa: Invoke, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the package the error names the extra; nothing is written."""
    monkeypatch.setitem(sys.modules, "ray", None)
    done = esa("run", "-s", "s.toml", "--on", "ray")
    assert (done.exit_code, done.stdout) == (3, "")
    assert done.stderr == "esa: error: --on: esa run --on ray needs ray\n  hint: pip install 'esa[ray]'\n"
    assert not Path("outputs").exists()


def test_wrong_addresses(folder: Path, esa: Invoke, monkeypatch: pytest.MonkeyPatch) -> None:
    """An address without Ray, a client's address, one where nobody answers, and another scheduler are refused."""

    def init(*_: object, **__: object) -> None:
        raise ConnectionError("Could not find any running Ray instance. Please specify the one to connect to.")

    monkeypatch.setitem(sys.modules, "ray", SimpleNamespace(init=init))
    cases = {
        ("--address", "auto"): "--address: 'auto' is a Ray cluster's, and nothing runs on Ray\n  hint: add --on ray\n",
        ("--on", "slurm"): "--on: 'slurm' schedules no runs; allowed: ray\n",
        ("--on", "ray", "--address", "ray://h:10001"): "--address: 'ray://h:10001' is a Ray client's, ",
        ("--on", "ray", "--address", "127.0.0.1:1"): "--address: no Ray cluster answers at '127.0.0.1:1': [Errno 111] ",
        ("--on", "ray", "--address", "auto"): (
            "--address: no Ray cluster answers at 'auto': Could not find any running Ray instance\n  hint: ray start --head "
        ),
    }
    for words, said in cases.items():
        done = esa("run", "-s", "s.toml", *words)
        assert (done.exit_code, done.stdout) == (3, "")
        assert done.stderr.startswith(f"esa: error: {said}")
    assert not Path("outputs").exists()


def test_only_one_file_knows_ray() -> None:
    """No other file of esa imports the package, and the command line starts without it."""
    pattern = re.compile(r"^\s*(import|from) ray\b|import_module\(.ray\b", re.MULTILINE)
    found = [path.name for path in (ROOT / "esa").rglob("*.py") if pattern.search(path.read_text(encoding="utf-8"))]
    assert found == ["cluster.py"]
    code = "import sys, esa.cli.main, esa.cli.run, esa.cli.cluster; print('ray' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout == "False\n"
