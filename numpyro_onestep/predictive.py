"""What a model says of its data at given draws: log likelihoods and observed values."""

from typing import Any

import numpy as np
import numpyro.distributions as dist
from jax import tree
from numpyro import handlers
from numpyro.infer import log_likelihood as numpyro_log_likelihood

from numpyro_onestep.potential import ModelPotential


def observed_data(
    potential: ModelPotential, samples: dict[str, Any], args: tuple, kwargs: dict[str, Any]
) -> dict[str, Any]:
    """Values of the observed sites."""
    return {name: site["value"] for name, site in _observed(potential, samples, args, kwargs)}


def log_likelihood(
    potential: ModelPotential, samples: dict[str, Any], args: tuple, kwargs: dict[str, Any]
) -> dict[str, np.ndarray]:
    """Log likelihood of each observation at each draw (nats), by NumPyro's own function."""
    names = [name for name, _ in _observed(potential, samples, args, kwargs)]
    if not names:
        return {}
    model = handlers.substitute(potential.model, data=potential.fixed)
    values = numpyro_log_likelihood(model, samples, *args, **kwargs)
    return {name: np.asarray(values[name]) for name in names if name in values}


def _observed(potential, samples, args, kwargs) -> list[tuple[str, dict]]:
    # One draw stands in for the latent sites: an improper prior cannot be sampled.  A factor is
    # an observed site without data.
    first = tree.map(lambda leaf: leaf[0], samples)
    model = handlers.substitute(potential.model, data={**potential.fixed, **first})
    trace = handlers.trace(handlers.seed(model, 0)).get_trace(*args, **kwargs)
    return [
        (name, site)
        for name, site in trace.items()
        if site["type"] == "sample"
        and site["is_observed"]
        and not isinstance(site["fn"], dist.Unit)
        and not isinstance(getattr(site["fn"], "base_dist", None), dist.Unit)
    ]
