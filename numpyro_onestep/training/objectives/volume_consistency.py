"""Volume consistency: one large step must change volume as two half steps do.

    ( log|det dPhi_2h(y)| - sg[ log|det dPhi'_h(y)| + log|det dPhi'_h(Phi'_h(y))| ] )^2
on exact log-determinants; Phi' is the teacher, and sg stops the gradient.  The paper has the trace
h tr(dr/dy) in place of log|det(I + h dr/dy)|.  This contradicts state consistency even for a linear
map: two steps (1 + a1)(1 + a2) change the state by a1 + a2 + a1 a2, but have the trace a1 + a2.
"""

import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float, PRNGKeyArray

from numpyro_onestep.flow import FlowMap
from numpyro_onestep.training.objectives.state_consistency import dyadic_intervals


def volume_consistency_loss(
    student: FlowMap,
    teacher: FlowMap,
    states: Float[Array, "n times d"],
    rng_key: PRNGKeyArray,
    num_states: int,
) -> Float[Array, ""]:
    """Mean squared difference of log volumes (nats squared) over randomly chosen intervals.

    Each exact volume is a determinant, so only `num_states` random pairs of a path and an interval
    are compared.
    """
    intervals = dyadic_intervals(student)
    key_path, key_interval = jr.split(rng_key)
    which_path = jr.randint(key_path, (num_states,), 0, states.shape[0])
    which_interval = jr.randint(key_interval, (num_states,), 0, intervals.position.size)
    chosen = jax.tree.map(lambda leaf: leaf[which_interval], intervals)

    def at_interval(y, interval):
        size = interval.start - interval.end
        one = student.step_volume(y, interval.start, size).log_det
        half = teacher.step_volume(y, interval.start, interval.start - interval.middle)
        rest = teacher.step_volume(half.y, interval.middle, interval.middle - interval.end)
        return (one - jax.lax.stop_gradient(half.log_det + rest.log_det)) ** 2

    return jnp.mean(jax.vmap(at_interval)(states[which_path, chosen.position], chosen))
