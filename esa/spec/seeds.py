"""One named stream of random numbers for every draw, so that no draw can move another."""

import hashlib

import numpy as np


def derive_seed(seed: int, *names: str | int) -> int:
    """Return a 63-bit seed for the stream ``names`` under ``seed``: the first 8 bytes of a sha256, top bit cleared."""
    text = "\x1f".join([str(seed), *(str(name) for name in names)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def generator(seed: int, *names: str | int) -> np.random.Generator:
    """Return a NumPy generator for the stream ``names`` under ``seed``."""
    return np.random.default_rng(derive_seed(seed, *names))
