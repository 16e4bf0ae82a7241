"""Pareto-smoothed resampling, and moves where the weights are heavy-tailed."""

import math
from typing import Any

import jax
import numpy as np
from jaxtyping import PRNGKeyArray

from numpyro_onestep._util.batching import map_in_batches
from numpyro_onestep.corrections.base import Corrected
from numpyro_onestep.flow.base_distribution import NormalMixture
from numpyro_onestep.importance.evidence import NEGLIGIBLE_GAP
from numpyro_onestep.importance.resampling import MOST_FEATURES, resample
from numpyro_onestep.mcmc.rejuvenation import move_until_level
from numpyro_onestep.settings import Settings

# Weights with a heavier tail than this are helped by moves: k itself is known to 0.1 or so.
_LIGHT_TAIL = 0.4
# What is balanced ends at so many standard deviations, so that no tail rules it.
_FARTHEST = 4.0


def psis(run: Any, settings: Settings, rng_key: PRNGKeyArray) -> Corrected:
    """Distinct members of the pool, chosen by their smoothed weights."""
    # In more dimensions they would be made in vain, and take a pool's room each.
    few = run.pool.x.shape[1] <= settings.num_samples * MOST_FEATURES
    features = _features(run) if few else []
    chosen, capped_share = resample(rng_key, run.smoothed, settings.num_samples, features)
    line = f"resampled from {settings.num_pool}"
    result = Corrected(run.pool.x[chosen], line, chosen=chosen, capped_share=capped_share)
    evidence = run.evidence
    gap = evidence.log_evidence - evidence.elbo
    heavy = evidence.pareto_k > _LIGHT_TAIL
    num_moves, most_rounds = settings.moves(result.x.shape[1])
    if num_moves and heavy and NEGLIGIBLE_GAP < gap < math.inf:
        moved = move_until_level(
            run.potential, result.x, rng_key, num_moves, most_rounds, evidence.doubtful
        )
        result.x, result.num_moves, result.shift = moved
        result.chosen = None
        result.line += f", then moved by {result.num_moves} steps of HMC"
    return result


def _features(run: Any) -> list[np.ndarray]:
    """What the draws share with the pool: weights of modes, means, second moments, and asymmetry.

    The sine is a bounded third feature: with it the means of exp x and of x > 0 are nearer too.
    """
    x = np.asarray(run.pool.x, np.float64)
    x = np.where(np.isfinite(x), x, 0.0)
    lower, median, upper = np.quantile(x[:: max(1, len(x) // 4000)], (0.25, 0.5, 0.75), axis=0)
    scale = (upper - lower) / 1.35 + 1e-30  # a normal's standard deviation
    white = np.clip((x - median) / scale, -_FARTHEST, _FARTHEST)
    groups = [white, white**2, np.sin(white)]
    noise = run.potential.noise
    if isinstance(noise, NormalMixture):

        def component(z):
            return jax.nn.softmax(noise.log_weights + noise.log_components(z[None])[0])

        groups.insert(0, np.asarray(map_in_batches(component, run.pool.z, 1000)))
    return groups
