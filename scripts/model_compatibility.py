#!/usr/bin/env python3
"""Build every causal language model that transformers knows, tiny and random, and print what esa can do with it.

    python scripts/model_compatibility.py                          every type: about seven minutes on one core
    python scripts/model_compatibility.py --type llama mixtral     some of them
    python scripts/model_compatibility.py --markdown > table.md    the table of the README; --json FILE keeps every line

One line per type: which checks it passes, and why it fails the others:
build:      a configuration is shrunk by the names of its numbers, and the model made from it
prepare:    esa finds its blocks, and their chain gives the model's logits bit for bit; a model that is not causal is refused
gradients:  streamed block by block they equal loss.backward() bit for bit
act_mag:    every linear map has the score that a hook on its module gives, weight by weight
components: every matrix that multiplies an activation has a component of its own
A type that only reads to the left when told so is built with is_decoder = true, and says so. Every type runs in a process
of its own, with a time limit; one whose shrunk configuration is still over --largest weights (counted on the meta device) is
skipped with that reason. The last line has the totals. ``small_configurations.py`` beside this file shrinks configurations.
"""

import argparse
import contextlib
import json
import multiprocessing
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from small_configurations import VARIANTS, VOCABULARY, configuration

CHECKS = ("build", "prepare", "gradients", "act_mag", "components")


@dataclass
class Line:
    """What became of one type: the checks that it passed, why the next one failed, and what is worth knowing."""

    type: str
    passed: list[str] = field(default_factory=list)
    reason: str = ""
    num_weights: int = 0
    unreached: int = (
        0  # matrices that no gradient reaches: towers beside the decoder, cross-attention without an encoder
    )
    is_decoder: bool = False
    notes: list[str] = field(default_factory=list)
    other: list[str] = field(default_factory=list)

    @property
    def complete(self) -> bool:
        """Tell whether every check was passed."""
        return len(self.passed) == len(CHECKS)


def examine(model_type: str, largest: int) -> Line:
    """Return the best line of all variants of a type's configuration, and as a decoder where it is none by itself."""
    best, first = Line(model_type), None
    for as_decoder in (False, True):
        for changes in VARIANTS:
            line = attempt(model_type, {**changes, **({"is_decoder": True} if as_decoder else {})}, largest)
            first = first or line
            if len(line.passed) > len(best.passed) or not best.reason:
                best = line
            if "prepare" in best.passed or _refused(best):
                break
        if best.complete or not _refused(best):
            break
        if not as_decoder:
            refused, best = best, Line(model_type)
    if best.is_decoder and not best.complete and len(best.passed) < 2:
        return refused
    return best


def _refused(line: Line) -> bool:
    """Tell whether a type wants to be told that it is a decoder."""
    return "not a causal" in line.reason or "is_decoder" in line.reason


def attempt(model_type: str, changes: dict[str, Any], largest: int) -> Line:
    """Return the line of one small configuration."""
    import torch
    from transformers import AutoModelForCausalLM

    line = Line(model_type, is_decoder=bool(changes.get("is_decoder")))
    try:
        config = configuration(model_type, {k: v for k, v in changes.items() if k != "is_decoder"})
        if line.is_decoder:
            config.is_decoder = True
        with torch.device("meta"):
            line.num_weights = sum(p.numel() for p in AutoModelForCausalLM.from_config(config).parameters())
        if line.num_weights > largest:
            raise ValueError(f"{line.num_weights:,} weights in the smallest configuration that was tried: skipped")
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
        line.passed.append("build")
        check(model, line)
    except Exception as error:
        line.reason = said(error)
    return line


def check(model: Any, line: Line) -> None:
    """Run every check in turn, and note what was passed. Raises what the first that fails raises."""
    import torch

    from esa.model import eligible, prepare
    from esa.spec import spec_from_dict

    loaded = prepare(model, None, spec_from_dict({"name": "x", "model": {"id": "x"}}).model, torch.device("cpu"))
    line.passed.append("prepare")
    draw = torch.Generator().manual_seed(1)
    windows = [torch.randint(1, VOCABULARY - 1, (1, length), generator=draw) for length in (12, 9)]
    chosen = eligible(loaded.table)
    scored: set[str] = set()
    for name, examined in (
        ("gradients", lambda: check_gradients(loaded, windows, chosen, line)),
        ("act_mag", lambda: scored.update(check_act_mag(loaded, windows, chosen, line))),
        ("components", lambda: check_components(chosen, scored, line)),
    ):
        try:
            examined()
            line.passed.append(name)
        except Exception as error:
            line.reason = "; ".join([*([line.reason] if line.reason else []), said(error)])


