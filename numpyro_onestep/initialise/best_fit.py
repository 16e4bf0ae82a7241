"""The fit of the Gaussian preconditioner to a target.

Batch and match is fast, but it can stall far from the mass, and the mode of a hierarchical model
may lie at infinity.  So it starts at several points of one L-BFGS descent, as Pathfinder does
(Zhang et al., "Pathfinder: parallel quasi-Newton variational inference", JMLR 2022), and the fit of
highest ELBO is kept.
"""

import math
from collections.abc import Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from numpyro_onestep import limits
from numpyro_onestep._util.batching import map_in_batches, side_by_side
from numpyro_onestep._util.compilation import compiled
from numpyro_onestep._util.random import stream
from numpyro_onestep.flow.base_distribution import STANDARD_NORMAL, AbstractBaseDistribution
from numpyro_onestep.flow.flow_map import AbstractFlowMap
from numpyro_onestep.flow.gaussian import AbstractPreconditioner, GaussianPreconditioner
from numpyro_onestep.flow.preconditioned import PreconditionedPotential
from numpyro_onestep.initialise.batch_and_match import batch_and_match
from numpyro_onestep.initialise.expected_curvature import (
    diagonal_match,
    towards_expected_curvature,
)
from numpyro_onestep.initialise.laplace import laplace, low_rank_laplace
from numpyro_onestep.optimise.lbfgs import descend, descent
from numpyro_onestep.optimise.ridges import along_ridge
from numpyro_onestep.structure.structure import Structure
from numpyro_onestep.target import Potential

# Steps of the descent at whose points the fits start.  The first is the model's own start.  The
# last may be on its way to a mode at infinity, far from the mass.
_START_STEPS = (0, 10, 25, 99)
_FIRST_SCALE = 0.1  # standard deviation of the Gaussians that the fits start with
_LAPLACE_DESCENT_STEPS = 500  # more than of other descents, since the mode itself is needed
# Largest number of further rounds of batch and match.  They are made from the best fit where its
# ELBO is above all others by more than _SAME_ELBO, since it may not have converged then.
_MOST_ROUNDS = 8
# Iterations that a further round leaves out at its beginning, since their steps are the longest.
_LEFT_OUT = 50
# Nats.  Two fits whose ELBOs differ by less are taken to be the same.
_SAME_ELBO = 1.0
# Largest number of rounds of expected curvature.
_MOST_CURVATURE_ROUNDS = 20
# Nats, and a fraction of the way to the expected curvature.  A round that gains less than the first
# number went too far or gained only noise, so the next round goes half as far.  The rounds end when
# the fraction of the way falls below the second number.
_WORTH_A_ROUND = 0.5
_SMALLEST_FRACTION = 0.2
_ENTROPY = 0.5 + 0.5 * math.log(2 * math.pi)  # of a standard normal variable (nats)
_ELBO_DRAWS = 512  # from which the ELBO of a fit is estimated
# Nats.  Another start gets a fit if its descent ends at an energy that is lower by more than this.
_LOWER_ENERGY = 1.0


class Fit(NamedTuple):
    """Preconditioner and base distribution: an untrained flow has their distribution."""

    preconditioner: AbstractPreconditioner
    elbo: Float[Array, ""]  # nats; -inf where no start gave a finite one
    base: AbstractBaseDistribution = STANDARD_NORMAL
    structure: Structure | None = None  # of the map; None for a dense one
    flow: AbstractFlowMap | None = None  # to start training with; None for an untrained dense map


def best_fit(
    potential: Potential, starts: Iterable[Float[Any, " d"]], rng_key: PRNGKeyArray
) -> Fit:
    """The best fit, from the first start and from each that descends to a lower energy.

    A descent can end in a mode of no mass, which the fit alone does not show, or stop on a ridge on
    its way; other descents cost milliseconds.

    Raises:
        ValueError: `starts` is empty.
    """
    best, lowest = None, math.inf
    for index, start in enumerate(starts):
        energy = float(descent(potential, start).energy)
        if best is not None and not energy < lowest - _LOWER_ENERGY:
            continue
        key = stream(rng_key, "start", index)
        fit = jax.block_until_ready(fit_preconditioner(potential, start, key))
        lowest = min(lowest, energy) if math.isfinite(energy) else lowest
        if best is None or not float(best.elbo) >= float(fit.elbo):
            best = fit
    if best is None:
        raise ValueError("best_fit needs a point to start from, but starts is empty.")
    if isinstance(best.preconditioner, GaussianPreconditioner) and np.isfinite(float(best.elbo)):
        gaussian = best.preconditioner
        factor = np.asarray(gaussian.matrix(), np.float64)
        entropy = np.log(np.diag(factor)).sum() + len(factor) * _ENTROPY
        point = along_ridge(potential, gaussian.loc, factor, float(entropy) - float(best.elbo))
        if point is not None:
            fit = fit_preconditioner(potential, point, stream(rng_key, "ridge"))
            best = fit if float(fit.elbo) > float(best.elbo) else best
    return best


def fit_preconditioner(potential: Potential, start: Float[Any, " d"], rng_key: PRNGKeyArray) -> Fit:
    """Fit the Gaussian preconditioner to a target, from one point of finite density.

    Up to 512 dimensions by batch and match.  In more, by batch and match of independent
    coordinates, and from there by the target's expected curvature.  Where no such fit has a finite
    ELBO, by Laplace's approximation at the end of a descent.
    """
    points = start_points(potential, start)
    if start.size > limits.BATCH_AND_MATCH:
        best = _curved(potential, _independent(potential, points, rng_key), rng_key)
    else:
        best = _full(potential, points, rng_key)
    return best if np.isfinite(float(best.elbo)) else _laplace(potential, start, rng_key)


