"""Models of 100 to 2304 dimensions. Their data are simulated from a fixed seed."""

from collections.abc import Callable
from functools import cache

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist


def groups(y, num):
    """Poisson counts in many groups with normal effects, non-centred.

    There are two dimensions more than groups.
    """
    mu = numpyro.sample("mu", dist.Normal(0, 2))
    sigma = numpyro.sample("sigma", dist.HalfNormal(1))
    z = numpyro.sample("z", dist.Normal(0, 1).expand([num]).to_event(1))
    numpyro.sample("y", dist.Poisson(jnp.exp(mu + sigma * z)[:, None]), obs=y)


def classification(y, factor):
    """Binary labels of a latent Gaussian process on a line, given by its Cholesky factor."""
    scale = numpyro.sample("scale", dist.LogNormal(0, 0.5))
    z = numpyro.sample("z", dist.Normal(0, 1).expand([len(y)]).to_event(1))
    numpyro.sample("y", dist.Bernoulli(logits=scale * (factor @ z)), obs=y)


def cox_process(y, factor, mean, area):
    """A log-Gaussian Cox process on a grid, given by its Cholesky factor (Moller et al., 1998)."""
    z = numpyro.sample("z", dist.Normal(0, 1).expand([len(y)]).to_event(1))
    numpyro.sample("y", dist.Poisson(area * jnp.exp(mean + factor @ z)), obs=y)


def cox_process_data(side: int) -> tuple:
    """The arguments of `cox_process` on a square grid with so many cells a side.

    Points are simulated, with the variance, scale and mean that Moller et al. (1998) give.
    """
    rng = np.random.default_rng(0)
    grid = np.stack(np.meshgrid(np.arange(side), np.arange(side)), -1).reshape(-1, 2) / side
    distance = np.linalg.norm(grid[:, None] - grid, axis=-1)
    variance, mean = 1.91, np.log(126) - 1.91 / 2
    field = np.linalg.cholesky(variance * np.exp(-distance * 33) + 1e-5 * np.eye(side**2))
    points = rng.poisson(np.exp(mean + field @ rng.normal(size=side**2)) / side**2)
    return points, field.astype(np.float32), np.float32(mean), 1 / side**2


@cache
def targets() -> dict[str, tuple[Callable, tuple]]:
    """Each model with its arguments, by name."""
    rng = np.random.default_rng(0)
    rates = np.exp(0.5 + 0.7 * rng.normal(size=(98, 1)))
    line = np.linspace(0, 10, 299)
    kernel = 4 * np.exp(-0.5 * (line[:, None] - line) ** 2) + 1e-4 * np.eye(299)
    smooth = np.linalg.cholesky(kernel)
    labels = rng.uniform(size=299) < 1 / (1 + np.exp(-smooth @ rng.normal(size=299)))
    single = np.float32
    return {
        "groups": (groups, (rng.poisson(rates, (98, 4)), 98)),
        "classification": (classification, (labels.astype(int), smooth.astype(single))),
        "cox_process": (cox_process, cox_process_data(32)),
        "cox_process_fine": (cox_process, cox_process_data(48)),
    }
