"""The regression of one layer: ridge towards the weights it has, then a few steps through its activation.

With the rows ``X [G, R, K]`` of the layer's own input and the teacher's values ``T [G, R, O / G]`` of its
output,

    minimise  |X W + b + s - T|^2 + lambda |W - W0|^2,        lambda = ridge * mean diagonal of X'X

(centred, so that the bias is free; ``s`` is the other branch of a residual sum, or 0) has the solution
``W0 + (X'X + lambda I)^-1 X' (T - X W0 - b0 - s)``. Where an activation ``f`` follows, what counts is
``|f(X W + b + s) - f(T)|^2``. Each further step replaces the residual by its gradient
``f'(Z) (f(T) - f(Z)) / max |f'|^2`` and solves with the same matrix: a Gauss-Newton method with the curvature
bounded from above, whose every step costs two matrix products. Steps that do not lower the error are halved.

Part of the rows is held out: it decides on ``lambda`` and on how far to go from the old weights to the new
ones, and not at all where that does not lower its error.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from edgekit.prune.refit_activation import Activation

Array = np.ndarray[Any, Any]
_CHUNK = 4096
#: Shares of the way from the old weights to the new ones that are tried on the held-out rows.
BLENDS = (1.0, 0.75, 0.5, 0.25)
#: Errors below this share of the variance are rounding; nothing is gained by fitting them.
NEGLIGIBLE = 1e-9


@dataclass(frozen=True)
class Rows:
    """What a layer sees and what it should give.

    Attributes:
        x: Input, float32 ``[G, R, K]``.
        target: The teacher's values, which ``x W + b`` plus the other branch should give, float32
            ``[G, R, O / G]``.
        offset: The other branch, ``[G, R, O / G]``; None where there is none.
        held: Rows that are held out, bool ``[R]``.
    """

    x: Array
    target: Array
    offset: Array | None
    held: Array


@dataclass(frozen=True)
class Solution:
    """Weights of a layer.

    Attributes:
        weight: ``[G, K, O / G]``.
        bias: ``[G, 1, O / G]``.
        before: Error with the old weights on the held-out rows, behind the activation, over the variance.
        after: Error with these.
        ridge: The ridge that was chosen.
        blend: 1 where the fit was taken as it is, 0 where the old weights stayed.
    """

    weight: Array
    bias: Array
    before: float
    after: float
    ridge: float
    blend: float


@dataclass(frozen=True)
class Parameters:
    """What to start from.

    Attributes:
        weight: ``[G, K, O / G]``, float64.
        bias: ``[G, 1, O / G]``, float64.
        mask: Weights that may differ from 0, bool, of ``weight``'s shape; None for all.
        free_bias: The layer has a bias, or can be given one.
    """

    weight: Array
    bias: Array
    mask: Array | None
    free_bias: bool


def solve(
    rows: Rows, start: Parameters, activation: Activation, ridges: Sequence[float], steps: int
) -> Solution:
    """Fit a layer.

    Ridge and blend are found with the held-out rows left out, and the layer stays as it is where those are
    not better off. Then it is fitted with that ridge to all rows.
    """
    held = _Part(rows, rows.held, activation)
    old = held.z(start.weight, start.bias)
    before = held.error(old)
    unchanged = Solution(start.weight, start.bias, before, before, float(ridges[0]), 0.0)
    if before < NEGLIGIBLE:
        return unchanged
    problem = _Problem(_Part(rows, ~rows.held, activation), start)
    tried = {ridge: problem.linear(ridge) for ridge in ridges}
    errors = {ridge: held.error(held.z(*found)) for ridge, found in tried.items()}
    ridge = min(ridges, key=lambda r: errors[r] if np.isfinite(errors[r]) else np.inf)
    found = problem.through_activation(*tried[ridge], ridge, steps)
    way = held.z(*found) - old
    blends = {t: held.error(old + np.float32(t) * way) for t in BLENDS}
    blend = min(blends, key=lambda t: blends[t])
    if not blends[blend] < before:
        return unchanged
    if not rows.held.all():
        whole = _Problem(_Part(rows, np.ones_like(rows.held), activation), start)
        found = whole.through_activation(*whole.linear(ridge), ridge, steps)
    return Solution(
        weight=start.weight + blend * (found[0] - start.weight),
        bias=start.bias + blend * (found[1] - start.bias),
        before=before,
        after=blends[blend],
        ridge=ridge,
        blend=blend,
    )


class _Part:
    """Some of the rows."""

    def __init__(self, rows: Rows, chosen: Array, activation: Activation) -> None:
        self.f = activation
        whole = bool(chosen.all())
        self.x = rows.x if whole else rows.x[:, chosen]
        self.target = rows.target if whole else rows.target[:, chosen]
        self.offset = rows.offset if whole or rows.offset is None else rows.offset[:, chosen]
        self.goal = activation.value(self.target)
        self.spread = max(float(self.goal.var(1, dtype=np.float64).mean()), 1e-12)

    def z(self, weight: Array, bias: Array) -> Array:
        """Pre-activations, float32 ``[G, R, O / G]``."""
        z = self.x @ weight.astype(np.float32)
        z += bias.astype(np.float32)
        if self.offset is not None:
            z += self.offset
        return np.asarray(z)

    def error(self, z: Array) -> float:
        """Squared error behind the activation over the variance of the teacher's values there."""
        return _square(self.f.value(z) - self.goal) / self.spread


