"""A tiny Llama whose super weights and eraser are planted, and text that it writes itself: what zeroing must do is known."""

from pathlib import Path

import torch

from esa.model import LoadedModel, prepare
from esa.spec import Spec
from tests.conftest import build, make_tokenizer, tiny_spec

LENGTH, WINDOWS = 16, 40
CHANNEL = 5  # of the residual stream, that all of them write to
FIRST, LATE = "model.layers.1.mlp.down_proj.weight", "model.layers.2.mlp.down_proj.weight"
WRITER, TWIN, ERASER = f"{FIRST}:{CHANNEL},7", f"{FIRST}:{CHANNEL},9", f"{LATE}:{CHANNEL},3"
LARGE = 1e7  # so that the eraser never takes more than there is, whatever the token


def planted(*, twin: bool = False, eraser: bool = False) -> LoadedModel:
    """Return a tiny Llama with a weight that writes a massive activation, on which its predictions depend.

    ``twin``: a second such weight that reads the same number: the final norm takes one of them away without a trace, and
    both of them not. ``eraser``: a late weight that takes a part of the activation away, which the norm undoes.
    """
    model = build("llama")
    first, late = model.model.layers[1].mlp, model.model.layers[2].mlp
    with torch.no_grad():
        first.down_proj.weight[CHANNEL, 7] = LARGE
        model.lm_head.weight *= 5  # sure of what comes next
        if twin:
            first.down_proj.weight[CHANNEL, 9] = LARGE
            for projection in (first.gate_proj, first.up_proj):
                projection.weight[9] = projection.weight[7]
        if eraser:
            for projection in (late.gate_proj, late.up_proj):
                projection.weight[3] = 0
                projection.weight[3, CHANNEL] = 1.0
            late.down_proj.weight[CHANNEL, 3] = -10.0
    return prepare(model, make_tokenizer(), tiny_spec().model, torch.device("cpu"))


def write_text(loaded: LoadedModel, path: Path) -> Path:
    """Write windows of text that the model samples from itself: nobody predicts it better."""
    draw = torch.Generator().manual_seed(0)
    ids = torch.randint(1, 96, (WINDOWS, 1), generator=draw)
    with torch.no_grad():
        while ids.shape[1] < LENGTH:
            logits = loaded.model(input_ids=ids, use_cache=False).logits[:, -1]
            logits[:, 0] = -torch.inf  # the token without a letter
            ids = torch.cat([ids, torch.multinomial(logits.softmax(-1), 1, generator=draw)], dim=1)
    path.write_text("".join(chr(token + 31) for token in ids.reshape(-1).tolist()), encoding="utf-8")
    return path


def spec_on(text: Path, **sections: object) -> Spec:
    """Return a spec that scores by super_activation and evaluates on the model's own text."""
    own = {"source": f"file:{text}", "windows": WINDOWS, "length": LENGTH, "bos": False}
    score = {"metrics": ["super_activation"], "rounds": 10}
    return tiny_spec(
        **{"eval": own, "score": score, "calibration": {"windows": 6, "length": 12}, "rank": {"k": [1]}, **sections}
    )
