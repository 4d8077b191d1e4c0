"""``esa run --on ray``: runs as tasks of a Ray cluster, each in a process of its own, gathered as they end."""

import io
import os
import secrets
import socket
import sys
import time
import tomllib
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from esa import __version__
from esa.cli.console import ConsoleProgress, print_error, print_table
from esa.cli.session import begin, content_error
from esa.errors import EXIT_BUG, EXIT_CONTENT, EXIT_OK, EsaError

if TYPE_CHECKING:
    from esa.spec import Spec

_ATTEMPTS = 4  # of one run, where its worker is lost
_GRACE = 20.0  # seconds that cancelled runs have to unlock their steps
_ANSWER = 5.0  # seconds that a cluster's port has to answer
_STORE = 100 << 20  # bytes for Ray's objects on this machine: only specs and outcomes travel


@dataclass(frozen=True)
class Job:
    """What a worker is told: the resolved spec as text, and the folder that every node sees."""

    name: str
    spec: str
    path: str | None
    home: str
    root: str
    mark: str
    argv: tuple[str, ...]
    version: str
    force: bool
    threads: int
    verbose: bool


@dataclass(frozen=True)
class Outcome:
    """How a run ended: its report, or an error's lines, hint and exit code, and a bug's traceback."""

    name: str
    exit_code: int
    node: str = ""
    seconds: float | None = None
    report: str | None = None
    lines: tuple[str, ...] = ()
    hint: str | None = None
    traceback: str | None = None


def run_on_ray(
    runs: Sequence["Spec"],
    numbers: Sequence[int],
    path: Path | None,
    root: Path,
    address: str | None,
    *,
    force: bool,
    threads: int,
    quiet: bool,
    verbose: bool,
) -> None:
    """Run the chosen ``runs`` as Ray tasks, say on stderr how each ended, and print the reports' paths on stdout in order.

    Without ``address`` Ray is started on this machine for the while. Each run gets ``threads`` CPUs, one GPU where the
    cluster has any, and a worker process of its own: its environment is set before torch is imported, its peak memory is
    its own, and Ray sees it die. A lost worker's run is begun again, up to four times in all, and goes on where it stopped
    (from its start with ``force``); an error is final. The others go on either way, and the first failed run in the spec's
    order gives the exit code.
    Raises EsaError before anything runs if Ray is missing, no cluster answers, or no node can hold a run; typer.Exit.
    """
    ray = _ray()
    progress = ConsoleProgress(quiet=quiet, verbose=verbose)
    chosen = [runs[number] for number in numbers]
    # Ray prints what it has to say of lost workers on stdout, from a thread, and of the workers' own words with -v.
    aside = redirect_stdout(sys.stderr if verbose else io.StringIO())
    with aside, _connected(ray, address, verbose=verbose):
        num_gpus = _require_room(ray.nodes(), chosen, threads)
        with _marked(root) as mark:
            jobs = [_job(spec, path, root, mark, force=force, threads=threads, verbose=verbose) for spec in chosen]
            outcomes = _gather(ray, jobs, num_gpus, progress)
    ordered = [outcomes[spec.name] for spec in chosen]
    if not quiet:
        _print_outcomes(runs, numbers, ordered, root)
    for one in ordered:
        if one.report is not None:
            typer.echo(one.report)
    code = next((one.exit_code for one in ordered if one.exit_code != EXIT_OK), EXIT_OK)
    if code != EXIT_OK:
        raise typer.Exit(code)


def _ray() -> Any:
    """Return the package, which is an extra and the only thing here that needs it."""
    # Whoever starts Ray by hand decides on its statistics; started by esa it reports nothing to anybody.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
    except ImportError:
        raise EsaError("esa run --on ray needs ray", where="--on", hint="pip install 'esa[ray]'") from None
    return ray


def _require_answer(address: str | None) -> None:
    """Raise EsaError if nothing listens at HOST:PORT: Ray itself would go on asking."""
    host, separator, port = (address or "").rpartition(":")
    if not separator or not port.isdecimal():
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_ANSWER).close()
    except (OSError, OverflowError) as error:
        raise EsaError(
            f"no Ray cluster answers at '{address}': {error}",
            where="--address",
            hint="ray status on a node of the cluster tells its address; --address auto takes the one that runs here",
        ) from None


