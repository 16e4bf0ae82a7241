"""Models, targets and trained samplers that several test files share."""

import os
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpyro
import numpyro.distributions as dist
import pytest

from numpyro_onestep import OneStep
from numpyro_onestep.flow import (
    FlowDistribution,
    FlowMap,
    PreconditionedPotential,
    ResidualVelocity,
    uniform_grid,
)
from numpyro_onestep.flow.gaussian import GaussianPreconditioner

# Each process of pytest-xdist on a core of its own, before JAX counts its threads: two processes
# whose threads share the cores wait for each other far longer than either works.
WORKER = os.environ.get("PYTEST_XDIST_WORKER", "").removeprefix("gw")
if WORKER and hasattr(os, "sched_setaffinity"):
    CORES = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {CORES[int(WORKER) % len(CORES)]})

# What is not the package's own, NumPyro's NUTS above all, is compiled fast and not well: a test
# runs it once.  The package's own programs say by themselves how they are compiled.
os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_backend_optimization_level=0"


def pytest_configure(config):
    # A warning nobody expected is a failure, wherever it is raised by this package.  Said here and
    # not in pyproject.toml, where it would import the package before its types can be checked.
    config.addinivalue_line("filterwarnings", "error::numpyro_onestep.OneStepWarning")


# A moment's training: for tests of shapes, supports and messages.
QUICK = {
    "num_samples": 200,
    "pool_size": 400,
    "max_steps": 100,
    "width": 16,
    "batch_size": 16,
    "progress_bar": False,
}

EFFECT = jnp.array([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0])
STD_ERROR = jnp.array([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0])
EIGHT_SCHOOLS_LOG_EVIDENCE = -31.31  # known to 0.005


def eight_schools(sigma, y=None):
    mu = numpyro.sample("mu", dist.Normal(0, 5))
    tau = numpyro.sample("tau", dist.HalfCauchy(5))
    with numpyro.plate("school", len(sigma)):
        standardised = numpyro.sample("standardised", dist.Normal(0, 1))
        theta = numpyro.deterministic("theta", mu + tau * standardised)
        numpyro.sample("y", dist.Normal(theta, sigma), obs=y)


class Pair(NamedTuple):
    total: jax.Array
    is_positive: jax.Array


class CompilationCounter:
    """Counts the programs that are compiled from now on."""

    def __init__(self):
        self.count = 0
        jax.monitoring.register_event_duration_secs_listener(self)

    def __call__(self, event, duration, **_):
        self.count += event == "/jax/core/compile/backend_compile_duration"


class CorrelatedGaussian(eqx.Module):
    """-log of exp(log_z) N(x; loc, L L^T): a target of known evidence."""

    loc: jax.Array
    scale_tril: jax.Array
    log_z: float

    def __call__(self, x):
        normal = dist.MultivariateNormal(self.loc, scale_tril=self.scale_tril)
        return -normal.log_prob(x) - self.log_z


def correlated_gaussian(dim: int, seed: int = 0, log_z: float = 3.0) -> CorrelatedGaussian:
    key_loc, key_scale = jr.split(jr.key(seed))
    scale_tril = jnp.tril(jr.normal(key_scale, (dim, dim)), -1)
    return CorrelatedGaussian(
        5 * jr.normal(key_loc, (dim,)),
        scale_tril + jnp.diag(jnp.logspace(-1, 1, dim)),
        log_z,
    )


def random_flow(
    dim: int, key, *, width: int = 16, num_grid_steps: int = 16, scale: float = 0.3
) -> FlowMap:
    """A flow whose last layer is not zero, with a grid that is not uniform."""
    key_network, key_last = jr.split(key)
    dtype = jnp.result_type(float)
    network = ResidualVelocity(dim, width, 3.0, key_network, dtype)
    last = network.last
    weight = scale * jr.normal(key_last, last.weight.shape, dtype)
    bias = 0.1 * jr.normal(jr.fold_in(key_last, 1), last.bias.shape, dtype)
    network = eqx.tree_at(lambda n: (n.last.weight, n.last.bias), network, (weight, bias))
    times = tuple(3.0 * (t / 3.0) ** 1.5 for t in uniform_grid(3.0, num_grid_steps))
    return FlowMap(network, times)


def unit_gaussian(dim: int) -> GaussianPreconditioner:
    """The preconditioner that does nothing."""
    return GaussianPreconditioner(jnp.zeros(dim), jnp.eye(dim))


def unconditioned(flow: FlowMap, potential=None, dim: int = 3, num_steps: int = 1):
    """A flow as a distribution, and a potential, in coordinates that are whitened as they are."""
    gaussian = unit_gaussian(dim)
    distribution = FlowDistribution(flow, gaussian, num_steps=num_steps)
    return distribution, PreconditionedPotential(potential, gaussian)


@pytest.fixture
def x64():
    with jax.enable_x64(True):
        yield


@pytest.fixture(scope="session")
def schools() -> OneStep:
    """Eight schools at default settings."""
    sampler = OneStep(eight_schools, progress_bar=False)
    sampler.run(jr.key(0), STD_ERROR, y=EFFECT)
    return sampler
