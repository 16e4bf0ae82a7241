"""The inverse of the map: step by step by Newton's method, and for nodes each on its own.

Every solution is checked by a round trip through the map.  `found` is false for a point that the
map does not reach, or whose origin Newton's method does not find.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Bool, Float

from numpyro_onestep.flow.flow_map import AbstractFlowMap, FlowMap
from numpyro_onestep.flow.structured_map import StructuredMap

_MOST_ITERATIONS = 60  # of Newton's method, for each flow step
_MOST_NODE_ITERATIONS = 200  # of that for nodes, which cost little; where bent, some are bisections
# Fractions of Newton's step that are tried; the one whose image is nearest to the point is taken.
# The whole step alone can overshoot where the map bends much.
_FRACTIONS = (1.0, 0.5, 0.2, 0.05)
# Largest error of the round trip, in units of the floats' precision times the size of the point.
_ROUND_TRIP = 3000.0
# Base draws whose images are computed.  The inverse starts from those whose images are nearest to
# the point, one after the other.
_NUM_ANCHORS = 256
_MOST_TRIES = 4  # starts for each point


class Inverse(NamedTuple):
    """The z that a point comes from, and whether the map sends z to that point."""

    z: Float[Array, " d"]
    found: Bool[Array, ""]


def inverter(
    flow: AbstractFlowMap, num_steps: int, d: int, dtype: Any
) -> Callable[[Float[Array, " d"]], Inverse]:
    """The inverse of the map as a function of y alone, differentiable in y and in the parameters.

    The search needs a start, so images of some base draws are computed once.
    """
    if isinstance(flow, StructuredMap):
        g = flow.num_core
        core = inverter(flow.core, num_steps, g, dtype)

        def find_both(y):
            z, found = core(y[:g])
            nodes, found_nodes = _invert_nodes(flow, y)
            return Inverse(jnp.concatenate([z, nodes]), found & found_nodes)

        return find_both
    assert isinstance(flow, FlowMap)
    anchors = jr.normal(jr.key(0), (_NUM_ANCHORS, d), dtype)
    images = jax.lax.stop_gradient(jax.vmap(lambda z: flow(z, num_steps))(anchors))

    def find(y):
        z, found = _search(flow, jax.lax.stop_gradient(y), num_steps, anchors, images)
        return Inverse(_differentiable(flow, y, jax.lax.stop_gradient(z), num_steps), found)

    return find


def invert(
    flow: AbstractFlowMap, y: Float[Array, " d"], near: Float[Array, " d"], num_steps: int = 1
) -> Inverse:
    """The z with T(z) = y.

    Args:
        flow: the map.
        y: a point in whitened coordinates.
        near: a z whose image is not far from y. From a z far away Newton's method fails where the
            map stretches much.
        num_steps: k.
    """
    if isinstance(flow, StructuredMap):
        g = flow.num_core
        z, found = invert(flow.core, y[:g], near[:g], num_steps)
        nodes, found_nodes = _invert_nodes(flow, y)
        return Inverse(jnp.concatenate([z, nodes]), found & found_nodes)
    assert isinstance(flow, FlowMap)
    taus, sizes = flow.schedule(num_steps)
    _, on_the_way = jax.lax.scan(
        lambda at, step: (flow.step(at, *step), at), near.astype(y.dtype), (taus, sizes)
    )

    def back(at, step):
        tau, size, start = step
        return _invert_step(flow, at, start, tau, size), None

    z, _ = jax.lax.scan(back, y, (taus[::-1], sizes[::-1], on_the_way[::-1]))
    return Inverse(z, _is_near(flow(z, num_steps), y))


def _is_near(image: Float[Array, " d"], y: Float[Array, " d"]) -> Bool[Array, ""]:
    limit = _ROUND_TRIP * jnp.finfo(y.dtype).eps * (1 + jnp.max(jnp.abs(y)))
    return jnp.max(jnp.abs(image - y)) < limit


def _search(flow: FlowMap, y, num_steps: int, anchors, images) -> Inverse:
    flow = jax.lax.stop_gradient(flow)
    # The whitened point itself is a candidate too: if the flow changes little, it is nearest.
    starts = jnp.concatenate([anchors, y[None]])
    reached = jnp.concatenate([images, flow(y, num_steps)[None]])
    distance = jnp.sum((reached - y) ** 2, axis=1)
    _, order = jax.lax.top_k(-distance, _MOST_TRIES)

    def again(state):
        index, _, _ = state
        z, found = invert(flow, y, starts[order[index]], num_steps)
        return index + 1, z, found

    def go_on(state):
        index, _, found = state
        return (index < _MOST_TRIES) & ~found

    _, z, found = jax.lax.while_loop(go_on, again, (0, y, jnp.asarray(False)))
    return Inverse(z, found)


def _differentiable(flow: FlowMap, y, solution, num_steps: int):
    """The solution of Phi_k(z) = y as a function of y and of the flow's parameters."""

    def solve_linear(linear, value):
        return jnp.linalg.solve(jax.jacfwd(linear)(jnp.zeros_like(value)), value)

    return jax.lax.custom_root(
        lambda z: flow(z, num_steps) - y,
        solution,
        solve=lambda _, start: start,
        tangent_solve=solve_linear,
    )


def _invert_nodes(flow: StructuredMap, y: Float[Array, " d"]) -> Inverse:
    """The z of all nodes: given its features, each is the solution of an equation of its own."""
    g = flow.num_core

    def moved(flow, z, y):
        return flow.moved(z, y[:g], y[g:])

    fixed, frozen = jax.lax.stop_gradient(y), jax.lax.stop_gradient(flow)

    def newton(state):
        index, z, low, high, _ = state
        at = moved(frozen, z, fixed)
        miss = at.y - fixed[g:]
        low, high = jnp.where(miss < 0, z, low), jnp.where(miss < 0, high, z)
        new = z - miss * jnp.exp(-at.log_slope)
        # The map increases, so a step out of the bracket is replaced by its middle.
        new = jnp.where((new > low) & (new < high), new, 0.5 * (low + high))
        new = jnp.where(miss == 0, z, new)
        return index + 1, new, low, high, jnp.any(new != z)

    def go_on(state):
        index, *_, moving = state
        return (index < _MOST_NODE_ITERATIONS) & moving

    start, within = frozen.nodes.bracket(fixed[:g], fixed[g:])
    state = 0, start, start - within, start + within, jnp.asarray(True)
    _, z, *_ = jax.lax.while_loop(go_on, newton, state)
    z: Any = jax.lax.stop_gradient(z)
    at = moved(frozen, z, fixed)
    # Each node is judged by its own size: beside one that is far out all others would pass.
    size = 1 + jnp.abs(fixed[g:]) + (1 + jnp.abs(z)) * jnp.exp(at.log_slope)
    found = jnp.all(jnp.abs(at.y - fixed[g:]) < _ROUND_TRIP * jnp.finfo(y.dtype).eps * size)
    # Two steps of Newton's method from the solution stay there, and have its first and second
    # derivatives in y and in the parameters.
    for _ in range(2):
        at = moved(flow, z, y)
        z = z - (at.y - y[g:]) / jnp.exp(at.log_slope)
    return Inverse(z, found)


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
