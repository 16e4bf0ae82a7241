"""Whole runs of the structured map: the evidence, the draws, and what the sampler says of it."""

import pickle

import jax.numpy as jnp
import jax.random as jr
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from scipy import stats

from numpyro_onestep import OneStep
from tests.conftest import EFFECT, EIGHT_SCHOOLS_LOG_EVIDENCE, QUICK, STD_ERROR

# In fewer than 48 dimensions the map is dense.
GROUPS, ERROR = 50, 0.5
LENGTH = 60
# Fewer draws than by default: what takes long in a run is to compile its programs.
SETTINGS = {"num_samples": 1000, "progress_bar": False}


def centred(y):
    mu = numpyro.sample("mu", dist.Normal(0, 5))
    tau = numpyro.sample("tau", dist.HalfNormal(2))
    with numpyro.plate("group", len(y)):
        theta = numpyro.sample("theta", dist.Normal(mu, tau))
        numpyro.sample("y", dist.Normal(theta, ERROR), obs=y)


def not_centred(y):
    mu = numpyro.sample("mu", dist.Normal(0, 5))
    tau = numpyro.sample("tau", dist.HalfNormal(2))
    with numpyro.plate("group", len(y)):
        z = numpyro.sample("z", dist.Normal(0, 1))
        theta = numpyro.deterministic("theta", mu + tau * z)
        numpyro.sample("y", dist.Normal(theta, ERROR), obs=y)


def local_level(y):
    step = numpyro.sample("step", dist.HalfNormal(1))
    noise = numpyro.sample("noise", dist.HalfNormal(1))
    level = numpyro.sample("level", dist.GaussianRandomWalk(step, num_steps=len(y)))
    numpyro.sample("y", dist.Normal(level, noise), obs=y)


def group_data():
    rng = np.random.default_rng(0)
    return (1 + 0.8 * rng.standard_normal(GROUPS) + ERROR * rng.standard_normal(GROUPS)).astype(
        np.float32
    )


def series_data():
    rng = np.random.default_rng(1)
    level = np.cumsum(0.4 * rng.standard_normal(LENGTH))
    return (level + 0.5 * rng.standard_normal(LENGTH)).astype(np.float32)


def log_grid(low, high, num):
    """Logarithms of scales in equal distances, and that distance."""
    logs = np.linspace(np.log(low), np.log(high), num)
    return logs, logs[1] - logs[0]


class Exact:
    """Log evidence, and means and standard deviations of some sites, on a grid of points."""

    def __init__(self, log_mass, **sites):
        """Of each site the mean, and the variance, given each point."""
        self.log_evidence = float(np.logaddexp.reduce(log_mass))
        share = np.exp(log_mass - self.log_evidence)
        self.moments = {}
        for name, (mean, variance) in sites.items():
            first = np.sum(share * mean)
            second = np.sum(share * (mean**2 + variance))
            self.moments[name] = first, np.sqrt(second - first**2)


@pytest.fixture(scope="module")
def of_groups() -> Exact:
    # Given tau the data are normal about mu, which is normal: only tau is left to integrate.
    y, (log_tau, width) = group_data().astype(float), log_grid(1e-3, 20, 4000)
    variance = np.exp(2 * log_tau) + ERROR**2
    precision = GROUPS / variance + 1 / 25
    centre = y.sum() / variance / precision
    logs = -0.5 * (GROUPS * np.log(2 * np.pi * variance) + (y**2).sum() / variance)
    logs += 0.5 * centre**2 * precision - 0.5 * np.log(25 * precision)
    logs += stats.halfnorm.logpdf(np.exp(log_tau), scale=2) + log_tau + np.log(width)
    # Given tau and mu, theta of the first group is normal as well.
    pull = np.exp(2 * log_tau) / variance
    theta = centre + pull * (y[0] - centre)
    spread = pull * ERROR**2 + (1 - pull) ** 2 / precision
    return Exact(logs, mu=(centre, 1 / precision), tau=(np.exp(log_tau), 0), theta=(theta, spread))


@pytest.fixture(scope="module")
def of_series() -> Exact:
    # Levels have the covariance step^2 min(s, t), whose eigenvectors make the data independent.
    y, times = series_data().astype(float), np.arange(1, LENGTH + 1)
    values, vectors = np.linalg.eigh(np.minimum(times[:, None], times).astype(float))
    (log_step, width), (log_noise, other) = log_grid(0.01, 5, 300), log_grid(0.01, 5, 300)
    log_step, log_noise = (v.ravel() for v in np.meshgrid(log_step, log_noise))
    variance = np.exp(2 * log_step)[:, None] * values + np.exp(2 * log_noise)[:, None]
    logs = stats.norm.logpdf(vectors.T @ y, scale=np.sqrt(variance)).sum(1)
    for log in (log_step, log_noise):
        logs += stats.halfnorm.logpdf(np.exp(log)) + log
    logs += np.log(width * other)
    return Exact(logs, step=(np.exp(log_step), 0), noise=(np.exp(log_noise), 0))


