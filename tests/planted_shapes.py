"""The weight tensors of a planted model, named and shaped as a Llama's or a Mixtral's."""

from typing import NamedTuple


class Parameter(NamedTuple):
    """A weight tensor of a planted model; ``expert_axis`` is 0 where the experts lie on top of each other."""

    name: str
    shape: tuple[int, ...]
    block: int | None
    component: str
    expert_axis: int | None = None


def parameters_of(
    blocks: int, width: int, inner: int, vocabulary: int, num_experts: int | None, *, tied: bool
) -> list[Parameter]:
    """Return the weight matrices in the order of named_parameters; experts lie on top of each other in one tensor."""
    d, m = width, inner
    found = [Parameter("model.embed_tokens.weight", (vocabulary, d), None, "embed")]
    for b in range(blocks):
        at = f"model.layers.{b}."
        found += [Parameter(f"{at}self_attn.{p}_proj.weight", (d, d), b, f"attn.{p}") for p in "qkvo"]
        if num_experts:
            up, down = (num_experts, 2 * m, d), (num_experts, d, m)
            found += [
                Parameter(f"{at}mlp.gate.weight", (num_experts, d), b, "router"),
                Parameter(f"{at}mlp.experts.gate_up_proj", up, b, "expert.gate_up", expert_axis=0),
                Parameter(f"{at}mlp.experts.down_proj", down, b, "expert.down", expert_axis=0),
            ]
        else:
            found += [Parameter(f"{at}mlp.{p}_proj.weight", (m, d), b, f"mlp.{p}") for p in ("gate", "up")]
            found.append(Parameter(f"{at}mlp.down_proj.weight", (d, m), b, "mlp.down"))
    if not tied:
        found.append(Parameter("lm_head.weight", (vocabulary, d), None, "lm_head"))
    return found
