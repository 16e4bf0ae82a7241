"""Short Markov chains that start at the corrected draws and move them.

Weights correct only what the flow visits.  Where they are heavy-tailed, some neck or tail of the
posterior holds more mass than the flow gives it, and the heaviest draws stand at its mouth.  A few
steps of Hamiltonian Monte Carlo from every corrected draw, in the coordinates the base whitens
and without the flow, walk on into it; draws that were exact stay exact.  (Resample-move: Gilks and
Berzuini, "Following a moving target", JRSS B 2001.)
"""

import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float, PRNGKeyArray

from numpyro_onestep.base import WhitenedPotential
from numpyro_onestep.compilation import compiled
from numpyro_onestep.evidence import map_in_batches

_LEAPFROG_STEPS = 8
# Step sizes in whitened units vary from step to step: a neck needs small ones.
_STEP_SIZES = (0.08, 0.45)


@compiled
def move(
    potential: WhitenedPotential, x: Float[Array, "n d"], rng_key: PRNGKeyArray, num_steps: int
) -> Float[Array, "n d"]:
    """Where Hamiltonian Monte Carlo leads from each draw in so many steps of eight leapfrogs.

    A step to where the density is not finite is rejected.
    """
    d = x.shape[1]
    value_and_grad = jax.value_and_grad(potential)
    smallest, largest = (jnp.log(size * min(1.0, (50 / d) ** 0.25)) for size in _STEP_SIZES)

    def one(index_and_draw):
        index, draw = index_and_draw
        start = potential.base.whiten(draw)

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
                leapfrog, (y, momentum, energy, gradient), None, length=_LEAPFROG_STEPS
            )
            kinetic = 0.5 * jnp.sum(momentum**2 - end_momentum**2)
            log_ratio = energy - new_energy + kinetic
            accept = jnp.log(jr.uniform(key_accept, (), y.dtype)) < log_ratio
            accept &= jnp.isfinite(new_energy) & jnp.isfinite(log_ratio)
            new = at, new_energy, new_gradient
            return jax.tree.map(lambda a, b: jnp.where(accept, a, b), new, state), None

        state = start, *value_and_grad(start)
        (end, _, _), _ = jax.lax.scan(step, state, jr.split(jr.fold_in(rng_key, index), num_steps))
        return potential.base.unwhiten(end)

    return map_in_batches(one, (jnp.arange(len(x)), x), 1000)
