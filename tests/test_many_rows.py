"""Models of many rows of data, whose density is evaluated a few draws at a time."""

import jax.numpy as jnp
import jax.random as jr
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from scipy import stats

from numpyro_onestep import OneStep, Settings
from numpyro_onestep._util.batching import map_in_batches, side_by_side

ROWS = 60_000


def rows(y):
    loc = numpyro.sample("loc", dist.Normal(0, 10).expand([2]).to_event(1))
    numpyro.sample("y", dist.Normal(loc[None], 1).to_event(1), obs=y)


@pytest.mark.slow
def test_many_rows_have_the_exact_evidence_and_moments():
    y = (np.array([1.0, -2.0]) + np.random.default_rng(0).standard_normal((ROWS, 2))).astype("f4")
    sampler = OneStep(rows, num_samples=500, progress_bar=False)
    sampler.run(jr.key(0), y)
    # Given the mean of a column, its rows are independent of loc; the mean has variance 1 / ROWS.
    y = y.astype(float)
    mean, spread = y.mean(0), y.var(0) * ROWS
    log_z = stats.norm.logpdf(mean, 0, np.sqrt(100 + 1 / ROWS)).sum()
    log_z += np.sum(-0.5 * spread - 0.5 * (ROWS - 1) * np.log(2 * np.pi) - 0.5 * np.log(ROWS))
    assert sampler.log_evidence == pytest.approx(log_z, abs=0.02)
    draws = sampler.get_samples()["loc"]
    # Of a draw's coordinate the standard error of the mean is sd / sqrt(500), that of log sd 0.03.
    sd = (1 / (ROWS + 0.01)) ** 0.5
    np.testing.assert_allclose((draws.mean(0) - mean) / sd, 0, atol=5 / 500**0.5)
    np.testing.assert_allclose(np.log(draws.std(0) / sd), 0, atol=5 * 0.03)
    pool, potential = sampler.get_pool(), sampler.result.problem.potential
    assert side_by_side(potential) < 10  # so a batch holds a few of its draws only
    directly = [float(potential(jnp.asarray(x))) for x in pool.x[:3]]
    np.testing.assert_allclose(-pool.log_density[:3], directly, rtol=1e-6)


def test_a_pool_is_smaller_where_an_evaluation_is_large_unless_asked_for():
    draws = Settings.of().draws
    assert draws.num_pool_in(10, 2**10) == draws.num_pool
    assert draws.num_pool_in(10, 2**19) == 2**14
    assert draws.num_pool_in(10, 2**24) == 2 * draws.num_samples
    assert Settings.of(pool_size=30_000).draws.num_pool_in(10, 2**24) == 30_000


def test_a_first_pool_is_smaller_in_hundreds_of_dimensions_unless_asked_for():
    draws = Settings.of().draws
    assert draws.num_first_pool_in(100) == draws.num_pool
    assert draws.num_first_pool_in(256) == 2**14 < draws.num_pool_in(256)
    assert draws.num_first_pool_in(600) == 2 * draws.num_samples < draws.num_pool_in(600)
    assert Settings.of(pool_size=30_000).draws.num_first_pool_in(600) == 30_000


@pytest.mark.parametrize("limit", [1, 4, 10, 1000])
def test_batches_of_every_size_give_the_same_values(limit):
    x = np.arange(20.0).reshape(10, 2)
    np.testing.assert_allclose(map_in_batches(lambda v: v @ v, x, limit), (x * x).sum(1))