def run(model, *data, seed=0, **settings) -> OneStep:
    sampler = OneStep(model, **SETTINGS | settings)
    sampler.run(jr.key(seed), *data)
    return sampler


@pytest.fixture(scope="module")
def sampler() -> OneStep:
    return run(centred, group_data())


def check(sampler: OneStep, exact: Exact):
    """The evidence is a bound and near the truth, and the draws have the exact moments."""
    assert sampler.messages == []
    log_z = exact.log_evidence
    assert log_z - 0.1 < sampler.elbo < log_z + 4 * sampler.elbo_std_error
    assert abs(sampler.log_evidence - log_z) < 0.05
    assert sampler.folded_fraction == 0
    draws = sampler.get_samples()
    for name, (mean, sd) in exact.moments.items():
        values = np.asarray(draws[name], float)
        values = values[:, 0] if values.ndim > 1 else values
        # 1000 draws from a pool whose ESS is at least as large, of tails up to a kurtosis of five.
        assert sampler.ess > 1000
        assert abs(values.mean() - mean) < 4 * sd * (2 / 1000) ** 0.5
        assert abs(np.log(values.std() / sd)) < 4 * (2 / 1000) ** 0.5


@pytest.mark.slow
def test_a_hierarchy_is_right_centred(sampler, of_groups, capsys):
    check(sampler, of_groups)
    structure = sampler.structure
    assert structure is not None
    assert structure.num_core == 2
    assert set(structure.order[:2].tolist()) == {0, 1}  # mu and tau come before theta
    assert str(structure) == f"2 globals, {GROUPS} blocks of 1"
    sampler.print_summary()
    assert f"structure  2 globals, {GROUPS} blocks of 1" in capsys.readouterr().out


def test_a_hierarchy_is_right_not_centred(of_groups):
    sampler = run(not_centred, group_data())
    check(sampler, of_groups)
    assert str(sampler.structure) == f"2 globals, {GROUPS} blocks of 1"


@pytest.mark.slow
def test_a_series_is_right(of_series):
    sampler = run(local_level, series_data())
    check(sampler, of_series)
    structure = sampler.structure
    assert structure is not None
    assert {LENGTH, LENGTH + 1} <= set(structure.order[: structure.num_core].tolist())
    assert structure.parents.shape[1] > 0
    assert "levels" in str(structure)


def test_its_density_at_given_points_needs_no_head(sampler):
    with pytest.raises(ValueError, match="get_posterior"):
        sampler.fit_log_prob(jr.key(0))


def test_the_same_key_gives_the_same_draws_and_a_pickle_those_of_its_sampler(sampler):
    again = run(centred, group_data())
    copy = pickle.loads(pickle.dumps(sampler))
    assert str(copy.structure) == str(sampler.structure)
    key = jr.key(5)
    drawn = sampler.sample(key, 200)
    assert drawn["theta"].shape == (200, GROUPS)
    for other in (again, copy):
        for name, values in sampler.get_samples().items():
            np.testing.assert_array_equal(other.get_samples()[name], values)
        for name, values in other.sample(key, 200).items():
            np.testing.assert_array_equal(values, drawn[name])


def test_the_evidence_lies_between_its_bounds(sampler, of_groups):
    interval = sampler.evidence_interval(jr.key(1), num_rejuvenation_steps=20)
    assert interval.reached_fraction > 0.999
    log_z = of_groups.log_evidence
    assert interval.lower - 4 * interval.lower_std_error < log_z
    assert log_z < interval.upper + 4 * interval.upper_std_error
    assert interval.upper - interval.lower < 0.2


def test_the_posterior_is_a_distribution_whose_density_is_that_of_its_draws(sampler):
    q = sampler.get_posterior()
    x, log_q = q.sample_and_log_prob(jr.key(2), (200,))
    # In single precision the inverse is as good as rounding lets it be.
    np.testing.assert_allclose(q.log_prob(x), log_q, atol=5e-3)
    z = q.sample_base(jr.key(2), 200)
    np.testing.assert_allclose(sampler.get_transform()(z), x, rtol=1e-5, atol=1e-5)


def test_arviz_sees_the_draws(sampler):
    data = sampler.to_inference_data()
    posterior = data["posterior"]
    assert posterior["theta"].shape == (4, 250, GROUPS)
    np.testing.assert_array_equal(np.ravel(posterior["mu"]), sampler.get_samples()["mu"])
    assert data["log_likelihood"]["y"].shape == (4, 250, GROUPS)


