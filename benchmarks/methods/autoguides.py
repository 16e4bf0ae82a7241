"""NumPyro's autoguides, trained by stochastic variational inference."""

import time
from functools import partial
from typing import Any

import jax
from numpyro.infer import SVI, Trace_ELBO, autoguide
from numpyro.optim import Adam

from benchmarks.methods.base import NUM_DRAWS, timed
from benchmarks.problems.posterior import Posterior

_BATCH = 100  # particles of an ELBO that are in memory at once


def _svi(model, guide) -> SVI:
    return SVI(model, guide, Adam(5e-3), Trace_ELBO(num_particles=32))


def _elbo(model, guide, params, args: tuple, num: int) -> float:
    """From so many particles, a hundred at a time: with many data all of them take gigabytes."""
    loss = Trace_ELBO(num_particles=_BATCH).loss

    def batch(params, key):
        return loss(key, params, model, guide, *args)

    keys = jax.random.split(jax.random.key(1), num // _BATCH)
    losses = jax.jit(lambda params: jax.lax.map(partial(batch, params), keys))(params)
    return -float(losses.mean())


def run(guide_class: Any, posterior: Posterior, key: Any, warm_key: Any) -> tuple[dict, dict]:
    """A guide, as `Method` says: 5000 steps of 32 particles, Adam at 5e-3, then the draws."""
    guide = guide_class(posterior.model)
    svi = _svi(posterior.model, guide)

    def run(key):
        result = svi.run(key, 5000, *posterior.args(), progress_bar=False)
        return result.params, sample(result.params, key, NUM_DRAWS)

    def sample(params, key, num):
        return guide.sample_posterior(key, params, *posterior.args(), sample_shape=(num,))

    (params, draws), seconds = timed(run, key)
    elbo = _elbo(posterior.model, guide, params, posterior.args(), NUM_DRAWS)
    figures = {"seconds": seconds, "elbo": elbo}
    if warm_key is not None:
        timed(sample, params, key, 100_000)
        _, figures["seconds_100k"] = timed(sample, params, warm_key, 100_000)
        figures["draws_per_second"] = 100_000 / figures["seconds_100k"]
        _, figures["seconds_warm"] = timed(run, warm_key)
    return draws, figures


multivariate_normal = partial(run, autoguide.AutoMultivariateNormal)
low_rank = partial(run, autoguide.AutoLowRankMultivariateNormal)
inverse_autoregressive = partial(run, autoguide.AutoIAFNormal)
block_neural_autoregressive = partial(run, autoguide.AutoBNAFNormal)


def elbo_within(guide_class: Any, model, args: tuple, key: Any, seconds: float) -> float:
    """The ELBO (nats) after as many iterations as fit into so many seconds, compilation apart.

    How long one iteration takes is found from a hundred, after another hundred that compile.
    """
    guide = guide_class(model)
    svi = _svi(model, guide)
    svi.run(key, 100, *args, progress_bar=False)
    clock = time.perf_counter()
    svi.run(key, 100, *args, progress_bar=False)
    num = max(100, int(100 * seconds / (time.perf_counter() - clock)))
    params = svi.run(key, num, *args, progress_bar=False).params
    return _elbo(model, guide, params, args, 1000)
