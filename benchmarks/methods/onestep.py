"""OneStep, the package's own method."""

import time
import warnings
from typing import Any

import numpy as np

from benchmarks.methods.base import timed
from benchmarks.problems.posterior import Posterior
from numpyro_onestep import OneStep


def fit(
    key: Any, args: tuple = (), init_params: Any = None, **settings: Any
) -> tuple[OneStep, float]:
    """A sampler that has run, and the seconds this took, compilation included.

    Warnings are not shown: `sampler.messages` has them, for the row.

    Args:
        key: a JAX random key.
        args: the model's arguments.
        init_params: where to start, for a potential.
        **settings: of `OneStep`, `model` or `potential_fn` among them.
    """
    clock = time.perf_counter()
    sampler = OneStep(progress_bar=False, **settings)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        sampler.run(key, *args, init_params=init_params)
    return sampler, time.perf_counter() - clock


def fit_posterior(posterior: Posterior, key: Any, **settings: Any) -> tuple[OneStep, float]:
    """As `fit`, for a stored posterior."""
    return fit(key, posterior.args(), model=posterior.model, **settings)


def weight_figures(sampler: OneStep) -> dict[str, Any]:
    """What the weights of a run say, as every suite keeps it in its rows."""
    return {
        "elbo": sampler.elbo,
        "log_evidence": sampler.log_evidence,
        "pareto_k": sampler.pareto_k,
        "ess": sampler.ess / sampler.result.evidence.num_draws,
    }


def run(posterior: Posterior, key: Any, warm_key: Any) -> tuple[dict, dict]:
    """OneStep at default settings, as `Method` says."""
    sampler, figures = run_once(posterior, key)
    _, figures["seconds_100k_first"] = timed(sampler.sample, key, 100_000)
    _, figures["seconds_100k"] = timed(sampler.sample, key, 100_000)
    figures["draws_per_second"] = 100_000 / figures["seconds_100k"]
    draws = sampler.get_samples()
    if warm_key is not None:
        _, figures["seconds_warm"] = fit_posterior(posterior, warm_key)
    return draws, figures


def run_once(posterior: Posterior, key: Any) -> tuple[OneStep, dict[str, Any]]:
    """A sampler at default settings that has run, and the figures of this one run."""
    sampler, seconds = fit_posterior(posterior, key)
    return sampler, {
        "seconds": seconds,
        "base_elbo": sampler.initial_elbo,
        "elbo_std_error": sampler.elbo_std_error,
        **weight_figures(sampler),
        "folded_share": sampler.folded_fraction,
        "iterations": len(sampler.losses),
        "warnings": sampler.messages,
        "seconds_by_part": sampler.seconds,
        "num_flow_steps": sampler.num_flow_steps,
        **progress(sampler),
    }


def progress(sampler: OneStep) -> dict[str, list[float]]:
    """The mean bound of each chunk of a hundred iterations, and the seconds that chunk took."""
    losses, seconds = np.asarray(sampler.losses), sampler.chunk_seconds
    chunks = np.array_split(losses, len(seconds))
    return {
        "chunk_elbos": [float(-np.mean(chunk[np.isfinite(chunk)])) for chunk in chunks],
        "chunk_seconds": [float(each) for each in seconds],
    }