@pytest.mark.slow
@pytest.mark.parametrize("correction", ["imh", "nuts", None])
def test_every_correction_works_on_a_structured_map(of_groups, correction):
    sampler = run(centred, group_data(), correction=correction)
    assert sampler.messages == []
    assert str(sampler.structure) == f"2 globals, {GROUPS} blocks of 1"
    assert abs(sampler.log_evidence - of_groups.log_evidence) < 0.05
    draws = sampler.get_samples()
    for name, (mean, sd) in of_groups.moments.items():
        values = np.asarray(draws[name], float)
        values = values[:, 0] if values.ndim > 1 else values
        # An effective size of at least 250 of the 1000 draws; without a correction also an error of
        # the flow, whose divergence is below 0.1 nats.
        assert abs(values.mean() - mean) < 4 * sd * (1 / 250) ** 0.5


def test_sites_that_are_named_are_the_core_and_others_are_refused():
    named = run(centred, group_data(), structure=["mu", "tau"])
    assert named.structure is not None
    assert set(named.structure.order[:2].tolist()) == {0, 1}
    assert str(named.structure) == f"2 globals, {GROUPS} blocks of 1"
    with pytest.raises(ValueError, match=r"structure names 'nu'.* sites are mu, tau, theta"):
        run(centred, group_data(), structure=["mu", "nu"])


@pytest.mark.parametrize("structure", ["dense", "mu", 3, [1], True])
def test_a_structure_that_is_none_is_refused(structure):
    with pytest.raises(ValueError, match=r"structure=.* must be \"auto\", None, or the names"):
        OneStep(centred, structure=structure)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::numpyro_onestep.OneStepWarning")
@pytest.mark.parametrize(
    "settings",
    [{"structure": None}, {"multimodal": True}, {"num_distillation_steps": 100}],
    ids=lambda settings: next(iter(settings)),
)
def test_the_map_is_dense_where_it_is_asked_for_or_has_to_be(settings, capsys):
    sampler = OneStep(centred, **QUICK | settings)
    sampler.run(jr.key(0), group_data()[:8])
    assert sampler.structure is None
    assert sampler.get_samples()["theta"].shape == (QUICK["num_samples"], 8)
    sampler.print_summary()
    assert "structure  dense" in capsys.readouterr().out


@pytest.mark.slow
def test_a_potential_function_has_a_structure_and_two_steps_are_possible(of_groups):
    y = jnp.asarray(group_data())

    def potential(values):
        mu, log_tau, theta = values["mu"], values["log_tau"], values["theta"]
        log_joint = dist.Normal(0, 5).log_prob(mu) + dist.HalfNormal(2).log_prob(jnp.exp(log_tau))
        log_joint += log_tau + dist.Normal(mu, jnp.exp(log_tau)).log_prob(theta).sum()
        return -log_joint - dist.Normal(theta, ERROR).log_prob(y).sum()

    start = {"mu": jnp.zeros(()), "log_tau": jnp.zeros(()), "theta": jnp.zeros(GROUPS)}
    sampler = OneStep(potential_fn=potential, num_flow_steps=2, structure=["mu"], **SETTINGS)
    sampler.run(jr.key(0), init_params=start)
    assert sampler.messages == []
    assert sampler.num_flow_steps == 2
    assert str(sampler.structure) == f"2 globals, {GROUPS} blocks of 1"
    log_z = of_groups.log_evidence
    assert log_z - 0.1 < sampler.elbo < log_z + 4 * sampler.elbo_std_error
    assert abs(sampler.log_evidence - log_z) < 0.05
    assert sampler.get_samples()["theta"].shape == (1000, GROUPS)
    refused = OneStep(potential_fn=potential, structure=["tau"], **SETTINGS)
    with pytest.raises(ValueError, match="structure names 'tau'"):
        refused.run(jr.key(0), init_params=start)


@pytest.mark.slow
def test_a_small_centred_hierarchy_is_right_and_not_warned_of():
    def schools():
        mu = numpyro.sample("mu", dist.Normal(0, 5))
        tau = numpyro.sample("tau", dist.HalfCauchy(5))
        with numpyro.plate("school", 8):
            theta = numpyro.sample("theta", dist.Normal(mu, tau))
            numpyro.sample("y", dist.Normal(theta, STD_ERROR), obs=EFFECT)

    # The dense map's weights are doubted here (Pareto k of 1.7), and the structured one's are not.
    sampler = OneStep(schools, progress_bar=False)
    sampler.run(jr.key(0))
    assert sampler.messages == []
    assert abs(sampler.log_evidence - EIGHT_SCHOOLS_LOG_EVIDENCE) < 0.05
    # Long runs of NUTS on the non-centred form: tau has mean 3.6 and sd 3.2, mu 4.4 and 3.3.
    draws = sampler.get_samples()
    assert abs(np.mean(draws["mu"]) - 4.4) < 0.1 * 3.3
    assert abs(np.mean(draws["tau"]) - 3.6) < 0.1 * 3.2


def test_parallel_steps_are_of_the_dense_map_alone(sampler):
    with pytest.raises(ValueError, match="structure=None"):
        sampler.sample(jr.key(0), 10, parallel=True)
