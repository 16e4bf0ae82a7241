"""Training: compiled chunks of optimiser steps, and the rules for when to stop.

Two stages share one loop.  The distillation stage minimises
    path_weight * path + state_weight * state + volume_weight * volume,
the evidence stage maximises the exact-volume ELBO of the k-step map.  Each runs at a constant
learning rate, the last stage until its ELBO has stopped rising, and then cools to zero.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, PRNGKeyArray
from tqdm.auto import tqdm

from numpyro_onestep._util.compilation import compiled
from numpyro_onestep._util.random import stream
from numpyro_onestep.flow import FlowMap
from numpyro_onestep.flow.base_distribution import StandardNormal
from numpyro_onestep.flow.gaussian import WhitenedPotential, wide_scale
from numpyro_onestep.settings import Settings
from numpyro_onestep.training.objectives import (
    DrawWeights,
    elbo_loss,
    path_loss,
    state_consistency_loss,
    volume_consistency_loss,
)
from numpyro_onestep.training.stopping import FEWEST_STEPS, is_below, recent_rise

Stage = Literal["distillation", "evidence"]

# Iterations compiled into one call: long enough that its overhead is nothing, short enough that an
# interrupt is answered and the bar moves.
_CHUNK = 100
# Convergence is judged sooner where so little is to be gained (nats): such a flow has next to no
# tails.
_NEGLIGIBLE_GAP = 0.002
# Where the map folds at more than this share of a batch, training goes back to the teacher and on
# at this share of its pace.
_MOST_FOLDED, _PACE_AFTER_FOLD = 0.25, 0.7
# After a chunk that has lost what was there, the next one at this share of the pace may not.
_PACE_BELOW = 0.3
# Time that a Langevin chain takes a step of: a fifth of what it takes to forget its place.
_LANGEVIN_STEP = 0.2
# A rise of this share of the remaining gap is slow: twice the time would not gain half of it.
_RELATIVE_TOLERANCE = 0.2
_LARGEST_TOLERANCE = 4  # times the setting
# Cooling lasts half as long as the constant phase before it, and where the gap is large (nats) as
# long: there the steps' own noise is most of it, and cooling halves what more steps would not.
_COOLING_SHARE = 1 / 3
_LARGE_GAP = 0.25


class TrainingState(eqx.Module):
    """All that changes while training."""

    flow: FlowMap
    teacher: FlowMap  # the moving average of the flow
    optimiser: optax.OptState
    pace: Float[Array, ""]  # factor on the learning rate
    chains: Float[Array, "m d"]  # Langevin chains in z, for the evidence stage


class Records(NamedTuple):
    """What one iteration (or, stacked, a run of them) leaves behind.

    `loss` is an upper bound of -log Z in nats in both stages: -E[log w_path], then -ELBO.
    """

    loss: Any
    state: Any
    volume: Any
    non_finite: Any  # the flow's own draws in the batch, or the update, that had to be skipped
    folded: Any  # share of the batch at which the map's determinant is negative


@dataclass
class TrainingResult:
    """The trained flow and how training went."""

    flow: FlowMap
    pace: float = 1.0  # share of the learning rate that steps too far have left
    num_undone: int = 0  # times that the ELBO fell below that of the mixture it began with
    records: dict[Stage, Records] = field(default_factory=dict)
    chunk_seconds: list[float] = field(default_factory=list)  # the first waits for compilation
    converged: bool = True
    judged: bool = True
    still_rising: bool = False
    interrupted: bool = False
    final_rise: float = 0.0
    bends: bool = True  # the flow began as one Gaussian, not as a mixture

    @property
    def losses(self) -> np.ndarray:
        """Every iteration's estimate of the bound on -log Z (nats), both stages in order."""
        parts = [np.asarray(records.loss) for records in self.records.values()]
        return np.concatenate(parts) if parts else np.zeros(0)

    @property
    def num_non_finite(self) -> int:
        """Iterations in which something not finite was skipped."""
        return sum(int(np.sum(np.asarray(r.non_finite) > 0)) for r in self.records.values())


