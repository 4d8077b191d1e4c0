"""Predict what evaluations hold at their peak, term by term."""

from esa.eval.combinations import combinations
from esa.model.footprint import Footprint
from esa.spec import Spec

_CHUNK_COPIES = 5 * 32 * 4  # float32 copies of 32 positions' probabilities


def memory_terms(spec: Spec, model: Footprint, *, remembers: bool) -> dict[str, int]:
    """Return the bytes beyond the base and the weights: a batch's logits, and what comparisons keep of the intact model.

    Without comparisons it is ``esa eval``, and its longest windows bind.
    """
    tokens = spec.eval.windows * spec.eval.length
    longest = spec.eval.length if remembers else max(each.section.length for each in combinations(spec))
    batch = min(tokens, max(longest, spec.eval.batch_tokens))
    terms = {"batch": batch * model.vocabulary * model.item_bytes * 2 + model.vocabulary * _CHUNK_COPIES}
    if remembers:
        terms["intact states"] = tokens * model.hidden_size * (model.num_blocks + 1) * model.item_bytes
        terms["intact logits"] = tokens * model.vocabulary * model.item_bytes
    return terms
