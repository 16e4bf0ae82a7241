"""Coordinates in which a density has no scale of its own, completed so that it can be normalised.

**Flat.** Where nothing depends on a coordinate (an improper site that no other uses, values that
`obs_mask` says are known), the density is the same from one infinity to the other.  So it is along
a direction, where only the difference of two such sites is seen.  It is multiplied by a standard
normal density there: the posterior across the direction stays as it is, and the evidence is that.
(Of an improper positive site that nothing uses, U falls by the Jacobian's one a unit without end:
that slope is taken away first.)

**Periodic.** An angle on the whole line, as `CircularReparam` makes it, has copies 2 pi apart
without end.  The density is multiplied by
    W(t) = exp(-t^2 / 2) / sum_k exp(-(t + 2 pi k)^2 / 2),   sum_k W(t + 2 pi k) = 1,
t counted from a mode: the sum over all copies, which is all that a function of the angle sees, is
that of one period, and so is the evidence.
"""

import math
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from numpyro_onestep._util.batching import map_in_batches
from numpyro_onestep._util.compilation import compiled
from numpyro_onestep._util.random import numpy_generator

PERIOD = 2 * math.pi
# Copies on either side whose weight is more than nothing.
_COPIES = 4
_NUM_POINTS = 8
# Directions are looked for among this many coordinates at most; a singular value of the gradients,
# a row each and of length one, is zero below this, if steps of such lengths change nothing.
_MOST_CANDIDATES = 512
_ZERO = 1e-4
_STEPS = (1.0, 1e2, 1e4)
# Along a coordinate of constant slope steps must not leave what floats hold of its exponential.
_SHORT_STEPS = (1.0, 30.0)
# A difference of two energies that rounding explains, in units of their size's precision.
_ROUNDING = 64.0


class Completion(eqx.Module):
    """Which coordinates are completed, and how."""

    flat: Bool[Array, " d"]
    slope: Float[Array, " d"]  # of U along the flat ones
    periodic: Bool[Array, " d"]
    centre: Float[Array, " d"]
    directions: Float[Array, "r d"]  # flat ones of more than one coordinate, orthonormal

    def __call__(self, x: Float[Array, " d"]) -> Float[Array, ""]:
        """What is added to U (nats)."""
        normal = 0.5 * x**2 + 0.5 * math.log(2 * math.pi) - self.slope * x
        t = x - self.centre
        # The window is about one period wide: only the copies near t matter.
        nearest = t - PERIOD * jnp.round(t / PERIOD)
        copies = nearest + PERIOD * jnp.arange(-_COPIES, _COPIES + 1, dtype=x.dtype)[:, None]
        window = 0.5 * t**2 + jax.nn.logsumexp(-0.5 * copies**2, axis=0)
        zero = jnp.zeros_like(x)
        added = jnp.where(self.flat, normal, zero) + jnp.where(self.periodic, window, zero)
        along = self.directions @ x
        return jnp.sum(added) + jnp.sum(0.5 * along**2 + 0.5 * math.log(2 * math.pi))


def find_completion(
    potential: Any, start: Float[Any, " d"], rng_key: PRNGKeyArray, candidates: Any
) -> Completion | None:
    """What has to be completed among the candidates, or None.

    Args:
        potential: U, callable.
        start: a point of finite density.
        rng_key: key of the points at which derivatives and periods are looked at.
        candidates: for each coordinate whether its prior leaves that possible.
    """
    if not np.any(candidates):
        return None
    several = 2 <= np.sum(candidates) <= _MOST_CANDIDATES
    rng, at = numpy_generator(rng_key), np.asarray(start)
    shape = _NUM_POINTS + several * int(np.sum(candidates)), start.size
    points = at + rng.uniform(-1.0, 1.0, shape).astype(at.dtype)
    gradient, periodic = (np.asarray(v) for v in _probe(potential, points))
    gradient = gradient[np.isfinite(gradient).all(1)]
    if not len(gradient):
        return None  # nothing is shown where no point has a finite density
    flat, slope = _flat(potential, at, gradient, candidates)
    periodic = periodic & candidates & ~flat
    directions = np.zeros((0, at.size), at.dtype)
    if several:
        directions = _directions(potential, at, gradient, candidates & ~flat & ~periodic)
    if not (flat.any() or periodic.any() or len(directions)):
        return None
    parts = flat, slope, periodic, at, directions
    return Completion(*(jnp.asarray(part) for part in parts))


