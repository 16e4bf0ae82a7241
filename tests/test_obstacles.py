"""Densities that no gradient describes, and coordinates without a scale: right, or said so."""

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.infer.reparam import CircularReparam
from scipy.integrate import quad

from numpyro_onestep import OneStep, OneStepWarning
from numpyro_onestep.checks.line_scan import scan_lines
from numpyro_onestep.importance.evidence import tail_mass
from numpyro_onestep.target import Potential
from numpyro_onestep.target.completion import find_completion

# Whole runs that depend on no version.
pytestmark = pytest.mark.slow


def run(model, *args, **settings):
    sampler = OneStep(model, progress_bar=False, **settings)
    sampler.run(jr.key(0), *args)
    return sampler


def moments_1d(log_density, low, high):
    """Log of the integral, mean and standard deviation."""
    top = max(log_density(t) for t in np.linspace(low, high, 1000))
    parts = [
        quad(lambda t, k=k: t**k * np.exp(log_density(t) - top), low, high, limit=200)[0]
        for k in range(3)
    ]
    mean = parts[1] / parts[0]
    return np.log(parts[0]) + top, mean, (parts[2] / parts[0] - mean**2) ** 0.5


# For posteriors that are normal, as the base is before any training.
SHORT = {"max_steps": 200, "width": 16}

# Means of 4000 draws are known to 0.016 standard deviations, spreads to 1% to 3%.
MEAN_ERROR, SCALE_ERROR = 0.08, 0.1


@pytest.mark.slow
def test_a_support_that_ends_at_a_parameter():
    y = np.random.default_rng(0).uniform(0, 3, 12)

    def model(y):
        end = numpyro.sample("end", dist.HalfNormal(5.0))
        numpyro.sample("y", dist.Uniform(0.0, end), obs=y)

    def log_density(end):
        return np.log(2 / 5 / np.sqrt(2 * np.pi)) - 0.5 * (end / 5) ** 2 - len(y) * np.log(end)

    log_z, mean, scale = moments_1d(log_density, y.max(), 30.0)
    sampler = run(model, y)
    end = np.asarray(sampler.get_samples()["end"])
    assert end.min() >= y.max() - 1e-5
    assert abs(end.mean() - mean) < MEAN_ERROR * scale
    assert abs(np.log(end.std() / scale)) < SCALE_ERROR
    assert abs(sampler.log_evidence - log_z) < 0.01 + 4 * sampler.log_evidence_std_error
    assert sampler.elbo < log_z + 0.01
    assert sampler.messages == []


@pytest.mark.slow
def test_a_factor_of_minus_infinity_at_a_boundary():
    def model():
        x = numpyro.sample("x", dist.Uniform(0.0, 1.0))
        numpyro.factor("upper half", jnp.where(x < 0.5, -jnp.inf, 0.0))

    sampler = run(model)
    x = np.asarray(sampler.get_samples()["x"])
    assert x.min() >= 0.5
    assert abs(x.mean() - 0.75) < MEAN_ERROR * 0.5 / 12**0.5
    assert abs(sampler.log_evidence - np.log(0.5)) < 0.01
    assert sampler.messages == []


@pytest.mark.slow
def test_a_change_point():
    y = np.concatenate([np.zeros(10), np.full(12, 1.5)]) + np.random.default_rng(3).normal(size=22)

    def model(y):
        at = numpyro.sample("at", dist.Uniform(0, len(y)))
        before, after = (numpyro.sample(name, dist.Normal(0, 3)) for name in ("before", "after"))
        mean = jnp.where(jnp.arange(len(y)) < at, before, after)
        numpyro.sample("y", dist.Normal(mean, 1.0), obs=y)

    def log_marginal(part):  # of normal data whose mean is N(0, 9)
        n = len(part)
        if n == 0:
            return 0.0
        covariance = np.eye(n) + 9
        _, log_det = np.linalg.slogdet(covariance)
        distance = part @ np.linalg.solve(covariance, part)
        return -0.5 * (distance + log_det + n * np.log(2 * np.pi))

    # Between k - 1 and k the first k observations are before.
    logs = np.array([log_marginal(y[:k]) + log_marginal(y[k:]) for k in range(1, len(y) + 1)])
    weights = np.exp(logs - logs.max())
    log_z = np.log(weights.mean()) + logs.max()
    centres = np.arange(len(y)) + 0.5
    mean = np.average(centres, weights=weights)
    scale = np.sqrt(np.average((centres - mean) ** 2, weights=weights) + 1 / 12)
    sampler = run(model, y)
    at = np.asarray(sampler.get_samples()["at"])
    assert abs(at.mean() - mean) < MEAN_ERROR * scale
    assert abs(sampler.log_evidence - log_z) < 0.02 + 4 * sampler.log_evidence_std_error
    assert sampler.messages == []


