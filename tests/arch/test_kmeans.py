"""k-means and silhouettes against scikit-learn's."""

import numpy as np
import pytest

from esa.arch.comparison.kmeans import kmeans, silhouette

TRIALS = range(20)


def distances(points: np.ndarray) -> np.ndarray:
    """Return the Euclidean distances of all pairs."""
    return np.sqrt(((points[:, None] - points[None]) ** 2).sum(axis=-1))


def within(points: np.ndarray, labels: np.ndarray) -> float:
    """Return the sum of squared distances to the clusters' means."""
    return sum(
        float(((points[labels == n] - points[labels == n].mean(axis=0)) ** 2).sum()) for n in set(labels.tolist())
    )


def test_clusters_are_as_tight_as_scikit_learns() -> None:
    """Over random points the best of five starts has scikit-learn's inertia within a percent, and all clusters have points."""
    from sklearn.cluster import KMeans

    ratios = []
    for trial in TRIALS:
        points, number = np.random.default_rng(trial).standard_normal((40, 3)), 2 + trial % 5
        labels = kmeans(points, number, 5, np.random.default_rng(trial))
        assert set(labels.tolist()) == set(range(number))
        ratios.append(within(points, labels) / KMeans(number, n_init=5, random_state=trial).fit(points).inertia_)
    assert np.mean(ratios) == pytest.approx(1.0, abs=0.01)


def test_planted_clusters_are_found_and_equal_points_do_no_harm() -> None:
    """Three heaps far apart are the three clusters, however many of their points are equal; the same draws give the same labels."""
    points = np.repeat([[0.0, 0.0], [9.0, 0.0], [0.0, 9.0]], 5, axis=0)
    labels = kmeans(points, 3, 5, np.random.default_rng(0))
    assert [len(set(labels[start : start + 5])) for start in (0, 5, 10)] == [1, 1, 1]
    assert len(set(labels.tolist())) == 3
    assert (labels == kmeans(points, 3, 5, np.random.default_rng(0))).all()


def test_the_silhouette_is_scikit_learns() -> None:
    """The mean silhouette equals scikit-learn's, that of a point alone in its cluster being 0."""
    from sklearn.metrics import silhouette_score

    for trial in TRIALS:
        draw = np.random.default_rng(trial)
        points = draw.standard_normal((15, 2))
        labels = np.concatenate([[0, 1, 2], draw.integers(0, 3, 11), [7]])
        assert silhouette(distances(points), labels) == pytest.approx(silhouette_score(points, labels), abs=1e-12)
