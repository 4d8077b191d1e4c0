"""Any task of lm-evaluation-harness on the model in memory; the harness is an optional extra."""

import copy
import logging
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib import import_module
from importlib.util import find_spec
from os.path import isfile
from pathlib import Path
from typing import Any

from esa.artifact import finite, sha256_of
from esa.errors import DataError, EsaError
from esa.model import LoadedModel
from esa.registry import suggest
from esa.spec import Spec

_SUFFIXES = (".yaml", ".yml")
_STATED = re.compile(r"^task:\s*['\"]?([\w.-]+)", re.MULTILINE)
_OWN = ("alias", "name", "sample_len", "sample_count")  # what stands beside the figures of a task

HarnessTask = tuple[str, Any]  # its name, and the harness's manager that finds it


@dataclass(frozen=True)
class HarnessFigure:
    """One figure of one task: its metric (and filter, where it has one), value, standard error, number of items.

    ``value`` is None where the model's logits were not finite, or the figure itself is not.
    """

    task: str
    metric: str
    value: float | None
    stderr: float | None
    num_items: int | None


def require_harness(names: Sequence[str]) -> None:
    """Raise EsaError where lm_eval is not installed, and for a task file that is not there."""
    if names and find_spec("lm_eval") is None:
        raise EsaError("needs the package lm_eval", where="--harness", hint="pip install 'esa[eval]'")
    for name in names:
        if _is_file(name) and not Path(name).is_file():
            raise DataError(f"{name}: no such file", where="--harness")


def harness_inputs(names: Sequence[str]) -> dict[str, str]:
    """Return what identifies harness tasks in a step's id: of a name lm_eval's version, of a task file what it holds.

    That is the sha256 of the file and of every file that it names: its items, what it includes, the Python of its functions.
    Files behind a glob, and what those name in turn, are not looked for.
    """
    require_harness(names)
    if not names:
        return {}
    from importlib.metadata import version

    found = {}
    for name in names:
        if not _is_file(name):
            found[f"harness:{name}"] = f"lm_eval {version('lm_eval')}"
            continue
        path = Path(name)
        found[f"file:{name}"] = sha256_of(path)
        found |= {f"file:{named}": sha256_of(named) for named in _files_named_in(path)}
    return found


def _files_named_in(path: Path) -> list[Path]:
    """Return the files that a task file names, by where they are found: as given, else beside it. Raises DataError."""
    yaml: Any = import_module("yaml")  # which lm_eval needs, and which has no types
    loader: Any = type("Loader", (yaml.SafeLoader,), {})
    loader.add_multi_constructor(  # !function module.name: the module's file
        "!", lambda loader, tag, node: f"{str(node.value).rpartition('.')[0].replace('.', '/')}.py"
    )
    try:
        tree = yaml.load(path.read_text(encoding="utf-8"), loader)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise DataError(f"{path} is no YAML: {str(error).splitlines()[0]}", where="--harness") from None
    places = [(Path(text), path.parent / text) for text in _texts_in(tree)]
    found = [next((one for one in pair if isfile(one)), None) for pair in places]  # False also for what is no path
    return list(dict.fromkeys(one for one in found if one is not None))


def _texts_in(tree: Any) -> Iterator[str]:
    """Yield every text in what a YAML file holds."""
    if isinstance(tree, str):
        yield tree
    elif isinstance(tree, dict | list):
        for part in tree.values() if isinstance(tree, dict) else tree:
            yield from _texts_in(part)


def find_tasks(names: Sequence[str]) -> list[HarnessTask]:
    """Return what ``run_harness`` measures, found and read before anything is measured.

    Raises EsaError without lm_eval; DataError for an unknown task or items that cannot be read.
    """
    require_harness(names)
    with _hushed():
        return [_task(name) for name in names]


def run_harness(loaded: LoadedModel, found: Sequence[HarnessTask], spec: Spec) -> list[HarnessFigure]:
    """Return the figures that lm-evaluation-harness gives the model as it is, in the order of the tasks found.

    ``harness_results`` says how.
    """
    return [one for figures, _ in harness_results(loaded, found, spec) for one in figures]