@contextmanager
def _connected(ray: Any, address: str | None, *, verbose: bool) -> Iterator[None]:
    """Join the cluster at ``address``, or start one on this machine, and leave it at the end."""
    if address is not None and address.startswith("ray://"):
        raise EsaError(
            f"'{address}' is a Ray client's, which sees none of the cluster's folders; allowed: auto, HOST:PORT",
            where="--address",
            hint="start esa run on a node of the cluster, with --address auto",
        )
    _require_answer(address)
    local = {"include_dashboard": False, "object_store_memory": _STORE} if address is None else {}
    try:
        ray.init(address or "local", logging_level="error", log_to_driver=verbose, **local)
    except (ConnectionError, RuntimeError, ValueError) as error:
        said = _first_words(error)
        raise EsaError(
            f"no Ray cluster answers at '{address}': {said}" if address else f"Ray cannot be started: {said}",
            where="--address" if address else "--on",
            hint="ray start --head on one machine and ray start --address HOST:6379 on the others make a cluster",
        ) from None
    try:
        yield
    finally:
        ray.shutdown()


@contextmanager
def _marked(root: Path) -> Iterator[Path]:
    """Leave a file in the outputs folder by which a worker sees that it is the same folder on its node."""
    root.mkdir(parents=True, exist_ok=True)
    mark = root / f".ray-{secrets.token_hex(8)}"
    mark.touch()
    try:
        yield mark
    finally:
        mark.unlink(missing_ok=True)


def _require_room(nodes: Sequence[dict[str, Any]], chosen: Sequence["Spec"], threads: int) -> int:
    """Return the GPUs that each run gets: one where the cluster has any.

    Raises EsaError where a run wants a GPU and there is none, or one by its number, or no node has what a run needs: Ray
    would wait for such a node for ever.
    """
    alive = [node["Resources"] for node in nodes if node["Alive"]]
    num_gpus = 1 if any(node.get("GPU", 0) >= 1 for node in alive) else 0
    for spec in chosen:
        device = spec.model.device
        if device.startswith("cuda") and not num_gpus:
            count = f"{len(alive)} nodes" if len(alive) > 1 else "one node"
            raise EsaError(
                f"'{device}' is not available to {spec.name}: the Ray cluster has {count} and no GPU",
                where="model.device",
                hint="--device cpu, or a cluster that was started where the GPUs are",
            )
        if device.startswith("cuda:"):
            raise EsaError(
                f"'{device}' of {spec.name} is a GPU's number; on Ray each run is given a GPU of its own",
                where="model.device",
                hint="--device cuda",
            )
    fitting = [node for node in alive if node.get("GPU", 0) >= num_gpus]
    most = int(max(node.get("CPU", 0) for node in fitting))
    if most < threads:
        gpus = " with a GPU" if num_gpus else ""
        raise EsaError(
            f"{threads} CPU{'s' if threads > 1 else ''} for each run; the largest node{gpus} of the Ray cluster has {most}",
            where="--threads",
        )
    return num_gpus


def _job(spec: "Spec", path: Path | None, root: Path, mark: Path, *, force: bool, threads: int, verbose: bool) -> Job:
    """Return what a worker needs. Paths stay as they were typed: they are part of step ids, and it works in this folder."""
    from esa.spec import dump_spec

    return Job(
        name=spec.name,
        spec=dump_spec(spec),
        path=str(path) if path else None,
        home=str(Path.cwd()),
        root=str(root),
        mark=str(mark),
        argv=tuple(sys.argv),
        version=__version__,
        force=force,
        threads=threads,
        verbose=verbose,
    )


def _gather(ray: Any, jobs: Sequence[Job], num_gpus: int, progress: ConsoleProgress) -> dict[str, Outcome]:
    """Return how each run ended, by its name; say so as they end. Ctrl-C cancels those that have not."""
    # One call per worker: what torch and polars read when they are imported, and memory, are each run's own.
    task = ray.remote(
        max_calls=1, max_retries=0, num_cpus=jobs[0].threads, num_gpus=num_gpus, scheduling_strategy="SPREAD"
    )(work)
    pending = {task.options(name=job.name).remote(job): (job, 1) for job in jobs}
    outcomes: dict[str, Outcome] = {}
    try:
        while pending:
            ready, _ = ray.wait(list(pending), num_returns=1)
            job, attempt = pending.pop(ready[0])
            outcome = _outcome(ray, ready[0], job)
            if isinstance(outcome, str):
                if attempt < _ATTEMPTS:
                    again = f"begun again, attempt {attempt + 1} of {_ATTEMPTS}"
                    progress.warn(f"{job.name}: its worker was lost; {again}; Ray says: {outcome}")
                    pending[task.options(name=job.name).remote(job)] = (job, attempt + 1)
                    continue
                words = f"its worker was lost {attempt} times; Ray says: {outcome}"
                outcome = Outcome(job.name, EXIT_CONTENT, lines=(words,), hint="esa runs says how far it came")
            outcomes[job.name] = outcome
            _say(outcome, f"{len(outcomes)} of {len(jobs)}", progress)
    except KeyboardInterrupt:
        if pending:  # it may come while the last outcome is told
            progress.note(f"cancelling {', '.join(job.name for job, _ in pending.values())}")
            for one in pending:
                ray.cancel(one)
            ray.wait(list(pending), num_returns=len(pending), timeout=_GRACE)
        raise
    return outcomes


