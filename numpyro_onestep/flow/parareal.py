"""The k-step map in fewer evaluations after each other, by parareal iterations.

The k steps are cut into B blocks.  With F the fine steps of a block and G one coarse step over the
whole block, iteration p + 1 moves the state x_i at the end of each block,
    x_i <- F(x_{i-1}, before) + G(x_{i-1}, now) - G(x_{i-1}, before),
and its fine steps, which take the time, run in all blocks at once (Lions, Maday and Turinici, 2001;
for diffusion samplers: Selvam et al., "Self-refining diffusion samplers", arXiv 2412.08292).  After
iteration p the first p blocks are those of the serial map, so that B iterations give that map
itself.  A distilled flow has a good coarse step to begin with: one network takes steps of any size.

No part waits for more than it needs: a block begins its next iteration as soon as the state before
it is there.  Iteration p then ends after p (k / B) + B - p evaluations, never more than the k of
the serial map, where an iteration that waits for all blocks takes k / B + B.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from numpyro_onestep.flow.flow_map import AbstractFlowMap, FlowMap

# Largest change of a coordinate in the last iteration, in whitened units, in which the posterior's
# standard deviations are about 1.  It is below the 0.016 to which the mean of 4000 draws is known,
# and what is left after the last iteration is far below its change (docs/refined.md).
TOLERANCE = 1e-2
_FEWEST_STEPS = 4  # with fewer no block has two steps beside another block


class Refined(NamedTuple):
    """The image of one base draw, and what it took."""

    y: Float[Array, " d"]
    num_evaluations: Int[Array, ""]  # of the network, one after the other
    change: Float[Array, ""]  # largest change of a coordinate of y in the last iteration


class _State(NamedTuple):
    """What all blocks know after so many evaluations."""

    time: Int[Array, ""]
    ends: Float[Array, "c d"]  # z, then the latest state at the end of each block
    coarse: Float[Array, "b d"]  # G of the iteration before
    fine: Float[Array, "2 b d"]  # two iterations of a block overlap by one evaluation
    change: Float[Array, ""]
    iteration: Int[Array, ""]  # the last one that has reached the end of the map


def num_blocks(num_steps: int) -> int:
    """B, the power of two at the square root of k or next above it."""
    return 1 << -(-(num_steps.bit_length() - 1) // 2)


def parareal(
    flow: FlowMap, z: Float[Array, " d"], num_steps: int, tolerance: float = TOLERANCE
) -> Refined:
    """The image of z under the k-step map, up to a tolerance.

    Args:
        flow: the dense map.
        z: a base draw, in whitened coordinates.
        num_steps: k. Below four the steps follow each other.
        tolerance: the iterations end once they change no coordinate by more, in whitened units; 0
            gives the serial map. Default 0.01.

    Raises:
        ValueError: k does not divide the grid.
    """
    blocks = num_blocks(num_steps)
    each = num_steps // blocks
    taus, sizes = flow.schedule(num_steps)
    if num_steps < _FEWEST_STEPS:
        return Refined(flow(z, num_steps), jnp.asarray(num_steps), jnp.zeros((), z.dtype))
    fine_at = jnp.stack([taus, sizes], 1).reshape(blocks, each, 2)
    coarse_at = jnp.stack(flow.schedule(blocks), 1)
    block, lanes = jnp.arange(blocks), jnp.arange(2)[:, None]

    def steps(y, at):
        return flow.step(y, at[0], at[1])

    def advance(state: _State) -> _State:
        # Block i begins iteration p at time i + p (each - 1): then the state before it is there.
        since = state.time - block
        iteration, within = jnp.divmod(since, each - 1)
        begins = (since >= 0) & (within == 0)
        starts = state.ends[:-1]
        fine = jnp.where((begins & (iteration % 2 == lanes))[..., None], starts, state.fine)
        # The lane of each parity holds the last iteration of that parity.
        index = since - (iteration - (iteration - lanes) % 2) * (each - 1)
        works = (index >= 0) & (index < each)
        times = fine_at[block, jnp.clip(index, 0, each - 1)]
        moved = jax.vmap(jax.vmap(steps))(
            jnp.concatenate([fine, starts[None]]), jnp.concatenate([times, coarse_at[None]])
        )
        fine, coarse = jnp.where(works[..., None], moved[:2], fine), moved[2]
        # At this very time the fine steps of the iteration before have ended.
        ended = jnp.where((iteration % 2 == 0)[:, None], fine[1], fine[0])
        ends = jnp.where((iteration == 0)[:, None], coarse, ended + (coarse - state.coarse))
        ends = jnp.where(begins[:, None], ends, state.ends[1:])
        change = jnp.max(jnp.abs(ends[-1] - state.ends[-1]))
        return _State(
            state.time + 1,
            jnp.concatenate([z[None], ends]),
            jnp.where(begins[:, None], coarse, state.coarse),
            fine,
            jnp.where(begins[-1], change, state.change),
            jnp.where(begins[-1], iteration[-1], state.iteration),
        )

    def go_on(state: _State):
        # A change that is not a number has not converged.
        converged = (state.iteration >= 1) & (state.change < tolerance)
        return (state.time < num_steps) & ~converged

    zeros = jnp.zeros((blocks, z.size), z.dtype)
    state = _State(
        jnp.asarray(0),
        jnp.concatenate([z[None], zeros]),
        zeros,
        jnp.stack([zeros, zeros]),
        jnp.full((), np.inf, z.dtype),
        jnp.asarray(-1),
    )
    state = jax.lax.while_loop(go_on, advance, state)
    return Refined(state.ends[-1], state.time, state.change)


def one_step_defect(
    flow: AbstractFlowMap, z: Float[Array, " d"], num_steps: int
) -> Float[Array, ""]:
    """Distance of the ends of one step and of k steps from z, in whitened units."""
    return jnp.linalg.norm(flow(z, 1) - flow(z, num_steps))
