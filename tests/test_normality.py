"""Whether nodes are found to be normal given the core, which decides if they get a network."""

import jax.numpy as jnp
import jax.random as jr
import numpyro
import numpyro.distributions as dist
import pytest

from numpyro_onestep.structure.interactions import interactions
from numpyro_onestep.structure.normality import is_normal_given_core
from numpyro_onestep.structure.structure import structure_of
from numpyro_onestep.target import model_target


def grouped(likelihood):
    """Ten groups with a common mean and scale, and one observation in each."""

    def model(y):
        mu = numpyro.sample("mu", dist.Normal(0, 1))
        tau = numpyro.sample("tau", dist.HalfNormal(1))
        with numpyro.plate("group", len(y)):
            at = numpyro.sample("at", dist.Normal(mu, tau))
            numpyro.sample("y", likelihood(at), obs=y)

    return model


LIKELIHOODS = {
    "normal": (lambda at: dist.Normal(at, 1.0), True),
    "counts": (lambda at: dist.Poisson(jnp.exp(at)), False),
    "heavy tails": (lambda at: dist.StudentT(3, at, 1.0), False),
}


@pytest.mark.parametrize("name", LIKELIHOODS)
def test_nodes_are_normal_given_the_core_where_the_likelihood_is(name):
    likelihood, is_normal = LIKELIHOODS[name]
    _, potential, start = model_target(jr.key(0), grouped(likelihood), (jnp.arange(10.0),), {})
    graph = interactions(potential, start, jr.key(1))
    structure = None if graph is None else structure_of(graph)
    assert structure is not None
    assert set(structure.order[: structure.num_core].tolist()) == {10, 11}  # mu and tau
    assert is_normal_given_core(potential, structure, start, jr.key(2)) == is_normal
