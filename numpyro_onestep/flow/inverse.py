"""The inverse of the k-step map, step by step, by Newton's method with the step's own Jacobian.

Every solution is checked by a round trip through the map.  `found` is false for a point that the
map does not reach, or whose origin Newton's method does not find.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from numpyro_onestep.flow.flow_map import FlowMap

_MOST_ITERATIONS = 60  # of Newton's method, for each flow step
# Fractions of Newton's step that are tried; the one whose image is nearest to the point is taken.
# The whole step alone can overshoot where the map bends much.
_FRACTIONS = (1.0, 0.5, 0.2, 0.05)
# Largest error of the round trip, in units of the floats' precision times the size of the point.
_ROUND_TRIP = 3000.0


class Inverse(NamedTuple):
    """The z that a point comes from, and whether the map sends z to that point."""

    z: Float[Array, " d"]
    found: Bool[Array, ""]


def invert(
    flow: FlowMap, y: Float[Array, " d"], near: Float[Array, " d"], num_steps: int = 1
) -> Inverse:
    """The z with T(z) = y.

    Args:
        flow: the map.
        y: a point in whitened coordinates.
        near: a z whose image is not far from y. From a z far away Newton's method fails where the
            map stretches much.
        num_steps: k.
    """
    taus, sizes = flow.schedule(num_steps)
    _, on_the_way = jax.lax.scan(
        lambda at, step: (flow.step(at, *step), at), near.astype(y.dtype), (taus, sizes)
    )

    def back(at, step):
        tau, size, start = step
        return _invert_step(flow, at, start, tau, size), None

    z, _ = jax.lax.scan(back, y, (taus[::-1], sizes[::-1], on_the_way[::-1]))
    error = jnp.max(jnp.abs(flow(z, num_steps) - y))
    limit = _ROUND_TRIP * jnp.finfo(y.dtype).eps * (1 + jnp.max(jnp.abs(y)))
    return Inverse(z, error < limit)


def _invert_step(
    flow: FlowMap, target: Float[Array, " d"], start: Float[Array, " d"], tau, step_size
) -> Float[Array, " d"]:
    fractions = jnp.asarray(_FRACTIONS, target.dtype)

    def newton(state):
        index, at, _ = state
        miss = flow.step(at, tau, step_size) - target
        jacobian = flow.network.step_jacobian(at, tau, step_size)
        candidates = at - fractions[:, None] * jacobian.solve(jacobian.factorise(), miss)
        reached = jax.vmap(lambda u: flow.step(u, tau, step_size))(candidates)
        errors = jnp.sum((reached - target) ** 2, axis=1)
        errors = jnp.where(jnp.isfinite(errors), errors, jnp.inf)
        best = jnp.argmin(errors)
        better = errors[best] < jnp.sum(miss**2)
        return index + 1, jnp.where(better, candidates[best], at), better

    def go_on(state):
        index, _, better = state
        return (index < _MOST_ITERATIONS) & better

    _, found, _ = jax.lax.while_loop(go_on, newton, (0, start, jnp.asarray(True)))
    return found
