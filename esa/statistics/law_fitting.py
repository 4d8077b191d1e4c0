"""Fit one law to many sets of responses at the same sizes at once: variable projection on a grid, then Levenberg-Marquardt."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from esa.statistics.law_forms import Array, Form

_ITERATIONS = 40
_STEP = 1e-6  # of the central differences; coordinates are of order one
_BLOCK = 2_000_000  # residual sums of squares held at once on the grid: 16 MB


@dataclass(frozen=True)
class Fitted:
    """Least-squares fits of one law to R sets of responses: coordinates ``(R, P)``, residual sums of squares ``(R,)``."""

    coordinates: Array
    rss: Array


def predict(form: Form, x: Array, coordinates: Array) -> Array:
    """Return the response at x ``(M,)`` for coordinates ``(R, P)``: ``(R, M)``."""
    linear, shape = coordinates[:, : form.num_linear], coordinates[:, form.num_linear :]
    found = np.einsum("rml,rl->rm", form.basis(x, shape), linear)
    return np.asarray(found if form.offset is None else found + form.offset(x, shape))


def fit_many(form: Form, x: Array, responses: Array) -> Fitted:
    """Return the least-squares fit of a law to each row of responses ``(R, M)`` at sizes x ``(M,)``.

    On every shape of the grid the linear coordinates have a closed form (variable projection); from the best shape on,
    all coordinates move together by damped Gauss-Newton steps that are taken only where they lower the sum of squares,
    within the bounds. Laws without a shape are solved by the first part alone, exactly.
    Cost: R * G * M multiplications for G shapes: 1,000 rows of 12 sizes take 0.05 to 0.3 s.
    Source: Golub and Pereyra, "The differentiation of pseudo-inverses and nonlinear least squares problems whose
    variables separate", SIAM J. Numerical Analysis 10, 1973.
    """
    start = _on_grid(form, x, responses)
    rss = np.asarray(((responses - predict(form, x, start)) ** 2).sum(axis=1))
    return Fitted(start, rss) if not form.grid.shape[1] else _refined(form, x, responses, start, rss)


def gradient_of(function: Callable[[Array], Array], coordinates: Array) -> Array:
    """Return the derivatives of a function of coordinates ``(R, P)`` to ``(R, V)`` by central differences: ``(R, V, P)``."""
    parts = []
    for axis in range(coordinates.shape[1]):
        ahead, behind = coordinates.copy(), coordinates.copy()
        ahead[:, axis] += _STEP
        behind[:, axis] -= _STEP
        with np.errstate(invalid="ignore"):  # infinite on both sides: NaN, a slope that nobody knows
            parts.append((function(ahead) - function(behind)) / (2 * _STEP))
    return np.stack(parts, axis=-1)


def covariances(form: Form, x: Array, fitted: Fitted) -> Array:
    """Return ``s^2 (J' J)^-1`` of the coordinates, ``s^2 = RSS / (M - P)``: ``(R, P, P)``; NaN where J is singular."""
    jacobian = gradient_of(lambda c: predict(form, x, c), fitted.coordinates)
    normal = np.einsum("rmp,rmq->rpq", jacobian, jacobian)
    count = normal.shape[1]
    found = np.full_like(normal, np.nan)
    size = np.sqrt(np.einsum("rpp->rp", normal))
    usable = np.isfinite(normal).all(axis=(1, 2)) & (size > 0).all(axis=1)
    scaled = normal[usable] / (size[usable][:, :, None] * size[usable][:, None, :])
    kept = np.linalg.cond(scaled) < 1e12
    places = np.flatnonzero(usable)[kept]
    inverse = np.linalg.inv(scaled[kept]) / (size[places][:, :, None] * size[places][:, None, :])
    found[places] = inverse * (fitted.rss[places] / (len(x) - count))[:, None, None]
    return np.asarray(found)


def _on_grid(form: Form, x: Array, responses: Array) -> Array:
    """Return the coordinates of the best shape of the grid for each row."""
    basis = form.basis(x, form.grid)  # (G, M, L)
    offset = np.zeros(basis.shape[:2]) if form.offset is None else form.offset(x, form.grid)
    q, _ = np.linalg.qr(basis)
    complement = np.eye(len(x)) - np.einsum("gml,gnl->gmn", q, q)
    solve = np.linalg.pinv(basis)  # (G, L, M)
    shift = np.einsum("gmn,gn->gm", complement, offset)
    shifts = (shift**2).sum(axis=1)
    picks = np.empty(len(responses), dtype=np.int64)
    rows = max(1, _BLOCK // len(form.grid))
    for first in range(0, len(responses), rows):
        part = responses[first : first + rows]
        explained = (
            ((part @ np.concatenate(np.moveaxis(q, 2, 1))[:, :].T) ** 2).reshape(len(part), len(q), -1).sum(axis=2)
        )
        rss = (part**2).sum(axis=1)[:, None] - explained - 2 * part @ shift.T + shifts
        picks[first : first + rows] = rss.argmin(axis=1)
    linear = np.einsum("rlm,rm->rl", solve[picks], responses - offset[picks])
    return np.column_stack([linear, form.grid[picks]])


def _refined(form: Form, x: Array, responses: Array, coordinates: Array, rss: Array) -> Fitted:
    """Return the fits after Levenberg-Marquardt from the grid's best, every row with its own damping."""
    low = np.concatenate([np.full(form.num_linear, -np.inf), form.low])
    high = np.concatenate([np.full(form.num_linear, np.inf), form.high])
    coordinates, rss = coordinates.copy(), rss.copy()
    damping = np.full(len(rss), 1e-3)
    active = np.arange(len(rss))
    for _ in range(_ITERATIONS):
        here, target = coordinates[active], responses[active]
        jacobian = gradient_of(lambda c: predict(form, x, c), here)
        residual = target - predict(form, x, here)
        # A coordinate that would leave through its bound is held there, or clipping it would spoil the others' step.
        downhill = np.einsum("rmp,rm->rp", jacobian, residual)
        jacobian = np.where(
            ((here <= low) & (downhill < 0) | (here >= high) & (downhill > 0))[:, None, :], 0.0, jacobian
        )
        normal = np.einsum("rmp,rmq->rpq", jacobian, jacobian)
        diagonal = np.einsum("rpp->rp", normal)
        normal += np.eye(normal.shape[1]) * (damping[active][:, None] * diagonal + 1e-12 * (1 + diagonal))[:, :, None]
        step = np.linalg.solve(normal, np.einsum("rmp,rm->rp", jacobian, residual)[:, :, None])[:, :, 0]
        moved = np.clip(here + step, low, high)
        found = ((target - predict(form, x, moved)) ** 2).sum(axis=1)
        better = found < rss[active]
        gained = np.where(better, rss[active] - found, 0.0)
        coordinates[active[better]], rss[active[better]] = moved[better], found[better]
        damping[active] = np.where(better, damping[active] / 5, damping[active] * 8)
        done = np.where(better, gained <= 1e-13 * rss[active], damping[active] > 1e6)
        active = active[~done]
        if not len(active):
            break
    return Fitted(coordinates, rss)
