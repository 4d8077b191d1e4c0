"""What an intact model scores at its tasks, as its run's tables say."""

from dataclasses import dataclass

from esa.arch.comparison.sources import Labelled

HIGHER = ("accuracy", "acc", "acc_norm", "exact_match", "f1", "mc1", "mc2")
LOWER = ("perplexity", "bits_per_byte", "word_perplexity", "byte_perplexity")
_NORMAL = 1.959963984540054
_TEXTS = "language_modeling"


@dataclass(frozen=True)
class TaskScore:
    """A figure of an intact model at a task, with the 95 % interval of its standard error where that is known."""

    task: str
    metric: str
    value: float
    low: float | None = None
    high: float | None = None

    @property
    def goodness(self) -> float:
        """Return the figure such that more is better."""
        return -self.value if _figure(self.metric) in LOWER else self.value


def _figure(metric: str) -> str:
    """Return the figure that a metric is: of a group of tasks it is called ``member: acc``, of the harness ``acc,none``."""
    return metric.rpartition(": ")[2].partition(",")[0]


def task_scores(one: Labelled) -> list[TaskScore]:
    """Return the intact figures of a run, each task and metric once: of the eval step, of the campaign's tasks, of its text.

    Of eval/1: accuracies and the like, perplexities and bits per byte; of one with several seeds the first row's. Tasks on a
    text are called by source and length. Other figures (mean log-likelihoods, calibration) are passed over: which way they are
    better depends on the task.
    """
    found: dict[tuple[str, str], TaskScore] = {}
    for step in ("eval", "perturb"):
        frame = one.run.table(step, "eval/1")
        for row in () if frame is None else frame.iter_rows(named=True):
            if row["intact"] is None or _figure(row["metric"]) not in (*HIGHER, *LOWER):
                continue
            task = row["task"] if row["source"] is None else _on_text(row["task"], row["source"], row["length"])
            intact = row["value"] == row["intact"] and row["stderr"] is not None
            reach = _NORMAL * row["stderr"] if intact else None  # another row's error is that of a changed model
            ends = (None, None) if reach is None else (row["intact"] - reach, row["intact"] + reach)
            found.setdefault((task, row["metric"]), TaskScore(task, row["metric"], row["intact"], *ends))
    if one.damage is not None and (bases := one.damage["ppl_base"].drop_nulls()).len():
        data = one.run.manifests["perturb"].get("data") or {}
        task = _on_text(_TEXTS, data.get("source"), data.get("length"))
        found.setdefault((task, "perplexity"), TaskScore(task, "perplexity", float(bases[0])))
    return list(found.values())


def _on_text(task: str, source: str | None, length: int | None) -> str:
    return f"{task} ({source}, {length} tokens)" if source is not None else task
