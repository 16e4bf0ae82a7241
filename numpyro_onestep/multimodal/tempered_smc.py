"""A tempered population of particles, which finds every mode and its share of the mass.

Descents say where modes are and how far apart.  The first distribution is a Gaussian as wide as
that, mixed with a Gaussian at each mode where these can be counted; and half of it is the same at
widths two to a thousand times as large, since a mode can lie inside a wider one, to whose middle no
descent leads.  It is turned into the target in small steps of inverse temperature,
exp(-(1 - b) U_0 - b U), with the particles weighed, resampled and moved by Hamiltonian Monte Carlo
at each (sequential Monte Carlo samplers: Del Moral, Doucet and Jasra, JRSS B 2006).  Each particle
meets the barriers while they are still low, and a mode too small to be met by chance is there from
the start.
"""

from typing import NamedTuple

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray
from scipy.optimize import brentq
from scipy.special import logsumexp

from numpyro_onestep._util.batching import map_in_batches
from numpyro_onestep._util.compilation import compiled
from numpyro_onestep._util.random import numpy_generator, stream
from numpyro_onestep.flow.base_distribution import AbstractNoise, ScaleMixture, normal_mixture
from numpyro_onestep.flow.gaussian import GaussianBase, WhitenedPotential
from numpyro_onestep.importance.evidence import without_nan
from numpyro_onestep.importance.resampling import systematic
from numpyro_onestep.mcmc.rejuvenation import hamiltonian_steps
from numpyro_onestep.multimodal.modes import Modes, find_modes
from numpyro_onestep.target import Potential

# The wide Gaussian is so much wider than the spread of the descents' ends, those at the modes than
# Laplace's approximations.
_INFLATION = 1.5
# Half of the particles start at the first width, the others at the rest in equal parts.
_WIDTHS = 2.0 ** np.arange(11)
# The first draws cost one evaluation each, and most of the wide ones are of no use.
_FIRST_DRAWS = 4  # for every particle
MOST_DIMENSIONS = 128  # a Hessian at every descent's end
# More modes than this are left to the wide Gaussian.
_MOST_LISTED = 128
# A step of temperature leaves this share of effective particles.
_ESS_SHARE = 0.8
_MOST_TEMPERATURES = 200
_MOVES = 5  # a temperature
_GOOD_ACCEPTANCE = 0.7


class Tempered(eqx.Module):
    """(1 - b) U_0 + b U."""

    target: Potential
    reference: AbstractNoise
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
    if d > MOST_DIMENSIONS:
        raise ValueError(
            f"many_modes explores up to {MOST_DIMENSIONS} dimensions, but the target has {d}. "
            "Marginalise what can be summed out, or leave many_modes out."
        )


