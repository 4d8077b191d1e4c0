"""How many tokens a model was made for, and what happens beyond."""

from typing import Any

from esa.errors import ModelError
from esa.model.anatomy import text_config
from esa.progress import Progress


def check_context(model: Any, length: int, key: str, progress: Progress) -> None:
    """Refuse or warn of windows longer than the model's ``max_position_embeddings``; ``key`` is the length's spec key.

    A model with a table of learned positions has none beyond it: ModelError. A rotary one computes on, where it was never
    trained: a warning. One whose configuration names no limit passes.
    """
    config = text_config(model)
    most = getattr(config, "max_position_embeddings", None)
    if most is None or length <= most:
        return
    if getattr(config, "rope_parameters", None) is None:
        raise ModelError(
            f"{length:,} tokens are more than the {most:,} positions of the model (max_position_embeddings)", where=key
        )
    progress.warn(
        f"{key}: {length:,} tokens are more than the {most:,} that the model was made for (max_position_embeddings):"
        " it extrapolates"
    )
