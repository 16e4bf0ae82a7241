"""NumPyro's NUTS on the model itself."""

from typing import Any

import numpy as np
from numpyro.diagnostics import effective_sample_size, split_gelman_rubin
from numpyro.infer import MCMC, NUTS

from benchmarks.methods.base import timed
from benchmarks.problems.posterior import Posterior

_BLOCK = 2000  # coordinates whose effective sample size is found at a time


def plain_nuts(model) -> MCMC:
    """NUTS at its defaults: 4 chains of 1000 + 1000, vectorised."""
    return MCMC(
        NUTS(model),
        num_warmup=1000,
        num_samples=1000,
        num_chains=4,
        chain_method="vectorized",
        progress_bar=False,
    )


def run(posterior: Posterior, key: Any, warm_key: Any) -> tuple[dict, dict]:
    """NUTS, as `Method` says, but without a second run.

    With these models NumPyro 0.22 raises an error when a vectorised MCMC runs a second time.
    """
    del warm_key
    mcmc = plain_nuts(posterior.model)

    def run(key):
        mcmc.run(key, *posterior.args(), extra_fields=("diverging",))
        return mcmc.get_samples(group_by_chain=True)

    grouped, seconds = timed(run, key)
    sizes = [_smallest_ess(np.asarray(value)) for value in grouped.values()]
    figures = {
        "seconds": seconds,
        "divergences": int(mcmc.get_extra_fields()["diverging"].sum()),
        "min_ess": min(sizes),
    }
    draws = {name: value.reshape(-1, *value.shape[2:]) for name, value in grouped.items()}
    return draws, figures


def _smallest_ess(grouped: np.ndarray) -> float:
    """Of all coordinates of chains (chain, draw, ...), a block at a time.

    All of 60,000 coordinates in double precision, and their Fourier transforms, take gigabytes.
    """
    flat = grouped.reshape(*grouped.shape[:2], -1)
    starts = range(0, flat.shape[-1], _BLOCK)
    blocks = (flat[..., start : start + _BLOCK].astype(np.float64) for start in starts)
    return float(min(np.min(effective_sample_size(block)) for block in blocks))


def mixing(grouped: np.ndarray) -> tuple[float, float]:
    """Largest split R-hat and smallest effective sample size of chains (chain, draw, coordinate).

    Infinite and one where a coordinate never moved, for which neither is defined.
    """
    grouped = np.asarray(grouped, np.float64)
    if np.any(grouped.std((0, 1)) == 0):
        return np.inf, 1.0
    return float(np.max(split_gelman_rubin(grouped))), float(np.min(effective_sample_size(grouped)))
