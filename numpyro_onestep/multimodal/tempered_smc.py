"""Tempered sequential Monte Carlo: particles that find every mode and its fraction of the mass.

Descents show where the modes are and how far apart.  The first distribution is a Gaussian as wide
as the ends of the descents, mixed with a Gaussian at each mode where there are at most 128 modes.
Half of its particles come from the same mixture at scales 2 to 1024 times as large, since a mode
can lie inside a wider one and be hidden from every descent.  The first distribution is turned into
the target in small steps of inverse temperature, exp(-(1 - b) U_0 - b U).  At each step the
particles are weighed, resampled and moved by Hamiltonian Monte Carlo (sequential Monte Carlo
samplers: Del Moral, Doucet and Jasra, JRSS B 2006).  Particles cross barriers while these are still
low, and a mode that is too small to be found by chance has particles from the start.
"""

from typing import Any, NamedTuple

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray
from scipy.special import logsumexp

from numpyro_onestep import limits
from numpyro_onestep._util import progress
from numpyro_onestep._util.batching import map_in_batches
from numpyro_onestep._util.compilation import compiled
from numpyro_onestep._util.random import numpy_generator, stream
from numpyro_onestep.flow.base_distribution import (
    AbstractBaseDistribution,
    ScaleMixture,
    normal_mixture,
)
from numpyro_onestep.flow.gaussian import AbstractPreconditioner, GaussianPreconditioner
from numpyro_onestep.flow.preconditioned import PreconditionedPotential
from numpyro_onestep.importance.psis import without_nan
from numpyro_onestep.importance.resampling import systematic
from numpyro_onestep.mcmc.hmc import hmc
from numpyro_onestep.multimodal.modes import Modes, find_modes
from numpyro_onestep.target import Potential

# Standard deviations of the first distribution, as multiples of those of the descents' ends, and of
# Laplace's approximations at the modes.
_INFLATION = 1.5
# Half of the particles start at the first of these scales, the others at the rest in equal parts.
_SCALES = 2.0 ** np.arange(11)
# First draws for each particle.  Most draws at large scales are of no use, and a draw costs only
# one evaluation.
_FIRST_DRAWS = 4
# Largest number of modes that get a Gaussian of their own.  If there are more, the first
# distribution has the wide Gaussian alone.
_MOST_LISTED = 128
# Effective particles after a step of inverse temperature, as a fraction.  Longer steps would leave
# too few different particles.
_ESS_FRACTION = 0.8
_MOST_TEMPERATURES = 200
_HMC_STEPS = 5  # at each temperature
# Acceptance rate of HMC.  Above it the leapfrog step grows, below it the step shrinks.
_GOOD_ACCEPTANCE = 0.7
# Leapfrog steps, in standard deviations of the particles.
_FIRST_STEP_SIZE, _SMALLEST_STEP_SIZE, _LARGEST_STEP_SIZE = 0.3, 1e-4, 0.5
# The smallest leapfrog step of a temperature as a fraction of its largest.
_STEP_SIZE_RANGE = 0.3


class Tempered(eqx.Module):
    """The tempered potential (1 - b) U_0 + b U at the inverse temperature b."""

    target: Potential
    reference: AbstractBaseDistribution
    inverse_temperature: Float[Array, ""]

    def __call__(self, x: Float[Array, " d"]) -> Float[Array, ""]:
        """The tempered potential (nats); it is not finite where U is not finite, even at b = 0."""
        first, beta = -self.reference.log_density(x), self.inverse_temperature
        return (1 - beta) * first + beta * self.target(x)


class Population(NamedTuple):
    """Particles of equal weight, and the log evidence from the weights of all steps (nats)."""

    x: Float[np.ndarray, "n d"]
    modes: Modes
    log_evidence: float


def require_explorable(d: int) -> None:
    """Raise a ValueError where the dimension is too high."""
    if d > limits.MULTIMODAL:
        raise ValueError(
            f"multimodal explores up to {limits.MULTIMODAL} dimensions, but the target has {d}. "
            "Marginalise what can be summed out, or leave multimodal out."
        )


