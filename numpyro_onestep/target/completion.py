"""Coordinates in which a density has no scale of its own, completed so that it can be normalised.

**Flat.** Where nothing depends on a coordinate (an improper site that no other uses, values that
`obs_mask` says are known), the density is the same from one infinity to the other.  It is
multiplied by a standard normal density there: the other coordinates' posterior stays as it is, and
the evidence is theirs.

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
import jax.random as jr
import numpy as np
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from numpyro_onestep._util.compilation import compiled

PERIOD = 2 * math.pi
# Copies on either side whose weight is more than nothing.
_COPIES = 4
_NUM_POINTS = 8
# A difference of two energies that rounding explains, in units of their size's precision.
_ROUNDING = 64.0


class Completion(eqx.Module):
    """Which coordinates are completed, and how."""

    flat: Bool[Array, " d"]
    periodic: Bool[Array, " d"]
    centre: Float[Array, " d"]

    def __call__(self, x: Float[Array, " d"]) -> Float[Array, ""]:
        """What is added to U (nats)."""
        normal = 0.5 * x**2 + 0.5 * math.log(2 * math.pi)
        t = x - self.centre
        # The window is about one period wide: only the copies near t matter.
        nearest = t - PERIOD * jnp.round(t / PERIOD)
        copies = nearest + PERIOD * jnp.arange(-_COPIES, _COPIES + 1, dtype=x.dtype)[:, None]
        window = 0.5 * t**2 + jax.nn.logsumexp(-0.5 * copies**2, axis=0)
        zero = jnp.zeros_like(x)
        added = jnp.where(self.flat, normal, zero) + jnp.where(self.periodic, window, zero)
        return jnp.sum(added)


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
    flat, periodic = (np.asarray(v) & candidates for v in _probe(potential, start, rng_key))
    periodic &= ~flat
    if not (flat.any() or periodic.any()):
        return None
    centre = np.asarray(start)
    return Completion(jnp.asarray(flat), jnp.asarray(periodic), jnp.asarray(centre))


@compiled
def _probe(potential: Any, start: Float[Array, " d"], rng_key: PRNGKeyArray):
    points = start + jr.uniform(rng_key, (_NUM_POINTS, start.size), start.dtype, -1.0, 1.0)

    def at(x):
        energy, gradient = jax.value_and_grad(potential)(x)
        moved = jax.lax.map(lambda j: potential(x.at[j].add(PERIOD)), jnp.arange(x.size))
        # A period on moves the argument by a rounded amount: that costs what the slope makes of it.
        grain = jnp.finfo(x.dtype).eps * (1 + jnp.abs(x))
        slack = _ROUNDING * (jnp.abs(gradient) * grain + jnp.finfo(x.dtype).eps * jnp.abs(energy))
        slack += _ROUNDING * jnp.finfo(x.dtype).eps
        fine = jnp.isfinite(energy) & jnp.all(jnp.isfinite(gradient))
        return fine, gradient == 0, jnp.abs(moved - energy) < slack

    fine, zero, same = jax.vmap(at)(points)
    counted = fine[:, None]
    # Nothing is shown where no point has a finite density.
    any_fine = jnp.any(fine)
    every = (jnp.all(values | ~counted, axis=0) & any_fine for values in (zero, zero | same))
    return tuple(every)
