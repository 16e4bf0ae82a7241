"""The path-space loss of the diffusion sampler, with matched kernels.

Forward noising is dy = -y dtau + sqrt(2) dW.  Over an interval of size h, exactly,
    F(y_{tau} | y_{tau-h}) = N(e^-h y_{tau-h}, (1 - e^-2h) I),
and the sampler runs it backwards with the exponential integrator
    B(y_{tau-h} | y_tau) = N(e^-h y_tau + 2 (1 - e^-h) r(y_tau, tau, h), (1 - e^-2h) I).
Both kernels have the same covariance, so with r = 0 they balance N(0, I) exactly and the weight
    log w = log gamma(y_0) - log N(y_T; 0, I) + sum log F / B
is log gamma(y_0) - log N(y_0; 0, I) at any number of steps.  The loss is E[-log w], the path-space
Kullback-Leibler divergence less log Z: E[log w] is a lower bound of log Z too.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float, PRNGKeyArray

from numpyro_onestep.flow import FlowMap, PreconditionedPotential
from numpyro_onestep.flow.base_distribution import standard_normal_log_density


class Path(NamedTuple):
    """States of one path at times T, ..., 0 and its log weight (nats)."""

    states: Float[Array, "times d"]
    log_weight: Float[Array, ""]


def simulate(
    flow: FlowMap, potential: PreconditionedPotential, z: Float[Array, " d"], rng_key: PRNGKeyArray
) -> Path:
    """Run the sampler's own SDE from a base draw z over the grid.

    Args:
        flow: its network is the drift, its grid the schedule.
        potential: the target.
        z: the state at time T.
        rng_key: key of the path's noise.
    """
    taus, sizes = flow.schedule(flow.num_grid_steps)
    noise = jr.normal(rng_key, (len(taus), z.size), z.dtype)

    def step(y, inputs):
        tau, h, eps = inputs
        decay, variance = jnp.exp(-h), -jnp.expm1(-2 * h)
        drift = 2 * -jnp.expm1(-h) * flow.network(y, tau, h)
        new = decay * y + drift + jnp.sqrt(variance) * eps
        # log F(y | new) - log B(new | y): the constants of the two cancel.
        log_ratio = 0.5 * jnp.sum(eps**2) - 0.5 * jnp.sum((y - decay * new) ** 2) / variance
        return new, (new, log_ratio)

    end, (states, log_ratios) = jax.lax.scan(step, z, (taus, sizes, noise))
    log_weight = -potential.whitened(end) - standard_normal_log_density(z) + jnp.sum(log_ratios)
    return Path(jnp.concatenate([z[None], states]), log_weight)


def path_loss(
    flow: FlowMap, potential: PreconditionedPotential, z: Float[Array, "n d"], rng_key: PRNGKeyArray
) -> tuple[Float[Array, ""], Float[Array, "n times d"]]:
    """E[-log w] over a batch (nats), and the states visited, for the other losses to train on."""
    keys = jr.split(rng_key, z.shape[0])
    paths = jax.vmap(lambda start, key: simulate(flow, potential, start, key))(z, keys)
    return -jnp.mean(paths.log_weight), jax.lax.stop_gradient(paths.states)
