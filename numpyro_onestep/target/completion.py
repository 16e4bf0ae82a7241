"""Factors that make a density normalisable in coordinates in which it has no scale.

**Flat.** Where nothing depends on a coordinate, the density is the same along all of it.  Examples
are an improper site that no other site uses, and values that `obs_mask` says are known.  Where
the data depend only on the difference of two such sites, the density is constant along a direction.
It is multiplied by a standard normal density along that coordinate or direction.  The posterior
across it stays as it is, and the evidence is that of this posterior.  (With an improper positive
site that nothing uses, U falls by 1 nat a unit without end, by the Jacobian: that slope is taken
away first.)

**Periodic.** An angle on the whole line, as `CircularReparam` makes it, has infinitely many copies,
2 pi apart.  The density is multiplied by
    W(t) = exp(-t^2 / 2) / sum_k exp(-(t + 2 pi k)^2 / 2),   sum_k W(t + 2 pi k) = 1,
t counted from a mode.  A function of the angle depends only on the sum over all copies, and that
sum is the density of one period.  So the evidence is that of one period too.
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
# Copies on either side that are summed.  The weight of those further away is zero in floats.
_COPIES = 4
# Points at which gradients are taken, and at as many more as there are candidates.
_NUM_POINTS = 8
# Flat directions are looked for among at most this number of coordinates, since that takes as many
# gradients and their singular values.
_MOST_CANDIDATES = 512
# Gradients are scaled to length 1.  A direction is a candidate where their singular value is below
# this, which is above the rounding of single precision.
_ZERO = 1e-4
# Lengths of the steps along a candidate that must leave U as it is.
_STEPS = (1.0, 1e2, 1e4)
# Along a coordinate of constant slope the steps are shorter, since the exponential of the
# coordinate must not overflow.
_SHORT_STEPS = (1.0, 30.0)
# A difference of two energies counts as rounding up to this number of units of their precision.
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
    """The completion of the candidates that have no scale, or None where all have one.

    Args:
        potential: U, callable.
        start: a point of finite density.
        rng_key: a JAX random key, for the points at which gradients and periods are tested.
        candidates: for each coordinate, whether its prior allows that it has no scale.
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
        return None  # without a point of finite density nothing can be tested
    flat, slope = _flat(potential, at, gradient, candidates, rng)
    periodic = periodic & candidates & ~flat
    directions = np.zeros((0, at.size), at.dtype)
    if several:
        directions = _directions(potential, at, gradient, candidates & ~flat & ~periodic)
    if not (flat.any() or periodic.any() or len(directions)):
        return None
    parts = flat, slope, periodic, at, directions
    return Completion(*(jnp.asarray(part) for part in parts))


def _flat(potential: Any, at: Any, gradient: Any, among: Any, rng: np.random.Generator):
    """Coordinates along which the slope of U is the same everywhere, and that slope."""
    slope = gradient[0]
    rounding = 16 * np.finfo(at.dtype).eps * (1 + abs(slope))
    flat = (abs(gradient - slope) <= rounding).all(0) & among
    # Where the slope is exactly zero at all points, nothing depends on the coordinates, or U has
    # steps.  All of them are moved at once, since one by one would take long where there are
    # thousands.
    zero = flat & (gradient == 0).all(0)
    if zero.any():
        along = zero * rng.standard_normal((_NUM_POINTS, at.size))
        if not _stays(potential, at, along, np.zeros(len(along)), _SHORT_STEPS).all():
            zero[:] = False
    tested = np.flatnonzero(flat & ~zero)
    if len(tested):
        along = np.zeros((len(tested), at.size))
        along[np.arange(len(tested)), tested] = 1
        flat[tested] = _stays(potential, at, along, slope[tested], _SHORT_STEPS)
    return flat, np.where(flat, slope, 0).astype(at.dtype)


def _directions(potential: Any, at: Any, gradient: Any, among: Any) -> Float[np.ndarray, "r d"]:
    """Orthonormal directions along which no gradient has a component and U does not change."""
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
    """For each direction, whether U changes by its slope alone, in steps to either side."""
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
