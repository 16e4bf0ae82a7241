"""Training: compiled chunks of optimiser steps, until the rules of `stopping` end them.

Two stages share one loop (`stages` has their losses).  Each runs at a constant learning rate, and
then the learning rate falls to zero.  In the evidence stage it falls once the ELBO has stopped
rising.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, PRNGKeyArray

from numpyro_onestep._util import progress
from numpyro_onestep._util.compilation import compiled
from numpyro_onestep._util.random import stream
from numpyro_onestep.flow import (
    AbstractFlowMap,
    FlowDistribution,
    PreconditionedPotential,
    StructuredMap,
)
from numpyro_onestep.settings import LossSettings, Settings
from numpyro_onestep.training import stopping
from numpyro_onestep.training.progress import Place, Recorder, arrays_of, with_arrays
from numpyro_onestep.training.stages import Records, Stage, is_from_gaussian, losses

# Iterations that are compiled into one call.  With fewer the overhead of a call would matter, with
# more an interrupt would have to wait.
_CHUNK = 100
# Gap (nats) below which training may end early: of a structured map, and of a flow that goes on
# from an earlier one; and the dimension from which on they grow in proportion.
_NEAR, _NEAR_AGAIN, _NEAR_DIM = 0.01, 0.05, 50


class TrainingState(eqx.Module):
    """All that changes while training."""

    flow: AbstractFlowMap
    teacher: AbstractFlowMap  # the moving average of the flow
    opt_state: Any  # optax's
    learning_rate_scale: Float[Array, ""]
    chains: Float[Array, "m d"]  # Langevin chains in z, for the evidence stage


@dataclass(frozen=True)
class TrainingResult:
    """The trained flow and how training went."""

    flow: AbstractFlowMap
    from_gaussian: bool = True  # the flow started from one Gaussian, not from a mixture
    learning_rate_scale: float = 1.0  # at the end; steps too far have lowered it from 1
    num_undone: int = 0  # chunks undone, since their ELBO was too low or the map stayed folded
    records: dict[Stage, Records] = field(default_factory=dict)
    chunk_seconds: tuple[float, ...] = ()  # the first waits for compilation
    converged: bool = True
    is_judged: bool = True
    still_rising: bool = False
    interrupted: bool = False
    final_rise: float = 0.0
    cooling_from: int | None = None  # iteration of the last stage at which the rate began to fall

    @property
    def losses_by_stage(self) -> dict[Stage, Float[np.ndarray, " iterations"]]:
        """Every iteration's estimate of the bound on -log Z (nats), for each stage."""
        return {stage: np.asarray(records.loss) for stage, records in self.records.items()}

    @property
    def losses(self) -> Float[np.ndarray, " iterations"]:
        """The estimates of both stages, one after the other."""
        return np.concatenate([*self.losses_by_stage.values(), np.zeros(0)])

    @property
    def num_non_finite(self) -> int:
        """Iterations in which a draw or an update that was not finite was skipped."""
        return sum(int(np.sum(np.asarray(r.non_finite) > 0)) for r in self.records.values())


def train(
    distribution: FlowDistribution,
    potential: PreconditionedPotential,
    rng_key: PRNGKeyArray,
    settings: Settings,
    first_elbo: float = -math.inf,
    is_near: bool = False,
    recorder: Recorder | None = None,
) -> TrainingResult:
    """Train the flow of a distribution on a target, stage by stage.

    Where the base distribution is a mixture, steps that take the ELBO below `first_elbo`, that of
    the distribution given, are undone.  A flow that `is_near` its target, since it was trained on
    other data, may end early as a structured map does.  An interrupt (Ctrl-C) ends training and
    returns the flow as it is then.  A `recorder` is told of the place after every chunk; training
    goes on from the last place that it knows, where it knows one.
    """
    stages: list[Stage] = []
    if settings.schedule.num_distillation_steps:
        stages.append("distillation")
    if settings.losses.elbo_weight:
        stages.append("evidence")
    floor = -math.inf if is_from_gaussian(distribution) else first_elbo
    run = _Run(distribution, potential, settings, floor, is_near, recorder)
    if run.place is not None:
        stages = stages[stages.index(run.place.stage) :]
    try:
        for stage in stages:
            run.stage(stage, stream(rng_key, stage))
            run.record(now=stage != stages[-1])  # after the last one the result is recorded
    except KeyboardInterrupt:
        run.interrupted = True
        run.record(now=True)
    return run.result()