def _flat(potential: Any, at: Any, gradient: Any, among: Any):
    """Coordinates along which the slope is the same everywhere, and it."""
    slope = gradient[0]
    rounding = 16 * np.finfo(at.dtype).eps * (1 + abs(slope))
    flat = (abs(gradient - slope) <= rounding).all(0) & among
    # A slope of exactly zero is no coincidence, and there may be thousands.
    steep = np.flatnonzero(flat & (gradient != 0).any(0))
    if len(steep):
        along = np.zeros((len(steep), at.size))
        along[np.arange(len(steep)), steep] = 1
        flat[steep] = _stays(potential, at, along, slope[steep], _SHORT_STEPS)
    return flat, np.where(flat, slope, 0).astype(at.dtype)


def _directions(potential: Any, at: Any, gradient: Any, among: Any) -> Float[np.ndarray, "r d"]:
    """Orthonormal directions along which no gradient has a part, and the density stays as it is."""
    none = np.zeros((0, at.size), at.dtype)
    slope = gradient[:, among].astype(np.float64)
    length = np.linalg.norm(slope, axis=1, keepdims=True)
    slope = (slope / np.where(length > 0, length, 1.0))[length[:, 0] > 0]
    if among.sum() < 2 or len(slope) < among.sum():
        return none
    _, values, across = np.linalg.svd(slope, full_matrices=False)
    found = np.zeros((int((values < _ZERO).sum()), at.size))
    found[:, among] = across[values < _ZERO]
    if not len(found):
        return none
    kept = _stays(potential, at, found, np.zeros(len(found)), _STEPS)
    return found[kept].astype(at.dtype)


def _stays(potential: Any, at: Any, along: Any, slope: Any, sizes: Any) -> Bool[np.ndarray, " n"]:
    """Along which directions U changes by its slope alone, in steps to either side."""
    signed = np.concatenate([sizes, np.negative(sizes)])
    points = (at + signed[:, None, None] * along).reshape(-1, at.size).astype(at.dtype)
    expected = (signed[:, None] * slope).ravel().astype(at.dtype)
    directions = np.tile(along, (len(signed), 1)).astype(at.dtype)
    changed = np.asarray(_changed(potential, at, points, directions, expected))
    return np.logical_not(changed.reshape(len(signed), len(along)).any(0))


@compiled
def _probe(potential: Any, points: Float[Array, "n d"]):
    """Gradients at the points, NaN where U is not finite, and where U repeats itself."""

    def at(x):
        energy, gradient = jax.value_and_grad(potential)(x)
        return energy, jnp.where(jnp.isfinite(energy), gradient, jnp.nan)

    def repeats(x):
        energy, gradient = jax.value_and_grad(potential)(x)

        def one_period_on(j):
            energy, gradient = jax.value_and_grad(potential)(x.at[j].add(PERIOD))
            return energy, gradient[j]

        moved, slope = jax.lax.map(one_period_on, jnp.arange(x.size))
        # A period on moves the argument by a rounded amount: that costs what the slope makes of it.
        same = jnp.abs(moved - energy) < _slack(energy, jnp.abs(gradient) * (1 + jnp.abs(x)))
        valid = jnp.all(jnp.isfinite(gradient)) & jnp.isfinite(energy)
        return same | ~valid, jnp.where(valid, jnp.abs(slope - gradient), 0.0)

    _, gradient = map_in_batches(at, points, 16)
    same, change = jax.vmap(repeats)(points[:_NUM_POINTS])
    # Where the energy is large its rounding hides a difference of many nats, but not that the slope
    # is another one period on.
    finite = jnp.nan_to_num(gradient, posinf=0.0, neginf=0.0)
    steepest = jnp.max(jnp.abs(finite), axis=0)
    is_same_slope = change <= _ROUNDING * jnp.finfo(points.dtype).eps * steepest
    return gradient, jnp.all(same & is_same_slope, axis=0)


@compiled
def _changed(
    potential: Any,
    x: Float[Array, " d"],
    points: Float[Array, "n d"],
    directions: Float[Array, "n d"],
    expected: Float[Array, " n"],
):
    """Whether U at each point differs from that at x by more than expected and rounding explain.

    So it does where the slope in the direction from x to the point is another one: where the energy
    is large, its rounding would hide that.
    """
    energy, gradient = jax.value_and_grad(potential)(x)
    rounding = _ROUNDING * jnp.finfo(energy.dtype).eps

    def one(parts):
        point, direction, more = parts
        new, slope = jax.value_and_grad(potential)(point)
        size = jnp.sum(jnp.abs(gradient) * (1 + jnp.abs(point)))
        same = jnp.abs(new - energy - more) < _slack(energy, size)
        steepness = (jnp.abs(gradient) + jnp.abs(slope)) @ jnp.abs(direction)
        same &= jnp.abs((slope - gradient) @ direction) <= rounding * steepness
        return ~same

    return map_in_batches(one, (points, directions, expected), 16)


def _slack(energy, size):
    """A difference of energies that rounding explains (nats)."""
    return _ROUNDING * jnp.finfo(energy.dtype).eps * (1 + size + jnp.abs(energy))
