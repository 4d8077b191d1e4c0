"""k-means of a few hundred points, all its starts at once, and silhouettes: a permutation test refits them hundreds of times."""

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
_MOST_STEPS = 300  # of Lloyd's algorithm; a few hundred points settle in ten


def kmeans(points: Array, number: int, starts: int, draw: np.random.Generator) -> Ints:
    """Return the cluster of each point ``(n,)``: of several starts the one of the least sum of squared distances to the centres.

    k-means++, then Lloyd's algorithm until no point changes its cluster; a centre that lost all its points stays where it was.
    Shapes: points ``(n, d)`` with at least ``number`` distinct ones. Cost: starts * steps * n * number * d numbers.
    Source: Lloyd, "Least squares quantization in PCM", IEEE Trans. Information Theory 28, 1982; Arthur and Vassilvitskii,
    "k-means++: the advantages of careful seeding", SODA 2007 (one candidate per centre).
    """
    centres = _seeded(points, number, starts, draw)
    labels = np.full((starts, len(points)), -1)
    for _ in range(_MOST_STEPS):
        apart = ((points[None, :, None] - centres[:, None]) ** 2).sum(axis=-1)  # (starts, n, number)
        found = apart.argmin(axis=2)
        if (found == labels).all():
            break
        labels = found
        member = (labels[:, :, None] == np.arange(number)).astype(float)
        sizes = member.sum(axis=1)[:, :, None]
        centres = np.where(sizes > 0, member.transpose(0, 2, 1) @ points / np.maximum(sizes, 1), centres)
    inertia = ((points[None] - np.take_along_axis(centres, labels[:, :, None], axis=1)) ** 2).sum(axis=(1, 2))
    best: Ints = labels[int(inertia.argmin())].astype(np.int64)
    return best


def _seeded(points: Array, number: int, starts: int, draw: np.random.Generator) -> Array:
    """Return ``(starts, number, d)`` centres: each next one a point drawn by its squared distance to the nearest so far."""
    picks = draw.integers(0, len(points), starts)
    centres = points[picks][:, None]
    nearest = ((points[None] - centres) ** 2).sum(axis=-1)  # (starts, n)
    for _ in range(number - 1):
        edges = nearest.cumsum(axis=1)
        places = (edges <= draw.random(starts)[:, None] * edges[:, -1:]).sum(axis=1)
        chosen = points[np.minimum(places, len(points) - 1)][:, None]
        centres = np.concatenate([centres, chosen], axis=1)
        nearest = np.minimum(nearest, ((points[None] - chosen) ** 2).sum(axis=-1))
    return centres


def silhouette(apart: Array, labels: Ints) -> float:
    """Return the mean silhouette ``(b - a) / max(a, b)`` from the distances ``(n, n)`` of points in two clusters or more.

    a: a point's mean distance to the others of its cluster, b: that to the nearest other cluster; 0 for a point alone in its.
    Source: Rousseeuw, "Silhouettes", J. Comput. Appl. Math. 20, 1987.
    """
    member = (labels[:, None] == np.unique(labels)).astype(float)  # (n, clusters)
    sizes, own = member.sum(axis=0), member.astype(bool)
    sums = apart @ member
    mine = sizes[own.argmax(axis=1)]
    a = sums[own] / np.maximum(mine - 1, 1)
    b = np.where(own, np.inf, sums / sizes).min(axis=1)
    larger = np.maximum(a, b)
    each = np.divide(b - a, larger, out=np.zeros(len(labels)), where=(mine > 1) & (larger > 0))
    return float(each.mean())
