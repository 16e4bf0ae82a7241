"""Denoising regression: the residual velocity learned from draws to which noise was added.

With a = e^-tau and s = (1 - e^-2 tau)^(1/2), a draw y_0 that was noised up to time tau is
    y = a y_0 + s e,   e standard normal,
and the loss is
    E || s r(y, tau, h) - (s y - e) ||^2,   h one interval of the grid.
Given y, the mean of -e / s is the score of the noised draws, so the minimum is the residual
velocity r = y + grad log p_tau(y) of the distribution that the draws come from.  The factor s keeps
the noise of the regression the same at all times.  No density is evaluated.

Source: Vincent, "A connection between score matching and denoising autoencoders", Neural
Computation 2011; here with the forward noising of `training.objectives.path`.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float, PRNGKeyArray

from numpyro_onestep.flow import FlowMap


class Noised(NamedTuple):
    """Draws at the times of the grid from T down to 0, and the noise that they hold."""

    states: Float[Array, "n times d"]
    noise: Float[Array, "n times d"]


def noised(flow: FlowMap, y: Float[Array, "n d"], rng_key: PRNGKeyArray) -> Noised:
    """Each draw with independent noise at every time of the grid; at time 0 it has none.

    Args:
        flow: its grid is the schedule.
        y: draws in whitened coordinates.
        rng_key: a JAX random key.
    """
    times = jnp.asarray(flow.times[::-1], y.dtype)
    noise = jr.normal(rng_key, (len(y), len(times), y.shape[1]), y.dtype)
    keep, spread = jnp.exp(-times), jnp.sqrt(-jnp.expm1(-2 * times))
    return Noised(keep[:, None] * y[:, None] + spread[:, None] * noise, noise)


def denoising_loss(flow: FlowMap, given: Noised) -> Float[Array, ""]:
    """Mean squared error of the regression, summed over coordinates, over all times but 0.

    Args:
        flow: the map whose network is trained.
        given: noised draws.
    """
    taus, sizes = flow.schedule(flow.num_grid_steps)
    spread = jnp.sqrt(-jnp.expm1(-2 * taus))

    def at_time(y, noise, tau, size, s):
        return jnp.sum((s * flow.network(y, tau, size) - (s * y - noise)) ** 2)

    def along_path(states, noise):
        return jax.vmap(at_time)(states[:-1], noise[:-1], taus, sizes, spread)

    return jnp.mean(jax.vmap(along_path)(given.states, given.noise))
