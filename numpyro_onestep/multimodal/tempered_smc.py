"""Tempered sequential Monte Carlo: particles that find every mode and its fraction of the mass.

Descents say where modes are and how far apart.  The first distribution is a Gaussian as wide as
that, mixed with a Gaussian at each mode where these can be counted.  Half of its particles come
from the same at scales two to a thousand times as large, since a mode can lie inside a wider one,
to whose middle no descent leads.  It is turned into the target in small steps of inverse
temperature, exp(-(1 - b) U_0 - b U), with the particles weighed, resampled and moved by Hamiltonian
Monte Carlo at each (sequential Monte Carlo samplers: Del Moral, Doucet and Jasra, JRSS B 2006).
Each particle meets the barriers while they are still low, and a mode too small to be met by chance
is there from the start.
"""

from typing import Any, NamedTuple

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray
from scipy.special import logsumexp

from numpyro_onestep import limits
from numpyro_onestep._util.batching import map_in_batches
from numpyro_onestep._util.compilation import compiled
from numpyro_onestep._util.random import numpy_generator, stream
from numpyro_onestep.flow.base_distribution import (
    AbstractBaseDistribution,
    ScaleMixture,
    normal_mixture,
)
from numpyro_onestep.flow.gaussian import GaussianPreconditioner
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
# First draws for every particle.  They cost one evaluation each, and most of those at large scales
# are of no use.
_FIRST_DRAWS = 4
# More modes than this are left to the wide Gaussian.
_MOST_LISTED = 128
# A step of temperature is as long as it leaves this fraction of effective particles.
_ESS_FRACTION = 0.8
_MOST_TEMPERATURES = 200
_HMC_STEPS = 5  # at each temperature
# The leapfrog step grows while more than this fraction of HMC's steps is accepted, and shrinks
# while less is.
_GOOD_ACCEPTANCE = 0.7
_FIRST_STEP_SIZE, _SMALLEST_STEP_SIZE, _LARGEST_STEP_SIZE = 0.3, 1e-4, 0.5
# Step sizes vary between this fraction of the largest and the largest.
_STEP_SIZE_RANGE = 0.3


class Tempered(eqx.Module):
    """(1 - b) U_0 + b U."""

    target: Potential
    reference: AbstractBaseDistribution
    inverse_temperature: Float[Array, ""]

    def __call__(self, x: Float[Array, " d"]) -> Float[Array, ""]:
        """The tempered potential (nats); not finite where U is not, at b = 0 neither."""
        first, beta = -self.reference.log_density(x), self.inverse_temperature
        return (1 - beta) * first + beta * self.target(x)


class Population(NamedTuple):
    """Particles of equal weight, and the log evidence that their weights gave on the way (nats)."""

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


def explore(
    potential: Potential,
    start: Float[Any, " d"],
    preconditioner: GaussianPreconditioner,
    rng_key: PRNGKeyArray,
    num_particles: int = 4000,
) -> Population:
    """Particles distributed as the target, all its modes with their right masses.

    Args:
        potential: the target.
        start: a point of finite density.
        preconditioner: the Gaussian that was fitted to the target: its standard deviations are the
            least to start from.
        rng_key: a JAX random key.
        num_particles: how many. Default 4000.

    Raises:
        ValueError: more than 128 dimensions, no finite density far and wide, or the temperature
            does not come down; the message says what to do.
    """
    require_explorable(start.size)
    key_starts, key_first = stream(rng_key, "descents"), stream(rng_key, "first particles")
    modes = find_modes(potential, start, key_starts)
    reference = _first_distribution(modes, preconditioner, start.dtype)
    x = _draws(reference, key_first, _FIRST_DRAWS * num_particles, start)
    done, log_evidence, step_size = 0.0, 0.0, _FIRST_STEP_SIZE
    rng = numpy_generator(stream(rng_key, "resampling"))
    for index in range(_MOST_TEMPERATURES):
        # Between the two temperatures the log weight changes by this, times their difference.
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
    modes: Modes, preconditioner: GaussianPreconditioner, dtype
) -> ScaleMixture:
    """Half a Gaussian wide enough for the ends of most descents, half the modes by their mass.

    Both at many scales.
    """
    low, middle, high = np.quantile(modes.ends, [0.05, 0.5, 0.95], axis=0)
    deviation = (high - low) / 3.29  # the distance of these quantiles in a Gaussian's units
    own = np.sqrt((np.asarray(preconditioner.scale_tril, np.float64) ** 2).sum(1))
    weights, loc = np.ones(1), middle[None]
    scale_tril = np.diag(_INFLATION * (deviation + own))[None]
    if 0 < len(modes.loc) <= _MOST_LISTED:
        # Laplace's masses are rough: their square roots leave none without particles.
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