@progress.stage("exploring by tempered SMC")
def explore(
    potential: Potential,
    start: Float[Any, " d"],
    preconditioner: AbstractPreconditioner,
    rng_key: PRNGKeyArray,
    num_particles: int = 4000,
) -> Population:
    """Particles distributed as the target, with the right mass in each of its modes.

    Args:
        potential: the target.
        start: a point of finite density.
        preconditioner: the Gaussian that was fitted to the target; the first distribution is at
            least as wide.
        rng_key: a JAX random key.
        num_particles: number of particles. Default 4000.

    Raises:
        ValueError: more than 128 dimensions, no particle with a finite density, or the inverse
            temperature does not reach 1; the message says what to do.
    """
    require_explorable(start.size)
    key_starts, key_first = stream(rng_key, "descents"), stream(rng_key, "first particles")
    modes = find_modes(potential, start, key_starts)
    reference = _first_distribution(modes, preconditioner, start.dtype)
    x = _draws(reference, key_first, _FIRST_DRAWS * num_particles, start)
    done, log_evidence, step_size = 0.0, 0.0, _FIRST_STEP_SIZE
    rng = numpy_generator(stream(rng_key, "resampling"))
    for index in range(_MOST_TEMPERATURES):
        # A step of inverse temperature changes the log weight by the rate times the step.
        parts = np.split(np.asarray(x), len(x) // num_particles)
        rates = [_tempering_rate(potential, reference, part) for part in parts]
        rate = without_nan(np.concatenate(rates))
        if not np.isfinite(rate).any():
            raise ValueError(
                "multimodal: the density is zero, or not a number, at every one of "
                f"{len(x)} points from a wide Gaussian. Transform parameters so that all of "
                "R^d is allowed (as NumPyro's constrained distributions do), or leave multimodal "
                "out."
            )
        step = _next_step(rate, 1 - done, num_particles)
        log_weights = step * rate
        log_evidence += logsumexp(log_weights) - np.log(len(rate))
        done = min(done + step, 1.0)
        weights = np.exp(log_weights - logsumexp(log_weights))
        x = jnp.asarray(np.asarray(x)[systematic(rng, weights, num_particles)])
        tempered = Tempered(potential, reference, jnp.asarray(done, start.dtype))
        preconditioned = PreconditionedPotential(tempered, _scales_of(x))
        sizes = _STEP_SIZE_RANGE * step_size, step_size
        key = stream(rng_key, "moves", index)
        x, accepted = hmc(preconditioned, x, key, _HMC_STEPS, sizes)
        change = np.exp(np.asarray(_mean(accepted)) - _GOOD_ACCEPTANCE)
        step_size = float(np.clip(step_size * change, _SMALLEST_STEP_SIZE, _LARGEST_STEP_SIZE))
        if done >= 1:
            return Population(np.asarray(x), modes, float(log_evidence))
    raise ValueError(
        f"multimodal: after {_MOST_TEMPERATURES} temperatures only {done:.1%} of the way from a "
        "wide Gaussian to the target is done. Rescale the parameters to about unit size, or leave "
        "multimodal out."
    )


def _first_distribution(
    modes: Modes, preconditioner: AbstractPreconditioner, dtype
) -> ScaleMixture:
    """The first distribution: half a wide Gaussian, half Gaussians at the modes, at many scales.

    The wide Gaussian covers the ends of most descents, and the modes are weighed by the square
    roots of their masses.
    """
    low, middle, high = np.quantile(modes.ends, [0.05, 0.5, 0.95], axis=0)
    deviation = (high - low) / 3.29  # the distance of these quantiles in a Gaussian's units
    own = np.sqrt((np.asarray(preconditioner.matrix(), np.float64) ** 2).sum(1))
    weights, loc = np.ones(1), middle[None]
    scale_tril = np.diag(_INFLATION * (deviation + own))[None]
    if 0 < len(modes.loc) <= _MOST_LISTED:
        # Laplace's masses are rough.  With their square roots no mode is left without particles.
        masses = np.exp(0.5 * (modes.log_mass - modes.log_mass.max()))
        weights = np.concatenate([weights, masses / masses.sum()]) / 2
        loc = np.concatenate([loc, modes.loc])
        scale_tril = np.concatenate([scale_tril, _INFLATION * modes.scale_tril])
    mixture = normal_mixture(np.log(weights), loc, scale_tril, dtype)
    fractions = np.full(len(_SCALES), 0.5 / (len(_SCALES) - 1))
    fractions[0] = 0.5
    return ScaleMixture(mixture, jnp.asarray(np.log(fractions), dtype), jnp.asarray(_SCALES, dtype))


@compiled
def _draws(
    reference: AbstractBaseDistribution, rng_key: PRNGKeyArray, num: int, like: Float[Array, " d"]
):
    return reference.sample(rng_key, num, like)


@compiled
def _mean(values: Float[Array, " n"]) -> Float[Array, ""]:
    return jnp.mean(values)


@compiled
def _tempering_rate(
    potential: Potential, reference: AbstractBaseDistribution, x: Float[Array, "n d"]
):
    tempered = Tempered(potential, reference, jnp.zeros((), x.dtype))
    return map_in_batches(lambda at: tempered(at) - potential(at), x, 1000)


def _next_step(rate: Float[np.ndarray, " n"], rest: float, num_particles: int) -> float:
    """The largest step of inverse temperature that leaves enough effective particles."""
    from scipy.optimize import brentq  # imported here, since it takes long and few runs need it

    def excess(step: float) -> float:
        log_w = step * rate
        total, total_of_squares = (np.asarray(logsumexp(v)) for v in (log_w, 2 * log_w))
        log_ess = 2 * total - total_of_squares
        return float(np.exp(log_ess) / num_particles - _ESS_FRACTION)

    if excess(rest) >= 0 or excess(1e-6 * rest) <= 0:
        return rest if excess(rest) >= 0 else 1e-6 * rest
    return float(np.asarray(brentq(excess, 1e-6 * rest, rest, xtol=1e-9)))


def _scales_of(x: Float[Array, "n d"]) -> GaussianPreconditioner:
    """Mean and standard deviations of the particles: the units in which they are moved."""
    return GaussianPreconditioner(jnp.mean(x, 0), jnp.diag(jnp.std(x, 0) + 1e-6))
