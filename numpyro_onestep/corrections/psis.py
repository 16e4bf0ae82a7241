"""Pareto-smoothed resampling, and moves where the weights are heavy-tailed."""

import math
from typing import Any

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
    chosen, capped_share = resample(rng_key, run.smoothed, settings.num_samples)
    line = f"resampled from {settings.num_pool}"
    result = Corrected(run.pool.x[chosen], line, chosen=chosen, capped_share=capped_share)
    gap = run.evidence.log_evidence - run.evidence.elbo
    heavy = run.evidence.pareto_k > _LIGHT_TAIL
    if settings.num_moves and heavy and NEGLIGIBLE_GAP < gap < math.inf:
        moved = move_until_level(run.potential, result.x, rng_key, settings.num_moves)
        result.x, result.num_moves, result.shift = moved
        result.chosen = None
        result.line += f", then moved by {result.num_moves} steps of HMC"
    return result
