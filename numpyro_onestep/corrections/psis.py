"""Pareto-smoothed resampling, and HMC rejuvenation where the weights are heavy-tailed."""

import math
from dataclasses import dataclass, replace
from typing import final

import jax
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from numpyro_onestep import limits
from numpyro_onestep._util.batching import map_in_batches, map_in_blocks
from numpyro_onestep._util.compilation import compiled
from numpyro_onestep.corrections.base import AbstractCorrection, Corrected
from numpyro_onestep.flow import FlowDistribution, PreconditionedPotential
from numpyro_onestep.flow.base_distribution import AbstractBaseDistribution, NormalMixture
from numpyro_onestep.importance.evidence import NEGLIGIBLE_GAP, WeightedPool
from numpyro_onestep.importance.pool import Pool
from numpyro_onestep.importance.resampling import MOST_FEATURES, resample
from numpyro_onestep.mcmc.hmc import LEAPFROG_STEPS
from numpyro_onestep.mcmc.rejuvenation import rejuvenate
from numpyro_onestep.settings import DrawSettings
from numpyro_onestep.target import Potential

# Pareto k above which the weights are heavy-tailed enough for rejuvenation to help.  It is well
# below the limit of 0.7, since k is only known to 0.1 or so.
_LIGHT_TAIL = 0.4
# Standard deviations at which the features of a draw are cut, so that single draws in a tail do not
# rule the balance.
_FARTHEST = 4.0
# An interquartile range of a normal distribution, in its standard deviations.
_INTERQUARTILE = 1.35
_MOST_FOR_QUANTILES = 4000  # members of the pool from which quantiles are computed


@final
@dataclass(frozen=True)
class PSIS(AbstractCorrection):
    """Distinct members of the pool, chosen by their smoothed weights."""

    settings: DrawSettings

    def __call__(
        self,
        weighted: WeightedPool,
        distribution: FlowDistribution,
        target: Potential,
        rng_key: PRNGKeyArray,
    ) -> Corrected:
        """Resample, and rejuvenate where that may help."""
        settings, (pool, evidence, smoothed) = self.settings, weighted
        d = pool.x.shape[1]
        # With a larger d `resample` would use none of the features, and each group takes as much
        # memory as the pool.
        few = d <= settings.num_samples * MOST_FEATURES
        features = _features(pool, distribution.base) if few else []
        chosen, capped = resample(rng_key, smoothed, settings.num_samples, features)
        line = f"resampled from {len(pool.x)}"
        result = Corrected(pool.x[chosen], line, chosen=chosen, capped_fraction=capped)
        gap = evidence.log_evidence - evidence.elbo
        num_steps, most_rounds = settings.rejuvenation(d)
        # A gap of many dimensions is the sum of theirs, so that as much is no sign of a neck.
        per_dimension = 1.0 if evidence.doubtful else max(1.0, d / limits.FEW_DIMENSIONS)
        heavy = evidence.pareto_k > _LIGHT_TAIL and NEGLIGIBLE_GAP * per_dimension < gap < math.inf
        # A round that takes long must have a need, which a tail that is not doubted is not.
        cost = settings.num_samples * num_steps * LEAPFROG_STEPS * target.num_numbers
        takes_long = cost > limits.EVALUATED_NUMBERS or d > limits.REJUVENATION
        worth = evidence.doubtful or not takes_long
        worth |= settings.num_rejuvenation_steps is not None
        if not (num_steps and heavy and worth):
            return result
        preconditioned = PreconditionedPotential(target, distribution.preconditioner)
        x, taken, change = rejuvenate(
            preconditioned, result.x, rng_key, num_steps, most_rounds, evidence.doubtful
        )
        return replace(
            result,
            x=x,
            line=f"{line}, then moved by {taken} steps of HMC",
            chosen=None,
            num_rejuvenation_steps=taken,
            change=change,
        )


def _features(pool: Pool, base: AbstractBaseDistribution) -> list[np.ndarray]:
    """Features to balance: weights of modes, means, second moments, and asymmetry.

    The sine is a bounded third feature: it also brings the means of exp x and of x > 0 nearer to
    those of the pool.
    """
    x = np.asarray(pool.x, np.float64)
    x = np.where(np.isfinite(x), x, 0.0)
    some = x[:: max(1, len(x) // _MOST_FOR_QUANTILES)]
    lower, median, upper = np.quantile(some, (0.25, 0.5, 0.75), axis=0)
    scale = (upper - lower) / _INTERQUARTILE + 1e-30
    white = np.clip((x - median) / scale, -_FARTHEST, _FARTHEST)
    groups = [white, white**2, np.sin(white)]
    if isinstance(base, NormalMixture):
        groups.insert(0, map_in_blocks(lambda z: _memberships(base, z), pool.z))
    return groups


@compiled
def _memberships(base: NormalMixture, z: Float[Array, "n d"]) -> Float[Array, "n c"]:
    """The probability of each component of a mixture, for each draw."""

    def one(z):
        return jax.nn.softmax(base.log_weights + base.log_components(z[None])[0])

    return map_in_batches(one, z)
