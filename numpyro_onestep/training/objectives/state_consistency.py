"""State consistency: one step of size 2h must lead where two steps of size h lead.

For every dyadic size on the grid, the student's single step is regressed on two steps of the
teacher, an exponential moving average of the student, from states y on the sampler's own paths:
    || Phi_2h(y) - sg[ Phi'_h(Phi'_h(y)) ] ||^2 / (2h)^2,
the squared difference of the two mean velocities.  No gradient flows through the teacher.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from numpyro_onestep.flow import FlowMap


class Interval(NamedTuple):
    """A step from one grid time to another, over an even number of grid intervals."""

    position: Float[Array, " m"]  # of its first state along a path (0 is time T)
    start: Float[Array, " m"]
    middle: Float[Array, " m"]
    end: Float[Array, " m"]


def dyadic_intervals(flow: FlowMap) -> Interval:
    """Every interval of 2, 4, ..., K grid steps that begins at a multiple of its length.

    There are K - 1 of them: they are the steps of the k-step maps for k = K / 2, ..., 1.
    """
    times = np.asarray(flow.times)[::-1]
    spans = []
    length = 2
    while length <= flow.num_grid_steps:
        spans += [(i, length) for i in range(0, flow.num_grid_steps, length)]
        length *= 2
    index, lengths = np.array(spans, int).reshape(-1, 2).T
    dtype = flow.network.last.weight.dtype
    start, middle, end = (
        jnp.asarray(times[index + offset], dtype) for offset in (0, lengths // 2, lengths)
    )
    return Interval(jnp.asarray(index), start, middle, end)


def state_consistency_loss(
    student: FlowMap, teacher: FlowMap, states: Float[Array, "n times d"]
) -> Float[Array, ""]:
    """Mean squared difference of velocities, summed over coordinates, over all dyadic intervals."""
    intervals = dyadic_intervals(student)

    def at_interval(y, interval):
        size = interval.start - interval.end
        one = student.network(y, interval.start, size)
        half = teacher.step(y, interval.start, interval.start - interval.middle)
        two = teacher.step(half, interval.middle, interval.middle - interval.end)
        return jnp.sum((one - jax.lax.stop_gradient((two - y) / size)) ** 2)

    def along_path(path):
        return jax.vmap(at_interval)(path[intervals.position], intervals)

    return jnp.mean(jax.vmap(along_path)(states))
