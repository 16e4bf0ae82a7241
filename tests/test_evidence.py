import math

import equinox as eqx
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

from numpyro_onestep._util.batching import map_in_batches
from numpyro_onestep.flow import FlowDistribution
from numpyro_onestep.flow.gaussian import GaussianPreconditioner
from numpyro_onestep.importance.evidence import Evidence, weigh
from numpyro_onestep.importance.pool import Pool, draw, draw_pool
from numpyro_onestep.importance.psis import pareto_smooth
from numpyro_onestep.target import Potential
from tests.conftest import correlated_gaussian, random_flow

DIM = 3


def parts(flow, target, num_steps=1):
    """The flow's distribution in the target's own whitened coordinates, and the potential."""
    gaussian = GaussianPreconditioner(target.loc, target.scale_tril)
    distribution = FlowDistribution(flow, gaussian, num_steps=num_steps)
    return distribution, Potential.of(target, None, target.loc)


def pool_of(log_weight, sign=None):
    log_weight = jnp.asarray(log_weight)
    zero = jnp.zeros_like(log_weight)
    sign = jnp.ones_like(log_weight) if sign is None else jnp.asarray(sign)
    return Pool(zero[:, None], log_weight, zero, zero, sign, zero == 0, zero[:, None])


@pytest.mark.parametrize("num_steps", [1, 4])
@pytest.mark.parametrize("seed", range(3))
def test_elbo_is_below_and_importance_sampling_meets_the_known_evidence(seed, num_steps):
    target = correlated_gaussian(DIM, seed)
    flow = random_flow(DIM, jr.key(seed), num_grid_steps=4, scale=0.05)
    pool = draw_pool(*parts(flow, target, num_steps), jr.key(seed), 20_000, num_inflated=4000)
    _, evidence, smoothed = weigh(pool)
    assert evidence.elbo < target.log_z + 3 * evidence.elbo_std_error
    assert evidence.elbo < target.log_z - 0.005  # this flow is not exact, and the bound shows it
    assert abs(evidence.log_evidence - target.log_z) < 4 * evidence.log_evidence_std_error
    assert evidence.folded_fraction == 0
    np.testing.assert_allclose(np.exp(smoothed).sum(), 1.0)
    # The weighted draws have the target's mean.
    mean = np.exp(smoothed) @ np.asarray(pool.x)
    sd = np.sqrt(np.diag(target.scale_tril @ target.scale_tril.T))
    assert np.all(np.abs(mean - target.loc) < 4.5 * sd / evidence.ess**0.5)


def test_an_exact_flow_has_no_gap():
    target = correlated_gaussian(DIM)
    flow = random_flow(DIM, jr.key(0), scale=0.0)
    flow = eqx.tree_at(lambda f: f.network.last.bias, flow, jnp.zeros(2 * DIM))
    evidence = weigh(draw_pool(*parts(flow, target), jr.key(0), 1000)).evidence
    np.testing.assert_allclose([evidence.elbo, evidence.log_evidence], target.log_z, atol=1e-4)
    assert evidence.ess == pytest.approx(1000, rel=1e-4)


def test_the_pool_does_not_depend_on_the_memory_it_may_take():
    target, flow = correlated_gaussian(DIM), random_flow(DIM, jr.key(0))
    whole = draw_pool(*parts(flow, target), jr.key(1), 101)
    small = draw_pool(*parts(flow, target), jr.key(1), 101, batch_bytes=10_000)
    for a, b in zip(whole, small, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)
    again = draw(parts(flow, target)[0], jr.key(1), 101)
    np.testing.assert_allclose(again, whole.x, rtol=1e-5)


@pytest.mark.parametrize(("num", "limit"), [(1, 5), (5, 5), (7, 3), (100, 33)])
def test_mapping_in_batches_keeps_order_and_number(num, limit):
    values = jnp.arange(2.0 * num).reshape(num, 2)
    np.testing.assert_array_equal(map_in_batches(lambda v: v.sum(), values, limit), values.sum(1))


def test_pareto_k_is_the_index_of_the_tail():
    rng = np.random.default_rng(0)
    for k in (0.3, 0.9):
        ks = [pareto_smooth(rng.exponential(k, 20_000))[1] for _ in range(5)]
        # w = exp(Exponential(k)) is Pareto of index k; the tail has 3 sqrt(20000) = 424 draws.
        assert np.mean(ks) == pytest.approx(k, abs=4 * (1 + k) / math.sqrt(5 * 424))