def compile_ahead(
    distribution: FlowDistribution,
    potential: PreconditionedPotential,
    rng_key: PRNGKeyArray,
    settings: Settings,
) -> None:
    """Begin to compile what `train` will need, for a flow and a target of such shapes."""
    stage: Stage = "distillation" if settings.schedule.num_distillation_steps else "evidence"
    state = initial_state(distribution, stream(rng_key, "chains"), settings.losses)
    rates = np.zeros(_CHUNK, np.float32)
    run_chunk.ahead(state, distribution, potential, rng_key, rates, settings.losses, stage)


class _Run:
    """The state of a training, of which `TrainingResult` is made at the end or an interrupt."""

    def __init__(
        self,
        distribution: FlowDistribution,
        potential: PreconditionedPotential,
        settings: Settings,
        floor: float,
        is_near: bool,
        recorder: Recorder | None,
    ):
        self.distribution, self.potential = distribution, potential
        self.settings, self.floor, self.is_near = settings, floor, is_near
        self.flow, self.learning_rate_scale, self.num_undone = distribution.flow, 1.0, 0
        self.chunks: dict[Stage, list[Records]] = {}
        self.chunk_seconds: list[float] = []
        self.judgement: stopping.Judgement | None = None
        self.interrupted, self.cooling_from = False, None
        self.recorder = recorder
        self.place = place = None if recorder is None else recorder.last_place()
        if place is not None:
            self.chunks = {stage: list(chunks) for stage, chunks in place.chunks.items()}
            self.chunk_seconds, self.num_undone = list(place.chunk_seconds), place.num_undone
            self.judgement = place.judgement

    def record(self, now: bool = False) -> None:
        """Tell the recorder of the place, which it keeps `now` or whenever it is time."""
        if self.recorder is not None and self.place is not None:
            self.recorder.reached(self.place, now)

    def result(self) -> TrainingResult:
        """The result of the training so far."""
        judged = self.judgement
        return TrainingResult(
            self.flow,
            from_gaussian=is_from_gaussian(self.distribution),
            learning_rate_scale=self.learning_rate_scale,
            num_undone=self.num_undone,
            records={
                stage: jax.tree.map(lambda *leaves: np.concatenate(leaves), *chunks)
                for stage, chunks in self.chunks.items()
                if chunks
            },
            chunk_seconds=tuple(self.chunk_seconds),
            converged=not self.interrupted and (judged is None or judged.converged),
            is_judged=judged is None or judged.is_judged,
            still_rising=judged is not None and judged.still_rising,
            interrupted=self.interrupted,
            final_rise=0.0 if judged is None else judged.rise,
            cooling_from=self.cooling_from,
        )

    def stage(self, stage: Stage, rng_key: PRNGKeyArray) -> None:
        """Run one stage, and keep the flow and the records of every chunk.

        A chunk whose ELBO is below the floor, or throughout which the map is folded, is undone.  So
        is the chunk before it, at whose end that may have begun.  The cause is a step that is too
        long, or small for most components of a mixture but many standard deviations of the
        narrowest.
        """
        schedule, losses = self.settings.schedule, self.settings.losses
        total = schedule.max_steps if stage == "evidence" else schedule.num_distillation_steps
        num_constant = stopping.num_at_constant_rate(total)
        num_cooling = total - num_constant
        self.distribution = self.distribution.with_flow(self.flow)
        state = initial_state(self.distribution, stream(rng_key, "chains"), losses)
        chunks = self.chunks.setdefault(stage, [])
        near = _near(self.distribution, self.is_near)
        accepted: list[np.ndarray] = []  # losses of the chunks that were not undone
        safe = state, 0  # state at the start of the last accepted chunk, and chunks before it
        done, place, self.cooling_from = 0, self.place, None
        if place is not None and place.stage == stage:
            done, num_constant, num_cooling = place.done, place.num_constant, place.num_cooling
            safe = with_arrays(state, place.safe), place.num_safe
            state, accepted = with_arrays(state, place.state), list(place.accepted)
            self.flow, self.learning_rate_scale = state.flow, float(state.learning_rate_scale)

        num_steps = self.distribution.num_steps
        name = "distilling" if stage == "distillation" else "training"
        bound_name = "ELBO" if stage == "evidence" else "bound"
        name += f" for {num_steps} flow steps" if num_steps > 1 else ""
        with progress.stage(name):
            progress.detail(f"{done}/{num_constant + num_cooling}")

            def advance(state: TrainingState, rates: np.ndarray) -> TrainingState:
                nonlocal safe
                key = stream(rng_key, "chunk", len(chunks))
                new, records = self._chunk(state, key, rates, stage)
                chunks.append(records)
                below = stopping.is_below(self.floor, records.loss)
                if below or stopping.is_folded(records.folded):
                    scale, (state, count) = stopping.SCALE_BELOW * state.learning_rate_scale, safe
                    state = eqx.tree_at(lambda s: s.learning_rate_scale, state, scale)
                    del accepted[count:]
                    self.num_undone += 1
                else:
                    safe, state = (state, len(accepted)), new
                    accepted.append(np.asarray(records.loss))
                self.flow = state.flow
                self.learning_rate_scale = float(state.learning_rate_scale)
                return state

            def reached(state: TrainingState) -> None:
                of_all, bound = num_constant + num_cooling, -np.mean(chunks[-1].loss)
                progress.detail(f"{done}/{of_all}, {bound_name} {bound:.3f}")
                self.place = Place(
                    stage=stage,
                    done=done,
                    num_constant=num_constant,
                    num_cooling=num_cooling,
                    state=arrays_of(state),
                    safe=arrays_of(safe[0]),
                    num_safe=safe[1],
                    accepted=tuple(accepted),
                    chunks={name: tuple(chunks) for name, chunks in self.chunks.items()},
                    chunk_seconds=tuple(self.chunk_seconds),
                    num_undone=self.num_undone,
                    judgement=self.judgement,
                )
                self.record()

            while done < num_constant:
                count = min(_CHUNK, num_constant - done)
                state = advance(state, np.full(count, schedule.learning_rate, np.float32))
                done += count
                if stage == "evidence":
                    so_far = np.concatenate([*accepted, np.zeros(0)])
                    judged = stopping.judge(so_far, losses.num_own, schedule.tolerance, near)
                    self.judgement = judged
                    if judged.converged:
                        num_cooling = math.ceil(judged.cooling_fraction * done / _CHUNK) * _CHUNK
                        num_cooling = min(num_cooling, total - done)
                        num_constant = done
                reached(state)
            self.cooling_from = num_constant
            rates = np.linspace(schedule.learning_rate, 0.0, num_cooling, dtype=np.float32)
            for begin in range(done - num_constant, num_cooling, _CHUNK):
                state = advance(state, rates[begin : begin + _CHUNK])
                done += len(rates[begin : begin + _CHUNK])
                reached(state)

    def _chunk(self, state: TrainingState, rng_key: PRNGKeyArray, rates: np.ndarray, stage: Stage):
        """The state after a chunk at these learning rates, and the records of its iterations.

        A chunk always has the same length, so that it is compiled once; missing rates are zero,
        which leaves the flow as it is.
        """
        padded = np.zeros(_CHUNK, rates.dtype)
        padded[: len(rates)] = rates
        clock = time.perf_counter()
        arguments = self.distribution, self.potential, rng_key, padded, self.settings.losses
        new, records = run_chunk(state, *arguments, stage)
        records = jax.tree.map(lambda leaf: np.asarray(leaf)[: len(rates)], records)
        self.chunk_seconds.append(time.perf_counter() - clock)
        return new, records