def train(
    flow: FlowMap,
    potential: WhitenedPotential,
    rng_key: PRNGKeyArray,
    settings: Settings,
    first_elbo: float = -math.inf,
) -> TrainingResult:
    """Train the flow on a whitened target, stage by stage.

    Where the noise is a mixture, steps that take the ELBO below `first_elbo`, that of the flow
    given, are undone.
    An interrupt (Ctrl-C) ends training and returns the flow as it is then.
    """
    result = TrainingResult(flow, bends=_bends(potential))
    stages: list[Stage] = []
    if settings.num_distillation_steps:
        stages.append("distillation")
    if settings.elbo_weight:
        stages.append("evidence")
    floor = -math.inf if _bends(potential) else first_elbo
    for stage in stages:
        try:
            _run_stage(stage, result, potential, stream(rng_key, stage), settings, floor)
        except KeyboardInterrupt:
            result.interrupted, result.converged = True, False
        if result.interrupted:
            break
    return result


def compile_ahead(
    flow: FlowMap, potential: WhitenedPotential, rng_key: PRNGKeyArray, settings: Settings
) -> None:
    """Begin to compile what `train` will need, for a flow and a target of such shapes."""
    stage: Stage = "distillation" if settings.num_distillation_steps else "evidence"
    state = initial_state(flow, potential, stream(rng_key, "chains"), settings)
    rates = np.zeros(_CHUNK, np.float32)
    run_chunk.ahead(state, potential, rng_key, rates, settings, stage)


def _run_stage(
    stage: Stage,
    result: TrainingResult,
    potential: WhitenedPotential,
    rng_key: PRNGKeyArray,
    settings: Settings,
    floor: float,
) -> None:
    """Run one stage, leaving flow and records in `result` after every chunk.

    A chunk whose ELBO is below the floor is undone, with the one before, at whose end it may have
    happened, and the next ones are slower: a step that is small for most of a mixture's components
    can be many widths of the narrowest.
    """
    total = settings.max_steps if stage == "evidence" else settings.num_distillation_steps
    num_cooling = int(total * _COOLING_SHARE)
    num_constant = total - num_cooling
    state = initial_state(result.flow, potential, stream(rng_key, "chains"), settings)
    chunks: list[Records] = []
    accepted: list[np.ndarray] = []  # losses of those not undone
    safe = state, 0  # where the last of them began, and how many there were

    num_steps = settings.num_flow_steps or 1
    name = stage if num_steps == 1 else f"{stage}, {num_steps} flow steps"
    with tqdm(total=total, desc=name, unit="it", disable=not settings.progress_bar) as bar:

        def advance(state: TrainingState, rates: np.ndarray) -> TrainingState:
            nonlocal safe
            key = stream(rng_key, "chunk", len(chunks))
            # A chunk always has the same length, so that it is compiled once; a rate of zero
            # leaves the flow alone.
            padded = np.zeros(_CHUNK, rates.dtype)
            padded[: len(rates)] = rates
            clock = time.perf_counter()
            new, records = run_chunk(state, potential, key, padded, settings, stage)
            records = jax.tree.map(lambda leaf: np.asarray(leaf)[: len(rates)], records)
            result.chunk_seconds.append(time.perf_counter() - clock)
            chunks.append(records)
            if is_below(floor, records.loss):
                pace, (state, count) = _PACE_BELOW * state.pace, safe
                state = eqx.tree_at(lambda s: s.pace, state, pace)
                del accepted[count:]
                result.num_undone += 1
            else:
                safe, state = (state, len(accepted)), new
                accepted.append(np.asarray(records.loss))
            result.flow, result.pace = state.flow, float(state.pace)
            result.records[stage] = jax.tree.map(lambda *leaves: np.concatenate(leaves), *chunks)
            bar.set_postfix(bound=f"{-np.mean(records.loss):.3f}", refresh=False)
            bar.update(len(rates))
            return state

        done = 0
        while done < num_constant:
            count = min(_CHUNK, num_constant - done)
            state = advance(state, np.full(count, settings.learning_rate, np.float32))
            done += count
            if stage == "evidence":
                losses = np.concatenate([*accepted, np.zeros(0)])
                rise, noise, spread = recent_rise(losses)
                # The gap is about half the variance of the log weights.
                gap = 0.5 * settings.num_own * spread**2
                largest = _LARGEST_TOLERANCE * settings.tolerance
                tolerance = max(settings.tolerance, min(_RELATIVE_TOLERANCE * gap, largest))
                enough = len(losses) >= FEWEST_STEPS or gap < _NEGLIGIBLE_GAP
                result.final_rise = rise
                result.converged = enough and rise + noise < tolerance
                result.judged = math.isfinite(rise)
                result.still_rising = rise - noise > tolerance
                if result.converged:
                    share = 1.0 if gap > _LARGE_GAP else 0.5
                    num_cooling = math.ceil(share * done / _CHUNK) * _CHUNK
                    num_cooling = min(num_cooling, total - done)
                    bar.total = done + num_cooling
                    break
        rates = np.linspace(settings.learning_rate, 0.0, num_cooling, dtype=np.float32)
        for begin in range(0, num_cooling, _CHUNK):
            state = advance(state, rates[begin : begin + _CHUNK])