def explore(
    potential: Potential,
    start: Float[Array, " d"],
    base: GaussianBase,
    rng_key: PRNGKeyArray,
    num_particles: int = 4000,
) -> Population:
    """Particles distributed as the target, all its modes in their right shares.

    Args:
        potential: the target.
        start: a point of finite density.
        base: the Gaussian that was fitted to the target: its spread is the least to start from.
        rng_key: a JAX random key.
        num_particles: how many. Default 4000.

    Raises:
        ValueError: more than 128 dimensions, no finite density far and wide, or the temperature
            does not come down; the message says what to do.
    """
    require_explorable(start.size)
    key_starts, key_first = stream(rng_key, "descents"), stream(rng_key, "first particles")
    modes = find_modes(potential, start, key_starts)
    reference = _first_distribution(modes, base, start.dtype)
    x = _draws(reference, key_first, _FIRST_DRAWS * num_particles, start)
    done, log_evidence, step_size = 0.0, 0.0, 0.3
    rng = numpy_generator(stream(rng_key, "resampling"))
    for index in range(_MOST_TEMPERATURES):
        # Between the two temperatures the log weight changes by this, times their difference.
        parts = np.split(np.asarray(x), len(x) // num_particles)
        rates = [_tempering_rate(potential, reference, part) for part in parts]
        rate = without_nan(np.concatenate(rates))
        if not np.isfinite(rate).any():
            raise ValueError(
                "many_modes: the density is zero, or not a number, at every one of "
                f"{len(x)} points from a wide Gaussian. Transform parameters so that all of "
                "R^d is allowed (as NumPyro's constrained distributions do), or leave many_modes "
                "out."
            )
        step = _next_step(rate, 1 - done, num_particles)
        log_weights = step * rate
        log_evidence += logsumexp(log_weights) - np.log(len(rate))
        done = min(done + step, 1.0)
        weights = np.exp(log_weights - logsumexp(log_weights))
        x = jnp.asarray(np.asarray(x)[systematic(rng, weights, num_particles)])
        tempered = Tempered(potential, reference, jnp.asarray(done, start.dtype))
        whitened = WhitenedPotential(tempered, _spread(x))
        sizes = np.asarray([0.3 * step_size, step_size], start.dtype)
        key = stream(rng_key, "moves", index)
        x, accepted = hamiltonian_steps(whitened, x, key, _MOVES, sizes)
        step_size = float(np.clip(step_size * np.exp(accepted - _GOOD_ACCEPTANCE), 1e-4, 0.5))
        if done >= 1:
            return Population(np.asarray(x), modes, float(log_evidence))
    raise ValueError(
        f"many_modes: after {_MOST_TEMPERATURES} temperatures only {done:.1%} of the way from a "
        "wide Gaussian to the target is done. Rescale the parameters to about unit size, or leave "
        "many_modes out."
    )


def _first_distribution(modes: Modes, base: GaussianBase, dtype) -> ScaleMixture:
    """Half a Gaussian wide enough for the ends of most descents, half the modes by their mass.

    Both at many widths.
    """
    low, middle, high = np.quantile(modes.ends, [0.05, 0.5, 0.95], axis=0)
    spread = (high - low) / 3.29  # the distance of these quantiles in a Gaussian's units
    own = np.sqrt((np.asarray(base.scale_tril, np.float64) ** 2).sum(1))
    weights, loc, scale_tril = np.ones(1), middle[None], np.diag(_INFLATION * (spread + own))[None]
    if 0 < len(modes.loc) <= _MOST_LISTED:
        # Laplace's masses are rough: their square roots leave none without particles.
        shares = np.exp(0.5 * (modes.log_mass - modes.log_mass.max()))
        weights = np.concatenate([weights, shares / shares.sum()]) / 2
        loc = np.concatenate([loc, modes.loc])
        scale_tril = np.concatenate([scale_tril, _INFLATION * modes.scale_tril])
    mixture = normal_mixture(np.log(weights), loc, scale_tril, dtype)
    shares = np.full(len(_WIDTHS), 0.5 / (len(_WIDTHS) - 1))
    shares[0] = 0.5
    return ScaleMixture(mixture, jnp.asarray(np.log(shares), dtype), jnp.asarray(_WIDTHS, dtype))


@compiled
def _draws(reference: AbstractNoise, rng_key: PRNGKeyArray, num: int, like: Float[Array, " d"]):
    return reference.sample(rng_key, num, like)


@compiled
def _tempering_rate(potential: Potential, reference: AbstractNoise, x: Float[Array, "n d"]):
    tempered = Tempered(potential, reference, jnp.zeros((), x.dtype))
    return map_in_batches(lambda at: tempered(at) - potential(at), x, 1000)


def _next_step(rate: Float[np.ndarray, " n"], rest: float, num_particles: int) -> float:
    """The largest step of inverse temperature that leaves enough effective particles."""

    def excess(step: float) -> float:
        log_w = step * rate
        log_ess = 2 * logsumexp(log_w) - logsumexp(2 * log_w)
        return float(np.exp(log_ess) / num_particles - _ESS_SHARE)

    if excess(rest) >= 0 or excess(1e-6 * rest) <= 0:
        return rest if excess(rest) >= 0 else 1e-6 * rest
    return float(np.asarray(brentq(excess, 1e-6 * rest, rest, xtol=1e-9)))


def _spread(x: Float[Array, "n d"]) -> GaussianBase:
    """Mean and standard deviations of the particles: the units of the moves."""
    return GaussianBase(jnp.mean(x, 0), jnp.diag(jnp.std(x, 0) + 1e-6))
