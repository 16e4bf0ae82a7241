"""Posterior predictive draws, by NumPyro's `Predictive`."""

from collections.abc import Callable
from typing import Any

import jax
import jax.random as jr
import numpy as np
from jaxtyping import PRNGKeyArray, PyTree
from numpyro import handlers
from numpyro.infer import Predictive
from numpyro.infer.initialization import init_to_uniform

from numpyro_onestep._util.batching import map_in_batches, map_in_blocks
from numpyro_onestep._util.compilation import compiled
from numpyro_onestep._util.random import stream
from numpyro_onestep.problem import Problem
from numpyro_onestep.target import ModelTarget
from numpyro_onestep.target.discrete_draws import draw_discrete, without_density_of_new_sites
from numpyro_onestep.target.enumeration import enumerated
from numpyro_onestep.target.model_trace import inspect_model
from numpyro_onestep.target.traced import TracedFunction, trace


def predict(
    problem: Problem, samples: PyTree, rng_key: PRNGKeyArray, args: tuple, kwargs: dict[str, Any]
) -> dict[str, Any]:
    """What a model draws at given draws of its latent sites, `{site: (num_samples, *shape)}`.

    Discrete latent sites are drawn first, given the data in the arguments, and are a part of it.

    Args:
        problem: the model, and the arguments that it was run with.
        samples: draws of its sites.
        rng_key: a JAX random key.
        args: the model's arguments; those of the run where there are no arguments at all.
        kwargs: its keyword arguments.

    Raises:
        ValueError: the target is a potential function.
    """
    target = problem.target
    if not isinstance(target, ModelTarget):
        raise ValueError(
            "predict() draws the observed sites of a model, but this sampler has a potential_fn."
        )
    if not (args or kwargs):
        args, kwargs = target.args, target.kwargs
    model, latents = (
        handlers.substitute(target.model, data=target.fixed),
        target.continuous(samples),
    )
    discrete: dict[str, Any] = {}
    if enumerated(target.sites):
        discrete = discrete_draws(model, latents, stream(rng_key, "discrete"), args, kwargs)
    # Data are left aside, so that the arguments of the run can be given as they are.
    model = handlers.uncondition(model)
    model = handlers.block(model, hide_fn=lambda site: site["type"] == "deterministic")
    found = Predictive(model, latents | discrete)(rng_key, *args, **kwargs)
    # A factor is an observed site of no numbers.
    return {name: value for name, value in (found | discrete).items() if np.size(value)}


def discrete_draws(
    model: Callable, latents: PyTree, rng_key: PRNGKeyArray, args: tuple, kwargs: dict[str, Any]
) -> dict[str, Any]:
    """Values of the discrete latent sites at draws of the others, given the data in the arguments.

    Args:
        model: the model.
        latents: draws of its continuous latent sites.
        rng_key: a JAX random key.
        args: the model's arguments, which may be others than those of the run.
        kwargs: its keyword arguments.

    Returns:
        NumPy arrays with one row for each draw.
    """
    sites, _ = inspect_model(rng_key, model, args, kwargs, init_to_uniform)
    leaves, tree = jax.tree.flatten(latents)

    weighed = without_density_of_new_sites(model, set(latents), sites)

    def one(key_data, *row):
        key = jr.wrap_key_data(key_data, impl=jr.key_impl(rng_key))
        values = jax.tree.unflatten(tree, row)
        known = handlers.substitute(handlers.seed(weighed, key), data=values)
        return draw_discrete(known, args, kwargs, sites, stream(key, "states"))

    rows = (jr.key_data(jr.split(rng_key, len(leaves[0]))), *leaves)
    traced = trace(one, *(leaf[0] for leaf in rows))
    return map_in_blocks(lambda block: _draws(traced, block), rows)


@compiled
def _draws(traced: TracedFunction, rows: tuple) -> PyTree:
    return map_in_batches(lambda row: traced(*row), rows)
