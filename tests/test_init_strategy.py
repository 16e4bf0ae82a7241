"""Where a run starts, by the strategies that NumPyro's samplers take."""

import jax.numpy as jnp
import jax.random as jr
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.infer import init_to_mean, init_to_median, init_to_uniform, init_to_value

from numpyro_onestep import OneStep
from tests.conftest import QUICK

CENTRE = 7.0


def island():
    """A posterior N(7, 0.3^2) in two coordinates, of log evidence 0, and no density beyond 3.

    Ten standard deviations out there is nothing for draws to miss, but no uniform start in
    (-2, 2) has a finite density, so no run begins there.
    """
    x = numpyro.sample("x", dist.Normal(CENTRE, 0.3).expand([2]).to_event(1))
    numpyro.factor("shore", jnp.where(jnp.all(abs(x - CENTRE) < 3), 0.0, -jnp.inf))


def run(model, init_strategy, **settings):
    sampler = OneStep(model, init_strategy=init_strategy, **{**QUICK, **settings})
    sampler.run(jr.key(0))
    return sampler


@pytest.mark.parametrize(
    "strategy",
    [init_to_uniform, init_to_uniform(radius=3.9), init_to_value(values={"x": jnp.zeros(2)})],
    ids=["default", "radius", "value"],
)
def test_a_start_without_density_is_refused_with_a_remedy(strategy):
    with pytest.raises(ValueError, match=r"not finite at any of 100.*init_params"):
        run(island, strategy)


@pytest.mark.slow
@pytest.mark.parametrize(
    "strategy",
    [
        init_to_value(values={"x": jnp.full(2, CENTRE + 1)}),
        init_to_median,
        init_to_median(num_samples=3),
        init_to_mean,
        init_to_uniform(radius=12.0),  # a tenth of its starts, and a hundred are tried
    ],
    ids=["value", "median", "median of 3", "mean", "radius"],
)
@pytest.mark.filterwarnings("ignore::numpyro_onestep.OneStepWarning")
def test_a_strategy_finds_the_density_where_the_default_does_not(strategy):
    sampler = run(island, strategy)
    assert abs(sampler.log_evidence) < 0.01 + 4 * sampler.log_evidence_std_error
    x = np.asarray(sampler.get_samples()["x"])
    assert np.all(abs(x.mean(0) - CENTRE) < 4.5 * 0.3 / 200**0.5)


def two_modes():
    """Of log evidence 0, half of it at either mode, twenty standard deviations from the middle."""
    halves = dist.Normal(jnp.array([-20.0, 20.0]), 1.0)
    x = numpyro.sample("x", dist.MixtureSameFamily(dist.Categorical(jnp.ones(2) / 2), halves))
    numpyro.sample("y", dist.Normal(0.01 * x, 1.0))


@pytest.mark.slow
@pytest.mark.parametrize("side", [-1.0, 1.0])
@pytest.mark.filterwarnings("ignore::numpyro_onestep.OneStepWarning")
def test_the_value_decides_in_which_mode_the_run_ends(side):
    # The other site starts where the strategy for those that are not given says.
    strategy = init_to_value(values={"x": jnp.asarray(17.0 * side)})
    sampler = run(two_modes, strategy)
    x = np.asarray(sampler.get_samples()["x"])
    assert np.all(side * x > 10)
    assert abs(x.mean() - 20 * side) < 4.5 / 200**0.5
    assert abs(sampler.log_evidence - np.log(0.5)) < 0.02 + 4 * sampler.log_evidence_std_error


def test_init_params_come_before_the_strategy():
    start = {"x": jnp.full(2, CENTRE)}
    sampler = OneStep(island, init_strategy=init_to_value(values={"x": jnp.zeros(2)}), **QUICK)
    sampler.run(jr.key(0), init_params=start)
    np.testing.assert_array_equal(sampler.run_arguments[2]["x"], start["x"])
    assert abs(float(sampler.get_samples()["x"].mean()) - CENTRE) < 4.5 * 0.3 / 400**0.5