def harness_results(
    loaded: LoadedModel, found: Sequence[HarnessTask], spec: Spec
) -> list[tuple[list[HarnessFigure], dict[str, list[dict[str, Any]]]]]:
    """Return by name found the figures that lm-evaluation-harness gives the model as it is, and its samples by task.

    A name is a task, group or tag of the harness, or the path of a task's ``.yaml`` file, which may lie anywhere: with
    ``dataset_path: json`` and a local file nothing is fetched. A task's own Python (``!function``) is run as the harness
    runs it. The model is handed over in memory (``HFLM(pretrained=...)``), changed weights and all, with a copy of the
    tokenizer; eval.task_items is the harness's ``limit``, eval.bos true or false its ``add_bos_token``. A name during which
    a logit is NaN or infinite has no figure: the harness itself would give a model of NaN an accuracy.
    Source: Gao et al., A framework for few-shot language model evaluation, 2021.
    """
    bos = None if spec.eval.bos == "auto" else bool(spec.eval.bos)
    batch = max(1, spec.eval.batch_tokens // spec.eval.length)
    every: list[tuple[list[HarnessFigure], dict[str, list[dict[str, Any]]]]] = []
    with _hushed():
        from lm_eval import simple_evaluate
        from lm_eval.models.huggingface import HFLM

        tokenizer = copy.deepcopy(loaded.tokenizer)  # it is given a padding token
        model = HFLM(pretrained=loaded.model, tokenizer=tokenizer, batch_size=batch, add_bos_token=bos)
        for task, manager in found:
            with _watched(loaded.model) as passes:
                results = simple_evaluate(
                    model=model, tasks=[task], task_manager=manager, limit=spec.eval.task_items, log_samples=True
                )
            figures = [one if all(passes) else replace(one, value=None, stderr=None) for one in _figures(results)]
            every.append((figures, results.get("samples", {})))
    return every


def _task(name: str) -> HarnessTask:
    """Return a task's name and what finds it. Raises DataError for one that is not known or whose items cannot be read."""
    from lm_eval.tasks import TaskManager, get_task_dict

    wanted, where = name, "--harness"
    if _is_file(name):
        stated = _STATED.search(Path(name).read_text(encoding="utf-8"))
        if stated is None:
            raise DataError(f"{name} names no task", where=where, hint="a line such as task: my_task")
        wanted, where = stated[1], f"--harness: {name}"
        manager = TaskManager(include_path=str(Path(name).resolve().parent), include_defaults=False)
    else:
        manager = TaskManager()
    if wanted not in manager.all_tasks:
        raise DataError(
            f"'{wanted}' is no task of lm_eval{suggest(wanted, list(manager.all_tasks))}",
            where=where,
            hint="lm-eval ls tasks names them all",
        )
    try:
        get_task_dict([wanted], manager)
    except Exception as error:  # the harness and its loaders raise whatever they like over data
        first = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise DataError(f"'{wanted}' cannot be loaded: {first}", where=where) from error
    return wanted, manager


def _figures(found: Any) -> Iterator[HarnessFigure]:
    """Yield the figures of simple_evaluate's results: keys are ``metric,filter`` and ``metric_stderr,filter``."""
    for task, values in found["results"].items():
        size = found.get("n-samples", {}).get(task, {}).get("effective")
        for key, value in values.items():
            metric, _, filter_name = key.partition(",")
            if key in _OWN or metric.endswith("_stderr") or not isinstance(value, int | float):
                continue
            error = values.get(f"{metric}_stderr,{filter_name}")
            known = finite(float(error)) if isinstance(error, int | float) else None
            name = metric if filter_name in ("", "none") else f"{metric},{filter_name}"
            yield HarnessFigure(str(task), name, finite(float(value)), known, size)


def _is_file(name: str) -> bool:
    return name.endswith(_SUFFIXES)


@contextmanager
def _watched(model: Any) -> Iterator[list[bool]]:
    """Tell of every forward pass whether all its logits are finite."""
    found: list[bool] = []
    hook = model.register_forward_hook(
        lambda module, inputs, output: found.append(bool(output.logits.isfinite().all()))  # None: the output stays
    )
    try:
        yield found
    finally:
        hook.remove()


@contextmanager
def _hushed() -> Iterator[None]:
    """Keep the harness's log to errors."""
    loggers = [logging.getLogger(name) for name in ("lm_eval", "lm-eval")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
