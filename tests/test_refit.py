"""Cross-validation by warm refits, where the predictive densities are known exactly."""

import math

import arviz as az
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest

from numpyro_onestep import OneStep
from tests.conftest import QUICK

SD = 0.5
GROUP = np.repeat(np.arange(4), 3)
rng = np.random.default_rng(3)
Y = rng.standard_normal(4)[GROUP] + SD * rng.standard_normal(12)
Y[0] += 2.0  # the observation that weights leave out worst
NUM = 4000


def groups(group, y):
    mu = numpyro.sample("mu", dist.Normal(0, 3))
    with numpyro.plate("group", 4):
        value = numpyro.sample("value", dist.Normal(mu, 1))
    with numpyro.plate("row", len(group)):
        numpyro.sample("y", dist.Normal(value[group], SD), obs=y)


def exact(left_out) -> tuple[np.ndarray, np.ndarray]:
    """Log predictive density of each observation left out, and the error of its estimate."""
    covariance = 9 + (GROUP[:, None] == GROUP) + SD**2 * np.eye(12)
    kept = np.setdiff1d(np.arange(12), left_out)
    weights = np.linalg.solve(covariance[np.ix_(kept, kept)], covariance[np.ix_(kept, left_out)])
    mean = weights.T @ Y[kept]
    variance = np.diag(covariance)[left_out] - (weights * covariance[np.ix_(kept, left_out)]).sum(0)

    def log_normal(variance):
        return -0.5 * ((Y[left_out] - mean) ** 2 / variance + np.log(2 * math.pi * variance))

    # The estimate is the log of the mean, over the draws, of the density p of the observation given
    # the value of its group.  Its error is the coefficient of variation of p over the root of the
    # number of draws, with E[p] and E[p^2] known.
    log_second_moment = log_normal(variance - SD**2 / 2) - math.log(2 * SD * math.pi**0.5)
    relative_variance = np.expm1(log_second_moment - 2 * log_normal(variance))
    return log_normal(variance), (relative_variance / NUM) ** 0.5


@pytest.fixture(scope="module")
def sampler():
    sampler = OneStep(groups, progress_bar=False, num_samples=NUM)
    sampler.run(jr.key(0), GROUP, Y.astype(np.float32))
    return sampler


def require_close(found, left_out):
    expected, error = exact(left_out)
    np.testing.assert_array_less(abs(found - expected), 4 * error + 0.005)


@pytest.mark.slow
def test_folds_are_those_of_the_exact_posterior(sampler):
    refits = sampler.refits(jr.key(1))
    folds = np.arange(12) % 3
    found = refits.kfold(folds)
    for number in range(3):
        left_out = np.flatnonzero(folds == number)
        require_close(found.pointwise[left_out], left_out)
    assert found.elpd == pytest.approx(found.pointwise.sum())
    assert sorted(refits.folds(5).tolist()) == sorted(k % 5 for k in range(12))
    with pytest.raises(ValueError, match="folds are not possible"):
        refits.folds(13)
    with pytest.raises(ValueError, match="folds has 3 numbers for 12 observations"):
        refits.kfold([0, 1, 2])


@pytest.mark.filterwarnings("ignore::UserWarning")  # of ArviZ, on what is experimental
def test_arviz_refits_where_weights_are_of_no_use(sampler):
    refits, data = sampler.refits(jr.key(1)), sampler.to_inference_data()
    by_weights = az.loo(data, pointwise=True)
    k = by_weights.pareto_k.values
    worst, threshold = np.argmax(k), np.sort(k)[-2]  # one observation alone is above
    if hasattr(az, "loo_kfold"):  # ArviZ 1.x
        found = az.reloo(refits, loo_orig=by_weights, k_threshold=threshold, pointwise=True).elpd_i
        folds = az.loo_kfold(data, refits, folds=np.arange(12) % 2, pointwise=True).elpd_i
        left_out = np.arange(0, 12, 2)
        require_close(folds.values[left_out], left_out)
    else:
        found = az.reloo(refits, loo_orig=by_weights, k_thresh=threshold).loo_i
    require_close(found.values[[worst]], [worst])


@pytest.mark.slow
def test_data_can_be_left_out_as_the_user_says(sampler):
    y = Y.astype(np.float32)

    def select(index):
        kept = np.delete(np.arange(12), index)
        return (GROUP[kept], y[kept]), (GROUP[index], y[index])

    left_out = np.array([2, 5, 7])
    refits = sampler.refits(jr.key(1), select=select)
    fitted = refits.sample(refits.sel_observations(left_out)[0])
    assert fitted.sampler.get_pool().x.shape[1] == 5
    values = refits.left_out_likelihood(fitted)
    assert values.shape == (NUM, 3)
    require_close(np.log(np.exp(values).mean(0)), left_out)
    data = refits.get_inference_data(fitted)
    found = refits.log_likelihood__i(refits.sel_observations(left_out)[1], data)
    assert found.dims == ("chain", "draw", "left_out")
    np.testing.assert_array_equal(found.values.reshape(NUM, 3), values)


def table(y, z):
    mu = numpyro.sample("mu", dist.Normal(0, 3))
    numpyro.sample("y", dist.Normal(mu, 1).expand(y.shape), obs=y)
    numpyro.sample("z", dist.Normal(mu, 1), obs=z)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::numpyro_onestep.OneStepWarning")
def test_sites_of_several_axes_and_what_cannot_be_left_out():
    sampler = OneStep(table, **QUICK)
    sampler.run(jr.key(0), np.array([[0.0, 1.0, 2.0], [1.0, 50.0, 0.0]]), 0.5)
    with pytest.raises(ValueError, match="site= one of \\['y', 'z'\\]"):
        sampler.refits(jr.key(1))
    with pytest.raises(ValueError, match="site='x' is none of the observed sites"):
        sampler.refits(jr.key(1), site="x")
    with pytest.raises(ValueError, match="'z' is one observation"):
        sampler.refits(jr.key(1), site="z")
    refits = sampler.refits(jr.key(1), site="y")
    fitted = refits.sample(refits.sel_observations([1, 1])[0])
    assert fitted.sampler.get_samples()["mu"].mean() < 3 < sampler.get_samples()["mu"].mean()
    assert refits.left_out_likelihood(fitted).shape == (200, 1)
    function = OneStep(potential_fn=lambda x: jnp.sum(x**2), **QUICK)
    function.run(jr.key(0), init_params=jnp.zeros(2))
    with pytest.raises(ValueError, match="no observed site"):
        function.refits(jr.key(1))
