"""Descents by L-BFGS to a minimum, with the points on the way to it."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from numpyro_onestep._util.compilation import compiled
from numpyro_onestep.target import Potential

_DESCENT_STEPS = 100


class Descent(NamedTuple):
    """The points that L-BFGS visits on its way down; energy and gradient as last evaluated."""

    path: Float[Array, "steps d"]
    energy: Float[Array, ""]
    gradient: Float[Array, " d"]
    num_steps: Int[Array, ""]  # taken before it ended; later points of the path repeat the last


@compiled
def descent(potential: Potential, start: Float[Array, " d"]) -> Descent:
    """A descent of 100 steps: long enough to fit a Gaussian to the points on the way."""
    return descend(potential, start, _DESCENT_STEPS)


def descend(potential: Potential, start: Float[Array, " d"], num_steps: int) -> Descent:
    """Go down by L-BFGS, until a step fails twice."""
    import optax  # imported here, since it takes a tenth of the time that NumPyro does

    line_search = optax.scale_by_backtracking_linesearch(max_backtracking_steps=20, store_grad=True)
    optimiser = optax.lbfgs(linesearch=line_search)
    value_and_grad = optax.value_and_grad_from_state(potential)

    def step(carry):
        index, x, _, _, state, failures, path = carry
        value, grad = value_and_grad(x, state=state)
        updates, new_state = optimiser.update(
            grad, state, x, value=value, grad=grad, value_fn=potential
        )
        moved = jnp.asarray(optax.apply_updates(x, updates))
        better = optax.tree_utils.tree_get(new_state, "value") < value
        better &= jnp.all(jnp.isfinite(moved))
        # Where a step does not go down the memory is dropped: after negative curvature it could
        # point uphill for ever.
        state = choose(better, new_state, fresh)
        failures = jnp.where(better, 0, failures + 1)
        path = path.at[index].set(x)
        return index + 1, choose(better, moved, x), value, grad, state, failures, path

    def go_on(carry):
        index, _, _, _, _, failures, _ = carry
        return (index < num_steps) & (failures < 2)

    fresh = optimiser.init(start)
    nowhere = jnp.zeros((num_steps, start.size), start.dtype)
    begin = 0, start, jnp.full((), jnp.inf, start.dtype), jnp.zeros_like(start), fresh, 0, nowhere
    index, x, value, grad, _, _, path = jax.lax.while_loop(go_on, step, begin)
    path = jnp.where((jnp.arange(num_steps) < index)[:, None], path, x).at[-1].set(x)
    return Descent(path, jnp.asarray(value), jnp.asarray(grad), jnp.asarray(index))


def choose(condition: Bool[Array, ""], new, old):
    """The pytree `new` if the condition holds, else `old`."""
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), new, old)
