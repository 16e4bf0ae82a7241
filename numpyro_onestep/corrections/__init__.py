"""From the flow's weighed draws to draws of the posterior, four ways.

`None` leaves the flow's own draws, `"psis"` resamples them by their smoothed weights, `"imh"` runs
independence Metropolis-Hastings with them for proposals, and `"nuts"` runs NUTS in the space that
the flow starts from.
"""

from typing import Any

import numpy as np
from jaxtyping import PRNGKeyArray

from numpyro_onestep.corrections.base import Corrected
from numpyro_onestep.corrections.imh import independence_metropolis
from numpyro_onestep.corrections.latent_nuts import latent_nuts
from numpyro_onestep.corrections.psis import psis
from numpyro_onestep.settings import Settings

__all__ = ["Corrected", "correct"]


def correct(run: Any, settings: Settings, rng_key: PRNGKeyArray) -> Corrected:
    """Draws by the correction that the settings name."""
    if settings.correction is None or not np.isfinite(run.evidence.log_evidence):
        chosen = np.arange(settings.num_samples)
        return Corrected(run.pool.x[chosen], "of the flow's own", chosen=chosen)
    method = {"psis": psis, "imh": independence_metropolis, "nuts": latent_nuts}
    return method[settings.correction](run, settings, rng_key)