def check_components(chosen: dict[str, Any], scored: set[str], line: Line) -> None:
    """Raise ValueError, naming them, for matrices that multiply activations and have no component."""
    line.other = sorted({spelled(name) for name, info in chosen.items() if info.component == "other"})
    nameless = sorted({spelled(name) for name in scored if chosen[name].component == "other"})
    if nameless:
        raise ValueError(f"no component for {', '.join(nameless)}")


def said(error: Exception) -> str:
    """Return an error in short."""
    lines = [part.strip() for part in str(error).splitlines() if part.strip()] or [""]
    text = lines[-1] if lines[0].startswith("Class validation error") else lines[0]
    return (text if type(error).__name__ in ("ModelError", "ValueError") else f"{type(error).__name__}: {text}")[:200]


def spelled(name: str) -> str:
    """Return the last two parts of a parameter's name that are no numbers and not its last, weight."""
    parts = [part for part in name.removesuffix(".weight").split(".") if not part.isdecimal()]
    return ".".join(parts[-2:])


def check_gradients(loaded: Any, windows: list[Any], chosen: dict[str, Any], line: Line) -> None:
    """Raise ValueError unless the streamed gradients are those of loss.backward(); note what no gradient reaches."""
    import torch

    from esa.progress import Silent
    from esa.score.labels import window_loss
    from esa.score.streaming import Window, backward_pass

    plain = []
    for ids in windows:
        loaded.model.zero_grad()
        window_loss(loaded.model(input_ids=ids, use_cache=False).logits, ids).backward()
        plain.append({name: p.grad.clone() for name, p in loaded.parameters().items() if p.grad is not None})
    loaded.model.zero_grad()
    reached = {name: info for name, info in chosen.items() if any(name in each for each in plain)}
    if len(reached) < len(chosen):
        line.unreached = len(chosen) - len(reached)
        line.notes.append(
            f"no gradient reaches {line.unreached} of {len(chosen)} matrices: leave them out with score.exclude"
        )
    found = [{name: torch.zeros(info.shape) for name, info in reached.items()} for _ in windows]

    def keep(name: str, window: int, draw: int, gradient: Any, rows: Any) -> None:
        into = found[window][name]
        into[slice(None) if rows is None else rows] += gradient

    numbered = [Window(number, ids) for number, ids in enumerate(windows)]
    backward_pass(loaded, numbered, reached, None, keep, lambda names: None, Silent())
    for each, truth in zip(found, plain, strict=True):
        for name, gradient in each.items():
            wanted = truth.get(name, torch.zeros_like(gradient))
            if not (gradient.isnan().equal(wanted.isnan()) and gradient.nan_to_num().equal(wanted.nan_to_num())):
                raise ValueError(f"{name}: {(gradient - wanted).abs().max():.3g} apart")


def check_act_mag(loaded: Any, windows: list[Any], chosen: dict[str, Any], line: Line) -> set[str]:
    """Raise ValueError unless act_mag is what hooks on the modules give; return what it scores."""
    import torch
    from torch import nn
    from transformers.pytorch_utils import Conv1D

    from esa.data import TokenWindows
    from esa.progress import Silent
    from esa.score.engine import Engine, load_metrics

    names = {id(parameter): name for name, parameter in loaded.parameters().items()}
    sums: dict[str, Any] = {}
    tokens = sum(ids.numel() for ids in windows)

    def watch(module: Any, args: tuple[Any, ...]) -> None:
        name, weight = names.get(id(module.weight)), module.weight.detach()
        if name is None or not args or not isinstance(args[0], torch.Tensor):
            return
        if isinstance(module, nn.Embedding):
            x = nn.functional.one_hot(args[0].reshape(-1), len(weight)).double()
        else:
            x = args[0].detach().reshape(-1, args[0].shape[-1]).double()
        pattern = "td,do->do" if isinstance(module, nn.Embedding | Conv1D) else "td,od->od"
        sums[name] = sums.get(name, 0) + torch.einsum(pattern, x.abs(), weight.double().abs()) / tokens

    plain = {
        kind.forward for kind in (nn.Linear, Conv1D, nn.Embedding)
    }  # a subclass with a forward of its own changes its input
    linear = [
        module for module in loaded.model.modules() if type(module).forward in plain and hasattr(module, "weight")
    ]
    hooks = [module.register_forward_pre_hook(watch) for module in linear]
    with torch.no_grad():
        for ids in windows:
            loaded.model(input_ids=ids, use_cache=False)
    for (
        module
    ) in loaded.model.modules():  # what is used elsewhere too, such as a tied table that is scaled, was seen in part
        if module not in linear and names.get(id(getattr(module, "weight", None))) in sums:
            del sums[names[id(module.weight)]]
    for hook in hooks:
        hook.remove()
    found: dict[str, Any] = {}

    def emit(metric: Any, info: Any, weight: Any, scores: Any, usage: Any) -> None:
        if info.name in found:
            raise ValueError(f"{info.name} was scored twice")
        found[info.name] = scores.score

    ids = tuple(tuple(window[0].tolist()) for window in windows)
    text = TokenWindows(ids, "drawn", "lines", 12, False, len(ids), 0)
    Engine(loaded, chosen, load_metrics(["act_mag"]), emit, Silent()).run(text, 0)
    for name in chosen:
        if name in sums and name not in found:
            raise ValueError(f"{name} multiplies activations and has no score")
        if name in sums and not torch.allclose(found[name].double(), sums[name], rtol=1e-4, atol=1e-6):
            raise ValueError(f"{name}: act_mag is {(found[name] - sums[name]).abs().max():.3g} off the hooks")
    if len(found) < len(chosen):
        line.notes.append(f"act_mag scores {len(found)} of {len(chosen)} matrices")
    return set(found)