def _bends(potential: WhitenedPotential) -> bool:
    """Whether the flow has one Gaussian to bend; a mixture has most of the shape already."""
    return isinstance(potential.noise, StandardNormal)


@compiled  # as one program: array by array it would be a dozen
def initial_state(
    flow: FlowMap, potential: WhitenedPotential, rng_key: PRNGKeyArray, settings: Settings
) -> TrainingState:
    """A state to begin a stage with: the teacher is the flow itself."""
    optimiser = _optimiser(settings)
    opt_state = optimiser.init(_parameters(flow)[0])
    chains = potential.sample_noise(rng_key, settings.num_chains, dtype=flow.dtype)
    return TrainingState(flow, flow, opt_state, jnp.ones(()), chains)


def _optimiser(settings: Settings) -> optax.GradientTransformation:
    # The learning rate multiplies the update outside, so that one compiled chunk serves them all.
    return optax.chain(optax.clip_by_global_norm(settings.gradient_clip), optax.adam(1.0))


@compiled
def run_chunk(
    state: TrainingState,
    potential: WhitenedPotential,
    rng_key: PRNGKeyArray,
    learning_rates: Float[np.ndarray, " steps"],
    settings: Settings,
    stage: Stage,
) -> tuple[TrainingState, Records]:
    """Take one optimiser step for each learning rate.

    The flow's parameters are one vector meanwhile: array by array, the program of a step would be
    larger by half, and take as much longer to compile.
    """
    optimiser = _optimiser(settings)
    losses = {"distillation": _distillation_losses, "evidence": _evidence_losses}[stage]
    flow, as_flow = _parameters(state.flow)
    teacher, _ = _parameters(state.teacher)

    def step(carry, inputs):
        flow, teacher, opt_state, pace, chains = carry
        rate, key = inputs

        def total(flow):
            return losses(as_flow(flow), as_flow(teacher), chains, potential, key, settings)

        gradient, (records, chains) = jax.grad(total, has_aux=True)(flow)
        # A gradient that is not finite counts as none.
        finite = jnp.all(jnp.isfinite(gradient))
        updates, opt_state = optimiser.update(jnp.where(finite, gradient, 0.0), opt_state)
        # A fold is straightened by the draws around it, which a step too far has left too few of.
        # A mixture leaves little to bend, and folds in heavy tails stay: there each is undone.
        too_far = records.folded > _MOST_FOLDED
        undone = too_far if _bends(potential) else records.folded > 0.0
        flow = jnp.where(undone, teacher, flow + (rate * pace).astype(flow.dtype) * updates)
        pace = jnp.where(too_far, _PACE_AFTER_FOLD * pace, pace)
        records = records._replace(non_finite=records.non_finite + ~finite)
        teacher = settings.ema_decay * teacher + (1 - settings.ema_decay) * flow
        return (flow, teacher, opt_state, pace, chains), records

    keys = jr.split(rng_key, learning_rates.shape[0])
    carry = flow, teacher, state.optimiser, state.pace, state.chains
    carry, records = jax.lax.scan(step, carry, (jnp.asarray(learning_rates), keys))
    flow, teacher, opt_state, pace, chains = carry
    return TrainingState(as_flow(flow), as_flow(teacher), opt_state, pace, chains), records


