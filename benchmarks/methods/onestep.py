"""The methods the benchmarks compare, each a function of a posterior and two keys.

Every one returns draws in the model's own sites, and its figures.  The second key is of a second
run in the same process, which compiles nothing: its wall time is `seconds_warm`.  None leaves it
out.
"""

import time
import warnings
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from numpyro.diagnostics import effective_sample_size
from numpyro.infer import MCMC, NUTS, SVI, Trace_ELBO, autoguide
from numpyro.infer.initialization import init_to_uniform
from numpyro.optim import Adam

from benchmarks.models import Posterior
from numpyro_onestep import OneStep
from numpyro_onestep.target import model_target

NUM_DRAWS = 4000
GUIDES = {
    "mvn": autoguide.AutoMultivariateNormal,
    "iaf": autoguide.AutoIAFNormal,
    "bnaf": autoguide.AutoBNAFNormal,
}


def timed(function: Callable, *args):
    """A function's result once it is there, and the seconds that took."""
    clock = time.perf_counter()
    result = jax.block_until_ready(function(*args))
    return result, time.perf_counter() - clock


def run_onestep(posterior: Posterior, key, warm_key) -> tuple[dict, dict]:
    """OneStep at default settings."""

    def run(key):
        sampler = OneStep(posterior.model, progress_bar=False)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # they are recorded below
            sampler.run(key, *posterior.args())
        return sampler

    clock = time.perf_counter()
    sampler = run(key)
    seconds = time.perf_counter() - clock
    figures = {
        "seconds": seconds,
        "base_elbo": sampler.base_elbo,
        "elbo": sampler.elbo,
        "elbo_std_error": sampler.elbo_std_error,
        "log_evidence": sampler.log_evidence,
        "pareto_k": sampler.pareto_k,
        "ess": sampler.ess / sampler.settings.num_pool,
        "folded_share": sampler.folded_share,
        "iterations": len(sampler.losses),
        "warnings": sampler.messages,
        "seconds_by_part": sampler.seconds,
        "num_flow_steps": sampler.num_flow_steps,
        **progress(sampler),
    }
    _, figures["seconds_100k_first"] = timed(sampler.sample, key, 100_000)
    _, figures["seconds_100k"] = timed(sampler.sample, key, 100_000)
    figures["draws_per_second"] = 100_000 / figures["seconds_100k"]
    draws = sampler.get_samples()
    if warm_key is not None:
        clock = time.perf_counter()
        run(warm_key)
        figures["seconds_warm"] = time.perf_counter() - clock
    return draws, figures


def progress(sampler: OneStep) -> dict:
    """The mean bound of every hundred iterations, and the seconds these took."""
    run = sampler._trained()
    losses, seconds = run.training.losses, run.training.chunk_seconds
    chunks = np.array_split(losses, len(seconds))
    return {
        "chunk_elbos": [float(-np.mean(chunk[np.isfinite(chunk)])) for chunk in chunks],
        "chunk_seconds": seconds,
    }


def plain_nuts(model) -> MCMC:
    """NumPyro's NUTS at its defaults, 4 chains of 1000 + 1000, vectorised."""
    return MCMC(
        NUTS(model),
        num_warmup=1000,
        num_samples=1000,
        num_chains=4,
        chain_method="vectorized",
        progress_bar=False,
    )


def run_nuts(posterior: Posterior, key, warm_key) -> tuple[dict, dict]:
    """No warm time: a second run of a vectorised MCMC raises with these models in numpyro 0.22."""
    del warm_key
    mcmc = plain_nuts(posterior.model)

    def run(key):
        mcmc.run(key, *posterior.args(), extra_fields=("diverging",))
        return mcmc.get_samples(group_by_chain=True)

    grouped, seconds = timed(run, key)
    sizes = [np.min(effective_sample_size(np.asarray(v, np.float64))) for v in grouped.values()]
    figures = {
        "seconds": seconds,
        "divergences": int(mcmc.get_extra_fields()["diverging"].sum()),
        "min_ess": float(np.min(sizes)),
    }
    draws = {name: value.reshape(-1, *value.shape[2:]) for name, value in grouped.items()}
    return draws, figures


def run_guide(name: str, posterior: Posterior, key, warm_key) -> tuple[dict, dict]:
    """An autoguide by SVI: 5000 steps of 32 particles, Adam at 5e-3, then 4000 draws."""
    guide = GUIDES[name](posterior.model)
    svi = SVI(posterior.model, guide, Adam(5e-3), Trace_ELBO(num_particles=32))

    def run(key):
        result = svi.run(key, 5000, *posterior.args(), progress_bar=False)
        return result.params, sample(result.params, key, NUM_DRAWS)

    def sample(params, key, num):
        return guide.sample_posterior(key, params, *posterior.args(), sample_shape=(num,))

    (params, draws), seconds = timed(run, key)
    loss = Trace_ELBO(num_particles=NUM_DRAWS).loss(
        jax.random.key(1), params, posterior.model, guide, *posterior.args()
    )
    figures = {"seconds": seconds, "elbo": -float(loss)}
    if warm_key is not None:
        timed(sample, params, key, 100_000)
        _, figures["seconds_100k"] = timed(sample, params, warm_key, 100_000)
        figures["draws_per_second"] = 100_000 / figures["seconds_100k"]
        _, figures["seconds_warm"] = timed(run, warm_key)
    return draws, figures


def run_pathfinder(posterior: Posterior, key, warm_key) -> tuple[dict, dict]:
    """BlackJAX's multi-path Pathfinder: 8 paths, 1000 draws each, 4000 of them by their weights."""
    import blackjax  # not a dependency of the package

    def run(key):
        _, potential, start = model_target(
            key, posterior.model, posterior.args(), {}, None, init_to_uniform
        )

        algorithm = blackjax.multipathfinder(lambda x: -potential(x))
        starts = jax.random.uniform(key, (8, start.size), start.dtype, -2, 2)

        # One path a call: all eight in one compiled call block for ever on two cores.
        @jax.jit
        def path(key, start):
            return algorithm.init(key, start[None], 1000)[0]

        paths = [
            jax.block_until_ready(path(jax.random.fold_in(key, i), at))
            for i, at in enumerate(starts)
        ]
        state = jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *paths)
        return jax.vmap(potential.constrain)(algorithm.sample(key, state, NUM_DRAWS))

    draws, seconds = timed(run, key)
    if not all(bool(jnp.all(jnp.isfinite(v))) for v in draws.values()):
        raise FloatingPointError("Pathfinder's draws are not finite")
    return draws, {"seconds": seconds}


METHODS = {
    "onestep": run_onestep,
    "nuts": run_nuts,
    **{name: lambda *args, name=name: run_guide(name, *args) for name in GUIDES},
    "pathfinder": run_pathfinder,
}
