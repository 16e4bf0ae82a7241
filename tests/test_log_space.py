"""Mass where floats end: shares of 1e-100 and what they say of the evidence."""

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro import handlers
from numpyro.contrib.control_flow import scan
from numpyro.infer.util import potential_energy

from numpyro_onestep import OneStep
from numpyro_onestep.target import model_target

# They depend on no version.
pytestmark = pytest.mark.slow


def in_plates():
    with numpyro.plate("rows", 3, dim=-2), numpyro.plate("columns", 2):
        rate = numpyro.sample("rate", dist.Gamma(2.0, 3.0))
        share = numpyro.sample("share", dist.Dirichlet(jnp.array([0.5, 1.0, 2.0])))
    numpyro.sample("y", dist.Normal(rate[..., None] * share, 1.0), obs=jnp.ones((3, 2, 3)))


def of_events():
    scale = numpyro.sample("scale", dist.InverseGamma(2.0, jnp.array([1.0, 3.0])).to_event(1))
    shape = dist.Beta(scale[0], 2).expand([2, 3]).to_event(1)
    numpyro.sample("p", shape)
    numpyro.sample("chi2", dist.Chi2(jnp.array([3.0, 5.0])))


def drawn_several_times():
    numpyro.sample("p", dist.Beta(2.0, 3.0), sample_shape=(4,))
    numpyro.sample("q", dist.Dirichlet(jnp.array([1.0, 2.0, 3.0])), sample_shape=(2,))


def scaled_and_masked():
    with handlers.scale(scale=0.5):
        p = numpyro.sample("p", dist.Beta(2.0, 3.0))
    with numpyro.plate("n", 3), handlers.mask(mask=jnp.array([True, False, True])):
        numpyro.sample("q", dist.Beta(1 + p, 3.0))
    with numpyro.plate("m", 6, subsample_size=3):
        numpyro.sample("r", dist.Gamma(2.0, p))


def in_a_scan():
    def step(carry, _):
        carry = numpyro.sample("x", dist.Gamma(2.0, 1.0 / carry))
        return carry, carry

    scan(step, jnp.ones(()), None, length=4)


@pytest.mark.parametrize(
    "model", [in_plates, of_events, drawn_several_times, scaled_and_masked, in_a_scan]
)
def test_the_density_is_numpyros_where_floats_hold_the_value(model):
    with jax.enable_x64(True):
        target, potential, start = model_target(jr.key(0), model, (), {})
        for key in jr.split(jr.key(1), 5):
            x = jr.normal(key, start.shape, start.dtype)
            values = target.unravelled(x)
            seeded = handlers.seed(handlers.substitute(model, data=target.fixed), rng_seed=0)
            expected = potential_energy(seeded, (), {}, values)
            np.testing.assert_allclose(potential(x), expected, rtol=1e-10)


@pytest.mark.parametrize(
    "prior",
    [
        dist.Beta(0.02, 0.02),
        dist.Beta(0.02, 0.5),
        dist.Dirichlet(jnp.full(3, 0.1)),
        dist.Dirichlet(jnp.array([0.02, 0.1, 1.0, 0.05])),
    ],
    ids=["beta", "uneven beta", "dirichlet", "uneven dirichlet"],
)
def test_priors_with_their_mass_where_floats_end(prior):
    sampler = OneStep(lambda: numpyro.sample("p", prior), progress_bar=False)
    sampler.run(jr.key(0))
    assert abs(sampler.log_evidence) < 0.002 + 4 * sampler.log_evidence_std_error
    p = np.asarray(sampler.get_samples()["p"], np.float64)
    # Means within four standard errors, of 4000 draws and of the resampling of as many.
    error = 4 * np.sqrt(2 * np.asarray(prior.variance) / len(p))
    assert (abs(p.mean(0) - np.asarray(prior.mean)) < error).all()


def test_data_beside_a_prior_whose_mass_is_where_floats_end():
    def model():
        p = numpyro.sample("p", dist.Beta(0.02, 0.02))
        numpyro.sample("y", dist.Bernoulli(p), obs=1.0)

    sampler = OneStep(model, progress_bar=False)
    sampler.run(jr.key(0))
    assert abs(sampler.log_evidence - np.log(0.5)) < 0.002 + 4 * sampler.log_evidence_std_error