def _near(distribution: FlowDistribution, is_near: bool) -> float:
    """The gap (nats) below which training may end after a few hundred iterations.

    A structured map has the right scales from the start, even in a funnel; so has a flow that was
    trained on other data of the same model.  At a constant learning rate the noise of the steps
    alone leaves a gap that grows with d; cooling removes it.
    """
    if not (is_near or isinstance(distribution.flow, StructuredMap)):
        return stopping.SMALL_GAP
    return (_NEAR_AGAIN if is_near else _NEAR) * max(1.0, distribution.dim / _NEAR_DIM)


@compiled  # as one program, since JAX would compile another for each of a dozen arrays
def initial_state(
    distribution: FlowDistribution, rng_key: PRNGKeyArray, settings: LossSettings
) -> TrainingState:
    """A state to begin a stage with: the teacher is the flow itself."""
    flow = distribution.flow
    opt_state = optimiser_of(settings).init(_parameters(flow)[0])
    chains = distribution.sample_base(rng_key, settings.num_chains)
    return TrainingState(flow, flow, opt_state, jnp.ones(()), chains)


def optimiser_of(settings: LossSettings) -> Any:
    """Adam with clipped gradients, at a learning rate of one."""
    import optax  # imported here, since it takes a tenth of the time that NumPyro does

    # The learning rate multiplies the update later, so that one compiled chunk serves all rates.
    return optax.chain(optax.clip_by_global_norm(settings.gradient_clip), optax.adam(1.0))


