"""The linear part of the nodes' maps, fitted to their Gaussians at a number of values of the core.

The loss is the divergence of the map's conditional Gaussian from the target's, summed over the
nodes and averaged over these values.  It has no noise, so that a few hundred steps suffice where
training would take thousands.
"""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from numpyro_onestep._util.compilation import compiled
from numpyro_onestep.flow.conditional import Conditional, Linear
from numpyro_onestep.flow.gaussian import StructuredPreconditioner
from numpyro_onestep.initialise.conditionals import Conditionals
from numpyro_onestep.structure.structure import Structure

# Steps, as many as there may be numbers in all, within these limits, and Adam's step size at first.
_NUMBERS, _FEWEST_STEPS, _MOST_STEPS = 2**24, 60, 300
_LEARNING_RATE = 0.05
# Largest difference of two log precisions that counts: its exponential must not rule the loss.
_LARGEST_LOG_RATIO = 4.0


def fitted(
    nodes: Conditional,
    preconditioner: StructuredPreconditioner,
    structure: Structure,
    known: Conditionals,
) -> Conditional:
    """The nodes' maps after the fit, in the preconditioner's coordinates."""
    scale = np.asarray(preconditioner.scale, float)
    loc = np.asarray(preconditioner.loc, float)[structure.order[structure.num_core :]]
    mean = (known.mean - loc) / scale
    log_precision = known.log_precision + 2 * np.log(scale)
    to_parents = known.to_parents * scale[structure.parents] / scale[:, None]
    to_parents = np.moveaxis(to_parents * structure.has_parent, -1, 1)
    arrays = known.core, mean, log_precision, to_parents
    dtype = nodes.linear.constant.dtype
    num_steps = int(np.clip(_NUMBERS // mean.size, _FEWEST_STEPS, _MOST_STEPS))
    rates = _LEARNING_RATE * np.cos(np.linspace(0, np.pi / 2, num_steps)) ** 2
    arrays = jax.device_put([np.ascontiguousarray(v, dtype) for v in (*arrays, rates)])
    return eqx.tree_at(lambda nodes: nodes.linear, nodes, _fit(nodes, *arrays))


@compiled
def _fit(
    nodes: Conditional,
    core: Float[Array, "m g"],
    mean: Float[Array, "m n"],
    log_precision: Float[Array, "m n"],
    to_parents: Float[Array, "m p n"],
    rates: Float[Array, " s"],
) -> Linear:
    import optax

    # Of the parents' values only their second moments count.
    variance = mean.var(0) + jnp.exp(-log_precision).mean(0)
    every = slice(None)

    def loss(linear: Linear):
        # Scales do not depend on parents: these values of the core would not show it.
        logs = jax.lax.stop_gradient(linear.of_parents[:, :2])
        of_parents = jnp.concatenate([logs, linear.of_parents[:, 2:]], 1)
        linear = eqx.tree_at(lambda linear: linear.of_parents, linear, of_parents)
        student = eqx.tree_at(lambda nodes: nodes.linear, nodes, linear)

        def at(core, mean, log_precision, to_parents):
            own_mean, log_scale, slopes = student.gaussian(
                core, student.values_around(mean, every), every
            )
            off = (slopes - to_parents) ** 2 * student.values_around(variance, every)
            off = (own_mean - mean) ** 2 + jnp.sum(off, 0)
            ratio = log_precision + 2 * log_scale
            ratio = jnp.clip(ratio, -_LARGEST_LOG_RATIO, _LARGEST_LOG_RATIO)
            return jnp.sum(jnp.exp(ratio) - ratio - 1 + jnp.exp(log_precision) * off) / 2

        return jnp.mean(jax.vmap(at)(core, mean, log_precision, to_parents))

    optimiser = optax.adam(1.0)

    def step(carry, rate):
        linear, state = carry
        updates, state = optimiser.update(jax.grad(loss)(linear), state)
        return (jax.tree.map(lambda p, u: p + rate * u, linear, updates), state), None

    start: Any = nodes.linear
    carry: Any = start, optimiser.init(start)
    (linear, _), _ = jax.lax.scan(step, carry, rates)
    return linear