class _Problem:
    def __init__(self, part: _Part, start: Parameters) -> None:
        self.part, self.start, self.f = part, start, part.f
        self.x, self.count = part.x, part.x.shape[1]
        self._normal()
        self._inverses: dict[float, Array] = {}
        self._linear = self._right(part.target - part.z(start.weight, start.bias))

    def linear(self, ridge: float) -> tuple[Array, Array]:
        """Ridge regression on the pre-activations."""
        weight, bias = self._direction(*self._linear, ridge)
        return self.start.weight + weight, self.start.bias + bias

    def through_activation(self, weight: Array, bias: Array, ridge: float, steps: int) -> tuple[Array, Array]:
        """Go on from a linear fit by steps on the error behind the activation."""
        if self.f.name == "identity":
            return weight, bias
        part, step = self.part, 1.0 / self.f.steepest**2
        z = part.z(weight, bias)
        missing = part.goal - self.f.value(z)
        error = _square(missing)
        for _ in range(steps):
            if error < NEGLIGIBLE * part.spread:
                break
            right, mean = self._right(self.f.slope(z) * missing)
            right += (ridge * self.scale)[:, None, None] * (self.start.weight - weight)
            move_w, move_b = self._direction(right, mean, ridge)
            moved = part.z(weight + step * move_w, bias + step * move_b)
            moved_missing = part.goal - self.f.value(moved)
            found = _square(moved_missing)
            if not found < error:
                step /= 2
                continue
            weight, bias = weight + step * move_w, bias + step * move_b
            gain, error, z, missing = error - found, found, moved, moved_missing
            if gain < 0.005 * error:
                break
        return weight, bias

    def _normal(self) -> None:
        """Centred normal matrix ``[G, K, K]`` and means ``[G, 1, K]``, accumulated in float64."""
        groups, rows, size = self.x.shape
        self.matrix = np.zeros((groups, size, size))
        self.mean = np.zeros((groups, 1, size))
        if self.start.free_bias:
            self.mean = self.x.mean(1, keepdims=True, dtype=np.float64)
        for start in range(0, rows, _CHUNK):
            part = self.x[:, start : start + _CHUNK] - self.mean
            self.matrix += part.transpose(0, 2, 1) @ part
        diagonal = np.einsum("gkk->g", self.matrix) / size
        # A group whose input never varies has nothing to fit; any ridge keeps its weights.
        self.scale = np.where(diagonal > 0, diagonal, 1.0)

    def _right(self, residual: Array) -> tuple[Array, Array]:
        """Right-hand side ``[G, K, O / G]`` of ``residual [G, R, O / G]``, and its means."""
        right = np.asarray(self.x.transpose(0, 2, 1) @ residual, np.float64)
        mean = residual.mean(1, keepdims=True, dtype=np.float64)
        if self.start.free_bias:
            right -= self.count * self.mean.transpose(0, 2, 1) * mean
        return right, mean

    def _direction(self, right: Array, mean: Array, ridge: float) -> tuple[Array, Array]:
        """Change of weight and bias that takes a residual away."""
        weight = self._apply_inverse(right, ridge)
        if not self.start.free_bias:
            return weight, np.zeros_like(self.start.bias)
        return weight, mean - self.mean @ weight

    def _apply_inverse(self, right: Array, ridge: float) -> Array:
        loaded = ridge * self.scale[:, None]
        if self.start.mask is not None:
            return masked_solve(self.matrix, loaded, right, self.start.mask)
        if ridge not in self._inverses:
            matrix = self.matrix.copy()
            np.einsum("gkk->gk", matrix)[...] += loaded
            self._inverses[ridge] = np.linalg.inv(matrix)
        return np.asarray(self._inverses[ridge] @ right)


def _square(rows: Array) -> float:
    """Mean square."""
    flat = rows.reshape(-1)
    return float(flat @ flat) / max(flat.size, 1)


def masked_solve(matrix: Array, ridge: Array, right: Array, mask: Array, *, steps: int = 200) -> Array:
    """Solve ``(A + ridge I) w = r`` for each column on the column's own support.

    Conjugate gradients on all columns at once, preconditioned by the diagonal: restricted to the rows and
    columns of its support each column's matrix is positive definite, and no matrix of its own has to be
    factored. One step is one product with ``A``.

    Args:
        matrix: ``A [G, K, K]``, positive semidefinite.
        ridge: ``[G, 1]``, above 0.
        right: ``r [G, K, O]``.
        mask: The supports, bool ``[G, K, O]``.
        steps: Most steps.
    """
    scale = (1.0 / (np.einsum("gkk->gk", matrix) + ridge))[:, :, None] * mask
    found = np.zeros_like(right)
    left = right * mask
    direction = scale * left
    power = (left * direction).sum(1, keepdims=True)
    floor = 1e-10 * power
    for _ in range(steps):
        if (power <= floor).all():
            break
        image = (matrix @ direction + ridge[:, :, None] * direction) * mask
        curvature = (direction * image).sum(1, keepdims=True)
        length = np.divide(power, curvature, out=np.zeros_like(power), where=curvature > 0)
        found += length * direction
        left -= length * image
        conditioned = scale * left
        new = (left * conditioned).sum(1, keepdims=True)
        direction = conditioned + np.divide(new, power, out=np.zeros_like(power), where=power > 0) * direction
        power = new
    return found
