"""Pareto-smoothed resampling, and moves where the weights are heavy-tailed."""

import math
from typing import Any

import jax.random as jr
from jaxtyping import PRNGKeyArray

from numpyro_onestep.corrections.corrected import Corrected
from numpyro_onestep.evidence import NEGLIGIBLE_GAP
from numpyro_onestep.moves import move_until_level
from numpyro_onestep.resampling import resample
from numpyro_onestep.settings import Settings

# Weights with a heavier tail than this are helped by moves: k itself is known to 0.1 or so.
_LIGHT_TAIL = 0.4


def psis(run: Any, settings: Settings, rng_key: PRNGKeyArray) -> Corrected:
    """Distinct members of the pool, chosen by their smoothed weights."""
    key_choice, key_move = jr.split(rng_key)
    chosen, capped_share = resample(key_choice, run.smoothed, settings.num_samples)
    line = f"resampled from {settings.num_pool}"
    result = Corrected(run.pool.x[chosen], line, chosen=chosen, capped_share=capped_share)
    gap = run.evidence.log_evidence - run.evidence.elbo
    heavy = run.evidence.pareto_k > _LIGHT_TAIL
    if settings.num_moves and heavy and NEGLIGIBLE_GAP < gap < math.inf:
        moved = move_until_level(run.potential, result.x, key_move, settings.num_moves)
        result.x, result.num_moves, result.shift = moved
        result.chosen = None
        result.line += f", then moved by {result.num_moves} steps of HMC"
    return result