def _parameters(flow: FlowMap) -> tuple[Float[Array, " p"], Callable[[Array], FlowMap]]:
    """All parameters as a vector, and the way back."""
    dynamic, static = eqx.partition(flow, eqx.is_inexact_array)
    vector, unravel = ravel_pytree(dynamic)
    return vector, lambda values: eqx.combine(unravel(values), static)


def _distillation_losses(flow, teacher, chains, potential, rng_key, settings: Settings):
    """The three losses of the distillation stage, weighed, on one batch of paths."""
    key_base, key_path, key_volume = jr.split(rng_key, 3)
    z = potential.sample_noise(key_base, settings.distillation_batch_size, dtype=flow.dtype)
    path, states = path_loss(flow, potential, z, key_path)
    zero = jnp.zeros_like(path)
    consistency = volume = zero
    if settings.state_weight and flow.num_grid_steps > 1:
        consistency = state_consistency_loss(flow, teacher, states)
    if settings.volume_weight and flow.num_grid_steps > 1:
        volume = volume_consistency_loss(
            flow, teacher, states, key_volume, settings.volume_batch_size
        )
    total = (
        settings.path_weight * path
        + settings.state_weight * consistency
        + settings.volume_weight * volume
    )
    return total, (Records(path, consistency, volume, zero, zero), chains)


def _evidence_losses(flow, teacher, chains, potential, rng_key, settings: Settings):
    """The exact-volume ELBO of the k-step map, on the flow's own draws and the chains.

    Where q = p no draw feels a force, wherever it is, so a batch need not come from the base
    alone.  A part of it follows Langevin chains whose target is the posterior pulled back to z:
    they drift to where the flow holds too little mass, and train it there.  Their gradient is
    the force already at hand.
    """
    key_base, key_chains = jr.split(rng_key)
    num_chains = len(chains)
    own = potential.sample_noise(key_base, settings.num_own, dtype=flow.dtype)
    z = jnp.concatenate([chains, own])
    num_steps = settings.num_flow_steps or 1
    surrogate, draws = elbo_loss(
        flow, potential, z, num_steps, settings.force_clip, potential.noise
    )
    if _bends(potential):
        chains = _langevin(key_chains, chains, jax.tree.map(lambda v: v[:num_chains], draws))
    else:  # the steps of a chain would be of no one size; wider draws go some of the way
        chains = potential.sample_noise(key_chains, num_chains, wide_scale(z.shape[1]), flow.dtype)
    weights = draws.log_weight[num_chains:]
    finite = jnp.isfinite(weights)
    bound = jnp.sum(jnp.where(finite, weights, 0.0)) / finite.sum()  # not a number without any
    zero = jnp.zeros_like(bound)
    non_finite = jnp.sum(~finite).astype(bound.dtype)
    folded = jnp.mean(draws.sign < 0).astype(bound.dtype)
    records = Records(-bound, zero, zero, non_finite, folded)
    return settings.elbo_weight * surrogate, (records, jax.lax.stop_gradient(chains))


def _langevin(rng_key, z: Float[Array, "m d"], draws: DrawWeights) -> Float[Array, "m d"]:
    """One step of dz = -(z + J^T force) dt + sqrt(2) s dW, its linear part exact.

    At q = p a chain is stationary at N(0, s^2 I), as wide as the wider draws of a pool.  A chain
    that has left for a fold, or where nothing is finite, begins again.
    """
    noise = jr.normal(rng_key, (2, *z.shape), z.dtype)
    keep = math.exp(-_LANGEVIN_STEP)
    spread = wide_scale(z.shape[1]) * math.sqrt(1 - keep**2)
    moved = keep * z - (1 - keep) * draws.latent_force + spread * noise[0]
    fine = (draws.sign > 0) & jnp.isfinite(draws.log_weight)
    return jnp.where(fine[:, None], moved, noise[1])
