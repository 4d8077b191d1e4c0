"""What a tensor does in a block, in words that every family shares: what one stores fused, another stores apart."""

import polars as pl

ROLES = {
    "embed": "vocabulary", "lm_head": "vocabulary",  # one tensor where they are tied
    "attn.q": "attention in", "attn.k": "attention in", "attn.v": "attention in", "attn.qkv": "attention in",
    "attn.o": "attention out",
    "mlp.gate": "mlp in", "mlp.up": "mlp in", "mlp.gate_up": "mlp in",
    "expert.gate": "mlp in", "expert.up": "mlp in", "expert.gate_up": "mlp in",
    "mlp.down": "mlp out", "expert.down": "mlp out",
    "router": "router", "norm": "norm",
}  # fmt: skip
OTHER = "other"
ATTENTION, MLP = ("attention in", "attention out"), ("mlp in", "mlp out")


def with_role(frame: pl.DataFrame) -> pl.DataFrame:
    """Return the frame with the column ``role`` of its column ``component``."""
    role = pl.col("component").replace_strict(ROLES, default=OTHER, return_dtype=pl.String)
    return frame.with_columns(role.fill_null(OTHER).alias("role"))