def _outcome(ray: Any, ready: Any, job: Job) -> Outcome | str:
    """Return how a run ended, or why its worker was lost: killed, out of memory, or gone with its node."""
    errors = ray.exceptions
    lost = (
        errors.WorkerCrashedError,
        errors.NodeDiedError,
        errors.LocalRayletDiedError,
        errors.OutOfMemoryError,
        errors.ObjectLostError,
    )
    try:
        found: Outcome = ray.get(ready)
        return found
    except lost as error:
        return _first_words(error)
    except errors.RayError as error:  # esa is not installed there, or somebody cancelled the task
        return Outcome(job.name, EXIT_BUG, lines=(str(error).strip().rpartition("\n")[2],))


def _first_words(error: Exception) -> str:
    """Return the first sentence of an error, without its full stop: Ray goes on for a paragraph."""
    return str(error).strip().partition("\n")[0].partition(". ")[0].rstrip(".")


def work(job: Job) -> Outcome:
    """Run one run in this worker's process and return how it ended; only Ray's cancelling gets out."""
    began = time.perf_counter()
    node = _node()

    def failed(error: EsaError, code: int, trace: str | None = None) -> Outcome:
        seconds = time.perf_counter() - began
        return Outcome(job.name, code, node, seconds, lines=tuple(error.lines()), hint=error.hint, traceback=trace)

    try:
        return Outcome(job.name, EXIT_OK, node, report=_run(job, node), seconds=time.perf_counter() - began)
    except EsaError as error:
        return failed(error, error.exit_code)
    except OSError as error:
        return failed(content_error(error), EXIT_CONTENT)
    except Exception as error:  # a bug: it is told where the command was given, and the other runs go on
        words = f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
        return failed(EsaError(words), EXIT_BUG, traceback.format_exc())


def _run(job: Job, node: str) -> str:
    """Run one run in the folder that the command was given in, and return its report's path."""
    if job.version != __version__:
        raise EsaError(f"has esa {__version__}, and the command was given with esa {job.version}", where=node)
    if not Path(job.home).is_dir() or not Path(job.home, job.mark).is_file():
        raise EsaError(
            f"does not see {Path(job.home, job.root)} of the machine that the command was given on",
            where=node,
            hint="start esa run in a folder that all nodes share, and write to one with -o",
        )
    os.chdir(job.home)
    sys.argv = list(job.argv)  # the manifests say which command it was
    progress = begin(quiet=not job.verbose, verbose=job.verbose, threads=job.threads)
    from esa.cli.member import run_patiently
    from esa.spec import spec_from_dict

    spec = spec_from_dict(tomllib.loads(job.spec), where=job.name)
    path = Path(job.path) if job.path else None
    return str(run_patiently(spec, path, Path(job.root), force=job.force, progress=progress).report)


def _node() -> str:
    """Return this worker's node, and its GPU, as a person and Ray's own tools name them."""
    import ray

    gpus = ",".join(str(number) for number in ray.get_gpu_ids())
    name = f"{ray.util.get_node_ip_address()}/{ray.get_runtime_context().get_node_id()[:8]}"
    return f"{name} GPU {gpus}" if gpus else name


def _say(outcome: Outcome, count: str, progress: ConsoleProgress) -> None:
    """Say how a run ended: a line, and an error in full."""
    from esa.cli.plain import duration

    after = f" after {duration(outcome.seconds)}" if outcome.seconds is not None else ""
    on = f" on {outcome.node}" if outcome.node else ""
    progress.note(f"{count}: {outcome.name} {_status(outcome)}{after}{on}")
    if outcome.traceback is not None:
        print(outcome.traceback, end="", file=sys.stderr)
    for line in outcome.lines:
        print_error(EsaError(line, where=outcome.name, hint=outcome.hint if line is outcome.lines[-1] else None))


def _status(outcome: Outcome) -> str:
    return "done" if outcome.exit_code == EXIT_OK else "failed"


def _print_outcomes(runs: Sequence["Spec"], numbers: Sequence[int], outcomes: Sequence[Outcome], root: Path) -> None:
    """Print a row per run: in what it differs from the others, how it ended, where, and its folder."""
    from esa.cli.members import member_rows
    from esa.cli.plain import duration

    header, *rows = member_rows(runs, numbers)
    ends = [[_status(one), duration(one.seconds), one.node, str(root / one.name)] for one in outcomes]
    print_table(
        "Runs",
        [*header, "status", "time", "node", "folder"],
        [[*row, *end] for row, end in zip(rows, ends, strict=True)],
        right=["only", "time"],
    )
