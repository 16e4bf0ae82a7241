import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from numpyro.diagnostics import effective_sample_size

from numpyro_onestep import OneStep, OneStepWarning
from numpyro_onestep._util.batching import map_in_batches
from numpyro_onestep.corrections import CORRECTIONS, AbstractCorrection, correction_of
from numpyro_onestep.corrections.pgibbs import Space, sweep
from numpyro_onestep.settings import DrawSettings
from tests.conftest import (
    EFFECT,
    STD_ERROR,
    CorrelatedGaussian,
    correlated_gaussian,
    eight_schools,
    random_flow,
    unconditioned,
)


@pytest.mark.slow
@pytest.mark.parametrize("name", CORRECTIONS, ids=str)
def test_every_correction_keeps_the_protocol(name, schools):
    """From a pool of known worth to draws that have the posterior's moments, as the base says."""
    settings = DrawSettings(num_samples=2000, correction=name, progress_bar=False)
    correction, result = correction_of(settings), schools.result
    assert isinstance(correction, AbstractCorrection)
    parts = result.weighted, result.distribution, result.problem.potential
    corrected, again = (correction(*parts, jr.key(3)) for _ in range(2))
    assert corrected.x.shape == (2000, result.pool.x.shape[1])
    assert np.isfinite(corrected.x).all()
    np.testing.assert_array_equal(corrected.x, again.x)  # by the key alone
    assert corrected.line
    assert corrected.num_chains == correction.num_chains
    assert (corrected.r_hat is None) == (correction.num_chains == 1)
    if corrected.chosen is not None:
        np.testing.assert_array_equal(corrected.x, result.pool.x[corrected.chosen])
    for value in corrected.stats.values():
        assert len(value) == 2000
    # Means as those of the pool's weights; of chains the effective size may be a quarter.
    weights = np.exp(result.smoothed_log_weights)
    mean = weights @ result.pool.x
    sd = np.sqrt(weights @ (result.pool.x - mean) ** 2)
    assert np.all(abs(corrected.x.mean(0) - mean) < 4.5 * sd / 500**0.5)
    assert np.all(abs(np.log(corrected.x.std(0) / sd)) < 0.3)


@pytest.mark.slow
@pytest.mark.parametrize("correction", ["imh", "nuts"])
def test_chains_have_the_reference_moments(correction):
    sampler = OneStep(eight_schools, correction=correction, progress_bar=False)
    sampler.run(jr.key(0), STD_ERROR, y=EFFECT)
    grouped = sampler.get_samples(group_by_chain=True)
    assert grouped["theta"].shape == (4, 1000, 8)
    # posteriordb's 10,000 draws; chains' effective sizes are at least 2000.
    for name, mean, sd in (("mu", 4.41, 3.30), ("tau", 3.60, 3.20)):
        assert abs(float(grouped[name].mean()) - mean) < 4 * sd * (1 / 2000 + 1e-4) ** 0.5
    stats = sampler.to_inference_data()["sample_stats"]
    assert stats["lp"].shape == (4, 1000)
    assert np.isfinite(stats["log_weight"].values).all()


def _funnel(x):
    return x[0] ** 2 / 4.5 + 0.5 * jnp.sum(x[1:] ** 2) * jnp.exp(-x[0]) + 2 * x[0]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("potential", "statistic", "mean", "sd", "start"),
    [
        # Steep in its neck alone.
        (_funnel, lambda x: x[..., 0], 0.0, 1.5, jnp.zeros(5)),
        # Steep all around: x^20 has a Gamma distribution of shape 1/20, mean and variance 0.05.
        (lambda x: jnp.sum(x**20), lambda x: x[..., 0] ** 20, 0.05, 0.05**0.5, jnp.full(2, 0.5)),
    ],
)
@pytest.mark.filterwarnings("ignore::numpyro_onestep.OneStepWarning")
def test_nuts_is_right_where_the_map_has_left_the_target_steep(
    potential, statistic, mean, sd, start
):
    # Ten iterations leave the flow at its base.
    sampler = OneStep(
        potential_fn=potential,
        correction="nuts",
        max_steps=10,
        num_flow_steps=1,
        progress_bar=False,
    )
    sampler.run(jr.key(1), init_params=start)
    values = statistic(np.asarray(sampler.get_samples(group_by_chain=True), np.float64))
    ess = effective_sample_size(values)
    assert ess > 300
    assert abs(values.mean() - mean) < 4 * sd / ess**0.5


