"""Every place where the benchmarks reach into the package beyond what it offers to its users.

Whoever changes the inside of the package has to look at this file alone. Everything else here
imports `OneStep` and `OneStepWarning`, and uses the accessors of a sampler that has run.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from numpyro.infer.initialization import init_to_uniform

from numpyro_onestep import OneStep
from numpyro_onestep.flow.parareal import parareal
from numpyro_onestep.given_draws.unconstrained import given_values
from numpyro_onestep.importance.resampling import resample
from numpyro_onestep.initialise.best_fit import fit_preconditioner
from numpyro_onestep.multimodal.tempered_smc import explore
from numpyro_onestep.target import model_target
from numpyro_onestep.target.evaluation import energies

__all__ = [
    "refined_draws",
    "resample",
    "tempered_particles",
    "unconstrained",
    "unconstrained_draws",
    "weights_by_traces",
]


def unconstrained(model: Callable, args: tuple, rng_key) -> tuple[Any, Any]:
    """A model's potential on R^d (nats), and a point of finite density to start from.

    The potential has a method `constrain`, which turns a point into the model's sites.
    """
    _, potential, start = model_target(rng_key, model, args, {}, None, init_to_uniform)
    return potential, start


def unconstrained_draws(model: Callable, args: tuple, draws: dict, rng_key) -> tuple[Any, Any]:
    """Draws of a model's sites as vectors (draw, coordinate) of R^d, and their log densities."""
    potential, _ = unconstrained(model, args, rng_key)
    values = given_values(rng_key, model, args, {}, draws, init_to_uniform)
    leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(values)]
    x = np.concatenate([leaf.reshape(len(leaf), -1) for leaf in leaves], axis=1)
    return x, -energies(potential, x)


def tempered_particles(model: Callable, args: tuple, rng_key, num: int) -> tuple[dict, float]:
    """What explores before the flow with `multimodal=True`, by itself.

    Returns:
        The particles, as sites of the model, and the log evidence that the tempering estimates.
    """
    key_start, key_fit, key_explore = jr.split(rng_key, 3)
    potential, start = unconstrained(model, args, key_start)
    gaussian = fit_preconditioner(potential, start, key_fit).preconditioner
    population = explore(potential, start, gaussian, key_explore, num_particles=num)
    return jax.vmap(potential.constrain)(population.x), population.log_evidence


def weights_by_traces(sampler: OneStep, num: int, rng_key) -> np.ndarray:
    """Log weights of the pool's first draws, with the volume that the paper's method takes.

    In place of the log-determinant of each step's Jacobian stands the step size times the trace
    of the velocity's Jacobian, estimated from one Hutchinson probe.
    """
    pool, posterior = sampler.get_pool(), sampler.get_posterior()
    flow, base = posterior.flow, posterior.base
    taus, sizes = flow.schedule(posterior.num_steps)

    def log_density_and_trace(z, key):
        def advance(y, inputs):
            tau, size, step_key = inputs
            probe = jr.rademacher(step_key, y.shape, y.dtype)
            new, along = jax.jvp(lambda at: flow.step(at, tau, size), (y,), (probe,))
            return new, jnp.vdot(probe, along - probe)

        _, traces = jax.lax.scan(advance, z, (taus, sizes, jr.split(key, len(taus))))
        return base.log_density(z), traces.sum()

    z = jnp.asarray(pool.z[:num])
    keys = jr.split(rng_key, len(z))
    log_base, traces = jax.lax.map(lambda at: log_density_and_trace(*at), (z, keys), batch_size=500)
    # The image of z is the pool's x, so that its log density is known already.
    volume = np.asarray(traces) + float(posterior.preconditioner.log_det)
    return np.asarray(pool.log_density[:num]) - np.asarray(log_base) + volume


def refined_draws(sampler: OneStep, z, num_steps: int, tolerance: float):
    """Parareal iterations of the trained map beside its steps one after the other.

    Returns:
        For every base draw the evaluations that followed each other, and the largest difference of
        a coordinate from the serial map, in whitened units.
    """
    flow: Any = sampler.get_posterior().flow

    @jax.jit
    @jax.vmap
    def both(z):
        refined = parareal(flow, z, num_steps, tolerance)
        return refined.num_evaluations, jnp.max(jnp.abs(refined.y - flow(z, num_steps)))

    evaluations, difference = both(jnp.asarray(z))
    return np.asarray(evaluations), np.asarray(difference, np.float64)
