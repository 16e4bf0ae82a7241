"""Correlated effects: each group has an intercept and a slope, whose correlation is unknown.

This is the usual mixed model of formula interfaces. Their LKJ prior of concentration 1 is, for two
effects, a uniform prior of the correlation. The reference is a long run of NUTS.
"""

from collections.abc import Callable

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from numpyro import plate

from benchmarks.problems.structured.base import Structured, forms

KIND = "correlated effects"
GROUPS, ROWS = 100, 6

sample: Callable = numpyro.sample


def _model(centred: bool):
    def model(x, y):
        mu = sample("mu", dist.Normal(0, 2).expand([2]).to_event(1))
        tau = sample("tau", dist.HalfNormal(1).expand([2]).to_event(1))
        rho = sample("rho", dist.Uniform(-1, 1))
        sigma = sample("sigma", dist.HalfNormal(1))
        below = jnp.stack([rho, jnp.sqrt(1 - rho**2)])
        root = tau[:, None] * jnp.stack([jnp.array([1.0, 0.0]), below])
        with plate("group", len(y)):
            if centred:
                effects = sample("effects", dist.MultivariateNormal(mu, scale_tril=root))
            else:
                z = sample("z", dist.Normal(0, 1).expand([2]).to_event(1))
                effects = numpyro.deterministic("effects", mu + z @ root.T)
        mean = effects[:, :1] + effects[:, 1:] * x
        sample("y", dist.Normal(mean, sigma).to_event(2), obs=y)

    return model


def _data():
    rng = np.random.default_rng(7500)
    x = rng.standard_normal((GROUPS, ROWS)).astype(np.float32)
    spread = np.array([[0.5, 0.2], [0.2, 0.3]])
    effects = rng.multivariate_normal([1.0, 0.5], spread, size=GROUPS)
    mean = effects[:, :1] + effects[:, 1:] * x
    return x, (mean + 0.8 * rng.standard_normal(mean.shape)).astype(np.float32)


def correlated() -> list[Structured]:
    """All of this file."""
    models = {"centred": _model(True), "noncentred": _model(False)}
    sites = ("mu", "tau+", "rho", "sigma+", "effects")
    return forms(f"correlated_{GROUPS}", KIND, models, _data, sites, ("effects",))
