"""Training of a dense map on given draws alone: no density of the target is evaluated.

The residual velocity is learned by regression on noised draws (`objectives.denoising`), and state
consistency makes one step of it (`objectives.state_consistency`), side by side.
"""

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from numpyro_onestep._util import progress
from numpyro_onestep._util.compilation import compiled
from numpyro_onestep._util.random import stream
from numpyro_onestep.flow import FlowMap
from numpyro_onestep.settings import LossSettings, Settings
from numpyro_onestep.training.loop import optimiser_of
from numpyro_onestep.training.objectives import (
    denoising_loss,
    noised,
    state_consistency_loss,
)

# Draws in an iteration, and those of them for state consistency, which takes three times as many
# evaluations of the network.
_BATCH, _CONSISTENT = 32, 8
_CHUNK = 100  # iterations that are compiled into one call


class _State(NamedTuple):
    flow: FlowMap
    teacher: FlowMap  # the moving average of the flow
    opt_state: Any  # optax's


@progress.stage("training on the given draws")
def train_on_draws(
    flow: FlowMap,
    y: Float[np.ndarray, "n d"],
    rng_key: PRNGKeyArray,
    settings: Settings,
    num_steps: int,
) -> FlowMap:
    """Train a map on given draws.

    Args:
        flow: the map before training.
        y: draws in whitened coordinates.
        rng_key: a JAX random key.
        settings: weight of state consistency, moving average, clip and learning rate among them.
        num_steps: iterations, rounded up to a multiple of 100. The learning rate is constant for
            half of them and then falls to zero.
    """
    y = np.asarray(y, flow.dtype)
    total = -(-num_steps // _CHUNK) * _CHUNK
    falling = np.clip(2 - 2 * np.arange(total) / total, 0, 1)
    rates = (settings.schedule.learning_rate * falling).astype(np.float32)
    state = _first_state(flow, settings.losses)
    for begin in range(0, total, _CHUNK):
        key = stream(rng_key, "chunk", begin)
        state = _chunk(state, y, key, rates[begin : begin + _CHUNK], settings.losses)
    return state.flow


@compiled
def _first_state(flow: FlowMap, settings: LossSettings) -> _State:
    return _State(flow, flow, optimiser_of(settings).init(eqx.filter(flow, eqx.is_inexact_array)))


@compiled
def _chunk(
    state: _State,
    y: Float[Array, "n d"],
    rng_key: PRNGKeyArray,
    rates: Float[Array, " steps"],
    settings: LossSettings,
) -> _State:
    """The state after one optimiser step for each learning rate."""
    optimiser = optimiser_of(settings)
    arrays, static = eqx.partition(state.flow, eqx.is_inexact_array)
    teacher = eqx.filter(state.teacher, eqx.is_inexact_array)

    def loss(arrays: PyTree, teacher: PyTree, given: Any) -> Float[Array, ""]:
        flow = eqx.combine(arrays, static)
        total = denoising_loss(flow, given)
        if settings.state_weight and flow.num_grid_steps > 1:
            before, states = eqx.combine(teacher, static), given.states[:_CONSISTENT]
            total += settings.state_weight * state_consistency_loss(flow, before, states)
        return total

    def step(carry, inputs):
        arrays, teacher, opt_state = carry
        rate, key = inputs
        key_rows, key_noise = jr.split(key)
        rows = jr.randint(key_rows, (_BATCH,), 0, len(y))
        given = noised(eqx.combine(arrays, static), y[rows], key_noise)
        gradients = jax.grad(loss)(arrays, teacher, given)
        updates, opt_state = optimiser.update(gradients, opt_state)
        moved = jax.tree.map(lambda a, u: a + (rate * u).astype(a.dtype), arrays, updates)
        keep = settings.ema_decay
        teacher = jax.tree.map(lambda t, a: keep * t + (1 - keep) * a, teacher, moved)
        return (moved, teacher, opt_state), None

    inputs = jnp.asarray(rates), jr.split(rng_key, len(rates))
    carry, _ = jax.lax.scan(step, (arrays, teacher, state.opt_state), inputs)
    return _State(eqx.combine(carry[0], static), eqx.combine(carry[1], static), carry[2])
