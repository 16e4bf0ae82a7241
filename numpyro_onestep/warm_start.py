"""A run that begins with the flow of an earlier one, on other data."""

from typing import Any

import numpy as np
from jaxtyping import PRNGKeyArray

from numpyro_onestep.importance.evidence import weigh
from numpyro_onestep.importance.pool import draw_pool
from numpyro_onestep.initialise.best_fit import Fit
from numpyro_onestep.problem import Problem
from numpyro_onestep.result import Trained
from numpyro_onestep.settings import Settings

_NUM_WEIGHED = 1000  # draws from which the ELBO is estimated that the earlier flow has now


def fit_of_earlier(
    earlier: Trained | None, problem: Problem, settings: Settings, rng_key: PRNGKeyArray
) -> Fit | None:
    """What training starts from where it goes on from an earlier flow; None where it cannot.

    The coordinates have to be the same, in single precision, and the earlier flow of one Gaussian
    and of the fewest steps; and its draws must have a density under the new target.

    Args:
        earlier: the earlier run, or None.
        problem: the new target.
        settings: all settings of the sampler.
        rng_key: a JAX random key.
    """
    if earlier is None or earlier.problem.is_double or not earlier.training.from_gaussian:
        return None
    if earlier.problem.target.names() != problem.target.names():
        return None
    if earlier.num_flow_steps != settings.step_budgets(problem.start.size)[0]:
        return None
    limit = settings.draws.batch_bytes
    pool = draw_pool(earlier.distribution, problem.potential, rng_key, _NUM_WEIGHED, 0, limit)
    elbo = weigh(pool).evidence.elbo
    if not np.isfinite(elbo):
        return None
    found: Any = np.asarray(elbo, problem.start.dtype)
    return earlier.fit._replace(flow=earlier.training.flow, elbo=found)