@pytest.mark.parametrize("support", [dist.constraints.real, dist.constraints.positive])
def test_a_site_that_nothing_uses_is_named_and_left_out(support):
    def model(y):
        numpyro.sample("spare", dist.ImproperUniform(support, (), (2,)))
        mu = numpyro.sample("mu", dist.Normal(0, 5))
        numpyro.sample("y", dist.Normal(mu, 1), obs=y)

    with pytest.warns(OneStepWarning, match=r"flat direction.*spare\[0\], spare\[1\]"):
        sampler = run(model, jnp.ones(3), **SHORT)
    assert len(sampler.messages) == 1
    exact = dist.MultivariateNormal(jnp.zeros(3), jnp.eye(3) + 25).log_prob(jnp.ones(3))
    assert abs(sampler.log_evidence - float(exact)) < 0.01


FLAT = dist.ImproperUniform(dist.constraints.real, (), ())


def difference(y):
    a, b = numpyro.sample("a", FLAT), numpyro.sample("b", FLAT)
    numpyro.deterministic("seen", a - b)
    numpyro.sample("y", dist.Normal(a - b, 1), obs=y)


def effects_and_intercept(y):
    mu = numpyro.sample("mu", FLAT)
    effects = numpyro.sample("effects", FLAT.expand([3]))
    numpyro.deterministic("seen", mu + effects[0])
    numpyro.sample("y", dist.Normal((mu + effects)[:, None], 1), obs=y * jnp.ones((3, 1)))


@pytest.mark.parametrize("model", [difference, effects_and_intercept])
def test_a_flat_direction_of_several_sites_is_named_and_left_out(model):
    y = jnp.array([1.0, 2.0, 2.0, 3.0])
    with pytest.warns(OneStepWarning, match="flat direction.* (a|mu)"):
        sampler = run(model, y, **SHORT)
    assert len(sampler.messages) == 1
    seen = np.asarray(sampler.get_samples()["seen"])
    assert abs(seen.mean() - 2) < MEAN_ERROR * 0.5
    assert abs(np.log(seen.std() / 0.5)) < 0.06


def test_a_plateau_is_no_flat_direction():
    """U is constant around the start, and its slope zero there, but it rises further out."""
    sampler = OneStep(
        potential_fn=lambda x: jnp.sum(jax.nn.relu(jnp.abs(x) - 2)), progress_bar=False
    )
    sampler.run(jr.key(0), init_params=jnp.zeros(2))
    assert sampler.messages == []
    error = 4 * sampler.log_evidence_std_error + 0.005
    assert abs(sampler.log_evidence - 2 * np.log(6)) < error


def test_a_density_of_steps_alone_is_not_called_flat():
    sampler = OneStep(
        potential_fn=lambda x: jnp.floor(2 * jnp.abs(x)).sum(), num_flow_steps=1, progress_bar=False
    )
    with pytest.warns(OneStepWarning, match="not those of the model"):
        sampler.run(jr.key(0), init_params=jnp.ones(2))
    assert not any("flat" in message for message in sampler.messages)


def test_a_wide_direction_is_no_flat_one():
    # What a and b have in common is known to 3000, their difference to one.
    def model():
        a, b = numpyro.sample("a", FLAT), numpyro.sample("b", FLAT)
        numpyro.factor("seen", -0.5 * (a - b) ** 2 - 0.5 * ((a + b) / 3000) ** 2)

    sampler = run(model, **SHORT)
    assert sampler.messages == []
    exact = np.log(2 * np.pi * 3000 / 2)
    assert abs(sampler.log_evidence - exact) < 0.02 + 4 * sampler.log_evidence_std_error


def test_missing_values_given_by_a_mask():
    def model(y, is_known):
        mu = numpyro.sample("mu", dist.Normal(0, 5))
        with numpyro.plate("n", 4):
            numpyro.sample("y", dist.Normal(mu, 1), obs=y, obs_mask=is_known)

    is_known = jnp.array([True, True, False, True])
    sampler = run(model, jnp.array([1.0, 2.0, 0.0, 3.0]), is_known, **SHORT)
    draws = sampler.get_samples()
    assert abs(float(draws["mu"].mean()) - 6 / 3.04) < 0.06
    assert abs(float(draws["y"][:, 2].mean()) - 6 / 3.04) < 0.1
    assert sampler.messages == []
    known = jnp.array([1.0, 2.0, 3.0])
    exact = dist.MultivariateNormal(jnp.zeros(3), jnp.eye(3) + 25).log_prob(known)
    assert abs(sampler.log_evidence - float(exact)) < 0.01