def start_points(potential: Potential, start: Float[Any, " d"]) -> Float[np.ndarray, "s d"]:
    """Points of the descent from one point, at which fits start."""
    # NumPy indexes here, since JAX would compile a program for each operation.
    return np.asarray(descent(potential, start).path)[list(_START_STEPS)]


def compile_ahead(potential: Potential, start: Float[Any, " d"], rng_key: PRNGKeyArray) -> None:
    """Begin to compile what `fit_preconditioner` will need from a start of such a shape."""
    points = np.stack([np.asarray(start)] * len(_START_STEPS))
    _matched.ahead(potential, _narrow(points), np.asarray(0), rng_key)


def base_elbo(
    potential: PreconditionedPotential, base: AbstractBaseDistribution, rng_key: PRNGKeyArray
) -> Float[Array, ""]:
    """The ELBO of the base distribution itself, without a flow (nats).

    Draws without a finite density are rejected; minus infinity where that leaves none.
    """
    z = base.sample(rng_key, _ELBO_DRAWS, potential.preconditioner.loc)
    energies = map_in_batches(potential.whitened, z, side_by_side(potential))
    log_weights = -energies - jax.vmap(base.log_density)(z)
    finite = jnp.isfinite(log_weights)
    mean = jnp.sum(log_weights, where=finite) / jnp.maximum(finite.sum(), 1)
    return mean + jnp.log(jnp.mean(finite))


def _full(potential: Potential, points: Float[np.ndarray, "s d"], rng_key: PRNGKeyArray) -> Fit:
    """The best fit of batch and match from several points, with further rounds while they gain."""
    best, second = _matched(potential, _narrow(points), np.asarray(0), rng_key)
    settled = float(second) > float(best.elbo) - _SAME_ELBO
    for index in range(_MOST_ROUNDS):
        if settled or not np.isfinite(float(best.elbo)):
            break
        again = jax.tree.map(lambda leaf: np.stack([leaf] * len(points)), best.preconditioner)
        key = stream(rng_key, "round", index)
        fit, _ = _matched(potential, again, np.asarray(_LEFT_OUT), key)
        # All of these fits start from the same Gaussian, so that they agree proves nothing: the
        # question is whether they are better than that Gaussian.
        gain = float(fit.elbo) - float(best.elbo)
        settled = not gain > _SAME_ELBO
        best = fit if gain > 0 else best
    return best


def _narrow(points: Any) -> GaussianPreconditioner:
    """A small Gaussian about each point."""
    scale = jnp.asarray(_FIRST_SCALE * np.eye(points.shape[1], dtype=points.dtype))
    each = [GaussianPreconditioner(jnp.asarray(point), scale) for point in points]
    return jax.tree.map(lambda *leaves: np.stack(leaves), *each)


def _curved(potential: Potential, best: Fit, rng_key: PRNGKeyArray) -> Fit:
    """A fit after rounds of the target's expected curvature, as long as they gain."""
    fraction = 1.0
    for index in range(_MOST_CURVATURE_ROUNDS):
        if fraction < _SMALLEST_FRACTION or not np.isfinite(float(best.elbo)):
            break
        key = stream(rng_key, "curvature", index)
        way = np.asarray(fraction, best.elbo.dtype)
        fit = _curvature_round(potential, best.preconditioner, way, key)
        gain = float(fit.elbo) - float(best.elbo)
        best = fit if gain > 0 else best
        fraction = fraction if gain > _WORTH_A_ROUND else fraction / 2
    return best


def _fit_of(potential: Potential, preconditioner: Any, rng_key: PRNGKeyArray) -> Fit:
    """A preconditioner with its ELBO."""
    preconditioned = PreconditionedPotential(potential, preconditioner)
    return Fit(preconditioner, base_elbo(preconditioned, STANDARD_NORMAL, rng_key))


@compiled
def _curvature_round(potential, preconditioner, fraction, rng_key) -> Fit:
    key_fit, key_elbo = jr.split(rng_key)
    new = towards_expected_curvature(potential, preconditioner, fraction, key_fit)
    return _fit_of(potential, new, key_elbo)


@compiled
def _independent(potential, points, rng_key) -> Fit:
    """Of the fits of independent coordinates from several points the one of highest ELBO."""

    def fit_one(point, key):
        key_fit, key_elbo = jr.split(key)
        return _fit_of(potential, diagonal_match(potential, point, key_fit), key_elbo)

    fits = jax.vmap(fit_one)(points, jr.split(rng_key, len(points)))
    best = jnp.argmax(fits.elbo)
    return jax.tree.map(lambda leaf: leaf[best], fits)


@compiled
def _laplace(potential, start, rng_key) -> Fit:
    key_fit, key_elbo = jr.split(rng_key)
    mode = descend(potential, start, _LAPLACE_DESCENT_STEPS).path[-1]
    if start.size > limits.DENSE_MATRIX:
        preconditioner = low_rank_laplace(potential, mode, key_fit)
    else:
        preconditioner = laplace(potential, mode)
    return _fit_of(potential, preconditioner, key_elbo)


@compiled
def _matched(
    potential: Potential, initial: GaussianPreconditioner, first: Any, rng_key: PRNGKeyArray
) -> tuple[Fit, Float[Array, ""]]:
    """Of the fits from several Gaussians the one of highest ELBO, and the second best ELBO."""
    keys = jax.vmap(jr.split)(jr.split(rng_key, len(initial.loc)))
    gaussians = batch_and_match(potential, initial, first, keys[:, 0])
    fits = jax.vmap(lambda gaussian, key: _fit_of(potential, gaussian, key))(gaussians, keys[:, 1])
    best, second = jnp.argsort(-fits.elbo)[:2]
    return jax.tree.map(lambda leaf: leaf[best], fits), fits.elbo[second]
