"""The README's example: a regression, its posterior and its evidence."""

import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist

from numpyro_onestep import OneStep


def model(x, y):
    """A line through noisy points."""
    slope = numpyro.sample("slope", dist.Normal(0, 5))
    sigma = numpyro.sample("sigma", dist.HalfNormal(5))
    numpyro.sample("y", dist.Normal(slope * x, sigma), obs=y)


if __name__ == "__main__":
    x, y = jnp.arange(6.0), jnp.array([0.1, 1.8, 4.1, 6.3, 7.7, 10.2])
    sampler = OneStep(model, progress_bar=False)
    sampler.run(jax.random.key(0), x, y)
    sampler.print_summary()