def test_smoothing_keeps_the_scale_of_the_weights():
    log_w = np.random.default_rng(1).normal(-500.0, 0.5, 10_000)
    smoothed, _ = pareto_smooth(log_w)
    np.testing.assert_allclose(np.sort(smoothed)[:9000], np.sort(log_w)[:9000], rtol=1e-12)


def test_equal_weights_have_no_tail():
    evidence = weigh(pool_of(jnp.full(100, -2.0))).evidence
    assert evidence.pareto_k == 0
    assert evidence.log_evidence == pytest.approx(-2.0)
    assert evidence.ess == pytest.approx(100)


@pytest.mark.parametrize("sd", [0.0005, 0.002, 0.01])
def test_weights_that_rounding_makes_equal_have_no_tail(sd):
    """Of a log density of 1e5 single precision keeps multiples of 0.0078 nats."""
    rng = np.random.default_rng(0)
    log_density = jnp.asarray(1e5 + rng.normal(0, sd, 40_000), jnp.float32)
    evidence = weigh(pool_of(log_density)).evidence
    assert evidence.pareto_k < 0.4
    assert evidence.log_evidence == pytest.approx(1e5, abs=0.0078)
    assert evidence.resolution == pytest.approx(2**-7)


@pytest.mark.parametrize("num", [2, 5, 24])
def test_too_few_weights_for_a_tail_stay_as_they_are(num):
    log_w = np.linspace(0, 1, num)
    smoothed, k = pareto_smooth(log_w)
    np.testing.assert_array_equal(smoothed, log_w)
    assert k == math.inf


def test_folds_and_impossible_draws_are_counted():
    log_w = jnp.where(jnp.arange(200) % 50 == 0, -jnp.inf, jnp.linspace(0, 0.1, 200))
    sign = jnp.where(jnp.arange(200) < 10, -1.0, 1.0)
    _, evidence, smoothed = weigh(pool_of(log_w, sign))
    assert evidence.num_non_finite == 4
    possible = np.asarray(log_w)[np.isfinite(log_w)]
    assert evidence.elbo == pytest.approx(possible.mean() + math.log(196 / 200))
    assert evidence.elbo < evidence.log_evidence
    assert evidence.folded_fraction == pytest.approx(0.05)
    assert np.exp(smoothed[::50]).sum() == 0


def test_rejected_draws_leave_the_elbo_a_bound():
    # The target is N(0, 1) cut off at 1, the flow N(0, 1): every weight is one or zero, so
    # rejection makes the flow exact and the bound an equality.
    z = jr.normal(jr.key(0), (10_000,))
    evidence = weigh(pool_of(jnp.where(z < 1, 0.0, -jnp.inf))).evidence
    log_z = math.log(0.5 * (1 + math.erf(1 / 2**0.5)))
    assert (
        abs(evidence.elbo - log_z) < 4 * ((1 - math.exp(log_z)) / math.exp(log_z) / 10_000) ** 0.5
    )
    assert abs(evidence.elbo - evidence.log_evidence) < 1e-6


def test_a_pool_without_a_possible_draw_says_so():
    evidence = weigh(pool_of(jnp.full(10, jnp.nan))).evidence
    assert evidence.log_evidence == -math.inf
    assert evidence.num_non_finite == 10


@pytest.mark.parametrize(
    ("k", "doubtful"), [(0.5, False), (0.62, False), (0.65, True), (0.9, True), (math.nan, True)]
)
def test_weights_are_doubtful_where_k_may_be_above_its_limit(k, doubtful):
    # Of 40,000 weights the largest 600 are the tail: at k = 0.65 the standard error is 0.067.
    evidence = Evidence(0.0, 0.1, 0.0, 0.1, k, 3e4, 40_000, 0.0, 0.0, 0, 1e-6)
    assert evidence.pareto_k_limit == 0.7
    assert evidence.doubtful == doubtful
    # Fewer draws say less: of 100 the limit is 1 - 1 / 2.
    assert evidence._replace(num_draws=100).pareto_k_limit == 0.5
