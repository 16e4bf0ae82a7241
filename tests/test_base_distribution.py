import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from scipy.integrate import quad
from scipy.stats import multivariate_normal, norm

from numpyro_onestep.flow.base_distribution import (
    STANDARD_NORMAL,
    ProductMixture,
    ScaleMixture,
    normal_mixture,
)

WEIGHTS = np.array([0.3, 0.7])
LOC = np.array([[-3.0, 1.0], [2.0, 0.0]])
SCALE_TRIL = np.array([[[1.0, 0.0], [0.5, 0.5]], [[0.3, 0.0], [-0.2, 2.0]]])
PRODUCT = ProductMixture(
    jnp.log(jnp.array([[0.2, 0.8], [0.5, 0.5]])),
    jnp.array([[-2.0, 1.0], [0.0, 5.0]]),
    jnp.array([[0.5, 1.0], [1.0, 0.1]]),
)


def mixture():
    return normal_mixture(np.log(WEIGHTS), LOC, SCALE_TRIL, jnp.float32)


@pytest.mark.parametrize("scale", [1.0, 1.7])
def test_a_mixture_has_the_density_of_its_components(scale):
    z = jr.normal(jr.key(0), (20, 2)) * 3
    expected = sum(
        w * multivariate_normal(m, scale**2 * s @ s.T).pdf(np.asarray(z, np.float64))
        for w, m, s in zip(WEIGHTS, LOC, SCALE_TRIL, strict=True)
    )
    found = jax.vmap(lambda at: mixture().log_density(at, scale))(z)
    np.testing.assert_allclose(found, np.log(expected), rtol=2e-4, atol=2e-4)


def test_a_product_has_the_density_of_its_coordinates():
    def density(t, j):
        w, m, s = (np.asarray(v, np.float64)[j] for v in jax.tree.leaves(PRODUCT))
        return np.sum(np.exp(w) * norm.pdf(t, m, s))

    for z in ([0.3, 4.9], [-2.0, 0.1]):
        expected = np.log(density(z[0], 0) * density(z[1], 1))
        np.testing.assert_allclose(PRODUCT.log_density(jnp.array(z)), expected, rtol=1e-4)
    assert quad(density, -9, 9, args=(0,))[0] == pytest.approx(1, abs=1e-4)


WIDE = ScaleMixture(mixture(), jnp.log(jnp.array([0.6, 0.4])), jnp.array([1.0, 3.0]))


def test_widths_have_the_density_of_their_mixture():
    z = jnp.array([0.3, 4.9])
    parts = [jnp.exp(mixture().log_density(z, width)) for width in (2.0, 6.0)]
    expected = jnp.log(0.6 * parts[0] + 0.4 * parts[1])
    np.testing.assert_allclose(WIDE.log_density(z, 2.0), expected, rtol=1e-5)


@pytest.mark.parametrize(
    "noise", [STANDARD_NORMAL, mixture(), WIDE, PRODUCT], ids=lambda n: n.__class__
)
@pytest.mark.parametrize("scale", [1.0, 1.5])
def test_draws_follow_the_density(noise, scale):
    # E[exp(log r - log n)] over draws of n is 1 for any density r within reach of n.
    num = 20_000
    z = noise.sample(jr.key(1), num, jnp.zeros(2), scale)
    reference = normal_mixture(np.zeros(1), np.mean(z, 0)[None], np.eye(2)[None] * 0.3, z.dtype)
    log_n = jax.vmap(lambda at: noise.log_density(at, scale))(z)
    ratio = np.exp(jax.vmap(reference.log_density)(z) - log_n)
    assert abs(ratio.mean() - 1) < 5 * ratio.std() / num**0.5 + 0.01


def test_draws_may_have_a_scale_each():
    z = STANDARD_NORMAL.sample(jr.key(0), 4, jnp.zeros(3), jnp.array([1.0, 1.0, 2.0, 2.0]))
    plain = STANDARD_NORMAL.sample(jr.key(0), 4, jnp.zeros(3))
    np.testing.assert_allclose(z[2:], 2 * plain[2:])
    np.testing.assert_allclose(z[:2], plain[:2])