@pytest.mark.slow
def test_chains_that_have_not_mixed_say_so():
    # Ten iterations leave the flow at its base, and a pool of 100 is 25 proposals a chain.
    def neck(x):
        return x[0] ** 2 / 18 + 0.5 * jnp.sum(x[1:] ** 2) * jnp.exp(-x[0]) + 2 * x[0]

    sampler = OneStep(
        potential_fn=neck,
        correction="imh",
        num_samples=100,
        pool_size=100,
        num_flow_steps=1,
        max_steps=10,
        progress_bar=False,
    )
    with pytest.warns(OneStepWarning):
        sampler.run(jr.key(0), init_params=jnp.zeros(5))
    assert any("R-hat of the correcting chains" in message for message in sampler.messages)


@pytest.mark.slow
def test_the_interval_of_a_gaussian_closes_on_its_evidence():
    target = correlated_gaussian(5)
    sampler = OneStep(potential_fn=target, progress_bar=False)
    sampler.run(jr.key(0), init_params=jnp.zeros(5))
    lower, lower_error, upper, upper_error, reached = sampler.evidence_interval(jr.key(1))
    assert reached > 0.999
    assert lower - 4 * lower_error < target.log_z < upper + 4 * upper_error
    assert upper - lower < 0.02


def _two_modes(x):
    """0.7 N(-1.5, 0.4^2) + 0.3 N(2, 0.8^2): mean -0.45, variance 2.827."""
    return -jnp.logaddexp(
        jnp.log(0.7 / 0.4) - 0.5 * ((x[0] + 1.5) / 0.4) ** 2,
        jnp.log(0.3 / 0.8) - 0.5 * ((x[0] - 2.0) / 0.8) ** 2,
    )


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::numpyro_onestep.OneStepWarning")
def test_particle_gibbs_is_exact_where_one_step_is_poor():
    # Ten iterations leave the flow at its base, a Gaussian.
    sampler = OneStep(
        potential_fn=_two_modes,
        correction="pgibbs",
        max_steps=10,
        num_flow_steps=1,
        progress_bar=False,
    )
    sampler.run(jr.key(0), init_params=jnp.zeros(1))
    assert sampler.log_evidence - sampler.elbo > 0.1
    corrected = sampler.result.corrected
    assert corrected.r_hat < 1.01
    x = np.asarray(sampler.get_samples(group_by_chain=True), np.float64)[..., 0]
    grid = np.linspace(-6, 8, 20_001)
    density = np.exp(-jax.vmap(_two_modes)(grid[:, None]))
    density = density / density.sum()
    for statistic in (lambda x: x, np.square, lambda x: x > 0, lambda x: x < -1.5):
        values = statistic(x).astype(float)
        exact = density @ statistic(grid)
        # Four standard errors of chains of this effective sample size.
        error = values.std() / effective_sample_size(values) ** 0.5
        assert abs(values.mean() - exact) < 4 * error


@pytest.mark.parametrize("is_learnt", [pytest.param(False, marks=pytest.mark.slow), True])
def test_a_sweep_of_particle_gibbs_leaves_the_posterior_as_it_is(is_learnt):
    # A random network, so that its map and its drift are not those of this posterior.
    flow = random_flow(2, jr.key(1), num_grid_steps=4, scale=0.01)
    distribution, _ = unconditioned(flow, dim=2)
    scale_tril, num = jnp.array([[1.2, 0.0], [0.5, 0.8]]), 5000
    target = CorrelatedGaussian(jnp.zeros(2), scale_tril, 0.0)
    start = jr.normal(jr.key(2), (num, 2)) @ scale_tril.T
    space = Space(distribution, target, is_learnt)
    if not is_learnt:
        z, found = jax.jit(distribution.transform.invert)(start)
        assert bool(found.all())
        start = z / space.scale
    keys = jr.split(jr.key(3), num)
    run = jax.jit(lambda start: map_in_batches(lambda at: sweep(space, *at), (start, keys)))
    end, moved = (np.asarray(values, np.float64) for values in run(start))
    assert moved.mean() > 0.3
    start = np.asarray(start, np.float64)
    for statistic in (
        lambda y: y,
        np.square,
        np.cos,
        lambda y: abs(y),
        lambda y: y[:, :1] * y[:, 1:],
    ):
        # Draws of before and after are correlated, so it is their difference that is judged.
        change = statistic(end) - statistic(start)
        assert np.all(abs(change.mean(0)) < 4.5 * change.std(0) / num**0.5)