def survey(types: list[str], largest: int, seconds: int) -> Iterator[Line]:
    """Yield the line of every type, each examined in a process of its own that is ended when its time is up."""
    import transformers

    import esa.model
    import esa.score.engine  # before the processes part, so that none of them imports it again

    assert esa.score.engine.Engine
    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()
    context = multiprocessing.get_context("fork")
    for model_type in types:
        ours, theirs = context.Pipe(duplex=False)
        process = context.Process(target=_report, args=(theirs, model_type, largest))
        process.start()
        theirs.close()
        try:
            line = ours.recv() if ours.poll(seconds) else Line(model_type, reason=f"no answer in {seconds} s")
        except EOFError:
            line = Line(model_type, reason="its process died")
        process.kill()
        process.join()
        yield line


def _report(pipe: Any, model_type: str, largest: int) -> None:
    import torch

    torch.set_num_threads(1)
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stderr(nowhere):
        pipe.send(examine(model_type, largest))


def text_of(line: Line) -> str:
    """Return the one line that a person reads."""
    marks = " ".join(f"{name}:{'ok' if name in line.passed else '--'}" for name in CHECKS)
    told = [*(["with is_decoder = true"] if line.is_decoder else []), *line.notes]
    return f"{line.type:<26} {marks}  {'; '.join([line.reason, *told] if line.reason else told)}".rstrip()


GROUPS: tuple[tuple[str, Callable[[Line], bool]], ...] = (
    ("every check", lambda line: line.complete and not line.unreached),
    ("every check on what a gradient reaches; metrics of gradients need `score.exclude` for the rest (encoders, towers)",
     lambda line: line.complete),
    ("every check but names: some matrices are `other`", lambda line: {*CHECKS} - {*line.passed} == {"components"}),
    ("activations, no gradients: the blocks read the embedding apart from the hidden state",
     lambda line: "arguments depend" in line.reason and "act_mag" in line.passed),
    ("prepared, not exact", lambda line: "prepare" in line.passed),
    ("refused: not causal", lambda line: "not a causal" in line.reason),
    ("refused: no chain of blocks, or its forward needs more than tokens", lambda line: "build" in line.passed),
    ("not built", lambda line: True),
)  # fmt: skip


def markdown(lines: list[Line]) -> str:
    """Return the lines as a table: what came out, how often, and the types; with the reason where it differs."""
    rows = ["| outcome | types | |", "|---|---|---|"]
    left = list(lines)
    for title, belongs in GROUPS:
        group, left = [line for line in left if belongs(line)], [line for line in left if not belongs(line)]
        if group:
            names = (f"{line.type}*" if line.is_decoder else line.type for line in group)
            rows.append(f"| {title} | {len(group)} | {', '.join(names)} |")
    return "\n".join([*rows, "", "\\* with `is_decoder = true`."])


def main() -> None:
    """Examine the chosen types and print what came out."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    known = sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--type", nargs="+", metavar="TYPE", choices=known, help="model types; all of them by default")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every line as JSON")
    parser.add_argument("--markdown", action="store_true", help="print a table on stdout, the lines on stderr")
    parser.add_argument("--seconds", type=int, default=60, help="time for one type (60)")
    parser.add_argument(
        "--largest", type=int, default=6_000_000, metavar="N", help="weights of the largest model to build (6,000,000)"
    )
    given = parser.parse_args()
    lines = []
    for line in survey(given.type or known, given.largest, given.seconds):
        lines.append(line)
        print(text_of(line), file=sys.stderr if given.markdown else sys.stdout, flush=True)
    totals = ", ".join(f"{name} {sum(name in line.passed for line in lines)}" for name in CHECKS)
    print(f"{len(lines)} types: {totals}", file=sys.stderr if given.markdown else sys.stdout)
    if given.markdown:
        print(markdown(lines))
    if given.json:
        given.json.write_text(json.dumps([asdict(line) for line in lines], indent=1) + "\n")


if __name__ == "__main__":
    main()
