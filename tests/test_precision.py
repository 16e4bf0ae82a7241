"""Double precision is taken where the target asks for it, by itself and for itself alone."""

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from scipy.special import betaln, gammaln

from numpyro_onestep import OneStep


def run(model, *args, **settings):
    sampler = OneStep(model, progress_bar=False, **settings)
    sampler.run(jr.key(0), *args)
    assert jnp.zeros(1).dtype == jnp.float32  # the session's own precision is untouched
    return sampler


def binomial(y):
    p = numpyro.sample("p", dist.Beta(2.0, 2.0))
    numpyro.sample("y", dist.Binomial(100_000, p), obs=y)


def poisson(y):
    rate = numpyro.sample("rate", dist.Gamma(2.0, 0.001))
    numpyro.sample("y", dist.Poisson(rate), obs=y)


@pytest.mark.slow
def test_binomial_counts_of_a_hundred_thousand(capsys):
    y = np.random.default_rng(2).binomial(100_000, 0.3, 200)
    n, total = 100_000, y.sum()
    choose = gammaln(n + 1) - gammaln(y + 1) - gammaln(n - y + 1)
    exact = choose.sum() + betaln(2 + total, 2 + 200 * n - total) - betaln(2, 2)
    assert exact == pytest.approx(-1288.046, abs=0.001)
    sampler = run(binomial, jnp.asarray(y, float))
    assert abs(sampler.log_evidence - exact) < 0.002 + 4 * sampler.log_evidence_std_error
    assert sampler.elbo < exact + 0.002
    sampler.print_summary()
    assert "float64, since float32 is off by" in capsys.readouterr().out
    # What single precision makes of it depends on JAX's version: twenty nats less, or five more.
    single = run(binomial, jnp.asarray(y, float), target_precision="single")
    assert abs(single.log_evidence - exact) > 1


@pytest.mark.slow
def test_poisson_counts_in_a_thousand_rows():
    y = np.random.default_rng(0).poisson(1700, 1000)
    a, b, total = 2.0, 0.001, y.sum()
    exact = a * np.log(b) - gammaln(a) + gammaln(a + total) - gammaln(y + 1).sum()
    exact -= (a + total) * np.log(b + 1000)
    sampler = run(poisson, jnp.asarray(y, float))
    assert abs(sampler.log_evidence - exact) < 0.005 + 4 * sampler.log_evidence_std_error


@pytest.mark.slow
@pytest.mark.parametrize("given", ["argument", "global", "jitted"])
def test_values_whose_floats_are_too_far_apart(given):
    y = 1e6 + np.arange(50.0) / 50

    def model(data=y):
        mu = numpyro.sample("mu", dist.Normal(0.0, 1e7))
        numpyro.sample("y", dist.Normal(mu, 1.0), obs=data)

    @jax.jit
    def log_likelihood(mu):
        return -0.5 * jnp.sum((jnp.asarray(y) - mu) ** 2)

    def jitted():
        mu = numpyro.sample("mu", dist.Normal(0.0, 1e7))
        numpyro.factor("y", log_likelihood(mu))

    args = (y,) if given == "argument" else ()
    sampler = run(jitted if given == "jitted" else model, *args)
    mu = np.asarray(sampler.get_samples()["mu"], np.float64)
    # 4000 draws: a standard error of the spread of 1.1%.
    assert mu.std() == pytest.approx(50**-0.5, rel=0.05)
    assert mu.mean() == pytest.approx(y.mean(), abs=0.05)  # the data are in single precision


def array(*values):
    return jnp.asarray(values)


# Without data the evidence is 1.  Of arrays alone JAX computes a normaliser in their own precision.
PRIORS = {
    "bounds": lambda: dist.TruncatedNormal(0.0, 1.0, low=array(3.0), high=array(3.0001)),
    "numpy": lambda: dist.TruncatedNormal(0.0, 1.0, low=np.float32(3), high=np.float32(3.0001)),
    "gamma": lambda: dist.Gamma(array(3e6), array(1e6)),
    "beta": lambda: dist.Beta(array(3e6), array(1e6)),
}


@pytest.mark.parametrize("name", PRIORS)
def test_a_normaliser_of_arrays_is_computed_in_double_precision(name, capsys):
    sampler = run(lambda: numpyro.sample("x", PRIORS[name]()), num_samples=500, max_steps=200)
    assert abs(sampler.log_evidence) < 0.002
    assert sampler.messages == []
    sampler.print_summary()
    assert "float64, since float32 is off by" in capsys.readouterr().out


def test_arrays_that_need_no_double_precision_stay_in_single(capsys):
    prior = dist.Gamma(array(3.0), array(1.0)).to_event(1)
    sampler = run(lambda: numpyro.sample("x", prior), num_samples=500, max_steps=200)
    assert abs(sampler.log_evidence) < 0.01
    assert sampler.messages == []
    assert sampler.result.problem.line == "float32"


@pytest.mark.slow
def test_a_start_a_million_away_and_an_unknown_spread():
    y = 1e6 + np.random.default_rng(0).normal(0, 10, 50)

    def model(y):
        mu = numpyro.sample("mu", dist.Normal(0.0, 1e7))
        sigma = numpyro.sample("sigma", dist.HalfNormal(100.0))
        numpyro.sample("y", dist.Normal(mu, sigma), obs=y)

    sampler = run(model, y)
    mu = np.asarray(sampler.get_samples()["mu"], np.float64)
    sigma = np.asarray(sampler.get_samples()["sigma"], np.float64)
    # The spread is known to a tenth of itself, and HalfNormal(100) says next to nothing.
    assert mu.mean() == pytest.approx(y.mean(), abs=0.3)
    assert sigma.mean() == pytest.approx(y.std(ddof=1), rel=0.05)
    assert mu.std() == pytest.approx(sigma.mean() / 50**0.5, rel=0.06)


def test_single_precision_stays_where_it_is_enough(schools):
    assert schools.messages == []
    assert schools.sample(jr.key(0), 3)["mu"].dtype == jnp.float32


@pytest.mark.slow
def test_double_precision_may_be_asked_for(x64_is_off):
    def model(y):
        mu = numpyro.sample("mu", dist.Normal(0, 10))
        numpyro.sample("y", dist.Normal(mu, 1), obs=y)

    sampler = run(model, jnp.ones(3), target_precision="double", num_samples=500)
    exact = dist.MultivariateNormal(jnp.zeros(3), jnp.eye(3) + 100).log_prob(jnp.ones(3))
    assert sampler.log_evidence == pytest.approx(float(exact), abs=0.01)
    interval = sampler.evidence_interval(jr.key(1), 10)
    assert interval.lower < float(exact) + 0.01 < interval.upper + 0.03
    assert sampler.to_inference_data()["log_likelihood"]["y"].shape == (4, 125, 3)


@pytest.mark.slow
def test_a_model_that_fixes_its_types_stays_in_single_precision(capsys):
    def model(y):
        mu = numpyro.sample("mu", dist.Normal(0, 10))
        start = jnp.zeros((), jnp.float32)
        total, _ = jax.lax.scan(lambda c, v: (c + (v - mu) ** 2, None), start, y)
        numpyro.factor("likelihood", -0.5 * total)

    sampler = run(model, jnp.ones(4))
    assert abs(float(sampler.get_samples()["mu"].mean()) - 0.9975) < 0.05
    sampler.print_summary()
    assert "float32; the model cannot be traced in float64" in capsys.readouterr().out
    with pytest.raises(ValueError, match="64-bit"):
        run(model, jnp.ones(4), target_precision="double")


@pytest.fixture
def x64_is_off():
    assert not jax.config.jax_enable_x64
