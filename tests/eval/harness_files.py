"""Task files of lm-evaluation-harness over local JSON lines, and where reference data lies."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

VARIABLE = "ESA_REFERENCE_DATA"  # a folder with hellaswag_300.jsonl and lambada_500.jsonl
_COMMON = """\
task: {task}
dataset_path: json
dataset_kwargs:
  data_files:
    test: {items}
test_split: test
"""
# The fields of the harness's own tasks hellaswag and lambada_openai, acc_bytes added.
_HELLASWAG = """\
output_type: multiple_choice
doc_to_text: "{{query}}"
doc_to_target: "{{gold}}"
doc_to_choice: choices
metric_list:
  - {metric: acc, aggregation: mean, higher_is_better: true}
  - {metric: acc_norm, aggregation: mean, higher_is_better: true}
  - {metric: acc_bytes, aggregation: mean, higher_is_better: true}
"""
_LAMBADA = """\
output_type: loglikelihood
doc_to_text: "{{text.split(' ')[:-1]|join(' ')}}"
doc_to_target: "{{' '+text.split(' ')[-1]}}"
metric_list:
  - {metric: perplexity, aggregation: perplexity, higher_is_better: false}
  - {metric: acc, aggregation: mean, higher_is_better: true}
"""


def write_lines(path: Path, rows: list[dict[str, Any]]) -> Path:
    """Write rows as JSON lines."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def task_file(folder: Path, kind: str, items: Path) -> Path:
    """Write the harness's task file for items of a kind, hellaswag (preprocessed) or lambada."""
    path = folder / f"tiny_{kind}.yaml"
    body = {"hellaswag": _HELLASWAG, "lambada": _LAMBADA}[kind]
    path.write_text(_COMMON.format(task=f"tiny_{kind}", items=items) + body, encoding="utf-8")
    return path


def reference(name: str) -> Path:
    """Return a file of reference data, or skip, naming what is missing."""
    folder = os.environ.get(VARIABLE)
    if not folder:
        pytest.skip(f"{VARIABLE} names no folder with {name}")
    path = Path(folder) / name
    if not path.is_file():
        pytest.skip(f"{VARIABLE} holds no {name}")
    return path


def first_rows(path: Path, number: int) -> list[dict[str, Any]]:
    """Return the first rows of a file of JSON lines."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()[:number]]
