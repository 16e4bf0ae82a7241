"""Hamiltonian Monte Carlo from many points at once, in whitened coordinates.

Every chain has its own random numbers, so that the chains are independent.
"""

from typing import Any

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from numpyro_onestep._util.batching import BLOCK, map_in_batches, map_in_blocks, side_by_side
from numpyro_onestep._util.compilation import compiled
from numpyro_onestep.flow.preconditioned import PreconditionedPotential

LEAPFROG_STEPS = 8  # in each step of HMC


def hmc(
    potential: PreconditionedPotential,
    x: Float[Any, "n d"],
    rng_key: PRNGKeyArray,
    num_steps: int,
    step_sizes: tuple[float, float],
    block: int = BLOCK,
) -> tuple[Float[np.ndarray, "n d"], Float[np.ndarray, " n"]]:
    """The ends of chains from each of the points, and the acceptance rate of each chain.

    A step to a point whose density is not finite is rejected.

    Args:
        potential: the target, and the coordinates in which the chains move.
        x: where the chains start, unconstrained.
        rng_key: a JAX random key.
        num_steps: HMC steps of each chain, of eight leapfrog steps each.
        step_sizes: the smallest and the largest leapfrog step, in whitened units. Each step of HMC
            draws its size log-uniformly between the two.
        block: chains that one call of the compiled program runs.
    """
    sizes = np.asarray(step_sizes, x.dtype)
    return map_in_blocks(
        lambda chains: _chains(potential, chains, rng_key, num_steps, sizes),
        (np.arange(len(x)), x),
        block,
    )


@compiled
def _chains(
    potential: PreconditionedPotential,
    chains: Any,
    rng_key: PRNGKeyArray,
    num_steps: int,
    step_sizes: Float[Array, " 2"],
) -> tuple[Float[Array, "n d"], Float[Array, " n"]]:
    """Ends and acceptance rates of chains that are given by their numbers and starts."""
    value_and_grad = jax.value_and_grad(potential.whitened)
    preconditioner = potential.preconditioner
    smallest, largest = jnp.log(step_sizes)

    def one(index_and_start):
        index, x = index_and_start
        start = preconditioner.whiten(x)

        def step(state, step_key):
            y, energy, gradient = state
            key_momentum, key_size, key_accept = jr.split(step_key, 3)
            momentum = jr.normal(key_momentum, y.shape, y.dtype)
            size = jnp.exp(jr.uniform(key_size, (), y.dtype, smallest, largest))

            def leapfrog(carry, _):
                at, momentum, _, gradient = carry
                momentum = momentum - 0.5 * size * gradient
                at = at + size * momentum
                energy, gradient = value_and_grad(at)
                return (at, momentum - 0.5 * size * gradient, energy, gradient), None

            (at, end_momentum, new_energy, new_gradient), _ = jax.lax.scan(
                leapfrog, (y, momentum, energy, gradient), None, length=LEAPFROG_STEPS
            )
            kinetic = 0.5 * jnp.sum(momentum**2 - end_momentum**2)
            log_ratio = energy - new_energy + kinetic
            accept = jnp.log(jr.uniform(key_accept, (), y.dtype)) < log_ratio
            accept &= jnp.isfinite(new_energy) & jnp.isfinite(log_ratio)
            new = at, new_energy, new_gradient
            return jax.tree.map(lambda a, b: jnp.where(accept, a, b), new, state), accept

        state = start, *value_and_grad(start)
        keys = jr.split(jr.fold_in(rng_key, index), num_steps)
        (end, _, _), accepted = jax.lax.scan(step, state, keys)
        return preconditioner.unwhiten(end), jnp.mean(accepted)

    return map_in_batches(one, chains, side_by_side(potential, gradients=True))
