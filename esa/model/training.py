"""How far a model was trained, as the files beside its weights say."""

import math
import re
from pathlib import Path
from typing import Any

from esa.artifact import read_json
from esa.errors import ModelError
from esa.model.sources import ModelSource

TRAINING, TRAINER = "training.json", "trainer_state.json"
# Pythia's step1000, OLMo's step1000-tokens4B, OLMo-2's stage1-step1000-tokens5B; the steps of a second stage start anew.
_STEP = re.compile(r"(?:stage1-)?step[-_]?(\d+)(?!\d)")
_COUNTS = ("step", "num_tokens", "seed")
_LOSSES = ("train_nll", "held_out_nll", "unigram_nll", "bigram_nll")


def training_facts(source: ModelSource, revision: str | None) -> dict[str, Any]:
    """Return what is known of a model's training: ``step``, ``num_tokens``, ``seed``, and losses in nats per token.

    Of a local folder ``training.json`` (as scripts/train_family.py writes it) speaks, else ``trainer_state.json`` (as the
    Trainer of transformers does: its ``global_step`` and ``num_input_tokens_seen``); of a hub model a revision named
    ``step1000``. Empty where none of them is there: most models. Raises ArtifactError for a file that cannot be
    read as JSON, ModelError for a value that is no such number.
    """
    if not source.local:
        named = _STEP.match(revision or "")
        return {"step": int(named[1])} if named else {}
    folder = Path(source.location)
    if (path := folder / TRAINING).is_file():
        content = read_json(path)
        return {
            key: content[key] for key in (*_COUNTS, *_LOSSES) if _number(path, key, content.get(key), key in _COUNTS)
        }
    if (path := folder / TRAINER).is_file():
        content = read_json(path)
        names = {"global_step": "step", "num_input_tokens_seen": "num_tokens"}
        found = {new: content[key] for key, new in names.items() if _number(path, key, content.get(key), whole=True)}
        return {key: value for key, value in found.items() if key == "step" or value}  # 0: the Trainer did not count
    return {}


def _number(path: Path, key: str, value: Any, whole: bool) -> bool:
    """Tell whether there is a value. Raises ModelError where it is no number of its kind."""
    kinds = int if whole else int | float
    usable = not isinstance(value, bool) and isinstance(value, kinds) and math.isfinite(value)
    if value is not None and not usable:
        what = "a whole number" if whole else "a finite number, or null where training diverged"
        raise ModelError(f"{key} is {value!r}; allowed: {what}", where=str(path))
    return value is not None
