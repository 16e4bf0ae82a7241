"""Targets with several modes whose log evidence is known exactly."""

import warnings

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from scipy.integrate import quad

from numpyro_onestep import OneStep, OneStepWarning
from numpyro_onestep.multimodal.modes import find_modes
from numpyro_onestep.target import Potential

# Whole runs that depend on no version.
pytestmark = pytest.mark.slow

MEANS = 6.0 * jnp.array([[x, y] for x in (-1, 0, 1) for y in (-1, 0, 1)], jnp.float32)
WEIGHTS = jnp.arange(1, 10) / 45


def gaussians(loc, scale=1.0, weights=None):
    """The potential of round Gaussians of these widths; weights equal if not given; log Z = 0."""
    num, d = loc.shape
    log_weights = -jnp.log(num) if weights is None else jnp.log(weights)

    def potential(x):
        squares = jnp.sum((x - loc) ** 2, axis=1) / scale**2
        log_density = -0.5 * squares - d * jnp.log(scale * jnp.sqrt(2 * jnp.pi))
        return -jax.nn.logsumexp(log_weights + log_density)

    return potential


NINE_MODES = gaussians(MEANS, 1.0, WEIGHTS)


def many_wells(x):
    """Eight double wells and two Gaussians: 256 modes."""
    wells, rest = x[:8], x[8:]
    return jnp.sum(wells**4 - 6 * wells**2 - 0.5 * wells) + 0.5 * jnp.sum(rest**2)


def one_well(t):
    return np.exp(-(t**4) + 6 * t**2 + 0.5 * t)


@pytest.fixture(scope="module")
def nine():
    sampler = OneStep(potential_fn=NINE_MODES, multimodal=True, progress_bar=False)
    sampler.run(jr.key(0), init_params=jnp.zeros(2))
    return sampler


def test_every_mode_gets_its_share(nine):
    x = np.asarray(nine.get_samples())
    nearest = np.argmin(((x[:, None] - np.asarray(MEANS)) ** 2).sum(-1), axis=1)
    shares = np.bincount(nearest, minlength=9) / len(x)
    # Weights of the pool's 40,000 draws and a resampling of 4000: twice the latter's error.
    weights = np.asarray(WEIGHTS)
    assert np.all(abs(shares - weights) < 5 * np.sqrt(2 * weights * (1 - weights) / 4000))


def test_the_evidence_is_known_from_both_sides(nine):
    assert abs(nine.log_evidence) < 0.02
    interval = nine.evidence_interval(jr.key(1))
    assert interval.reached_fraction > 0.999
    assert interval.lower < 3 * interval.lower_std_error
    assert interval.upper > -3 * interval.upper_std_error
    assert interval.upper - interval.lower < 0.2


