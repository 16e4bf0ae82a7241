import jax.random as jr
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from numpyro_onestep.resampling import resample


def normalised(log_weights):
    return log_weights - np.logaddexp.reduce(log_weights)


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 10**6), st.floats(0.0, 20.0), st.integers(1, 100))
def test_draws_are_distinct_members_of_the_pool(seed, spread, num):
    log_w = normalised(np.random.default_rng(seed).normal(0, spread, 100))
    chosen, excess = resample(jr.key(seed), log_w, num)
    assert len(np.unique(chosen)) == num
    assert chosen.min() >= 0
    assert chosen.max() < 100
    assert 0 <= excess < 1


def test_inclusion_is_proportional_to_weight():
    weights = np.array([4.0, 3.0, 2.0, 1.0, 1.0, 1.0])
    log_w = np.log(weights / weights.sum())
    trials = 2000
    counts = np.zeros(6)
    for seed in range(trials):
        chosen, excess = resample(jr.key(seed), log_w, 2)
        counts[chosen] += 1
        assert excess == 0
    expected = 2 * weights / weights.sum()
    std_error = np.sqrt(expected * (1 - expected) / trials)
    assert np.all(np.abs(counts / trials - expected) < 4 * std_error)


def test_weight_beyond_certainty_is_reported():
    log_w = np.log(np.array([0.7, 0.1, 0.1, 0.1]))
    chosen, excess = resample(jr.key(0), log_w, 2)
    assert 0 in chosen
    assert excess == pytest.approx((2 * 0.7 - 1) / 2)


def test_zero_weights_come_last():
    log_w = np.array([np.log(0.5)] * 2 + [-np.inf] * 8)
    chosen, _ = resample(jr.key(0), log_w, 2)
    assert set(chosen) == {0, 1}
    chosen, _ = resample(jr.key(0), log_w, 4)
    assert {0, 1} < set(chosen)


def test_the_same_key_chooses_the_same():
    log_w = normalised(np.random.default_rng(0).normal(size=1000))
    np.testing.assert_array_equal(
        resample(jr.key(3), log_w, 100)[0], resample(jr.key(3), log_w, 100)[0]
    )