@compiled
def run_chunk(
    state: TrainingState,
    distribution: FlowDistribution,
    potential: PreconditionedPotential,
    rng_key: PRNGKeyArray,
    learning_rates: Float[Array, " steps"],
    settings: LossSettings,
    stage: Stage,
) -> tuple[TrainingState, Records]:
    """Take one optimiser step for each learning rate, on the flow of the state.

    The flow's parameters are one vector here.  As separate arrays they would make the program of a
    step larger by half, and its compilation as much longer.
    """
    optimiser, from_gaussian = optimiser_of(settings), is_from_gaussian(distribution)
    flow, as_flow = _parameters(state.flow)
    teacher, _ = _parameters(state.teacher)

    def step(carry, inputs):
        flow, teacher, opt_state, scale, chains = carry
        rate, key = inputs

        def total(student):
            student = distribution.with_flow(student)
            return losses(stage, student, as_flow(teacher), chains, potential, key, settings)

        # By the separate arrays: the gradient of a slice would be as long as the whole vector.
        gradients, (records, chains) = eqx.filter_grad(total, has_aux=True)(as_flow(flow))
        gradient, _ = ravel_pytree(gradients)
        # A gradient that is not finite is replaced by zero.
        finite = jnp.all(jnp.isfinite(gradient))
        updates, opt_state = optimiser.update(jnp.where(finite, gradient, 0.0), opt_state)
        # The teacher, the moving average, takes the flow's place where a step is undone.
        undone, new_scale = stopping.after_folds(records.folded, scale, from_gaussian)
        flow = jnp.where(undone, teacher, flow + (rate * scale).astype(flow.dtype) * updates)
        records = records._replace(non_finite=records.non_finite + ~finite)
        teacher = settings.ema_decay * teacher + (1 - settings.ema_decay) * flow
        return (flow, teacher, opt_state, new_scale, chains), records

    keys = jr.split(rng_key, learning_rates.shape[0])
    carry = flow, teacher, state.opt_state, state.learning_rate_scale, state.chains
    carry, records = jax.lax.scan(step, carry, (jnp.asarray(learning_rates), keys))
    flow, teacher, opt_state, scale, chains = carry
    return TrainingState(as_flow(flow), as_flow(teacher), opt_state, scale, chains), records


def _parameters(
    flow: AbstractFlowMap,
) -> tuple[Float[Array, " p"], Callable[[Array], AbstractFlowMap]]:
    """All parameters as a vector, and the way back."""
    dynamic, static = eqx.partition(flow, eqx.is_inexact_array)
    vector, unravel = ravel_pytree(dynamic)
    return vector, lambda values: eqx.combine(unravel(values), static)
