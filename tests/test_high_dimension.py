"""Whole runs where the network is narrow, the Jacobian thin, and the preconditioner another."""

import jax.numpy as jnp
import jax.random as jr
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest

from numpyro_onestep import OneStep, limits

# Short, and narrower than any dimension here: the base is near the target already.
SHORT = {"max_steps": 600, "width": 16, "num_samples": 400, "progress_bar": False}
NUM_GROUPS, SEEN = 148, 0.5


def groups(y):
    """Non-centred normal groups, the mean of each known to 0.5."""
    mu = numpyro.sample("mu", dist.Normal(0, 5))
    tau = numpyro.sample("tau", dist.HalfNormal(2))
    with numpyro.plate("group", len(y)):
        z = numpyro.sample("z", dist.Normal(0, 1))
        numpyro.sample("y", dist.Normal(mu + tau * z, SEEN), obs=y)


def exact_groups(y):
    """Log evidence, and mean and standard deviation of mu and tau, by quadrature over tau.

    Given tau the groups' means are independent normals about mu, which can be integrated out.
    """
    n = len(y)
    tau = np.exp(np.linspace(np.log(0.05), np.log(5), 4000))
    variance = tau**2 + SEEN**2
    precision = n / variance + 1 / 25
    centre = y.sum() / variance / precision
    logs = -0.5 * (n * np.log(2 * np.pi * variance) + (y**2).sum() / variance)
    logs += 0.5 * centre**2 * precision - 0.5 * np.log(25 * precision)
    logs += dist.HalfNormal(2).log_prob(tau) + np.log(tau)  # over log tau
    weights = np.exp(logs - logs.max())
    log_z = np.log(weights.sum() * np.log(tau[1] / tau[0])) + logs.max()

    def moments(mean, variance):
        first = np.average(mean, weights=weights)
        second = np.average(mean**2 + variance, weights=weights)
        return first, np.sqrt(second - first**2)

    return log_z, {"mu": moments(centre, 1 / precision), "tau": moments(tau, 0 * tau)}


@pytest.mark.slow
def test_a_hierarchy_of_a_hundred_and_fifty_dimensions():
    assert NUM_GROUPS + 2 > limits.WIDE_NETWORK
    rng = np.random.default_rng(0)
    y = 1 + 0.7 * rng.standard_normal(NUM_GROUPS) + SEEN * rng.standard_normal(NUM_GROUPS)
    log_z, moments = exact_groups(y)
    sampler = OneStep(groups, **SHORT)
    sampler.run(jr.key(0), jnp.asarray(y, jnp.float32))
    assert sampler.messages == []
    assert abs(sampler.log_evidence - log_z) < 4 * sampler.log_evidence_std_error + 0.05
    assert log_z - 0.3 < sampler.elbo < log_z + 4 * sampler.elbo_std_error
    draws = sampler.get_samples()
    assert draws["z"].shape == (400, NUM_GROUPS)
    for name, (mean, sd) in moments.items():
        # 400 draws of a pool that is worth more than 2000, if its weights are as good as they say.
        assert sampler.ess > 2000
        assert abs(float(draws[name].mean()) - mean) < 4 * sd * (1 / 400 + 1 / 2000) ** 0.5
        assert abs(np.log(float(draws[name].std()) / sd)) < 4 / 800**0.5


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Training ended after 600:numpyro_onestep.OneStepWarning")
def test_a_gaussian_of_six_hundred_dimensions_whose_neighbours_are_correlated():
    d, log_z = 600, 3.0
    assert d > limits.BATCH_AND_MATCH  # the preconditioner is fitted to the expected curvature
    rng = np.random.default_rng(0)
    loc, scale = 5 * rng.standard_normal(d), np.exp(rng.uniform(-2, 2, d))
    centre, unit = jnp.asarray(loc, jnp.float32), jnp.asarray(scale, jnp.float32)

    def potential(x):
        # Each coordinate in its own unit is half of the one before, and a standard normal.
        u = (x - centre) / unit
        steps = u.at[1:].add(-0.5 * u[:-1])
        return 0.5 * jnp.sum(steps**2 + jnp.log(2 * jnp.pi)) + jnp.sum(jnp.log(unit)) - log_z

    sampler = OneStep(potential_fn=potential, **SHORT)
    sampler.run(jr.key(0), init_params=jnp.zeros(d))
    assert abs(sampler.log_evidence - log_z) < 4 * sampler.log_evidence_std_error + 0.05
    assert log_z - 0.5 < sampler.elbo < log_z + 4 * sampler.elbo_std_error
    u = (np.asarray(sampler.get_samples(), np.float64) - loc) / scale
    # Var u_1 = 1, and Var u_j = 1 + Var u_{j-1} / 4.
    sd = np.sqrt((1 - 0.25 ** np.arange(1, d + 1)) / 0.75)
    # The largest of 600 normal deviates is below 4.5, of the pool's and of the 400 draws'.
    assert np.all(abs(u.mean(0)) < 4.5 * sd * (1 / 400 + 1 / sampler.ess) ** 0.5)
    assert np.all(abs(np.log(u.std(0) / sd)) < 4.5 * (1 / 800 + 1 / (2 * sampler.ess)) ** 0.5)
    assert abs(np.mean(u[:, 1:] * u[:, :-1]) - 0.5 * np.mean(sd[:-1] ** 2)) < 0.02
