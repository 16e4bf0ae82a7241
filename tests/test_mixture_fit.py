"""Which mixture is fitted to particles, and what tempered SMC says where it can give none."""

import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from scipy.integrate import quad

from numpyro_onestep.flow.base_distribution import (
    NormalMixture,
    ProductMixture,
    normal_mixture,
)
from numpyro_onestep.flow.gaussian import GaussianPreconditioner
from numpyro_onestep.multimodal import tempered_smc
from numpyro_onestep.multimodal.mixture_fit import fit_mixture
from numpyro_onestep.multimodal.modes import Modes
from numpyro_onestep.multimodal.tempered_smc import Population, explore
from numpyro_onestep.target import Potential

NUM = 4000  # as many particles as a run has


def no_modes(d: int) -> Modes:
    """As if no descent had ended in a minimum, so that the particles alone decide."""
    nothing = np.zeros((0, d))
    return Modes(nothing, np.zeros((0, d, d)), np.zeros(0), nothing)


def fitted(function, x, modes=None):
    x = np.asarray(x, np.float32)
    d = x.shape[1]
    population = Population(x, no_modes(d) if modes is None else modes, 0.0)
    return fit_mixture(Potential.of(function, None, x[0]), population, jr.key(1))


LOG_Z = 2.0


@pytest.mark.slow
def test_modes_within_which_coordinates_are_correlated_get_gaussians_in_all_of_them():
    scale_tril = jnp.array([[[1.0, 0.0], [0.9, 0.3]], [[0.5, 0.0], [-1.0, 0.4]]])
    loc = jnp.array([[-4.0, 0.0], [4.0, 1.0]])
    target = normal_mixture(jnp.log(jnp.array([0.3, 0.7])), loc, scale_tril, jnp.float32)
    x = target.sample(jr.key(0), NUM, jnp.zeros(2))
    fit = fitted(lambda x: -target.log_density(x) - LOG_Z, x)
    assert isinstance(fit.base, NormalMixture)
    # Two components of five numbers each and a weight, from half of the particles: the gap is half
    # as many over 2000, 0.003 nats.  Of 16 * 512 draws the mean is known to 0.001.
    assert LOG_Z - 0.05 < float(fit.elbo) < LOG_Z + 0.005


def well(t, exp=np.exp):
    """Two Gaussian wells a coordinate, at -2 and 2, the right one of twice the mass."""
    return exp(-0.5 * ((t + 2) / 0.5) ** 2) + 2 * exp(-0.5 * ((t - 2) / 0.5) ** 2)


@pytest.mark.slow
def test_many_independent_wells_get_a_product_of_their_own_mixtures():
    d = 8  # and 2^8 modes, where Gaussians in all coordinates have room for a few
    rng = np.random.default_rng(0)
    right = rng.uniform(size=(NUM, d)) < 2 / 3
    x = np.where(right, 2, -2) + 0.5 * rng.standard_normal((NUM, d))
    log_z = d * np.log(quad(well, -8, 8)[0])
    fit = fitted(lambda x: -jnp.sum(jnp.log(well(x, jnp.exp))), x)
    assert isinstance(fit.base, ProductMixture)
    # Eight times two components of two numbers each and a weight: a gap of 0.01 nats.
    assert log_z - 0.05 < float(fit.elbo) < log_z + 0.005


@pytest.mark.slow
def test_more_dimensions_than_the_particles_fill_get_the_modes_themselves():
    # In 25 dimensions half of the particles are enough for two components of 350 numbers each, and
    # the coordinates are far from independent.
    d = 25
    loc = 8.0 * np.eye(d)[:3]
    weights = np.array([0.5, 0.3, 0.2])
    tril = np.broadcast_to(np.linalg.cholesky(0.5 * np.eye(d) + 0.5), (3, d, d))
    target = normal_mixture(np.log(weights), loc, tril, jnp.float32)
    x = target.sample(jr.key(0), NUM, jnp.zeros(d))
    modes = Modes(loc, tril, np.log(weights), loc)
    fit = fitted(lambda x: -target.log_density(x), x, modes)
    assert isinstance(fit.base, NormalMixture)
    assert fit.base.log_weights.shape == (3,)
    # Each particle counts for its own mode: of 4000 the largest weight is known to 0.008.
    np.testing.assert_allclose(jnp.exp(fit.base.log_weights), weights, atol=4 * 0.008)
    assert -0.05 < float(fit.elbo) < 0.005


def explored(function, d=2):
    start = jnp.zeros(d)
    gaussian = GaussianPreconditioner(start, jnp.eye(d))
    return explore(Potential.of(function, None, start), start, gaussian, jr.key(0), 400)


def test_exploring_in_too_many_dimensions_is_refused():
    with pytest.raises(ValueError, match=r"multimodal explores up to 128 dimensions.* has 129"):
        explored(lambda x: 0.5 * jnp.sum(x**2), 129)


@pytest.mark.parametrize("value", [jnp.inf, jnp.nan])
def test_a_density_that_is_nowhere_finite_cannot_be_explored(value):
    with pytest.raises(ValueError, match=r"1600 points from a wide Gaussian.* leave multimodal"):
        explored(lambda x: value + jnp.sum(x))


@pytest.mark.slow
def test_a_temperature_that_does_not_come_down_is_said_so(monkeypatch):
    def narrow(x):
        return 0.5 * jnp.sum(((x - 3) / 0.01) ** 2) + 5 * jnp.sum(jnp.cos(30 * x))

    monkeypatch.setattr(tempered_smc, "_MOST_TEMPERATURES", 1)
    words = r"after 1 temperatures only [\d.]+% of the way.* Rescale the parameters"
    with pytest.raises(ValueError, match=words):
        explored(narrow)