@pytest.mark.slow
@pytest.mark.parametrize("concentration", [0.0, 3.0])
@pytest.mark.parametrize("multimodal", [False, True])
def test_an_angle_on_the_whole_line(concentration, multimodal):
    def model():
        with numpyro.handlers.reparam(config={"angle": CircularReparam()}):
            angle = numpyro.sample("angle", dist.VonMises(0.0, 1.0))
        numpyro.factor("pull", concentration * jnp.cos(angle - 2.0))

    def log_density(t):
        return np.cos(t) - np.log(2 * np.pi * np.i0(1.0)) + concentration * np.cos(t - 2)

    log_z, _, _ = moments_1d(log_density, -np.pi, np.pi)
    sampler = run(model, multimodal=multimodal)
    assert abs(sampler.log_evidence - log_z) < 0.01
    angle = np.asarray(sampler.get_samples()["angle"])
    resultant = quad(lambda t: np.sin(t) * np.exp(log_density(t) - log_z), -np.pi, np.pi)[0]
    assert abs(np.sin(angle).mean() - resultant) < 4 * 0.7 / 4000**0.5
    assert sampler.messages == []


def test_a_narrow_part_of_a_wide_posterior_is_seen_along_its_coordinates():
    # Half of the mass in the first coordinate lies in a spike that the draws do not have.
    spike, slab = dist.Normal(2.0, 0.02), dist.Normal(0.0, 1.0)

    def energy(x):
        parts = jnp.stack([spike.log_prob(x[0]), slab.log_prob(x[0])])
        return -jax.nn.logsumexp(parts) + 0.5 * x[1] ** 2

    rng = np.random.default_rng(0)
    x = rng.standard_normal((4000, 2)).astype(np.float32)
    potential = Potential.of(energy, None, np.zeros(2, np.float32))
    found = scan_lines(potential, x, ["first", "second"], jr.key(0), 1e15)
    assert found is not None
    assert found.off > 1
    assert found.where == "first"
    assert found.edge is None
    right = np.where((rng.uniform(size=4000) < 0.5)[:, None], [[1.0, 0.0]], [[0.0, 1.0]])
    x[:, 0] = right[:, 0] * (2 + 0.02 * rng.standard_normal(4000)) + right[:, 1] * x[:, 0]
    found = scan_lines(potential, x, ["first", "second"], jr.key(0), 1e15)
    assert found is not None
    assert found.off < 1


@pytest.mark.parametrize("dim", [1, 20])
def test_exact_draws_are_no_reason_to_doubt_them(dim):
    factor = np.tril(np.random.default_rng(dim).standard_normal((dim, dim))) + 3 * np.eye(dim)
    x = np.random.default_rng(0).standard_normal((4000, dim)) @ factor.T
    normal = dist.MultivariateNormal(jnp.zeros(dim), scale_tril=jnp.asarray(factor, jnp.float32))
    potential = Potential.of(lambda x: -normal.log_prob(x), None, np.zeros(dim, np.float32))
    found = scan_lines(
        potential, x.astype(np.float32), [str(j) for j in range(dim)], jr.key(0), 1e15
    )
    assert found is not None
    assert found.off < 1  # what counts as a difference
    assert found.edge is None
    assert found.step is None


@pytest.mark.parametrize("k", [0.5, 1.0, 1.4])
def test_the_mass_of_a_tail_is_counted_in_shares(k):
    # Pareto weights: between the rarities of the heaviest of n and of 100 n draws.
    n, scale = 40_000, 1e-3
    ranks = (np.arange(n) + 0.5) / n
    weights = scale * ranks**-k
    high, low = 1 / n, 0.01 / n
    power = 1 - k
    beyond = np.log(high / low) if power == 0 else (high**power - low**power) / power
    assert tail_mass(np.log(weights), k) == pytest.approx(scale * beyond, rel=0.1)
    assert tail_mass(np.log(1 + 1e-6 * weights), k) < 1e-4


def test_a_far_start_whose_energy_hides_differences_makes_nothing_periodic():
    # At the start U is 1e6, which single precision keeps to 0.06 nats: rounding of its terms would
    # explain that the wide coordinates are the same one period on, or that nothing depends on them.
    rng = np.random.default_rng(0)
    loc, scale = 5 * rng.standard_normal(60), np.exp(rng.uniform(-2, 2, 60))
    loc[:20], scale[:20] = 1e3, 0.5
    centre, unit = jnp.asarray(loc, jnp.float32), jnp.asarray(scale, jnp.float32)

    def potential(x):
        return 0.5 * jnp.sum(((x - centre) / unit) ** 2)

    assert (
        find_completion(potential, np.zeros(60, np.float32), jr.key(0), np.ones(60, bool)) is None
    )
