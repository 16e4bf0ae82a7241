"""Posterior predictive draws, by NumPyro's `Predictive`."""

from typing import Any

import numpy as np
from jaxtyping import PRNGKeyArray, PyTree
from numpyro import handlers
from numpyro.infer import Predictive

from numpyro_onestep.problem import Problem
from numpyro_onestep.target import ModelTarget


def predict(
    problem: Problem, samples: PyTree, rng_key: PRNGKeyArray, args: tuple, kwargs: dict[str, Any]
) -> dict[str, Any]:
    """What a model draws at given draws of its latent sites, `{site: (num_samples, *shape)}`.

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
    # Data are left aside, so that the arguments of the run can be given as they are.
    model = handlers.uncondition(handlers.substitute(target.model, data=target.fixed))
    model = handlers.block(model, hide_fn=lambda site: site["type"] == "deterministic")
    found = Predictive(model, target.latents(samples))(rng_key, *args, **kwargs)
    # A factor is an observed site of no numbers.
    return {name: value for name, value in found.items() if np.size(value)}
