"""Predict what evaluations hold at their peak, term by term, and share the room that hidden states have."""

from esa.eval.combinations import combinations
from esa.model.footprint import BASE_BYTES, Footprint
from esa.spec import Spec

TOGETHER = 8  # edits compared at once: they share the intact model's head, and a killed campaign loses as many
WAVE_BYTES = 1 << 28  # of the hidden states that go through the blocks of a model in memory together
_PROBABILITIES = 4 * 4 * (1 << 19)  # float32 copies of those computed at once


def memory_terms(spec: Spec, model: Footprint, memory: int, *, remembers: bool) -> dict[str, int]:
    """Return the bytes beyond the base and the weights: a batch's logits, and the hidden states between the blocks.

    ``memory``: the bytes that the step may take (``esa.model.room``). Without comparisons it is ``esa eval``, and its longest
    windows bind. With them: the final states, the boundary that is swept, the kept ones, and the states of the edits that are
    compared together; the last two are as many as fit.
    """
    terms = {"batch": _batch_bytes(spec, model, remembers=remembers)}
    tokens = spec.eval.windows * spec.eval.length
    state = tokens * model.hidden_size * model.item_bytes
    room = states_room(spec, model, memory, remembers=remembers)
    if remembers:
        together, num_kept = share_room(room, state, model.num_blocks)
        terms["intact states"] = state * (2 + num_kept)
        terms["edits"] = state * together
    else:
        terms["wave"] = min(state, room)
    return terms


def predicted_peak(spec: Spec, model: Footprint, memory: int, *, remembers: bool) -> int:
    """Return the bytes that an evaluation holds at its peak, with the model's and the program's."""
    return BASE_BYTES + model.weight_bytes + sum(memory_terms(spec, model, memory, remembers=remembers).values())


def states_room(spec: Spec, model: Footprint, memory: int, *, remembers: bool) -> int:
    """Return the bytes that ``memory`` leaves to hidden states; without comparisons only those that save something."""
    fixed = BASE_BYTES + model.weight_bytes + _batch_bytes(spec, model, remembers=remembers)
    left = max(0, memory - fixed)
    return left if remembers or model.on_disk else min(left, WAVE_BYTES)  # a large wave only saves reading blocks


def share_room(room: int | None, state_bytes: int, num_starts: int) -> tuple[int, int]:
    """Return how many edits to compare at once, and of how many blocks to keep the intact input.

    ``state_bytes``: of all tokens' hidden states at one boundary. Two of them, the end and the sweep, are always held. Edits
    come first: together they save the intact model's head per edit, a kept input saves some blocks once.
    """
    if room is None:
        return TOGETHER, num_starts
    fitting = room // state_bytes - 2
    together = min(max(fitting, 1), TOGETHER)
    return together, min(max(fitting - together, 0), num_starts)


def _batch_bytes(spec: Spec, model: Footprint, *, remembers: bool) -> int:
    """Return the bytes of a batch's logits, the intact model's beside the changed one's where they are compared."""
    tokens = spec.eval.windows * spec.eval.length
    longest = spec.eval.length if remembers else max(each.section.length for each in combinations(spec))
    batch = min(tokens, max(longest, spec.eval.batch_tokens))
    logits = batch * model.vocabulary * model.item_bytes
    return logits * (1 + remembers) + _PROBABILITIES
