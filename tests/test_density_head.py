"""The density of a flow at given points by a network of its own, and the error that it reports."""

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.infer.util import log_density

from numpyro_onestep import density_head


@pytest.fixture(scope="module")
def head(schools):
    # A fifth of the training, which leaves an error that is larger and has to be said as well.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(density_head, "_NUM_ITERATIONS", 400)
        return schools.fit_log_prob(jr.key(5))


@pytest.mark.slow
def test_its_error_is_what_it_says(schools, head):
    x, exact = schools.get_posterior().sample_and_log_prob(jr.key(1), (4000,))
    errors = np.abs(np.asarray(head.log_prob(x) - exact))
    # One draw in a hundred is beyond that quantile, up to 4.5 standard errors of 4000 and of 10,000
    # draws.  (The mean square is no such test: single draws far out may have most of it.)
    beyond = float(np.mean(errors > head.error.quantile_99))
    assert abs(beyond - 0.01) < 4.5 * (0.01 * 0.99 * (1 / 4000 + 1 / 10_000)) ** 0.5
    # The mean square without the largest hundredth is a part of that of all, up to some hundredths.
    most = np.sort(errors)[: int(0.99 * len(errors))]
    assert 0.9 * np.sqrt(np.mean(most**2)) < head.error.rms
    # The correction that it has learnt has a standard deviation of 3.4 nats.
    assert head.error.rms < 0.5


@pytest.mark.slow
def test_the_exact_density_is_one_keyword_away(schools, head):
    x = jnp.asarray(schools.get_pool().x[:5])
    exact = schools.get_posterior().log_prob(x)
    np.testing.assert_array_equal(head.log_prob(x, exact=True), exact)
    assert head.log_prob(x).shape == exact.shape == (5,)
    assert not np.array_equal(head.log_prob(x), exact)


@pytest.mark.slow
def test_it_stands_in_the_model_of_another_inference(schools, head):
    def model():
        x = numpyro.sample("x", dist.Normal(0, 1).expand([10]).to_event(1))
        numpyro.factor("flow", head.log_prob(x))

    def density(x):
        return log_density(model, (), {}, {"x": x})[0]

    # Two standard deviations from the centre, where the density has a slope.
    centre = schools.get_posterior().preconditioner
    x = centre.unwhiten(jnp.full(10, 2 / 10**0.5))
    gradient = jax.jit(jax.grad(density))(x) + x
    # The derivative in each direction, by the exact density half a step to either side.
    q, step = schools.get_posterior(), 0.02
    sides = x + step * jnp.concatenate([jnp.eye(10), -jnp.eye(10)])
    ahead, behind = jnp.split(q.log_prob(sides), 2)
    exact = (ahead - behind) / (2 * step)
    # The head's error is some tenths of a nat over distances of a standard deviation.
    assert jnp.linalg.norm(gradient - exact) < 0.5 * jnp.linalg.norm(exact)
