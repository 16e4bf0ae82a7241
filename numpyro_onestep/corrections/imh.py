"""Independence Metropolis-Hastings: the pool's draws are the proposals.

A proposal of weight w' replaces one of weight w with probability min(1, w' / w) (Tierney, "Markov
chains for exploring posterior distributions", Annals of Statistics 1994).  The density of the
model was computed when the pool was weighed, so a chain costs nothing more.  Where the weights are
heavy-tailed a chain sticks at a heavy draw, and R-hat shows it.
"""

from typing import Any

import numpy as np
from jaxtyping import PRNGKeyArray

from numpyro_onestep._util.random import numpy_generator
from numpyro_onestep.corrections.base import Corrected, mixing
from numpyro_onestep.settings import Settings

_NUM_CHAINS = 4


def independence_metropolis(run: Any, settings: Settings, rng_key: PRNGKeyArray) -> Corrected:
    """Four chains, each through a quarter of the pool, thinned to the number of samples."""
    rng = numpy_generator(rng_key)
    log_weight = np.asarray(run.pool.log_weight, np.float64)
    log_weight = np.where(np.isfinite(log_weight), log_weight, -np.inf)
    per_chain = -(-settings.num_samples // _NUM_CHAINS)
    # Each chain starts at a resampled member and then walks through its share of the others.
    weights = np.exp(run.smoothed)
    at = rng.choice(len(weights), size=_NUM_CHAINS, p=weights / weights.sum())
    proposals = rng.permutation(len(log_weight))
    proposals = proposals[: len(proposals) // _NUM_CHAINS * _NUM_CHAINS].reshape(_NUM_CHAINS, -1)
    thin = max(proposals.shape[1] // per_chain, 1)
    kept, accepted = [], 0
    for step in range(per_chain * thin):
        proposed = proposals[:, step % proposals.shape[1]]
        log_ratio = log_weight[proposed] - log_weight[at]
        accept = np.log(rng.uniform(size=_NUM_CHAINS)) < log_ratio
        at = np.where(accept, proposed, at)
        accepted += accept.sum()
        if step % thin == thin - 1:
            kept.append(at)
    chosen = np.stack(kept, axis=1)
    num = _NUM_CHAINS * per_chain
    r_hat, min_ess = mixing(np.asarray(run.pool.x)[chosen])
    return Corrected(
        run.pool.x[chosen.reshape(-1)],
        f"by independence Metropolis-Hastings in {_NUM_CHAINS} chains",
        num_chains=_NUM_CHAINS,
        chosen=chosen.reshape(-1),
        r_hat=r_hat,
        min_ess=min_ess,
        acceptance=float(accepted / (num * thin)),
    )