@pytest.mark.slow
def test_a_product_of_wells_is_covered():
    sampler = OneStep(potential_fn=many_wells, multimodal=True, progress_bar=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", OneStepWarning)  # Pareto k is near its limit here
        sampler.run(jr.key(0), init_params=jnp.zeros(10))
    z = quad(one_well, -5, 5)[0]
    log_z = 8 * np.log(z) + np.log(2 * np.pi)
    assert abs(sampler.log_evidence - log_z) < 0.05
    right = (np.asarray(sampler.get_samples())[:, :8] > 0).mean(0)
    # The largest of eight shares, each with an error of 0.0057 and the pool's.
    np.testing.assert_allclose(right, quad(one_well, 0, 5)[0] / z, atol=0.03)


def sign_ambiguity(x, y):
    """Only the product of the two coefficients is known, so both signs can be turned round."""
    a = numpyro.sample("a", dist.Normal(0, 2))
    b = numpyro.sample("b", dist.Normal(0, 2))
    numpyro.sample("y", dist.Normal(a * b * x, 0.5), obs=y)


@pytest.mark.slow
def test_a_model_with_two_signs():
    x = jnp.linspace(-1, 1, 30)
    y = 3.0 * x
    blind = OneStep(sign_ambiguity, progress_bar=False)
    with pytest.warns(OneStepWarning):
        blind.run(jr.key(3), x, y)
    both = OneStep(sign_ambiguity, multimodal=True, progress_bar=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", OneStepWarning)  # Pareto k is near its limit here
        both.run(jr.key(0), x, y)
    assert not any("do not reach" in message for message in both.messages)
    share = float((both.get_samples()["a"] > 0).mean())
    assert abs(share - 0.5) < 5 * 0.5 / 2000**0.5


@pytest.mark.parametrize("num_samples", [200, 4000])
def test_training_into_one_mode_is_warned_of(num_samples):
    sampler = OneStep(potential_fn=many_wells, num_samples=num_samples, progress_bar=False)
    with pytest.warns(OneStepWarning, match="multimodal=True"):
        sampler.run(jr.key(0), init_params=jnp.zeros(10))


def test_modes_far_beyond_the_first_starts_are_found():
    """Forty modes up to a thousand from the start, hundreds of widths apart."""
    loc = jr.uniform(jr.key(0), (40, 2), minval=-1000.0, maxval=1000.0)
    potential = Potential.of(gaussians(loc, 5.0), None, jnp.zeros(2))
    for seed in range(3):
        modes = find_modes(potential, jnp.zeros(2), jr.key(seed))
        nearest = np.argmin(((modes.loc[:, None] - np.asarray(loc)) ** 2).sum(-1), axis=1)
        assert len(set(nearest)) == 40


def test_modes_narrower_than_the_rest_are_looked_for():
    """The narrowest of nine in three dimensions has one descent in a thousand, or fewer."""
    loc = jr.uniform(jr.key(1), (9, 3), minval=-40.0, maxval=40.0)
    potential = Potential.of(gaussians(loc, jnp.geomspace(0.3, 3.0, 9)), None, jnp.zeros(3))
    for seed in range(5):
        modes = find_modes(potential, jnp.zeros(3), jr.key(seed))
        nearest = np.argmin(((modes.loc[:, None] - np.asarray(loc)) ** 2).sum(-1), axis=1)
        assert len(set(nearest)) == 9


@pytest.mark.slow
def test_rare_modes_hundreds_of_widths_apart():
    """No grid of them: a product of mixtures would have a fourth, where the target has nothing."""
    loc = jnp.array([[0.0, 0.0], [1000.0, 0.0], [0.0, -500.0]])
    potential = gaussians(loc, 1.0, jnp.array([0.9, 0.05, 0.05]))
    sampler = OneStep(potential_fn=potential, multimodal=True, progress_bar=False)
    sampler.run(jr.key(0), init_params=jnp.zeros(2))
    assert -0.05 < sampler.elbo < 4 * sampler.elbo_std_error
    assert abs(sampler.log_evidence) < 0.02
    x = np.asarray(sampler.get_samples())
    shares = [(x[:, 0] > 500).mean(), (x[:, 1] < -250).mean()]
    # Weights of the pool's 40,000 draws and a resampling of 4000: twice the latter's error.
    np.testing.assert_allclose(shares, 0.05, atol=5 * np.sqrt(2 * 0.05 * 0.95 / 4000))


@pytest.mark.slow
@pytest.mark.parametrize(("d", "scales"), [(2, (0.1, 100.0)), (10, (0.3, 3.0))])
def test_a_narrow_mode_inside_a_wide_one(d, scales):
    """Every descent near the middle ends in the narrow one, and half the mass is elsewhere.

    Where one is a thousand times as wide, a step of training that is small for it is not for the
    other.
    """
    loc = jnp.stack([jnp.zeros(d), jnp.full(d, 0.5)])
    potential = gaussians(loc, jnp.array(scales))
    sampler = OneStep(potential_fn=potential, multimodal=True, progress_bar=False)
    sampler.run(jr.key(0), init_params=jnp.full(d, 0.1))
    assert -0.05 < sampler.elbo < 4 * sampler.elbo_std_error
    assert abs(sampler.log_evidence) < 0.02
    x = np.asarray(sampler.get_samples())
    # All of the narrow one is within so many widths, and one in 400 of the wide one at most.
    share = ((x**2).sum(1) < 18 * d * scales[0] ** 2).mean()
    assert abs(share - 0.5) < 0.003 + 5 * np.sqrt(2 * 0.25 / 4000)


def test_too_many_dimensions_to_explore_are_refused():
    sampler = OneStep(
        potential_fn=lambda x: 0.5 * jnp.sum(x**2), multimodal=True, progress_bar=False
    )
    with pytest.raises(ValueError, match="up to 128 dimensions"):
        sampler.run(jr.key(0), init_params=jnp.zeros(200))


def test_distillation_and_multimodal_exclude_each_other():
    with pytest.raises(ValueError, match="num_distillation_steps=0"):
        OneStep(potential_fn=NINE_MODES, multimodal=True, num_distillation_steps=10)
